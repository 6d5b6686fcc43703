//! Superblocks of cache and backing devices, at byte 4096 of the device.
//!
//! ```text
//! 0x000 csum u64        over 0x08 .. 0xd0 + 8 * keys
//! 0x008 offset u64      sector of this superblock: 8
//! 0x010 version u64     0 cache, 3 cache with 128-byte uuid entries, 5 cache with features
//!                       1 backing, 4 backing with a data offset, 6 backing with features
//! 0x018 magic[16]  0x028 uuid[16]  0x038 set_uuid[16]  0x048 label[32]
//! 0x068 flags u64       cache: 0 SYNC, 1 discard, 2..4 replacement; backing: 0..3 cache mode, 61..62 state
//! 0x070 seq u64
//! 0x078 feature_compat u64  0x080 feature_incompat u64  0x088 feature_ro_compat u64  0x090 unused[40]
//! 0x0b8 nbuckets u64 (cache) or data_offset u64 (backing)
//! 0x0c0 block_size u16  0x0c2 bucket_size u16  0x0c4 nr_in_set u16  0x0c6 nr_this_dev u16
//! 0x0c8 last_mount u32  0x0cc first_bucket u16  0x0ce keys u16 (journal buckets of a cache)
//! 0x0d0 d[256] u64      journal buckets: first_bucket + i
//! 0x8d0 obso_bucket_size_hi u16, never covered by the checksum
//! ```
//!
//! Long because cache and backing devices share one layout, with all fields read, checked and written.

pub use crate::label::{LABEL_BYTES, Label};

use crate::csum::{SEED_ONES, crc64};
use crate::error::{Error, Problem, Structure, field};
use crate::feature::{Features, INCOMPAT_LOG_LARGE_BUCKET_SIZE, INCOMPAT_OBSO_LARGE_BUCKET};
use crate::geometry::Geometry;
use crate::magic::{self, SetMagic};
use crate::units::Sectors;
use uuid::Uuid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// Sector of the superblock.
pub const SB_SECTOR: u64 = 8;
/// Byte of the superblock on its device.
pub const SB_OFFSET: u64 = SB_SECTOR * crate::units::SECTOR_SIZE;
/// Bytes that are read and written as one.
pub const SB_BYTES: usize = 4096;
/// Journal buckets a superblock has room for.
pub const JOURNAL_BUCKETS_MAX: usize = 256;
/// Where the data of a backing device of version 1 starts, and the least it may be, in sectors.
pub const DATA_OFFSET_DEFAULT: Sectors = Sectors(16);
/// Sectors of the largest block: a page.
pub const BLOCK_SECTORS_MAX: u16 = 8;
/// Sectors of the smallest bucket: a page.
pub const BUCKET_SECTORS_MIN: u32 = 8;
/// Buckets a superblock must have (`read_super_common`).
pub const NBUCKETS_MIN: u64 = 128;
/// Buckets with which the kernel still finds a cache "too small" when it starts it (`cache_alloc`).
pub const NBUCKETS_TOO_FEW: u64 = 512;

const FLAG_SYNC: u64 = 1;
const FLAG_DISCARD: u64 = 1 << 1;
const REPLACEMENT_SHIFT: u32 = 2;
const STATE_SHIFT: u32 = 61;

/// The bytes as they stand on disk.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs)] // the layout above says what each is
pub struct RawSuperblock {
    pub csum: le::U64,
    pub offset: le::U64,
    pub version: le::U64,
    pub magic: [u8; 16],
    pub uuid: [u8; 16],
    pub set_uuid: [u8; 16],
    pub label: [u8; LABEL_BYTES],
    pub flags: le::U64,
    pub seq: le::U64,
    pub feature_compat: le::U64,
    pub feature_incompat: le::U64,
    pub feature_ro_compat: le::U64,
    pub pad: [u8; 40],
    pub nbuckets_or_data_offset: le::U64,
    pub block_size: le::U16,
    pub bucket_size: le::U16,
    pub nr_in_set: le::U16,
    pub nr_this_dev: le::U16,
    pub last_mount: le::U32,
    pub first_bucket: le::U16,
    pub keys: le::U16,
    pub d: [le::U64; JOURNAL_BUCKETS_MAX],
    pub obso_bucket_size_hi: le::U16,
}
pub(crate) const D_OFFSET: usize = 0xd0;
const _: () = assert!(std::mem::offset_of!(RawSuperblock, nbuckets_or_data_offset) == 0xb8);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, d) == D_OFFSET);
const _: () = assert!(size_of::<RawSuperblock>() == 0x8d2);

