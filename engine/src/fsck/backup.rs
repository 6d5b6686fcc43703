//! Superblocks kept in a file, and brought back to devices that lost theirs.
//!
//! ```text
//! "ubcache backup 1\n"
//! count u32  { name length u32, name, size of the device u64, superblock 4096 bytes } * count
//! checksum u64 over everything before
//! ```
//! All numbers are little-endian, the checksum is CRC-64. A superblock changes little after it was made; what does
//! (state, sequence number) the rest of the set is asked about before it is brought back.

use super::check::{Options, check};
use super::image::Image;
use super::kind::{Kind, Severity};
use super::ranges::Ranges;
use super::repair::{Plan, Write, come_last, write_superblock_in_order};
use super::salvage::scan::scan;
use super::view::journal::Journal;
use super::view::node::NodeView;
use super::view::{Cache, Device, Devices, ReadAt, SetView};
use bcache_format::csum::{SEED_ONES, crc64};
use bcache_format::superblock::{SB_BYTES, SB_OFFSET};
use bcache_format::{SECTOR_SIZE, Superblock};
use std::io;
use std::sync::Arc;
use thiserror::Error;

/// What a backup begins with.
pub const MAGIC: &[u8] = b"ubcache backup 1\n";

/// One device's superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The device's name then.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The block that the superblock is in.
    pub block: Vec<u8>,
    /// What it says.
    pub sb: Superblock,
}

/// Why nothing is kept or brought back.
#[derive(Debug, Error)]
pub enum BackupError {
    /// A superblock that is damaged is not worth keeping.
    #[error("{0}: its superblock is damaged: {1}")]
    Damaged(Arc<str>, String),
    /// Not a backup, or not all of one.
    #[error("not a whole backup")]
    NotOne,
    /// No superblock in the backup is the device's.
    #[error("{0}: the backup has no superblock of a device of its size{1}")]
    NoneFits(Arc<str>, &'static str),
    /// Several superblocks in the backup may be the device's.
    #[error(
        "{0}: the backup has superblocks of several devices of its size: name the rest of the set too, or --uuid"
    )]
    Several(Arc<str>),
    /// The device has a sound one.
    #[error("{0}: it has a sound superblock, and needs none")]
    Sound(Arc<str>),
    /// What is on the device is not what the superblock leads to.
    #[error("{0}: with the superblock of the backup the set would not be in order: {1}: {2}")]
    Unfit(Arc<str>, Kind, String),
    /// The set was used since the metadata was kept.
    #[error("{0}: it was used since the image was made ({1}): what is newer would be lost")]
    Used(Arc<str>, String),
    /// The device cannot be read.
    #[error("{0}: {1}")]
    Io(Arc<str>, io::Error),
}

fn block(device: &Device) -> Result<Vec<u8>, BackupError> {
    let mut bytes = vec![0; SB_BYTES];
    device.read_at(SB_OFFSET, &mut bytes).map_err(|error| BackupError::Io(device.name().into(), error))?;
    Ok(bytes)
}

/// The file's content for devices.
///
/// # Errors
/// A superblock that is damaged, or a device that cannot be read.
pub fn save(devices: &[Device]) -> Result<Vec<u8>, BackupError> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&(devices.len() as u32).to_le_bytes());
    for device in devices {
        let block = block(device)?;
        Superblock::parse(&block)
            .map_err(|error| BackupError::Damaged(device.name().into(), error.to_string()))?;
        out.extend_from_slice(&(device.name().len() as u32).to_le_bytes());
        out.extend_from_slice(device.name().as_bytes());
        out.extend_from_slice(&device.size().to_le_bytes());
        out.extend_from_slice(&block);
    }
    let csum = crc64(SEED_ONES, &out);
    out.extend_from_slice(&csum.to_le_bytes());
    Ok(out)
}

/// What a backup holds.
///
/// # Errors
/// It is none, or was cut off or changed.
pub fn load(bytes: &[u8]) -> Result<Vec<Kept>, BackupError> {
    let (body, csum) = bytes.split_last_chunk::<8>().ok_or(BackupError::NotOne)?;
    if crc64(SEED_ONES, body) != u64::from_le_bytes(*csum) {
        return Err(BackupError::NotOne);
    }
    let mut rest = body.strip_prefix(MAGIC).ok_or(BackupError::NotOne)?;
    let kept = parse(&mut rest).filter(|_| rest.is_empty());
    kept.ok_or(BackupError::NotOne)
}

