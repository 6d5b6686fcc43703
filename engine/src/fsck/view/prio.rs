//! The chain of prio sets (`prio_read`).
//!
//! The newest journal entry names the first bucket, each set the next. The last one's `next_bucket` belongs to the
//! chain before, so sets are counted, not followed to an end.

use super::devices::Cache;
use super::fault::{Fault, What};
use bcache_format::prio::{BucketDisk, PrioSet};
use bcache_format::{BucketNr, Structure};
use std::collections::HashSet;

/// What the chain holds, as far as it could be read.
#[derive(Clone, Debug, Default)]
pub struct PrioChain {
    /// Buckets of the sets that were read, with their sequence numbers.
    pub buckets: Vec<(BucketNr, u64)>,
    /// Priority and generation of each bucket, bucket 0 first; fewer than buckets when the chain broke.
    pub entries: Vec<BucketDisk>,
    /// Why the chain could not be followed to its end.
    pub broken: Option<Fault>,
}

impl PrioChain {
    /// Reads the chain that starts at `first`, which the structure at `named_at` of the device names.
    #[must_use]
    pub fn read(cache: &Cache, first: BucketNr, named_at: u64) -> Self {
        let mut chain = Self::default();
        chain.broken = chain.follow(cache, first, named_at).err();
        chain
    }
    /// The generations.
    #[must_use]
    pub fn gens(&self) -> Vec<u8> {
        self.entries.iter().map(|entry| entry.generation).collect()
    }

    fn follow(&mut self, cache: &Cache, first: BucketNr, named_at: u64) -> Result<(), Fault> {
        let geometry = &cache.geometry;
        let (mut bucket, mut named_at) = (first, named_at);
        let mut seen = HashSet::new();
        while (self.entries.len() as u64) < geometry.nbuckets {
            if !seen.insert(bucket) {
                return Err(cache.fault(Structure::PrioSet, named_at, What::PrioLoop(bucket)));
            }
            if !geometry.is_usable(bucket) || cache.is_journal(bucket) {
                return Err(cache.fault(Structure::PrioSet, named_at, What::PrioBucket(bucket)));
            }
            let byte = geometry.bucket_start_byte(bucket);
            let bytes = cache.read(Structure::PrioSet, byte, geometry.meta_bucket_bytes())?;
            let set = PrioSet::parse(&bytes, cache.magic)
                .map_err(|error| Fault::format(&cache.name, error, byte))?;
            let left = geometry.nbuckets - self.entries.len() as u64;
            let take = usize::try_from(left.min(geometry.prios_per_bucket())).unwrap_or(usize::MAX);
            self.entries.extend(set.entries.iter().take(take));
            self.buckets.push((bucket, set.seq));
            (bucket, named_at) = (set.next_bucket, byte);
        }
        Ok(())
    }
}
