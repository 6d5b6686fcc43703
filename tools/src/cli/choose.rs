//! Which cached device or volume a command line means.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use bcache_engine::fsck::salvage::not_known;
use bcache_engine::fsck::view::set::{self, Attachment};
use bcache_engine::fsck::view::{Backing, Content, Device, Devices, Refusal, SetView, content};

use bcache_engine::fsck::{Checked, Finding, Kind, Options, Severity, check, repair};
use bcache_format::{Pos, Sectors};

use super::partial::partial;
use super::{BadInput, memory};
use crate::kept;

/// What `--of` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Of {
    /// A backing device: its path, its UUID or its label.
    Backing(String),
    /// The flash-only volume of this number, counted from 0.
    Volume(usize),
}

impl std::str::FromStr for Of {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("volume:") {
            None => Ok(Self::Backing(text.to_owned())),
            Some(number) => match number.parse() {
                Ok(number) => Ok(Self::Volume(number)),
                Err(_) => Err(format!("volume:N wants a number, not {number:?}")),
            },
        }
    }
}

/// Devices, and the set they make up when their content depends on a cache.
pub struct Opened {
    devices: Devices,
    set: Option<SetView>,
}

/// A set as far as it can be read.
pub struct Best {
    /// The set.
    pub opened: Opened,
    /// Keys that are lost, or whose newest state is.
    pub lost: Vec<(Pos, Pos)>,
    /// Nothing else is lost or guessed either.
    pub complete: bool,
}

impl Best {
    const fn whole(opened: Opened) -> Self {
        Self { opened, lost: Vec::new(), complete: true }
    }
}

/// Whether something is guessed, or lost that has no place of which it could be said: of a journal that is not whole nobody
/// knows what its newest keys were.
pub fn loses(checked: &Checked) -> bool {
    let anywhere = |kind: Kind| {
        matches!(
            kind,
            Kind::JournalEmpty
                | Kind::JournalMissing
                | Kind::JournalHole
                | Kind::JournalUnreadable
                | Kind::JournalOrder
                | Kind::SbLost
        )
    };
    checked.findings.iter().any(|finding| finding.guess || anywhere(finding.kind))
}

impl Opened {
    /// Puts the set together, unless nothing of what is asked for can be in a cache.
    pub fn new(devices: Devices, of: Option<&Of>) -> Result<Self, Refusal> {
        let attached = |backing: &Backing| !backing.sb.state().is_whole();
        let cache = set::single_cache(&devices)?.cloned();
        let needed = chosen(&devices, of).is_none_or(attached);
        let set = match cache {
            // A cache that was never used has no volumes; a backing device beside it may still be alone.
            Some(cache) if needed || cache.sb.sync() => match SetView::open(cache) {
                Err(_) if !needed => None,
                other => Some(other?),
            },
            _ => None,
        };
        Ok(Self { devices, set })
    }

    /// The set as it is, or, where it is damaged, as a repair would leave it. The repair is made in memory.
    pub fn best(devices: &[Device], of: Option<&Of>) -> Result<Best> {
        let open = |devices: &[Device]| -> Result<Self, Refusal> {
            Self::new(Devices::open(devices.iter().cloned())?, of)
        };
        let (opened, refused) = match open(devices) {
            Ok(opened) if opened.set.is_none() => return Ok(Best::whole(opened)),
            Ok(opened) => (Some(opened), None),
            Err(refusal @ (Refusal::Fault(_) | Refusal::NotSync(_) | Refusal::Unknown { .. })) => {
                (None, Some(refusal))
            }
            Err(refusal) => return Err(BadInput(refusal.to_string()).into()),
        };
        let options = Options { kept: Some(&kept::left_of), ..Options::default() };
        let mut checked = check(devices.iter().cloned(), options);
        let worst = checked.findings.iter().find(|finding| finding.severity() > Severity::Harmless);
        let Some(Finding { kind, device, byte, detail, .. }) = worst else {
            return match (opened, refused) {
                // With what only memory has.
                (Some(opened), _) if !checked.kept.is_empty() => {
                    let set = checked.set.take();
                    Ok(Best::whole(Self { set, ..opened }))
                }
                (Some(opened), _) => Ok(Best::whole(opened)),
                (None, Some(refusal)) => Err(BadInput(refusal.to_string()).into()),
                (None, None) => bail!("nothing to read"),
            };
        };
        let found = format!("{device}: {kind} at byte {byte}: {detail}");
        if checked.findings.counts.keys().any(|kind| kind.is_choice()) {
            return Err(BadInput(refused.map_or(found, |refusal| refusal.to_string())).into());
        }
        memory::suffices(repair::memory(&checked))?;
        let mut random = || uuid::Uuid::new_v4().as_u64_pair().0;
        let plan = repair::plan(devices, &checked, &mut random);
        let plan = plan.map_err(|refused| anyhow!("{found}; {refused}"))?;
        let repaired = plan.simulate(devices, usize::MAX).context("repairing in memory")?;
        let opened = open(&repaired).map_err(|refusal| anyhow!("{found}; repaired in memory: {refusal}"))?;
        // Standard error may be gone; what is lost is in the exit code too.
        let _ = writeln!(std::io::stderr(), "{found}; it is read as `bcache fsck -y` would leave it");
        let _ = partial(&checked.absent(), false, &mut std::io::stderr());
        let lost = checked.set.as_ref().map(|view| not_known(&checked, view)).unwrap_or_default();
        let complete = !loses(&checked) && plan.changed.is_empty() || opened.is_alone(of);
        Ok(Best { opened, lost, complete })
    }