fn parse(rest: &mut &[u8]) -> Option<Vec<Kept>> {
    let number = |rest: &mut &[u8]| Some(u32::from_le_bytes(*rest.split_off(..4)?.first_chunk()?));
    let mut all = Vec::new();
    for _ in 0..number(rest)? {
        let len = usize::try_from(number(rest)?).ok()?;
        let name = std::str::from_utf8(rest.split_off(..len)?).ok()?.to_owned();
        let size = u64::from_le_bytes(*rest.split_off(..8)?.first_chunk()?);
        let block = rest.split_off(..SB_BYTES)?.to_vec();
        let sb = Superblock::parse(&block).ok()?;
        all.push(Kept { name, size, block, sb });
    }
    Some(all)
}

/// The write that brings a device's superblock back. `others` are devices of the same set, for a look at the whole.
///
/// # Errors
/// The device has a sound superblock, the backup has none of it, or what is on the device does not fit.
pub fn restore(
    kept: &[Kept],
    device: &Device,
    uuid: Option<uuid::Uuid>,
    others: &[Device],
) -> Result<Plan, BackupError> {
    let name: Arc<str> = device.name().into();
    if Superblock::parse(&block(device)?).is_ok() {
        return Err(BackupError::Sound(name));
    }
    let there: Vec<_> =
        others.iter().filter_map(|other| Some(Superblock::parse(&block(other).ok()?).ok()?.uuid)).collect();
    let mut fitting = kept.iter().filter(|one| {
        one.size == device.size()
            && uuid.is_none_or(|uuid| uuid == one.sb.uuid)
            && !there.contains(&one.sb.uuid)
    });
    let Some(one) = fitting.next() else {
        let why = if uuid.is_some() { " with this UUID" } else { "" };
        return Err(BackupError::NoneFits(name, why));
    };
    if fitting.next().is_some() {
        return Err(BackupError::Several(name));
    }
    let write = Write {
        device: Arc::clone(&name),
        byte: SB_OFFSET,
        bytes: one.block.clone().into(),
        what: "superblock of the backup".to_owned(),
    };
    let (mut whole, mut plan) = (Plan::default(), Plan::default());
    whole.push("bring the superblock back", vec![write]);
    write_superblock_in_order(&mut plan, Some(device), &name, &whole);
    let all: Vec<Device> = std::iter::once(device).chain(others).cloned().collect();
    let after = plan.simulate(&all, usize::MAX).map_err(|error| BackupError::Io(Arc::clone(&name), error))?;
    let checked = check(after, Options::default());
    // What can be repaired is fsck's; a journal that is not there, or a device of another set, says that it is not it.
    let unfit = checked
        .findings
        .iter()
        .find(|finding| finding.kind == Kind::JournalEmpty || finding.severity() == Severity::Fatal);
    match unfit {
        Some(finding) => Err(BackupError::Unfit(name, finding.kind, finding.detail.clone())),
        None => Ok(plan),
    }
}

/// The writes that bring a device's metadata back as it was when an image was made of it. `others` are devices of the same
/// set, for a look at the whole.
///
/// # Errors
/// The image is of another device, the device is in order, was used since, or would not be in order afterwards.
pub fn restore_image(image: Image, device: &Device, others: &[Device]) -> Result<Plan, BackupError> {
    let name: Arc<str> = device.name().into();
    let failed = |error| BackupError::Io(Arc::clone(&name), error);
    if image.size() != device.size() {
        return Err(BackupError::NoneFits(name, ""));
    }
    let mut plan = Plan::default();
    let mut writes = Vec::new();
    for (byte, bytes) in image.ranges() {
        for (byte, bytes) in (byte..).step_by(PIECE).zip(bytes.chunks(PIECE)) {
            let mut now = vec![0; bytes.len()];
            if device.read_at(byte, &mut now).is_err() || now != bytes {
                let what = "metadata of the image".to_owned();
                writes.push(Write { device: Arc::clone(&name), byte, bytes: bytes.to_vec().into(), what });
            }
        }
    }
    let image: Device = Arc::new(image);
    let sb = Superblock::parse(&block(&image)?)
        .map_err(|error| BackupError::Damaged(image.name().into(), error.to_string()))?;
    let all = || std::iter::once(device).chain(others).cloned().collect::<Vec<Device>>();
    if writes.is_empty() || check(all(), Options::default()).findings.is_empty() {
        return Err(BackupError::Sound(name));
    }
    let mut journal = Vec::new();
    if let (Some(then), Some(now)) = (opened(&image, &sb), opened(device, &sb)) {
        if let Some(why) = used_since(&then, &now) {
            return Err(BackupError::Used(name, why));
        }
        // It says what all else means.
        let in_journal = |write: &Write| now.is_journal(now.geometry.bucket_of(write.byte / SECTOR_SIZE));
        (journal, writes) = writes.into_iter().partition(in_journal);
    }
    plan.push("bring the metadata back", writes);
    plan.push("bring the journal back", journal);
    let of_cache = sb.cache().map(|_| &name);
    come_last(&mut plan, std::slice::from_ref(device), of_cache);
    let after = plan.simulate(&all(), usize::MAX).map_err(failed)?;
    let checked = check(after, Options::default());
    match checked.findings.iter().find(|finding| finding.severity() > Severity::Harmless) {
        Some(finding) => Err(BackupError::Unfit(name, finding.kind, finding.detail.clone())),
        None => Ok(plan),
    }
}

