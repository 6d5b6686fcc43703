//! Generations of buckets.

use bcache_format::bkey::gen_after;
use bcache_format::{Bkey, BucketNr, Geometry, Ptr};
use std::collections::HashMap;

/// The generation of every bucket, as far as it is known.
#[derive(Clone, Debug)]
pub struct Gens {
    geometry: Geometry,
    /// From the prio sets that could be read, bucket 0 first.
    stored: Vec<u8>,
    /// Buckets behind those: only what pointers say. Grows with pointers that were read, not with what a
    /// superblock claims.
    beyond: HashMap<u64, u8>,
}

impl Gens {
    /// The generations that prio sets hold.
    #[must_use]
    pub fn new(geometry: Geometry, stored: Vec<u8>) -> Self {
        Self { geometry, stored, beyond: HashMap::new() }
    }
    /// Of a bucket; nothing when neither a prio set nor a pointer says it.
    #[inline]
    #[must_use]
    pub fn get(&self, bucket: u64) -> Option<u8> {
        let index = usize::try_from(bucket).ok()?;
        self.stored.get(index).or_else(|| self.beyond.get(&bucket)).copied()
    }
    /// How far the bucket of `ptr` is ahead of it: 0 for a valid pointer. A pointer to no device is 0 too.
    #[must_use]
    pub fn stale(&self, ptr: Ptr) -> u8 {
        if !ptr.is_device() {
            return 0;
        }
        self.get(self.geometry.ptr_bucket(ptr).0).map_or(0, |known| gen_after(known, ptr.generation()))
    }
    /// How stale a key is: as its most stale pointer.
    #[must_use]
    pub fn stale_key(&self, key: &Bkey) -> u8 {
        key.ptrs().iter().map(|ptr| self.stale(*ptr)).max().unwrap_or(0)
    }
    /// Raises the bucket's generation to the pointer's, if that is newer (`bch_initial_mark_key`).
    pub fn raise(&mut self, ptr: Ptr) {
        if ptr.is_device() {
            self.raise_bucket(self.geometry.ptr_bucket(ptr).0, ptr.generation());
        }
    }
    /// Raises a bucket's generation, if this one is newer.
    pub fn raise_bucket(&mut self, bucket: u64, generation: u8) {
        if self.get(bucket).is_some_and(|known| gen_after(known, generation) > 0) {
            return;
        }
        match usize::try_from(bucket).ok().and_then(|index| self.stored.get_mut(index)) {
            Some(known) => *known = generation,
            None => {
                self.beyond.insert(bucket, generation);
            }
        }
    }
}

/// The generations that prio sets say, of buckets that data may be in.
pub struct DataGens(Vec<u16>);

/// What [`DataGens`] has of a bucket that data cannot be in: no generation is that large.
const NOT_FOR_DATA: u16 = 0x100;

impl DataGens {
    /// Those of `gens`, without buckets of metadata.
    pub fn new(gens: &Gens, metadata: impl IntoIterator<Item = BucketNr>) -> Self {
        let buckets = usize::try_from(gens.geometry.nbuckets).unwrap_or(usize::MAX);
        let mut all: Vec<u16> = gens.stored.iter().take(buckets).map(|known| u16::from(*known)).collect();
        let before_first = (0..gens.geometry.first_bucket).map(BucketNr);
        for bucket in before_first.chain(metadata) {
            if let Some(known) = usize::try_from(bucket.0).ok().and_then(|index| all.get_mut(index)) {
                *known = NOT_FOR_DATA;
            }
        }
        Self(all)
    }
    /// How far a bucket is ahead of a pointer into it, modulo 256: more than half of that when the pointer is newer.
    /// From 256 on where data cannot be, and where nobody knows.
    #[inline]
    #[must_use]
    pub fn ahead(&self, bucket: BucketNr, generation: u8) -> u16 {
        let known = self.0.get(bucket.0 as usize).copied().unwrap_or(NOT_FOR_DATA);
        known & NOT_FOR_DATA | known.wrapping_sub(u16::from(generation)) & 0xff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_pointers_raise_and_older_ones_are_stale() {
        let geometry = Geometry { block_sectors: 1, bucket_sectors: 16, first_bucket: 1, nbuckets: 100 };
        let mut gens = Gens::new(geometry, vec![5; 10]);
        let ptr = |bucket: u64, generation| Ptr::new(0, bucket * 16, generation);
        assert_eq!(gens.stale(ptr(3, 4)), 1);
        gens.raise(ptr(3, 4));
        assert_eq!(gens.get(3), Some(5));
        gens.raise(ptr(3, 7));
        assert_eq!((gens.get(3), gens.stale(ptr(3, 5))), (Some(7), 2));
        // Behind the prio sets that could be read only pointers speak, the newest of them.
        assert_eq!((gens.get(50), gens.stale(ptr(50, 9))), (None, 0));
        gens.raise(ptr(50, 9));
        gens.raise(ptr(50, 3));
        assert_eq!((gens.get(50), gens.stale(ptr(50, 3))), (Some(9), 6));
        assert_eq!(gens.stale(Ptr::new(4095, 0, 0)), 0);
    }

    #[test]
    fn data_is_in_buckets_of_its_own() {
        let geometry = Geometry { block_sectors: 1, bucket_sectors: 16, first_bucket: 2, nbuckets: 9 };
        let gens = DataGens::new(&Gens::new(geometry, vec![5; 10]), [BucketNr(4), BucketNr(1 << 40)]);
        let ahead = |bucket, generation| gens.ahead(BucketNr(bucket), generation);
        assert_eq!((ahead(3, 5), ahead(3, 4), ahead(3, 6)), (0, 1, 0xff));
        // Before the first bucket, in metadata, behind the last.
        for bucket in [1, 4, 9, 1 << 40] {
            assert!(ahead(bucket, 5) > 0xff && ahead(bucket, 4) > 0xff);
        }
    }
}