impl RawSuperblock {
    /// The superblock at the start of `bytes`, unchecked; nothing when they are too few.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(raw, _)| raw)
    }
    /// Whether this is a bcache superblock at all.
    #[must_use]
    pub fn has_magic(&self) -> bool {
        self.magic == magic::SUPERBLOCK
    }
    /// What the checksum must be.
    #[must_use]
    pub fn expected_csum(&self) -> u64 {
        let keys = usize::from(self.keys.get()).min(JOURNAL_BUCKETS_MAX);
        crc64(SEED_ONES, self.as_bytes().get(8..D_OFFSET + 8 * keys).unwrap_or_default())
    }
    /// Sectors of a bucket, in whichever way the version and the features encode them (`get_bucket_size`);
    /// nothing when they overflow.
    #[must_use]
    pub fn bucket_sectors(&self) -> Option<u32> {
        let low = self.bucket_size.get();
        if self.version.get() == Version::CacheWithFeatures as u64 {
            let incompat = self.feature_incompat.get();
            if incompat & INCOMPAT_LOG_LARGE_BUCKET_SIZE != 0 {
                return 1u32.checked_shl(low.into());
            }
            if incompat & INCOMPAT_OBSO_LARGE_BUCKET != 0 {
                return Some(u32::from(low) | u32::from(self.obso_bucket_size_hi.get()) << 16);
            }
        }
        Some(low.into())
    }
}

/// Versions of superblocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u64)]
pub enum Version {
    /// Cache device whose uuid entries may have 64 bytes; raised to `CacheWithUuid` at the first run.
    Cache = 0,
    /// Backing device with its data at the default offset.
    Backing = 1,
    /// Cache device.
    CacheWithUuid = 3,
    /// Backing device with a data offset.
    BackingWithOffset = 4,
    /// Cache device with feature words: large buckets.
    CacheWithFeatures = 5,
    /// Backing device with feature words, which nobody reads.
    BackingWithFeatures = 6,
}

impl Version {
    /// The version numbered `number`.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Cache,
            1 => Self::Backing,
            3 => Self::CacheWithUuid,
            4 => Self::BackingWithOffset,
            5 => Self::CacheWithFeatures,
            6 => Self::BackingWithFeatures,
            _ => return None,
        })
    }
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self as u64
    }
    /// Whether it is of a backing device.
    #[must_use]
    pub const fn is_backing(self) -> bool {
        matches!(self, Self::Backing | Self::BackingWithOffset | Self::BackingWithFeatures)
    }
}

/// How buckets are chosen for reuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Replacement {
    Lru,
    Fifo,
    Random,
}

impl Replacement {
    /// The policies, by their numbers.
    pub const ALL: [Self; 3] = [Self::Lru, Self::Fifo, Self::Random];
    /// The kernel's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Fifo => "fifo",
            Self::Random => "random",
        }
    }
}

/// What the cache does with writes to a backing device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// To both; acknowledged when both have it.
    Writethrough,
    /// To the cache; to the backing device later.
    Writeback,
    /// To the backing device; dropped from the cache.
    Writearound,
    /// Nothing is cached, neither reads nor writes.
    None,
}

impl CacheMode {
    /// The modes, by their numbers.
    pub const ALL: [Self; 4] = [Self::Writethrough, Self::Writeback, Self::Writearound, Self::None];
    /// The kernel's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Writethrough => "writethrough",
            Self::Writeback => "writeback",
            Self::Writearound => "writearound",
            Self::None => "none",
        }
    }
}

/// What a backing superblock says of the device's dirty data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackingState {
    /// Never attached, or detached.
    None,
    /// Attached, no dirty data.
    Clean,
    /// Attached; the cache may hold data that the device does not have.
    Dirty,
    /// Ran without its cache: what the cache holds is out of date.
    Stale,
}

impl BackingState {
    const ALL: [Self; 4] = [Self::None, Self::Clean, Self::Dirty, Self::Stale];
    /// All of the device's data is on it: whatever a cache may have of it is out of date.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        matches!(self, Self::None | Self::Stale)
    }
}

