//! `bcache doctor`: what state everything is in, in plain words, and what to do next.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use bcache_engine::fsck::view::set::Attachment;
use bcache_engine::fsck::view::{Backing, Cache, Devices, SetView};
use bcache_engine::fsck::{Finding, Kind, Options, Severity, check};
use bcache_format::Sectors;
use bcache_format::superblock::BackingState;
use bytesize::ByteSize;

use super::devices::{InUse, open};
use super::{Out, Outcome};

/// Faults told one by one.
const FAULTS_TOLD: usize = 5;

/// Say in plain words what state each device is in, how much is dirty, and what to do next
///
/// Nothing is changed. Exit code 0 when everything named is in order, 1 when something needs attention.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache doctor /dev/sdb /dev/nvme0n1")]
pub struct Args {
    /// Cache and backing devices, in any order
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// Looks and tells.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let (mut devices, mut well) = (Devices::default(), true);
    for path in &args.devices {
        if let Err(fault) = devices.push(open(path, InUse::Allow)?) {
            well = false;
            writeln!(out, "{}: not usable\n  {}", fault.device, fault.what)?;
            writeln!(out, "  next: bcache show {}", path.display())?;
        }
    }
    let sets = devices.caches.iter().map(|cache| Set::look(cache, &devices.backings)).collect::<Vec<_>>();
    let typed = typed(&args.devices);
    for set in &sets {
        well &= set.tell(&typed, out)?;
    }
    for backing in &devices.backings {
        well &= tell_backing(backing, &sets, &args.devices, out)?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Devices as they are typed.
fn typed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
}

/// A cache, and what is in it.
struct Set {
    cache: Cache,
    view: Option<SetView>,
    faults: u64,
    told: Vec<Finding>,
    /// The last journal write was cut off.
    torn: bool,
    /// There is no journal entry any more.
    gone: bool,
    /// Sectors with data by inode: dirty and all.
    sectors: BTreeMap<u32, (u64, u64)>,
}

impl Set {
    fn look(cache: &Cache, backings: &[Backing]) -> Self {
        let (view, told, sectors) = (None, Vec::new(), BTreeMap::new());
        let mut set = Self { cache: cache.clone(), view, faults: 0, told, torn: false, gone: false, sectors };
        let ours = backings
            .iter()
            .filter(|backing| backing.sb.set_uuid == cache.sb.set_uuid || backing.sb.set_uuid.is_nil());
        let devices = ours.map(|backing| backing.device.clone());
        let checked = check(std::iter::once(cache.device.clone()).chain(devices), Options::default());
        set.faults = checked.findings.counts.values().sum();
        set.gone = checked.has(Kind::JournalEmpty);
        set.torn = checked.has(Kind::JournalTailTorn);
        let told = checked.findings.iter().filter(|finding| finding.severity() > Severity::Harmless);
        set.told = told.take(FAULTS_TOLD).cloned().collect();
        if set.told.is_empty() {
            set.faults = 0;
        }
        set.sectors = checked.slots.iter().map(|(slot, used)| (*slot, (used.dirty, used.all))).collect();
        set.view = checked.set;
        set
    }

    /// Tells of the cache itself. False when something is wrong.
    fn tell(&self, devices: &str, out: &mut Out) -> Result<bool> {
        let (name, geometry) = (&self.cache.name, &self.cache.geometry);
        let capacity = size(Sectors(geometry.nbuckets.saturating_mul(geometry.bucket_sectors.into())));
        let buckets = size_of(geometry.bucket_bytes());
        writeln!(out, "{name}: cache of {capacity} in buckets of {buckets}, set {}", self.cache.sb.set_uuid)?;
        let damaged = |out: &mut Out| -> Result<()> {
            writeln!(
                out,
                "  DAMAGED, {} findings; Linux may refuse it or serve wrong content:",
                self.faults
            )?;
            for found in &self.told {
                writeln!(out, "    {} at byte {}: {}", found.kind, found.byte, found.detail)?;
            }
            writeln!(out, "  next: bcache fsck -n {devices}")?;
            Ok(())
        };
        if self.gone {
            writeln!(out, "  its journal is gone: it was in use, and Linux refuses it")?;
            writeln!(out, "  next: bcache salvage -o disk.img {devices}")?;
        }
        let Some(view) = &self.view else {
            if self.faults > 0 {
                damaged(out)?;
                return Ok(false);
            }
            writeln!(out, "  it has never been used: Linux will start it empty")?;
            writeln!(out, "  next: attach a backing device to it, or keep it for later")?;
            return Ok(true);
        };
        if let Some(newest) = view.journal.newest() {
            let mut line = format!(
                "  journal: {} entries to replay, newest {}",
                view.journal.entries.len(),
                newest.jset.seq
            );
            if self.torn {
                line += "; the last write was cut off by a crash, which is normal";
            }
            writeln!(out, "{line}")?;
        }
        let tree = &view.tree;
        writeln!(out, "  btree: {} nodes, {} extents", tree.nodes, tree.extents)?;
        let (dirty, all) = self.sectors.values().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        writeln!(out, "  holds {} of data, {} of it dirty", size(Sectors(all)), size(Sectors(dirty)))?;
        self.tell_slots(view, out)?;
        if self.faults == 0 {
            writeln!(out, "  in order")?;
            return Ok(true);
        }
        damaged(out)?;
        Ok(false)
    }

