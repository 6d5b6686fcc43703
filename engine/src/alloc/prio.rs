//! Writing the prio sets: a chain of buckets with the generation and priority of every bucket.
//!
//! The chain is written whole, to buckets of its own, from its end to its start; then a journal entry names its first
//! bucket, and only when that entry is durable the buckets of the chain before are free and the generations in it are
//! in force. A crash in between leaves the old chain.

use crate::dev::Buf;
use crate::error::{Error, Result};
use crate::set::CacheSet;
use bcache_format::BucketNr;
use bcache_format::prio::{BucketDisk, PrioSet};

use super::TakenBucket;

/// The chain that the newest journal entry names.
#[derive(Debug, Default)]
pub struct PrioChain {
    /// Its buckets, first to last.
    pub buckets: Vec<BucketNr>,
    /// Buckets of the chain before, until the journal names this one.
    pub retiring: Vec<BucketNr>,
    /// Counts the writes.
    pub seq: u64,
}

impl CacheSet {
    /// Makes the generations of all buckets durable, those of `invalidated` with them, and says so by returning.
    pub(crate) async fn write_prios(&self) -> Result<()> {
        let _one = self.alloc.prio_io.lock().await;
        let geometry = self.cache.geometry;
        let fresh = match self.alloc.try_take_prios() {
            Some(fresh) => fresh,
            None if seeded_bug!(PriosFromTheGeneralList) => {
                self.alloc.prio_blocks.unblocked.wait_until(|| self.is_closing()).await;
                return Err(Error::Stopping);
            }
            None => return Err(Error::NoSpace("no bucket is left for the prio sets")),
        };
        // From here to the copy nothing is awaited: what blocks prio writes cannot begin in between.
        self.alloc
            .prio_blocks
            .unblocked
            .wait_until(|| self.alloc.prio_blocks() == 0 || self.is_closing())
            .await;
        self.check()?;
        if self.alloc.prio_blocks() > 0 {
            return Err(Error::Stopping);
        }
        let (seq, previous) = {
            let chain = self.alloc.prio.borrow();
            (chain.seq + 1, chain.buckets.first().copied())
        };
        let chain: Vec<BucketNr> = fresh.iter().map(TakenBucket::nr).collect();
        let images = self.prio_images(&chain, seq, previous);
        self.stats.prio_writes.add(1);
        for (bucket, image) in chain.iter().zip(images).rev() {
            let at = geometry.bucket_start_byte(*bucket);
            self.stats.other_metadata_sectors_written.add(image.len() as u64 / bcache_format::SECTOR_SIZE);
            self.metadata(self.cache.write(at, Buf::copied(&image).freeze()).await)?;
            self.check()?;
        }
        {
            let mut now = self.alloc.prio.borrow_mut();
            self.alloc.prio_head.set(chain.first().copied().unwrap_or_default());
            now.seq = seq;
            now.retiring = std::mem::replace(&mut now.buckets, chain);
            fresh.into_iter().for_each(|taken| drop(taken.used()));
        }
        self.commit_roots().await?;
        for bucket in std::mem::take(&mut self.alloc.prio.borrow_mut().retiring) {
            self.alloc.retire_prio(bucket);
        }
        Ok(())
    }

    fn prio_images(&self, chain: &[BucketNr], seq: u64, previous: Option<BucketNr>) -> Vec<Vec<u8>> {
        let geometry = self.cache.geometry;
        let buckets = self.alloc.buckets.borrow();
        let per = geometry.prios_per_bucket();
        let entry = |nr: u64| {
            let nr = BucketNr(nr);
            BucketDisk { prio: buckets.get(nr).prio.into(), generation: buckets.generation(nr) }
        };
        (0..chain.len() as u64)
            .map(|i| {
                let entries = (i * per..((i + 1) * per).min(geometry.nbuckets)).map(entry).collect();
                let next = chain.get(i as usize + 1).copied().or(previous).unwrap_or_default();
                let set = PrioSet { seq, version: 0, next_bucket: next, entries };
                set.write(self.cache.magic, geometry.meta_bucket_bytes())
            })
            .collect()
    }
}
