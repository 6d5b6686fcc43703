//! Formatting: a cache and its backing devices, as `make-bcache` of bcache-tools 1.0.8 lays them out.
//!
//! Everything that could be wrong is found out for all devices before the first byte is written to any of them:
//! [`plan`] opens, checks and refuses, [`Plan::write`] only writes. What the kernel would refuse at registration is
//! refused here, where the old content is still whole.
//!
//! Long because all that may be wrong is found before anything is written.

use std::path::{Path, PathBuf};

use bcache_format::error::Error as FormatError;
use bcache_format::feature::{Features, INCOMPAT_LOG_LARGE_BUCKET_SIZE};
use bcache_format::superblock::{
    BLOCK_SECTORS_MAX, BUCKET_SECTORS_MIN, BackingFields, CacheFields, CacheMode, DATA_OFFSET_DEFAULT, Label,
    NBUCKETS_TOO_FEW, RawSuperblock, Replacement, Role, SB_OFFSET, Superblock, Version,
};
use bcache_format::units::{SECTOR_SIZE, Sectors};
use thiserror::Error as ThisError;
use uuid::Uuid;

use crate::names;
use crate::signature;
use crate::target::{self, Target};

/// The last sector that the superblock's block covers: a cache's first bucket comes after it.
const RESERVED_SECTORS: u32 = 23;

/// Bytes of the superblock that are written. The word behind them belongs to the obsolete form of large buckets.
const CLASSIC_BYTES: usize = std::mem::offset_of!(RawSuperblock, obso_bucket_size_hi);

/// What to format, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// Devices to become caches; a set has one.
    pub caches: Vec<PathBuf>,
    /// Devices to become backing devices.
    pub backing: Vec<PathBuf>,
    /// Bytes of a bucket.
    pub bucket: u64,
    /// Bytes of a block; the largest default of the devices if absent.
    pub block: Option<u64>,
    /// Where the data of backing devices starts; where the device likes it best if absent.
    pub data_offset: Option<Sectors>,
    /// Backing devices start in writeback mode, not in writethrough.
    pub writeback: bool,
    /// The cache discards buckets before it reuses them.
    pub discard: bool,
    /// How the cache chooses buckets for reuse.
    pub replacement: Replacement,
    /// UUID of the cache set.
    pub set_uuid: Uuid,
    /// Label of every device.
    pub label: Label,
    /// An old bcache superblock may be overwritten.
    pub wipe_bcache: bool,
    /// Any signature may be overwritten.
    pub force: bool,
}

