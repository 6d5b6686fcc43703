//! Devices told apart by their superblocks.

use super::fault::{Fault, What};
use super::read_at::Device;
use bcache_format::error::Problem;
use bcache_format::magic::SetMagic;
use bcache_format::superblock::{BackingFields, SB_BYTES, SB_OFFSET};
use bcache_format::{Bkey, BucketNr, Geometry, Pos, SECTOR_SIZE, Sectors, Structure, Superblock};
use std::sync::Arc;

/// A cache device with its superblock.
#[derive(Clone)]
pub struct Cache {
    /// The device.
    pub device: Device,
    /// Its name.
    pub name: Arc<str>,
    /// Its superblock.
    pub sb: Superblock,
    /// Its shape.
    pub geometry: Geometry,
    /// The magic numbers of its set.
    pub magic: SetMagic,
}

/// A backing device with its superblock.
#[derive(Clone)]
pub struct Backing {
    /// The device.
    pub device: Device,
    /// Its name.
    pub name: Arc<str>,
    /// Its superblock.
    pub sb: Superblock,
    /// What only backing devices have.
    pub fields: BackingFields,
}

/// Devices in the order they were named.
#[derive(Clone, Default)]
pub struct Devices {
    /// The caches.
    pub caches: Vec<Cache>,
    /// The backing devices.
    pub backings: Vec<Backing>,
}

impl Devices {
    /// Reads every device's superblock.
    ///
    /// # Errors
    /// The first device whose superblock cannot be taken.
    pub fn open(devices: impl IntoIterator<Item = Device>) -> Result<Self, Fault> {
        let mut sorted = Self::default();
        for device in devices {
            sorted.push(device)?;
        }
        Ok(sorted)
    }
    /// Adds a device.
    ///
    /// # Errors
    /// Its superblock cannot be taken, or says more than the device has.
    pub fn push(&mut self, device: Device) -> Result<(), Fault> {
        let name: Arc<str> = device.name().into();
        let sb = read_superblock(&device, &name)?;
        // The block size of the device does not matter to who only reads.
        sb.check_device(device.size(), 0).map_err(|error| Fault::format(&name, error, SB_OFFSET))?;
        self.push_with(device, sb);
        Ok(())
    }
    /// Adds a device whose superblock is known, unchecked against the device.
    pub fn push_with(&mut self, device: Device, sb: Superblock) {
        let name: Arc<str> = device.name().into();
        if let Some(geometry) = sb.geometry() {
            let magic = sb.set_magic();
            self.caches.push(Cache { device, name, sb, geometry, magic });
        } else if let Some(fields) = sb.backing().cloned() {
            self.backings.push(Backing { device, name, sb, fields });
        }
    }
}

/// The superblock of `device`.
///
/// # Errors
/// It cannot be read or breaks a rule.
pub fn read_superblock(device: &Device, name: &Arc<str>) -> Result<Superblock, Fault> {
    let bytes = read(device, name, Structure::Superblock, SB_OFFSET, SB_BYTES as u64)?;
    Superblock::parse(&bytes).map_err(|error| Fault::format(name, error, SB_OFFSET))
}

/// `len` bytes from `byte` on. Callers bound `len` by what a structure can have.
pub(crate) fn read(
    device: &Device,
    name: &Arc<str>,
    structure: Structure,
    byte: u64,
    len: u64,
) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    read_into(device, name, structure, byte, len, &mut bytes)?;
    Ok(bytes)
}

/// The same into memory that is used again.
fn read_into(
    device: &Device,
    name: &Arc<str>,
    structure: Structure,
    byte: u64,
    len: u64,
    buffer: &mut Vec<u8>,
) -> Result<(), Fault> {
    let end = byte.saturating_add(len);
    if end > device.size() {
        let problem = Problem::Truncated { need: end, have: device.size() };
        return Err(Fault::new(name, structure, byte, What::Format(problem)));
    }
    buffer.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
    device.read_at(byte, buffer).map_err(|error| Fault::io(name, structure, byte, &error))
}

