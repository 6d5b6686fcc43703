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
use super::kind::{Kind, Severity};
use super::repair::{Plan, Write};
use super::view::Device;
use bcache_format::Superblock;
use bcache_format::csum::{SEED_ONES, crc64};
use bcache_format::superblock::{SB_BYTES, SB_OFFSET};
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
        bytes: one.block.clone(),
        what: "superblock of the backup".to_owned(),
    };
    let mut plan = Plan::default();
    plan.push("bring the superblock back", vec![write]);
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
