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

mod fields;
mod raw;
mod rules;

pub use fields::{BackingFields, BackingState, CacheFields, CacheMode, Replacement, Role, Version};
pub(crate) use raw::D_OFFSET;
pub use raw::RawSuperblock;
use rules::{backing, cache, features};

pub use crate::label::{LABEL_BYTES, Label};

use crate::error::{Error, Problem, Structure, field};
use crate::feature::{Features, INCOMPAT_LOG_LARGE_BUCKET_SIZE, INCOMPAT_OBSO_LARGE_BUCKET};
use crate::geometry::Geometry;
use crate::magic::{self, SetMagic};
use crate::units::Sectors;
use uuid::Uuid;
use zerocopy::FromBytes;

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
