//! `bcache doctor`: what state everything is in, in plain words, and what to do next.
//!
//! Long because everything that can be wrong is told in its own words.

use bcache_format::SECTOR_SIZE;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use bcache_engine::dev::lock;
use bcache_engine::fsck::view::set::Attachment;
use bcache_engine::fsck::view::{Backing, Cache, Devices, SetView};
use bcache_engine::fsck::{Finding, Kind, Options, Severity, check};
use bcache_format::Sectors;
use bcache_format::superblock::BackingState;
use bytesize::ByteSize;
use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};

use super::{Out, Outcome};
use crate::control::paths;
use crate::devices::{InUse, each_once, open};
use crate::in_use::loop_of;

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
    each_once(&args.devices)?;
    let (mut devices, mut well) = (Devices::default(), true);
    for path in &args.devices {
        if let Err(fault) = devices.push(open(path, InUse::Allow)?) {
            well = false;
            writeln!(out, "{}: not usable\n  {}", fault.device, fault.what)?;
            writeln!(out, "  next: {}", below(path))?;
        }
    }
    let sets = devices.caches.iter().map(|cache| Set::look(cache, &devices.backings)).collect::<Vec<_>>();
    for (index, set) in sets.iter().enumerate() {
        let uuid = set.cache.sb.set_uuid;
        if let Some(other) = sets.iter().take(index).find(|other| other.cache.sb.set_uuid == uuid) {
            writeln!(out, "{} and {} are both caches of set {uuid}", other.cache.name, set.cache.name)?;
            writeln!(
                out,
                "  one is a copy of the other: name the one that was used last, and never use both"
            )?;
            well = false;
        }
        well &= set.tell(out)?;
    }
    for backing in &devices.backings {
        well &= tell_backing(backing, &sets, out)?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Devices as they are typed in a shell.
fn typed<'n>(names: impl IntoIterator<Item = &'n Arc<str>>) -> String {
    names.into_iter().map(|name| quoted(name)).collect::<Vec<_>>().join(" ")
}

/// A word as it is typed in a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) && !word.starts_with('-') {
        return word.to_owned();
    }
    let safe = if word.starts_with('-') { format!("./{word}") } else { word.to_owned() };
    format!("'{}'", safe.replace('\'', r"'\''"))
}

/// How to come to a bcache device that may be inside of what is none.
fn below(path: &Path) -> String {
    let mut magic = [0; 8];
    let name = path.display().to_string();
    let mut has = |byte: u64, bytes: &[u8]| {
        let Some(part) = magic.get_mut(..bytes.len()) else { return false };
        let file = std::fs::File::open(path);
        file.and_then(|file| file.read_exact_at(part, byte)).is_ok() && part == bytes
    };
    if has(0, LUKS) {
        format!("cryptsetup open --readonly {} inside && bcache doctor /dev/mapper/inside", quoted(&name))
    } else if (0..4).any(|sector| has(sector * SECTOR_SIZE, LVM)) {
        "lvs -o lv_path   # an LVM physical volume is on it: name its logical volumes".to_owned()
    } else if has(0, MD) || has(4096, MD) {
        format!("mdadm --examine {}   # a member of an md array: name the array", quoted(&name))
    } else {
        format!("bcache show {}", quoted(&name))
    }
}

/// What a LUKS container begins with.
const LUKS: &[u8] = b"LUKS\xba\xbe";
/// What is in one of the first sectors of an LVM physical volume.
const LVM: &[u8] = b"LABELONE";
/// What the superblock of a member of an md array begins with.
const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];

/// A cache, and what is in it.
struct Set {
    cache: Cache,
    view: Option<SetView>,
    /// The backing devices that were named of it.
    backings: Vec<Arc<str>>,
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
        let ours = backings
            .iter()
            .filter(|backing| backing.sb.set_uuid == cache.sb.set_uuid || backing.sb.set_uuid.is_nil());
        let names = ours.clone().map(|backing| Arc::clone(&backing.name)).collect();
        let devices = ours.map(|backing| backing.device.clone());
        let mut set = Self {
            cache: cache.clone(),
            view,
            backings: names,
            faults: 0,
            told,
            torn: false,
            gone: false,
            sectors,
        };
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

    /// Its devices, and another one, as they are typed.
    fn typed_with(&self, other: Option<&Arc<str>>) -> String {
        let other = other.filter(|other| !self.backings.contains(other));
        typed(std::iter::once(&self.cache.name).chain(&self.backings).chain(other))
    }

    /// Commands that save what is dirty of it, one for each content.
    fn salvage(&self) -> Vec<String> {
        let cache = quoted(&self.cache.name);
        let several = self.backings.len() > 1;
        let of_device = |(index, name): (usize, &Arc<str>)| {
            let number = if several { format!("-{index}") } else { String::new() };
            format!("bcache salvage -o disk{number}.img {cache} {}", quoted(name))
        };
        let volumes = self.view.as_ref().map_or(0, |view| view.volumes().count());
        let of_volume =
            |number: usize| format!("bcache salvage -o volume-{number}.img --of volume:{number} {cache}");
        self.backings.iter().enumerate().map(of_device).chain((0..volumes).map(of_volume)).collect()
    }

