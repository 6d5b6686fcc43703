//! A superblock's bytes.

use super::{JOURNAL_BUCKETS_MAX, LABEL_BYTES, Version};
use crate::csum::{SEED_ONES, crc64};
use crate::feature::{INCOMPAT_LOG_LARGE_BUCKET_SIZE, INCOMPAT_OBSO_LARGE_BUCKET};
use crate::magic;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

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
