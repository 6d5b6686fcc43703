//! Which cached device or volume a command line means.

use std::path::Path;

use anyhow::{Result, bail};
use bcache_engine::fsck::view::{Backing, Content, Devices, Refusal, SetView, set};
use bcache_engine::fsck::{Finding, Options, Severity, check};
use bcache_format::superblock::BackingState;

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

impl Opened {
    /// Puts the set together, unless nothing of what is asked for can be in a cache.
    pub fn new(devices: Devices, of: Option<&Of>) -> Result<Self, Refusal> {
        let attached =
            |backing: &Backing| !matches!(backing.sb.state(), BackingState::None | BackingState::Stale);
        let cache = set::single_cache(&devices)?.cloned();
        let chosen = match of {
            Some(Of::Backing(name)) => devices.backings.iter().find(|backing| is_called(backing, name)),
            Some(Of::Volume(_)) => None,
            None => match devices.backings.as_slice() {
                [only] => Some(only),
                _ => None,
            },
        };
        let needed = chosen.is_none_or(attached);
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

    /// Refuses a set that a check finds anything wrong with: some damage is of the kind that gives wrong content and
    /// nothing else, in Linux too.
    pub fn must_be_sound(&self) -> Result<()> {
        if self.set.is_none() {
            return Ok(());
        }
        let caches = self.devices.caches.iter().map(|cache| cache.device.clone());
        let backings = self.devices.backings.iter().map(|backing| backing.device.clone());
        let checked = check(caches.chain(backings), Options::default());
        match checked.findings.iter().find(|finding| finding.severity() > Severity::Harmless) {
            None => Ok(()),
            Some(Finding { kind, device, byte, detail, .. }) => {
                bail!(
                    "{device}: {kind} at byte {byte}: {detail}; see `bcache fsck -n` with all devices of the set"
                )
            }
        }
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
            None => set::backing_without_cache(backing)?,
        };
        Ok((backing.name.to_string(), content))
    }

    /// The devices there are, a line each.
    fn list(&self) -> String {
        let label = |label: String| if label.is_empty() { label } else { format!(" \"{label}\"") };
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