/// What only superblocks of caches have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFields {
    /// Buckets of the device.
    pub nbuckets: u64,
    /// Sectors of a bucket.
    pub bucket_sectors: u32,
    /// Caches in the set: 1.
    pub nr_in_set: u16,
    /// Number of this one.
    pub nr_this_dev: u16,
    /// First bucket behind the superblock; the journal starts there.
    pub first_bucket: u16,
    /// Journal buckets, from `first_bucket` on; 0 before the first run.
    pub njournal_buckets: u16,
}

/// What only superblocks of backing devices have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingFields {
    /// Where the data starts.
    pub data_offset: Sectors,
    /// The bucket size it was formatted with, in sectors; of no meaning for the device.
    pub bucket_sectors: u16,
}

/// Cache or backing device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Role {
    Cache(CacheFields),
    Backing(BackingFields),
}

/// A superblock that passed its checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Version.
    pub version: Version,
    /// UUID of the device.
    pub uuid: Uuid,
    /// UUID of the set: a cache's own, or the one a backing device is attached to.
    pub set_uuid: Uuid,
    /// Label.
    pub label: Label,
    /// Flag bits; see the accessors.
    pub flags: u64,
    /// Counts the writes of a cache's superblock.
    pub seq: u64,
    /// Feature words; zero below version 5.
    pub features: Features,
    /// Sectors of a block.
    pub block_sectors: u16,
    /// Seconds since 1970.
    pub last_mount: u32,
    /// The rest.
    pub role: Role,
}