/// Fills `buf` from `byte` on a sector at a time; those that cannot be read become zeros, and are told.
pub(crate) fn read_sectors(device: &Device, byte: u64, buf: &mut [u8]) -> Vec<u64> {
    let mut bad = Vec::new();
    for (at, sector) in (byte..).step_by(SECTOR_SIZE as usize).zip(buf.chunks_mut(SECTOR_SIZE as usize)) {
        if device.read_at(at, sector).is_err() {
            sector.fill(0);
            bad.push(at);
        }
    }
    bad
}

impl Cache {
    /// `len` bytes of `structure` from `byte` of the device on. `len` is what the structure has: never more than a
    /// key's 65,535 sectors.
    ///
    /// # Errors
    /// They are past the end of the device, or the device cannot read them.
    pub fn read(&self, structure: Structure, byte: u64, len: u64) -> Result<Vec<u8>, Fault> {
        read(&self.device, &self.name, structure, byte, len)
    }
    /// As [`Self::read`], into memory that is used again.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_into(
        &self,
        structure: Structure,
        byte: u64,
        len: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        read_into(&self.device, &self.name, structure, byte, len, buffer)
    }
    /// As [`Self::read`], but a sector that the device cannot read becomes zeros; with the first fault, if any. So does
    /// what is behind its end.
    ///
    /// # Errors
    /// All of it is.
    pub fn read_around(
        &self,
        structure: Structure,
        byte: u64,
        len: u64,
    ) -> Result<(Vec<u8>, Option<Fault>), Fault> {
        let fault = match self.read(structure, byte, len) {
            Ok(bytes) => return Ok((bytes, None)),
            Err(fault) if matches!(fault.what, What::Io { .. }) || byte < self.device.size() => fault,
            Err(fault) => return Err(fault),
        };
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        let bad = read_sectors(&self.device, byte, &mut bytes);
        let at = bad.first().copied().unwrap_or(byte);
        Ok((bytes, Some(self.fault(structure, at, fault.what))))
    }
    /// A fault on this device.
    #[must_use]
    pub fn fault(&self, structure: Structure, byte: u64, what: What) -> Fault {
        Fault::new(&self.name, structure, byte, what)
    }
    /// Whether the device ends before what its superblock speaks of.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.geometry.bucket_start_byte(BucketNr(self.geometry.nbuckets)) > self.device.size()
    }
    /// The part of an extent whose data is before the end of the device.
    #[must_use]
    pub fn there(&self, mut key: Bkey) -> Option<Bkey> {
        let first = key.ptr()?.offset();
        let sectors = Sectors::from_bytes(self.device.size()).0.saturating_sub(first).min(key.size());
        let end = Pos::new(key.inode(), key.start().saturating_add(sectors));
        (sectors == key.size() || sectors > 0 && key.cut_back(end)).then_some(key)
    }
    /// Whether `bucket` is one of the journal's.
    #[must_use]
    pub fn is_journal(&self, bucket: BucketNr) -> bool {
        let first = self.geometry.first_bucket;
        (first..first + self.njournal_buckets()).contains(&bucket.0)
    }
    /// Journal buckets.
    #[must_use]
    pub fn njournal_buckets(&self) -> u64 {
        self.sb.cache().map_or(0, |cache| cache.njournal_buckets.into())
    }
    /// What is wrong with a key that points at metadata (`__bch_btree_ptr_invalid`), if anything.
    #[must_use]
    pub fn metadata_key_problem(&self, key: &Bkey) -> Option<&'static str> {
        if key.n_ptrs() == 0 {
            Some("no pointer")
        } else if key.size() == 0 {
            Some("no size")
        } else if key.dirty() {
            Some("metadata is never dirty")
        } else {
            self.geometry.ptr_problem(key)
        }
    }
}