/// Bytes of an image that are compared and written at a time.
const PIECE: usize = 1 << 16;

fn opened(device: &Device, sb: &Superblock) -> Option<Cache> {
    let mut devices = Devices::default();
    devices.push_with(Arc::clone(device), sb.clone());
    devices.caches.pop()
}

/// What shows that a cache was used since its metadata was as it was `then`: newer journal entries, newer prio sets (they
/// are durable before any bucket is used again), or more in the nodes.
fn used_since(then: &Cache, now: &Cache) -> Option<String> {
    let old = Journal::read(then);
    let newest = old.newest()?;
    let later = Journal::read_all(now);
    let later = later.entries.keys().chain(later.hidden.keys()).max().filter(|seq| **seq > newest.jset.seq);
    if let Some(seq) = later {
        return Some(format!("journal entry {seq}, the image has up to {}", newest.jset.seq));
    }
    let view = SetView::read_with(then.clone(), old.clone(), &mut |_| {});
    let seq = view.prios.buckets.first().map_or(0, |(_, seq)| *seq);
    let found = scan(now, &Ranges::default(), &mut |_, _| {}).prios.seq;
    if found > seq {
        return Some(format!("prio sets {found}, the image has {seq}"));
    }
    let more = view.leaves.iter().chain(&view.root).find(|at| {
        let sets = |cache: &Cache| NodeView::read(cache, **at).map_or(0, |node| node.sets.len());
        sets(now) > sets(then)
    });
    more.map(|at| format!("the node up to {} has more keys", at.key.pos()))
}

#[cfg(test)]
mod tests {
    use super::super::made::{Shape, make};
    use super::super::view::MemDevice;
    use super::*;

    fn set() -> Vec<u8> {
        let shape = Shape::of(100, 8, 8);
        let mut bytes = vec![0; usize::try_from(shape.bytes()).expect("a small set")];
        let mut keys = (0..100).map(|i| shape.extent(i, 100, 8));
        make(shape, &mut keys, &mut |at, from| {
            let at = usize::try_from(at).map_err(io::Error::other)?;
            bytes[at..][..from.len()].copy_from_slice(from);
            Ok(())
        })
        .expect("room for all");
        bytes
    }
    fn device(bytes: Vec<u8>) -> Device {
        Arc::new(MemDevice::new("cache", bytes))
    }

    #[test]
    fn a_superblock_comes_back_to_its_device_only() {
        let whole = set();
        let kept = load(&save(&[device(whole.clone())]).expect("sound")).expect("whole");
        let mut wiped = whole.clone();
        wiped[4096..8192].fill(0);
        let plan = restore(&kept, &device(wiped.clone()), None, &[]).expect("it fits");
        let after = plan.simulate(&[device(wiped.clone())], usize::MAX).expect("in memory");
        let mut bytes = vec![0; whole.len()];
        after[0].read_at(0, &mut bytes).expect("in memory");
        assert!(bytes == whole);
        // A sound one stays; another device, or one that was used for something else, gets none.
        assert!(matches!(restore(&kept, &device(whole), None, &[]), Err(BackupError::Sound(_))));
        let mut other = wiped.clone();
        other.extend([0; 4096]);
        assert!(matches!(restore(&kept, &device(other), None, &[]), Err(BackupError::NoneFits(..))));
        wiped.fill(0);
        assert!(matches!(restore(&kept, &device(wiped.clone()), None, &[]), Err(BackupError::Unfit(..))));
        assert!(save(&[device(wiped)]).is_err());
    }

    #[test]
    fn what_is_no_backup_is_refused() {
        let file = save(&[device(set())]).expect("sound");
        assert!(load(&file[..file.len() - 1]).is_err());
        assert!(load(b"").is_err());
        let mut changed = file;
        changed[40] ^= 1;
        assert!(load(&changed).is_err());
    }
}