impl Superblock {
    /// A new device's: not written yet, without a label, flags and features.
    #[must_use]
    pub fn new(version: Version, uuid: Uuid, set_uuid: Uuid, block_sectors: u16, role: Role) -> Self {
        let (label, features) = (Label::default(), Features::default());
        Self {
            version,
            uuid,
            set_uuid,
            label,
            flags: 0,
            seq: 0,
            features,
            block_sectors,
            last_mount: 0,
            role,
        }
    }
    /// The superblock at the start of `bytes`, which are those from byte 4096 of the device on.
    ///
    /// # Errors
    /// The first rule of the kernel's (`read_super`, `read_super_common`) that it breaks; the two that need the
    /// device's size and block size are [`Self::check_device`]'s.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let Some(raw) = RawSuperblock::read(bytes) else {
            let problem =
                Problem::Truncated { need: size_of::<RawSuperblock>() as u64, have: bytes.len() as u64 };
            return Err(Error::new(Structure::Superblock, 0, problem));
        };
        let err = |byte, name, value, rule| Err(field(Structure::Superblock, byte, name, value, rule));
        if raw.offset.get() != SB_SECTOR {
            return err(0x08, "offset", raw.offset.get(), "must be 8: not a bcache superblock");
        }
        if !raw.has_magic() {
            let [found, expected] =
                [raw.magic, magic::SUPERBLOCK].map(|m| Uuid::from_bytes(m).as_u64_pair().0);
            return Err(Error::new(Structure::Superblock, 0x18, Problem::Magic { found, expected }));
        }
        if raw.csum.get() != raw.expected_csum() {
            let problem = Problem::Checksum { found: raw.csum.get(), expected: raw.expected_csum() };
            return Err(Error::new(Structure::Superblock, 0, problem));
        }
        Self::decode(&raw)
    }

    /// Everything behind the checksum: for those who want to look at a superblock whose checksum is wrong.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn decode(raw: &RawSuperblock) -> Result<Self, Error> {
        let err = |byte, name, value, rule| Err(field(Structure::Superblock, byte, name, value, rule));
        if raw.uuid == [0; 16] {
            return err(0x28, "uuid", 0, "must not be zero");
        }
        let Some(version) = Version::from_number(raw.version.get()) else {
            return Err(Error::new(Structure::Superblock, 0x10, Problem::Version(raw.version.get())));
        };
        let role = if version.is_backing() { backing(raw, version)? } else { cache(raw, version)? };
        let features =
            if version == Version::CacheWithFeatures { features(raw) } else { Features::default() };
        Ok(Self {
            version,
            uuid: Uuid::from_bytes(raw.uuid),
            set_uuid: Uuid::from_bytes(raw.set_uuid),
            label: Label(raw.label),
            flags: raw.flags.get(),
            seq: raw.seq.get(),
            features,
            block_sectors: raw.block_size.get(),
            last_mount: raw.last_mount.get(),
            role,
        })
    }

    /// Checks what depends on the device: its bytes, and those of its logical block.
    ///
    /// # Errors
    /// A device smaller than its buckets or its data offset, or with a larger block.
    pub fn check_device(&self, bytes: u64, logical_block: u32) -> Result<(), Error> {
        let err = |byte, name, value, rule| Err(field(Structure::Superblock, byte, name, value, rule));
        if u64::from(self.block_sectors) * crate::units::SECTOR_SIZE < logical_block.into() {
            return err(0xc0, "block_size", self.block_sectors.into(), "smaller than the device's block");
        }
        match &self.role {
            Role::Cache(cache)
                if cache.nbuckets.saturating_mul(cache.bucket_sectors.into())
                    > Sectors::from_bytes(bytes).0 =>
            {
                err(0xb8, "nbuckets", cache.nbuckets, "the device is too small for them")
            }
            Role::Backing(backing) if backing.data_offset.bytes() >= bytes => {
                err(0xb8, "data_offset", backing.data_offset.0, "the device ends before its data starts")
            }
            _ => Ok(()),
        }
    }

    /// Writes the superblock into `block`, bytes 4096 to 8191 of the device, and seals it. Bytes that this type does
    /// not know stay as they are, like the kernel leaves them.
    ///
    /// # Errors
    /// Too few bytes, or a bucket size that the version cannot encode.
    pub fn write_to(&self, block: &mut [u8]) -> Result<(), Error> {
        let have = block.len() as u64;
        let Ok((raw, _)) = RawSuperblock::mut_from_prefix(block) else {
            let problem = Problem::Truncated { need: size_of::<RawSuperblock>() as u64, have };
            return Err(Error::new(Structure::Superblock, 0, problem));
        };
        raw.offset = SB_SECTOR.into();
        raw.version = self.version.number().into();
        raw.magic = magic::SUPERBLOCK;
        raw.uuid = self.uuid.into_bytes();
        raw.set_uuid = self.set_uuid.into_bytes();
        raw.label = self.label.0;
        raw.flags = self.flags.into();
        raw.seq = self.seq.into();
        raw.block_size = self.block_sectors.into();
        raw.last_mount = self.last_mount.into();
        if self.version == Version::CacheWithFeatures {
            raw.feature_compat = self.features.compat.into();
            raw.feature_incompat = self.features.incompat.into();
            raw.feature_ro_compat = self.features.ro_compat.into();
        }
        match &self.role {
            Role::Cache(cache) => self.write_cache(cache, raw)?,
            Role::Backing(backing) => {
                if self.version != Version::Backing {
                    raw.nbuckets_or_data_offset = backing.data_offset.0.into();
                }
                raw.bucket_size = backing.bucket_sectors.into();
            }
        }
        raw.csum = raw.expected_csum().into();
        Ok(())
    }

    fn write_cache(&self, cache: &CacheFields, raw: &mut RawSuperblock) -> Result<(), Error> {
        raw.nbuckets_or_data_offset = cache.nbuckets.into();
        raw.nr_in_set = cache.nr_in_set.into();
        raw.nr_this_dev = cache.nr_this_dev.into();
        raw.first_bucket = cache.first_bucket.into();
        raw.keys = cache.njournal_buckets.into();
        for (i, slot) in raw.d.iter_mut().take(cache.njournal_buckets.into()).enumerate() {
            *slot = (u64::from(cache.first_bucket) + i as u64).into();
        }
        let sectors = cache.bucket_sectors;
        if self.features.incompat & INCOMPAT_LOG_LARGE_BUCKET_SIZE != 0 {
            raw.bucket_size = (sectors.trailing_zeros() as u16).into();
        } else if self.features.incompat & INCOMPAT_OBSO_LARGE_BUCKET != 0 {
            raw.bucket_size = (sectors as u16).into();
            raw.obso_bucket_size_hi = ((sectors >> 16) as u16).into();
        } else {
            raw.bucket_size = u16::try_from(sectors)
                .map_err(|_| {
                    let rule = "buckets of 32 MiB and more need the large_bucket feature";
                    field(Structure::Superblock, 0xc2, "bucket_size", sectors.into(), rule)
                })?
                .into();
        }
        Ok(())
    }

    /// The cache's fields, if it is one.
    #[must_use]
    pub const fn cache(&self) -> Option<&CacheFields> {
        match &self.role {
            Role::Cache(cache) => Some(cache),
            Role::Backing(_) => None,
        }
    }
    /// The cache's fields, to change them.
    pub const fn cache_mut(&mut self) -> Option<&mut CacheFields> {
        match &mut self.role {
            Role::Cache(cache) => Some(cache),
            Role::Backing(_) => None,
        }
    }
    /// The backing device's fields, if it is one.
    #[must_use]
    pub const fn backing(&self) -> Option<&BackingFields> {
        match &self.role {
            Role::Backing(backing) => Some(backing),
            Role::Cache(_) => None,
        }
    }
    /// The cache's geometry, if it is a cache.
    #[must_use]
    pub fn geometry(&self) -> Option<Geometry> {
        self.cache().map(|cache| Geometry {
            block_sectors: self.block_sectors.into(),
            bucket_sectors: cache.bucket_sectors,
            first_bucket: cache.first_bucket.into(),
            nbuckets: cache.nbuckets,
        })
    }
    /// The magic numbers of its set.
    #[must_use]
    pub fn set_magic(&self) -> SetMagic {
        SetMagic::of(&self.set_uuid)
    }
    /// Cache: metadata is on disk and must be read; when not set, the next registration starts an empty set.
    #[must_use]
    pub const fn sync(&self) -> bool {
        self.flags & FLAG_SYNC != 0
    }
    /// Sets [`Self::sync`].
    pub const fn set_sync(&mut self, yes: bool) {
        self.set_flag(FLAG_SYNC, yes);
    }
    /// Cache: buckets are discarded before they are reused.
    #[must_use]
    pub const fn discard(&self) -> bool {
        self.flags & FLAG_DISCARD != 0
    }
    /// Sets [`Self::discard`].
    pub const fn set_discard(&mut self, yes: bool) {
        self.set_flag(FLAG_DISCARD, yes);
    }
    /// Cache: number of the replacement policy as stored, 0 to 7.
    #[must_use]
    pub const fn replacement_number(&self) -> u64 {
        (self.flags >> REPLACEMENT_SHIFT) & 7
    }
    /// Cache: replacement policy; nothing for a number that names none.
    #[must_use]
    pub fn replacement(&self) -> Option<Replacement> {
        Replacement::ALL.get(self.replacement_number() as usize).copied()
    }
    /// Sets the replacement policy.
    pub const fn set_replacement(&mut self, policy: Replacement) {
        self.flags = (self.flags & !(7 << REPLACEMENT_SHIFT)) | ((policy as u64) << REPLACEMENT_SHIFT);
    }
    /// Backing device: number of the cache mode as stored, 0 to 15.
    #[must_use]
    pub const fn cache_mode_number(&self) -> u64 {
        self.flags & 15
    }
    /// Backing device: cache mode; nothing for a number that names none.
    #[must_use]
    pub fn cache_mode(&self) -> Option<CacheMode> {
        CacheMode::ALL.get(self.cache_mode_number() as usize).copied()
    }
    /// Sets the cache mode.
    pub const fn set_cache_mode(&mut self, mode: CacheMode) {
        self.flags = (self.flags & !15) | mode as u64;
    }
    /// Backing device: its state.
    #[must_use]
    pub fn state(&self) -> BackingState {
        let number = (self.flags >> STATE_SHIFT) & 3;
        BackingState::ALL.get(number as usize).copied().unwrap_or(BackingState::Stale)
    }
    /// Sets the state.
    pub const fn set_state(&mut self, state: BackingState) {
        self.flags = (self.flags & !(3 << STATE_SHIFT)) | ((state as u64) << STATE_SHIFT);
    }

    const fn set_flag(&mut self, flag: u64, yes: bool) {
        self.flags = if yes { self.flags | flag } else { self.flags & !flag };
    }
}

