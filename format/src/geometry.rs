//! Sizes that follow from a cache's superblock, and where a bucket is.

use crate::bkey::{Bkey, Ptr};
use crate::units::{BucketNr, SECTOR_SIZE, Sectors};

/// No more than this of a bucket is used for prio sets and the uuid table, and no btree node is derived from more:
/// the kernel's largest contiguous allocation on x86 (`meta_bucket_pages`).
const META_BUCKET_MAX: u64 = 4 << 20;
/// Btree nodes up to this size take what metadata buckets have; larger ones a quarter of it (`BTREE_MAX_PAGES`).
const BTREE_NODE_FULL: u64 = 256 << 10;

/// The shape of a cache device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Geometry {
    /// Sectors of a block: btree nodes, journal entries and all writes are multiples of it. 1 to 8, a power of two.
    pub block_sectors: u32,
    /// Sectors of a bucket: a power of two, at least 8.
    pub bucket_sectors: u32,
    /// Buckets before this one hold the superblock and are never allocated.
    pub first_bucket: u64,
    /// Buckets of the device, those before `first_bucket` included.
    pub nbuckets: u64,
}

impl Geometry {
    /// Bytes of a block.
    #[must_use]
    pub const fn block_bytes(&self) -> u64 {
        self.block_sectors as u64 * SECTOR_SIZE
    }
    /// Bytes of a bucket.
    #[must_use]
    pub const fn bucket_bytes(&self) -> u64 {
        self.bucket_sectors as u64 * SECTOR_SIZE
    }
    /// Bytes of a bucket that a prio set or the uuid table uses.
    #[must_use]
    pub const fn meta_bucket_bytes(&self) -> u64 {
        let bucket = self.bucket_bytes();
        if bucket < META_BUCKET_MAX { bucket } else { META_BUCKET_MAX }
    }
    /// Bytes of a btree node.
    #[must_use]
    pub const fn btree_node_bytes(&self) -> u64 {
        let meta = self.meta_bucket_bytes();
        if meta <= BTREE_NODE_FULL {
            meta
        } else if meta / 4 > BTREE_NODE_FULL {
            meta / 4
        } else {
            BTREE_NODE_FULL
        }
    }
    /// Blocks of a btree node.
    #[must_use]
    pub const fn btree_node_blocks(&self) -> u64 {
        self.btree_node_bytes() / self.block_bytes()
    }
    /// Entries of the uuid table.
    #[must_use]
    pub const fn nr_uuids(&self) -> usize {
        (self.meta_bucket_bytes() / crate::uuid_entry::ENTRY_BYTES as u64) as usize
    }
    /// Buckets described by one prio set.
    #[must_use]
    pub const fn prios_per_bucket(&self) -> u64 {
        (self.meta_bucket_bytes() - crate::prio::HEADER_BYTES as u64) / crate::prio::ENTRY_BYTES as u64
    }
    /// Prio sets, one a bucket, that describe all buckets.
    #[must_use]
    pub const fn prio_buckets(&self) -> u64 {
        self.nbuckets.div_ceil(self.prios_per_bucket())
    }
    /// First sector of `bucket`.
    #[must_use]
    pub const fn bucket_start(&self, bucket: BucketNr) -> Sectors {
        Sectors(bucket.0.saturating_mul(self.bucket_sectors as u64))
    }
    /// First byte of `bucket`.
    #[must_use]
    pub const fn bucket_start_byte(&self, bucket: BucketNr) -> u64 {
        self.bucket_start(bucket).bytes()
    }
    /// The bucket that sector `at` of the cache device is in.
    #[must_use]
    pub const fn bucket_of(&self, at: u64) -> BucketNr {
        BucketNr(at >> self.bucket_sectors.trailing_zeros())
    }
    /// The bucket a pointer points into.
    #[must_use]
    pub const fn ptr_bucket(&self, ptr: Ptr) -> BucketNr {
        self.bucket_of(ptr.offset())
    }
    /// Whether `bucket` may be allocated: not before the first nor past the last.
    #[must_use]
    pub const fn is_usable(&self, bucket: BucketNr) -> bool {
        bucket.0 >= self.first_bucket && bucket.0 < self.nbuckets
    }
    /// What is wrong with where a key points, if anything: a pointer that leaves its bucket or the device.
    /// Pointers to devices that no set can have say nothing about a place and are passed over (`__ptr_invalid`).
    #[must_use]
    pub fn ptr_problem(&self, key: &Bkey) -> Option<&'static str> {
        key.ptrs().iter().filter(|ptr| ptr.is_device()).find_map(|ptr| self.place_problem(*ptr, key.size()))
    }
    /// Whether `sectors` at a pointer go beyond its bucket.
    #[inline]
    #[must_use]
    pub const fn leaves_bucket(&self, ptr: Ptr, sectors: u64) -> bool {
        let within = ptr.offset() & (self.bucket_sectors as u64 - 1);
        sectors + within > self.bucket_sectors as u64
    }
    /// What is wrong with `sectors` at a pointer, if anything.
    #[must_use]
    pub fn place_problem(&self, ptr: Ptr, sectors: u64) -> Option<&'static str> {
        if self.leaves_bucket(ptr, sectors) {
            Some("extent crosses the end of its bucket")
        } else if self.ptr_bucket(ptr).0 < self.first_bucket {
            Some("pointer before the first bucket")
        } else if self.ptr_bucket(ptr).0 >= self.nbuckets {
            Some("pointer past the end of the device")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_bucket(bytes: u64) -> Geometry {
        let bucket_sectors = u32::try_from(bytes / SECTOR_SIZE).unwrap();
        Geometry { block_sectors: 1, bucket_sectors, first_bucket: 1, nbuckets: 1000 }
    }

    #[test]
    fn nodes_are_a_quarter_of_large_buckets() {
        assert_eq!(with_bucket(16 << 10).btree_node_bytes(), 16 << 10);
        assert_eq!(with_bucket(256 << 10).btree_node_bytes(), 256 << 10);
        assert_eq!(with_bucket(512 << 10).btree_node_bytes(), 256 << 10);
        assert_eq!(with_bucket(2 << 20).btree_node_bytes(), 512 << 10);
        assert_eq!(with_bucket(64 << 20).btree_node_bytes(), 1 << 20);
        assert_eq!(with_bucket(64 << 20).meta_bucket_bytes(), 4 << 20);
    }

    #[test]
    fn pointers_must_stay_inside_their_bucket_and_the_device() {
        let geometry = with_bucket(16 << 10);
        let key = |offset, size| Bkey::extent(1, 100, size, Ptr::new(0, offset, 0), false);
        assert_eq!(geometry.ptr_problem(&key(32, 32)), None);
        assert!(geometry.ptr_problem(&key(33, 32)).is_some());
        assert!(geometry.ptr_problem(&key(0, 8)).is_some());
        assert!(geometry.ptr_problem(&key(32 * 1000, 8)).is_some());
        assert_eq!(geometry.ptr_problem(&Bkey::extent(1, 100, 8, Ptr::new(4095, 0, 0), false)), None);
    }
}