    fn tell_slots(&self, view: &SetView, out: &mut Out) -> Result<()> {
        for (slot, entry) in (0u32..).zip(&view.uuids).filter(|(_, entry)| !entry.is_free()) {
            let (dirty, all) = self.sectors.get(&slot).copied().unwrap_or_default();
            let mut line = match (entry.is_detached(), entry.is_flash_only()) {
                (true, _) => format!("  slot {slot}: a device that was detached"),
                (_, true) => format!("  slot {slot}: flash-only volume of {}", size(entry.sectors)),
                _ => format!("  slot {slot}: backing device {}", entry.uuid),
            };
            let label = entry.label.to_text();
            if !label.is_empty() {
                write!(line, " \"{label}\"")?;
            }
            writeln!(out, "{line}: {} here, {} dirty", size(Sectors(all)), size(Sectors(dirty)))?;
        }
        Ok(())
    }
}

fn size(sectors: Sectors) -> String {
    size_of(sectors.bytes())
}

fn size_of(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// Tells of a backing device. False when something is wrong or missing.
fn tell_backing(backing: &Backing, sets: &[Set], all: &[PathBuf], out: &mut Out) -> Result<bool> {
    let sectors = Sectors::from_bytes(backing.device.size()).0 - backing.fields.data_offset.0;
    writeln!(out, "{}: backing device of {}, {}", backing.name, size(Sectors(sectors)), backing.sb.uuid)?;
    let name = &backing.name;
    match backing.sb.state() {
        BackingState::None => {
            writeln!(out, "  attached to no cache: it has all its data, and is safe to use alone")?;
            return alone(backing, out);
        }
        BackingState::Stale => {
            writeln!(out, "  ran without its cache since: it is what counts, the cache's copy is not used")?;
            return alone(backing, out);
        }
        BackingState::Clean | BackingState::Dirty => {}
    }
    let Some(set) = sets.iter().find(|set| set.cache.sb.set_uuid == backing.sb.set_uuid) else {
        let may = match backing.sb.state() {
            BackingState::Dirty => "DIRTY: the cache holds data it does not have. Do NOT use it alone",
            _ => "clean by its superblock, but only the cache can tell for sure",
        };
        writeln!(out, "  attached to cache set {}, which was not named\n  {may}", backing.sb.set_uuid)?;
        writeln!(out, "  next: find the cache (bcache show on the fast devices) and name it too")?;
        return Ok(false);
    };
    let attachment = set.view.as_ref().map(|view| view.attachment(backing));
    let devices = typed(all);
    match attachment {
        None if set.faults > 0 => {
            writeln!(out, "  its cache {} is damaged: it may lack data without it", set.cache.name)?;
            writeln!(out, "  next: bcache fsck -n {devices}")?;
            Ok(false)
        }
        None => {
            writeln!(
                out,
                "  its cache {} was never used, or lost its SYNC flag: Linux would start it EMPTY and",
                set.cache.name
            )?;
            writeln!(
                out,
                "  all dirty data would be gone. Do not register the two\n  next: bcache fsck -n {devices}"
            )?;
            Ok(false)
        }
        Some(Err(refusal)) => {
            writeln!(out, "  {refusal}\n  next: bcache fsck -n {devices}")?;
            Ok(false)
        }
        Some(Ok(Attachment::Alone)) => {
            writeln!(out, "  its cache does not know it, and it is clean: it has all its data")?;
            alone(backing, out)
        }
        Some(Ok(Attachment::Slot(slot))) => {
            let dirty = set.sectors.get(&slot).map_or(0, |(dirty, _)| *dirty);
            if dirty == 0 && set.faults == 0 {
                writeln!(
                    out,
                    "  attached to {}, nothing dirty: safe to detach, and to mount alone",
                    set.cache.name
                )?;
                alone(backing, out)
            } else if dirty == 0 {
                writeln!(
                    out,
                    "  attached to {}, which is damaged: whether anything is dirty is not sure",
                    set.cache.name
                )?;
                Ok(false)
            } else {
                let dirty = size(Sectors(dirty));
                writeln!(
                    out,
                    "  attached to {}, {dirty} dirty: NOT safe alone; its newest data is in the cache",
                    set.cache.name
                )?;
                writeln!(out, "  next: bcache export -o disk.img --of {name} {devices}")?;
                Ok(set.faults == 0)
            }
        }
    }
}

fn alone(backing: &Backing, out: &mut Out) -> Result<bool> {
    let offset = backing.fields.data_offset.bytes();
    writeln!(out, "  next: mount -o ro,loop,offset={offset} {} /mnt   (without bcache)", backing.name)?;
    Ok(true)
}