/// Why nothing was formatted.
#[derive(Debug, ThisError)]
pub enum Refusal {
    /// No device.
    #[error("Please supply a device")]
    NoDevice,
    /// The kernel refuses sets of several caches.
    #[error("Only one cache device makes a set: {0} and {1}")]
    SecondCache(PathBuf, PathBuf),
    /// The same device twice.
    #[error("{0} and {1} are the same device")]
    SameDevice(PathBuf, PathBuf),
    /// A size of blocks or buckets that is no power of two.
    #[error("{0} size must be a power of two")]
    NoPowerOfTwo(&'static str),
    /// A size that is too small: which, and the smallest, in bytes.
    #[error("{0} size too small: at least {1} bytes")]
    TooSmall(&'static str, u64),
    /// A size that is too large: which, and the largest, in bytes.
    #[error("{0} size too large: at most {1} bytes")]
    TooLarge(&'static str, u64),
    /// Buckets smaller than blocks.
    #[error("Bucket size cannot be smaller than block size")]
    BucketBelowBlock,
    /// A block that the device cannot write by itself.
    #[error("Block size {block} is smaller than the logical block of {path}, {logical} bytes")]
    BlockBelowDevice {
        /// The device.
        path: PathBuf,
        /// Bytes asked for.
        block: u64,
        /// Bytes the device needs.
        logical: u32,
    },
    /// A data offset that the superblock would be overwritten at.
    #[error("Bad data offset; minimum {} sectors", DATA_OFFSET_DEFAULT.0)]
    DataOffset,
    /// Zero is no set's UUID.
    #[error("Bad uuid")]
    SetUuid,
    /// Data that would begin in the middle of a block.
    #[error("Data offset of {0} sectors is no multiple of the block size, {1} bytes")]
    OffsetInBlock(u64, u64),
    /// One label for two backing devices, which would want the same name.
    #[error("{0} and {1} cannot both be labelled {2:?}: format them one by one")]
    SharedLabel(PathBuf, PathBuf, String),
    /// Fewer buckets than the kernel starts a cache with: how many, and what would do.
    #[error("Not enough buckets on {0}: {1}, need {need}; {2}", need = NBUCKETS_TOO_FEW + 1)]
    Buckets(PathBuf, u64, String),
    /// A device that ends before its data starts.
    #[error("{0} is too small: it has {1} sectors, its data would start at sector {2}")]
    NoRoom(PathBuf, u64, u64),
    /// An old superblock.
    #[error("Already a bcache device on {0}, overwrite with --wipe-bcache")]
    Bcache(PathBuf),
    /// Something else is on the device.
    #[error("Device {0} already has a {1} signature, remove it using wipefs -a or overwrite it with --force")]
    Signature(PathBuf, String),
    /// Looking for signatures failed.
    #[error("looking for signatures on {0}: {1}")]
    Probe(PathBuf, #[source] std::io::Error),
    /// The device cannot be had.
    #[error(transparent)]
    Target(#[from] target::Error),
    /// The superblock breaks a rule of the format.
    #[error("{0}: {1}")]
    Format(PathBuf, #[source] FormatError),
}

/// Devices that may be formatted, held exclusively, and what will be written to them.
#[derive(Debug)]
pub struct Plan {
    parts: Vec<Part>,
    notes: Vec<String>,
}

/// One device of a plan.
#[derive(Debug)]
pub struct Part {
    target: Target,
    superblock: Superblock,
    raw: RawSuperblock,
    erase: Vec<(u64, usize)>,
}

impl Part {
    /// The device.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Its superblock-to-be.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The bytes of it.
    #[must_use]
    pub fn raw(&self) -> &RawSuperblock {
        &self.raw
    }
}

/// Opens and checks every device and decides what each will hold. Nothing is written.
///
/// # Errors
/// The first reason not to format, of any device.
pub fn plan(request: &Request) -> Result<Plan, Refusal> {
    check_request(request)?;
    check_twins(request)?;
    check_label(request)?;
    let open =
        |paths: &[PathBuf]| paths.iter().map(|path| open(path, request)).collect::<Result<Vec<_>, _>>();
    let (caches, backing) = (open(&request.caches)?, open(&request.backing)?);
    let opened: Vec<&Target> = caches.iter().chain(&backing).map(|(target, _)| target).collect();
    let block = block_size(request, &opened)?;
    let mut notes = Vec::new();
    if let Some((backing, _)) = backing.first() {
        notes.extend(names::notes(&request.label, backing.path(), &opened));
    }
    let mut parts = Vec::new();
    for (target, erase) in caches {
        let superblock = cache_superblock(request, &target, block)?;
        parts.push(part(target, superblock, erase)?);
    }
    for (target, erase) in backing {
        let superblock = backing_superblock(request, &target, block)?;
        notes.extend(request.data_offset.and_then(|offset| across_stripes(&target, offset)));
        parts.push(part(target, superblock, erase)?);
    }
    check_offset(request, block)?;
    Ok(Plan { parts, notes })
}

impl Plan {
    /// The devices: first the cache, then the backing devices as they were given.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// What is not as one might expect, a line each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Writes all superblocks and makes each durable.
    ///
    /// # Errors
    /// The device's. Those written before it are formatted, those after it are as they were.
    pub fn write(&self) -> Result<(), target::Error> {
        use zerocopy::IntoBytes;
        for Part { target, raw, erase, .. } in &self.parts {
            for &(at, length) in erase {
                target.write(&vec![0; length], at)?;
            }
            // What stands before the superblock is of the old content: boot sectors, labels, file systems.
            target.write(&[0; SB_OFFSET as usize], 0)?;
            let superblock = raw.as_bytes().get(..CLASSIC_BYTES).unwrap_or_default();
            target.write(superblock, SB_OFFSET)?;
            target.sync()?;
        }
        Ok(())
    }
}

/// What can be told without looking at the devices.
fn check_request(request: &Request) -> Result<(), Refusal> {
    if request.caches.is_empty() && request.backing.is_empty() {
        return Err(Refusal::NoDevice);
    }
    if let [first, second, ..] = request.caches.as_slice() {
        return Err(Refusal::SecondCache(first.clone(), second.clone()));
    }
    let largest_bucket = u64::from(1u32 << 31) * SECTOR_SIZE;
    check_size("bucket", request.bucket, u64::from(BUCKET_SECTORS_MIN) * SECTOR_SIZE, largest_bucket)?;
    if let Some(block) = request.block {
        check_size("block", block, SECTOR_SIZE, u64::from(BLOCK_SECTORS_MAX) * SECTOR_SIZE)?;
    }
    if request.data_offset.is_some_and(|offset| offset < DATA_OFFSET_DEFAULT) {
        return Err(Refusal::DataOffset);
    }
    if request.set_uuid.is_nil() {
        return Err(Refusal::SetUuid);
    }
    Ok(())
}

/// One device under two names would be formatted twice.
fn check_twins(request: &Request) -> Result<(), Refusal> {
    let mut seen = Vec::new();
    for path in request.caches.iter().chain(&request.backing) {
        let identity = target::identity(path)?;
        if let Some((_, twin)) = seen.iter().find(|(earlier, _)| *earlier == identity) {
            return Err(Refusal::SameDevice(PathBuf::clone(twin), path.clone()));
        }
        seen.push((identity, path.clone()));
    }
    Ok(())
}

/// A label is one device's name; the cache, which has no name, may have it as well.
fn check_label(request: &Request) -> Result<(), Refusal> {
    match request.backing.as_slice() {
        [first, second, ..] if !request.label.as_bytes().is_empty() => {
            Err(Refusal::SharedLabel(first.clone(), second.clone(), request.label.to_text()))
        }
        _ => Ok(()),
    }
}

/// Linux refuses nothing here, and then no request that covers whole blocks of the device does so on the disk.
fn check_offset(request: &Request, block: u16) -> Result<(), Refusal> {
    match request.data_offset {
        Some(offset) if !offset.0.is_multiple_of(block.into()) => {
            Err(Refusal::OffsetInBlock(offset.0, u64::from(block) * SECTOR_SIZE))
        }
        _ => Ok(()),
    }
}

fn check_size(what: &'static str, size: u64, least: u64, most: u64) -> Result<(), Refusal> {
    if size != 0 && !size.is_power_of_two() {
        return Err(Refusal::NoPowerOfTwo(what));
    }
    if size < least {
        return Err(Refusal::TooSmall(what, least));
    }
    if size > most {
        return Err(Refusal::TooLarge(what, most));
    }
    Ok(())
}

/// Opens a device and finds what is on it. With the device come the places of foreign signatures to erase: left in
/// place they would make it ambiguous what the device is, and it would never be registered at boot.
fn open(path: &Path, request: &Request) -> Result<(Target, Vec<(u64, usize)>), Refusal> {
    let target = Target::open(path)?;
    let room = SB_OFFSET + size_of::<RawSuperblock>() as u64;
    if target.bytes() < room {
        return Err(Refusal::NoRoom(path.to_path_buf(), target.sectors(), DATA_OFFSET_DEFAULT.0));
    }
    let mut old = [0; size_of::<RawSuperblock>()];
    target.read(&mut old, SB_OFFSET)?;
    let bcache = RawSuperblock::read(&old).is_some_and(|raw| raw.has_magic());
    if bcache && !request.wipe_bcache && !request.force {
        return Err(Refusal::Bcache(path.to_path_buf()));
    }
    let mut signatures = signature::find(path).map_err(|error| Refusal::Probe(path.to_path_buf(), error))?;
    signatures.retain(|found| found.kind != "bcache");
    match signatures.first() {
        Some(found) if !request.force => Err(Refusal::Signature(path.to_path_buf(), found.kind.clone())),
        _ => {
            let inside = |&(at, length): &(u64, usize)| at.saturating_add(length as u64) <= target.bytes();
            let erase = signatures.iter().filter_map(|found| found.place()).filter(inside).collect();
            Ok((target, erase))
        }
    }
}

/// The block size in sectors: the one asked for, or the largest that a device takes by itself.
fn block_size(request: &Request, targets: &[&Target]) -> Result<u16, Refusal> {
    let default = targets.iter().map(|target| u64::from(target.default_block())).max().unwrap_or(SECTOR_SIZE);
    let block = request.block.unwrap_or(default);
    check_size("block", block, SECTOR_SIZE, u64::from(BLOCK_SECTORS_MAX) * SECTOR_SIZE)?;
    if let Some(target) = targets.iter().find(|target| block < target.logical_block().into()) {
        let (path, logical) = (target.path().to_path_buf(), target.logical_block());
        return Err(Refusal::BlockBelowDevice { path, block, logical });
    }
    if request.bucket < block {
        return Err(Refusal::BucketBelowBlock);
    }
    Ok((block / SECTOR_SIZE) as u16)
}

fn cache_superblock(request: &Request, target: &Target, block: u16) -> Result<Superblock, Refusal> {
    let bucket = (request.bucket / SECTOR_SIZE) as u32;
    let nbuckets = target.sectors() / u64::from(bucket);
    if nbuckets <= NBUCKETS_TOO_FEW {
        let way_out = smaller_buckets(target.sectors(), bucket, block);
        return Err(Refusal::Buckets(target.path().to_path_buf(), nbuckets, way_out));
    }
    // From 32 MiB on, the sectors of a bucket overflow the field's 16 bits.
    let large = bucket > u16::MAX.into();
    let incompat = if large { INCOMPAT_LOG_LARGE_BUCKET_SIZE } else { 0 };
    let mut superblock = Superblock {
        version: if large { Version::CacheWithFeatures } else { Version::Cache },
        features: Features { incompat, ..Features::default() },
        ..common(request, block)
    };
    superblock.role = Role::Cache(CacheFields {
        nbuckets,
        bucket_sectors: bucket,
        nr_in_set: 1,
        nr_this_dev: 0,
        first_bucket: (RESERVED_SECTORS / bucket + 1) as u16,
        njournal_buckets: 0,
    });
    superblock.set_discard(request.discard);
    superblock.set_replacement(request.replacement);
    Ok(superblock)
}

/// What to do about a cache of so many sectors that has too few buckets of `bucket` sectors.
fn smaller_buckets(sectors: u64, bucket: u32, block: u16) -> String {
    let least = BUCKET_SECTORS_MIN.max(block.into());
    let halves = std::iter::successors(Some(bucket / 2), |half| Some(half / 2));
    let enough = |half: &u32| sectors / u64::from(*half) > NBUCKETS_TOO_FEW;
    match halves.take_while(|half| *half >= least).find(enough) {
        Some(half) => match half / 2 {
            kib if kib < 1024 => format!("buckets of {kib} KiB would do: -b {kib}k"),
            kib => format!("buckets of {} MiB would do: -b {}M", kib / 1024, kib / 1024),
        },
        None => {
            let bytes = (NBUCKETS_TOO_FEW + 1) * u64::from(least) * SECTOR_SIZE;
            format!("a cache has at least {bytes} bytes")
        }
    }
}

/// Where the data of a backing device begins when nobody says so: behind the superblock, and where a stripe begins if the
/// disk tells how long its stripes are. Some tell nonsense, or what would cost a good part of a small disk.
fn best_offset(target: &Target) -> Sectors {
    const PAGE: u64 = 4096;
    const LONGEST: u64 = 64 << 20;
    let (default, stripe) = (DATA_OFFSET_DEFAULT.0 * SECTOR_SIZE, target.optimal_io());
    let at = default.div_ceil(stripe.max(1)).saturating_mul(stripe);
    let sound = stripe.is_multiple_of(PAGE) && stripe <= LONGEST && at <= target.bytes() / 64;
    if stripe == 0 || !sound { DATA_OFFSET_DEFAULT } else { Sectors(at / SECTOR_SIZE) }
}

/// What to say of an offset that makes every request of a whole stripe cover two.
fn across_stripes(target: &Target, offset: Sectors) -> Option<String> {
    let (stripe, at) = (target.optimal_io(), offset.0.checked_mul(SECTOR_SIZE)?);
    let better = best_offset(target);
    (stripe > 0 && (better.0 * SECTOR_SIZE).is_multiple_of(stripe) && !at.is_multiple_of(stripe)).then(|| {
        format!(
            "{}: data at sector {offset} is not aligned to the disk's optimal I/O size, {stripe} bytes; sector {better} is",
            target.path().display()
        )
    })
}

fn backing_superblock(request: &Request, target: &Target, block: u16) -> Result<Superblock, Refusal> {
    let data_offset = request.data_offset.unwrap_or_else(|| best_offset(target));
    if data_offset.0 >= target.sectors() {
        return Err(Refusal::NoRoom(target.path().to_path_buf(), target.sectors(), data_offset.0));
    }
    let default_offset = data_offset == DATA_OFFSET_DEFAULT;
    let mut superblock = Superblock {
        version: if default_offset { Version::Backing } else { Version::BackingWithOffset },
        ..common(request, block)
    };
    // The field means nothing on a backing device; beside a cache of larger buckets it holds the largest it can.
    let bucket_sectors = u16::try_from(request.bucket / SECTOR_SIZE).unwrap_or(1 << 15);
    superblock.role = Role::Backing(BackingFields { data_offset, bucket_sectors });
    superblock.set_cache_mode(if request.writeback { CacheMode::Writeback } else { CacheMode::Writethrough });
    Ok(superblock)
}

/// What both kinds have; the role is the caller's to set.
fn common(request: &Request, block: u16) -> Superblock {
    let role = Role::Backing(BackingFields { data_offset: DATA_OFFSET_DEFAULT, bucket_sectors: 0 });
    let superblock = Superblock::new(Version::Backing, Uuid::new_v4(), request.set_uuid, block, role);
    Superblock { label: request.label, ..superblock }
}

/// Seals a superblock and reads it back as the kernel would.
fn part(target: Target, superblock: Superblock, erase: Vec<(u64, usize)>) -> Result<Part, Refusal> {
    let context = |error| Refusal::Format(target.path().to_path_buf(), error);
    let mut bytes = [0; size_of::<RawSuperblock>()];
    superblock.write_to(&mut bytes).map_err(context)?;
    let parsed = Superblock::parse(&bytes).map_err(context)?;
    parsed.check_device(target.bytes(), target.logical_block()).map_err(context)?;
    let raw = RawSuperblock::read(&bytes).ok_or_else(|| Refusal::NoRoom(target.path().into(), 0, 0))?;
    Ok(Part { target, superblock: parsed, raw, erase })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_smaller_buckets_that_do_are_named() {
        for (sectors, bucket, block, said) in [
            (600 << 10, 1 << 11, 1, "buckets of 512 KiB would do: -b 512k"),
            (513 << 12, 1 << 16, 1, "buckets of 2 MiB would do: -b 2M"),
            (513 * 8, 1 << 10, 8, "buckets of 4 KiB would do: -b 4k"),
            (512 * 8, 1 << 10, 8, "a cache has at least 2101248 bytes"),
            (0, 8, 8, "a cache has at least 2101248 bytes"),
        ] {
            assert_eq!(smaller_buckets(sectors, bucket, block), said);
        }
    }
}