const fn features(raw: &RawSuperblock) -> Features {
    Features {
        compat: raw.feature_compat.get(),
        incompat: raw.feature_incompat.get(),
        ro_compat: raw.feature_ro_compat.get(),
    }
}

fn backing(raw: &RawSuperblock, version: Version) -> Result<Role, Error> {
    let data_offset = if version == Version::Backing {
        DATA_OFFSET_DEFAULT
    } else {
        Sectors(raw.nbuckets_or_data_offset.get())
    };
    if data_offset < DATA_OFFSET_DEFAULT {
        let rule = "must be at least 16";
        return Err(field(Structure::Superblock, 0xb8, "data_offset", data_offset.0, rule));
    }
    Ok(Role::Backing(BackingFields { data_offset, bucket_sectors: raw.bucket_size.get() }))
}

fn cache(raw: &RawSuperblock, version: Version) -> Result<Role, Error> {
    if version == Version::CacheWithFeatures
        && let Some((kind, bits)) = features(raw).unknown()
    {
        let byte = match kind {
            "compat" => 0x78,
            "incompat" => 0x80,
            _ => 0x88,
        };
        return Err(Error::new(Structure::Superblock, byte, Problem::Features { kind, bits }));
    }
    let err = |byte, name, value, rule| Err(field(Structure::Superblock, byte, name, value, rule));
    let (keys, nbuckets) = (raw.keys.get(), raw.nbuckets_or_data_offset.get());
    let (block, first) = (raw.block_size.get(), raw.first_bucket.get());
    if usize::from(keys) > JOURNAL_BUCKETS_MAX {
        return err(0xce, "njournal_buckets", keys.into(), "at most 256");
    }
    // The kernel takes up to LONG_MAX buckets; no device has more sectors than a pointer's 43 bits can name.
    if nbuckets > 1 << 43 {
        return err(0xb8, "nbuckets", nbuckets, "more than pointers can name");
    }
    if nbuckets < NBUCKETS_MIN {
        return err(0xb8, "nbuckets", nbuckets, "not enough: at least 128");
    }
    if !block.is_power_of_two() || block > BLOCK_SECTORS_MAX {
        return err(0xc0, "block_size", block.into(), "must be a power of two up to a page (8 sectors)");
    }
    let bucket_sectors = raw.bucket_sectors().unwrap_or(0);
    if !bucket_sectors.is_power_of_two() || bucket_sectors < BUCKET_SECTORS_MIN {
        let value = raw.bucket_size.get().into();
        return err(0xc2, "bucket_size", value, "must be a power of two of at least a page (8 sectors)");
    }
    if raw.set_uuid == [0; 16] {
        return err(0x38, "set_uuid", 0, "must not be zero");
    }
    let (nr_in_set, nr_this_dev) = (raw.nr_in_set.get(), raw.nr_this_dev.get());
    if nr_in_set == 0 || nr_in_set <= nr_this_dev || nr_in_set > crate::bkey::MAX_CACHES_PER_SET {
        return err(0xc4, "nr_in_set", nr_in_set.into(), "must be 1 to 8 and more than nr_this_dev");
    }
    for (i, bucket) in raw.d.iter().take(keys.into()).enumerate() {
        if bucket.get() != u64::from(first) + i as u64 {
            let byte = (D_OFFSET + 8 * i) as u64;
            return err(
                byte,
                "d",
                bucket.get(),
                "journal buckets must follow each other from first_bucket on",
            );
        }
    }
    if u64::from(first) + u64::from(keys) > nbuckets {
        return err(0xce, "njournal_buckets", keys.into(), "the journal leaves the device");
    }
    if u64::from(first).saturating_mul(bucket_sectors.into()) < 16 {
        return err(0xcc, "first_bucket", first.into(), "comes before the end of the superblock");
    }
    Ok(Role::Cache(CacheFields {
        nbuckets,
        bucket_sectors,
        nr_in_set,
        nr_this_dev,
        first_bucket: first,
        njournal_buckets: keys,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            version: Version::CacheWithUuid,
            uuid: Uuid::from_u128(1),
            set_uuid: Uuid::from_u128(2),
            label: Label::new("fast").unwrap(),
            flags: 0,
            seq: 7,
            features: Features::default(),
            block_sectors: 1,
            last_mount: 0,
            role: Role::Cache(CacheFields {
                nbuckets: 1024,
                bucket_sectors: 1024,
                nr_in_set: 1,
                nr_this_dev: 0,
                first_bucket: 1,
                njournal_buckets: 8,
            }),
        }
    }

    fn bytes_of(sb: &Superblock) -> Vec<u8> {
        let mut block = vec![0; SB_BYTES];
        sb.write_to(&mut block).unwrap();
        block
    }

    /// Changes bytes behind the checksum and makes it right again.
    fn damaged(at: usize, value: &[u8]) -> Result<Superblock, Error> {
        let mut block = bytes_of(&sample());
        block[at..at + value.len()].copy_from_slice(value);
        let csum = RawSuperblock::read(&block).unwrap().expected_csum();
        block[..8].copy_from_slice(&csum.to_le_bytes());
        Superblock::parse(&block)
    }

    #[test]
    fn every_rule_of_the_kernel_refuses_its_own_damage() {
        for (at, value, field) in [
            (0x08, 9u64, "offset"),
            (0xb8, 100, "nbuckets"),
            (0xb8, 1 << 60, "nbuckets"),
            (0xcc, 0, "first_bucket"),
        ] {
            let error = damaged(at, &value.to_le_bytes()[..if at == 0xcc { 2 } else { 8 }]).unwrap_err();
            assert_eq!(error.byte, if field == "first_bucket" { 0xd0 } else { at as u64 }, "{error}");
        }
        for (at, value, byte) in [
            (0xc0, 3u16, 0xc0),
            (0xc0, 16, 0xc0),
            (0xc2, 24, 0xc2),
            (0xc2, 4, 0xc2),
            (0xc4, 0, 0xc4),
            (0xc4, 9, 0xc4),
            (0xc6, 1, 0xc4),
            (0xce, 257, 0xce),
            (0xd0, 5, 0xd0),
        ] {
            assert_eq!(damaged(at, &value.to_le_bytes()).unwrap_err().byte, byte, "{at:#x} = {value}");
        }
        assert_eq!(damaged(0x28, &[0; 16]).unwrap_err().byte, 0x28);
        assert_eq!(damaged(0x38, &[0; 16]).unwrap_err().byte, 0x38);
        assert!(matches!(damaged(0x10, &[7]).unwrap_err().problem, Problem::Version(7)));
        assert!(matches!(damaged(0x18, &[7]).unwrap_err().problem, Problem::Magic { .. }));
    }

    #[test]
    fn unknown_features_are_refused_where_they_are_read() {
        for (version, refused) in [(3u8, false), (5, true)] {
            let mut block = bytes_of(&sample());
            block[0x10] = version;
            block[0x81] = 1;
            let csum = RawSuperblock::read(&block).unwrap().expected_csum();
            block[..8].copy_from_slice(&csum.to_le_bytes());
            assert_eq!(Superblock::parse(&block).is_err(), refused);
        }
    }

    #[test]
    fn both_encodings_of_large_buckets() {
        for incompat in [INCOMPAT_LOG_LARGE_BUCKET_SIZE, INCOMPAT_OBSO_LARGE_BUCKET] {
            let mut sb = sample();
            sb.version = Version::CacheWithFeatures;
            sb.features.incompat = incompat;
            sb.cache_mut().unwrap().bucket_sectors = 1 << 17;
            assert_eq!(Superblock::parse(&bytes_of(&sb)).unwrap(), sb);
        }
        let mut plain = sample();
        plain.cache_mut().unwrap().bucket_sectors = 1 << 17;
        assert!(plain.write_to(&mut [0; SB_BYTES]).is_err());
    }

    #[test]
    fn the_high_word_of_the_obsolete_encoding_is_outside_the_checksum() {
        let mut block = bytes_of(&sample());
        block[0x8d0] = 9;
        assert_eq!(Superblock::parse(&block).unwrap(), sample());
    }

    #[test]
    fn labels_end_at_the_first_nul_or_at_32_bytes() {
        assert_eq!(Label::new(&"x".repeat(32)).unwrap().to_text().len(), 32);
        assert!(Label::new(&"x".repeat(33)).is_none());
        let mut label = Label::new("a\n").unwrap();
        label.0[5] = b'j';
        assert_eq!(label.to_text(), "a");
    }

    #[test]
    fn a_device_too_small_or_of_larger_blocks_is_refused() {
        let sb = sample();
        assert!(sb.check_device(1024 * 1024 * 512, 512).is_ok());
        assert!(sb.check_device(1024 * 1024 * 512 - 512, 512).is_err());
        assert!(sb.check_device(1 << 40, 4096).is_err());
    }
}