    /// Tells of the cache itself. False when something is wrong.
    fn tell(&self, out: &mut Out) -> Result<bool> {
        let devices = self.typed_with(None);
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
        if let Some(user) = user(name, self.cache.sb.set_uuid) {
            writeln!(out, "  in use by {user}: what is told here may change while it is read")?;
            writeln!(out, "  next: bcache status")?;
        }
        if self.gone {
            writeln!(out, "  its journal is gone: it was in use, and Linux refuses it")?;
            for command in self.salvage() {
                writeln!(out, "  next: {command}")?;
            }
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
                write!(line, " \"{}\"", super::escaped(&label))?;
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
fn tell_backing(backing: &Backing, sets: &[Set], out: &mut Out) -> Result<bool> {
    let sectors = Sectors::from_bytes(backing.device.size()).0 - backing.fields.data_offset.0;
    writeln!(out, "{}: backing device of {}, {}", backing.name, size(Sectors(sectors)), backing.sb.uuid)?;
    let name = &backing.name;
    if let Some(user) = user(name, backing.sb.set_uuid) {
        let state = match backing.sb.state() {
            BackingState::Dirty => "dirty: its newest data is in the cache",
            BackingState::Clean => "clean by its superblock",
            BackingState::Stale => "runs without its cache",
            BackingState::None => "attached to no cache",
        };
        writeln!(out, "  in use by {user}, {state}; do not mount it beside that\n  next: bcache status")?;
        return Ok(true);
    }
    // By its superblock nothing is elsewhere: the cache may know better.
    let left = |set: &&Set| dirty_of(set, backing) > 0;
    if let Some(set) = sets.iter().find(left)
        && backing.sb.state().is_whole()
    {
        let dirty = size(Sectors(dirty_of(set, backing)));
        let state =
            if backing.sb.state() == BackingState::None { "is attached to no cache" } else { "is stale" };
        writeln!(out, "  by its superblock it {state}, but {} has {dirty} dirty of it", set.cache.name)?;
        writeln!(out, "  next: bcache fsck -n {}", set.typed_with(Some(name)))?;
        return Ok(false);
    }
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
    let devices = set.typed_with(Some(name));
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
                writeln!(out, "  next: bcache export -o disk.img --of {} {devices}", quoted(name))?;
                Ok(set.faults == 0)
            }
        }
    }
}

/// Dirty sectors that a cache has of a backing device, whatever its superblock says.
fn dirty_of(set: &Set, backing: &Backing) -> u64 {
    let uuids = set.view.as_ref().map(|view| view.uuids.as_slice()).unwrap_or_default();
    let slot = (0u32..).zip(uuids).find(|(_, entry)| entry.uuid == backing.sb.uuid && !entry.is_detached());
    slot.and_then(|(slot, _)| set.sectors.get(&slot)).map_or(0, |(dirty, _)| *dirty)
}

/// Who uses a device, if anybody does.
fn user(name: &str, set: uuid::Uuid) -> Option<String> {
    let path = Path::new(name);
    let meta = std::fs::metadata(path).ok()?;
    if let Some(device) = loop_of(&meta) {
        return Some(device.display().to_string());
    }
    let block = meta.file_type().is_block_device();
    let mut options = std::fs::OpenOptions::new();
    options.read(true);
    if block {
        options.custom_flags(OFlag::O_EXCL.bits());
    }
    let taken = options.open(path).and_then(|file| lock(&file, false));
    if !matches!(taken, Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy) {
        return None;
    }
    let kernels = format!("/sys/dev/block/{}:{}/bcache", major(meta.rdev()), minor(meta.rdev()));
    Some(if paths::sets().is_ok_and(|sets| sets.contains(&set)) {
        format!("the engine of set {set}")
    } else if block && Path::new(&kernels).exists() {
        "the kernel's bcache".to_owned()
    } else {
        "somebody: it is mounted, served, or below another device".to_owned()
    })
}

/// How to come to what is in a backing device without bcache: what is mounted is a file system alone.
fn alone(backing: &Backing, out: &mut Out) -> Result<bool> {
    let offset = backing.fields.data_offset.bytes();
    let name = &backing.name;
    let has = |byte: u64, magic: &[u8]| {
        let mut bytes = vec![0; magic.len()];
        backing.device.read_at(offset + byte, &mut bytes).is_ok() && bytes == magic
    };
    let name = quoted(name);
    let open = format!("losetup -r -f --show -o {offset} {name}");
    let next = if has(0, LUKS) {
        writeln!(out, "  LUKS is on it")?;
        format!("cryptsetup open --readonly \"$({open})\" inside")
    } else if (0..4).any(|sector| has(sector * SECTOR_SIZE, LVM)) {
        writeln!(out, "  an LVM physical volume is on it")?;
        format!("{open} && lvs -o lv_path,vg_name")
    } else if has(0, MD) || has(4096, MD) {
        writeln!(out, "  a member of an md array is on it")?;
        format!("mdadm --assemble --readonly /dev/md/inside \"$({open})\"")
    } else {
        format!("mount -o ro,loop,offset={offset} {name} /mnt")
    };
    writeln!(out, "  next: {next}   # without bcache")?;
    Ok(true)
}