    /// Whether what is asked for is a backing device with nothing in the cache: what is guessed of the set is not in it.
    fn is_alone(&self, of: Option<&Of>) -> bool {
        let Some(set) = &self.set else { return true };
        let is_alone = |backing| matches!(set.attachment(backing), Ok(Attachment::Alone));
        chosen(&self.devices, of).is_some_and(is_alone)
    }

    /// The content of what is meant, with a word for it.
    pub fn content(&self, of: Option<&Of>) -> Result<(String, Content<'_>)> {
        match of {
            Some(Of::Volume(number)) => match &self.set {
                Some(set) => Ok((format!("volume:{number}"), set.volume(*number)?)),
                None => bail!("volume:{number} is on a cache device, and none was named"),
            },
            Some(Of::Backing(name)) => {
                let mut found = self.devices.backings.iter().filter(|backing| is_called(backing, name));
                match (found.next(), found.next()) {
                    (Some(backing), None) => self.backing(backing),
                    (Some(_), Some(_)) => bail!("{name} names more than one backing device"),
                    (None, _) => bail!("{name} is none of the backing devices named{}", self.list()),
                }
            }
            None => self.only(),
        }
    }

    /// The content when the command line does not say which: there must be one.
    fn only(&self) -> Result<(String, Content<'_>)> {
        let volumes = self.set.as_ref().map_or(0, |set| set.volumes().count());
        match (self.devices.backings.as_slice(), volumes, &self.set) {
            ([backing], _, _) if volumes == 0 => self.backing(backing),
            ([], 1, Some(set)) => Ok(("volume:0".to_owned(), set.volume(0)?)),
            ([], 0, _) => bail!("no backing device was named, and the cache has no volume"),
            _ => bail!("several devices could be meant; say which with --of{}", self.list()),
        }
    }

    fn backing<'v>(&'v self, backing: &'v Backing) -> Result<(String, Content<'v>)> {
        let content = match &self.set {
            Some(set) => set.cached_device(backing)?,
            None => content::backing_without_cache(backing)?,
        };
        Ok((backing.name.to_string(), content))
    }

    /// The devices there are, a line each.
    fn list(&self) -> String {
        let label = |label: String| match label.as_str() {
            "" => label,
            label => format!(" \"{}\"", super::escaped(label)),
        };
        let mut list = String::new();
        for backing in &self.devices.backings {
            list += &format!("\n  --of {}{}", backing.name, label(backing.sb.label.to_text()));
        }
        if let Some(set) = &self.set {
            for (number, (_, entry)) in set.volumes().enumerate() {
                list += &format!("\n  --of volume:{number}{}", label(entry.label.to_text()));
            }
        }
        list
    }
}

/// The sectors of a device's content, which begins at `offset` and has so many, that are in ranges of keys.
pub fn sectors_of(ranges: &[(Pos, Pos)], slot: u32, offset: Sectors, sectors: u64) -> Vec<(u64, u64)> {
    let inside = |(from, to): &(Pos, Pos)| {
        if slot < from.inode || to.inode < slot {
            return None;
        }
        let from = if from.inode < slot { 0 } else { from.offset.saturating_sub(offset.0) };
        let to = if slot < to.inode { sectors } else { to.offset.saturating_sub(offset.0).min(sectors) };
        (from < to).then_some((from, to))
    };
    ranges.iter().filter_map(inside).collect()
}

/// The backing device that is asked for.
fn chosen<'d>(devices: &'d Devices, of: Option<&Of>) -> Option<&'d Backing> {
    match (of, devices.backings.as_slice()) {
        (Some(Of::Backing(name)), all) => all.iter().find(|backing| is_called(backing, name)),
        (Some(Of::Volume(_)), _) => None,
        (None, [only]) => Some(only),
        (None, _) => None,
    }
}

fn is_called(backing: &Backing, name: &str) -> bool {
    let same_path = || {
        let real = |path: &str| std::fs::canonicalize(Path::new(path)).ok();
        real(name).is_some_and(|path| Some(path) == real(&backing.name))
    };
    *backing.name == *name
        || backing.sb.uuid.to_string().eq_ignore_ascii_case(name)
        || (!name.is_empty() && backing.sb.label.as_bytes() == name.as_bytes())
        || same_path()
}
