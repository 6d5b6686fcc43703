//! Refilling the free lists: choose buckets to empty, make their new generations durable, discard, hand out.

use super::bucket::{Buckets, bucket_ranges};
use crate::error::Result;
use crate::set::CacheSet;
use bcache_format::BucketNr;
use bcache_format::superblock::Replacement;
use std::rc::Rc;

impl CacheSet {
    /// Runs until the set stops: keeps the free lists filled.
    pub(crate) async fn refill_task(self: Rc<Self>) {
        while !self.is_closing() {
            self.alloc.refill.wait_until(|| self.is_closing() || self.alloc.wants_more()).await;
            if self.is_closing() {
                return;
            }
            if let Err(error) = self.refill_once().await {
                self.fail(error);
                return;
            }
        }
    }

    async fn refill_once(&self) -> Result<()> {
        let batch = self.invalidate_batch().await;
        if batch.is_empty() {
            // Nothing can be emptied by what is known: GC has to look.
            self.alloc.wants_gc.set(true);
            self.gc.request();
            self.gc.wait_for_pass(self).await;
            return Ok(());
        }
        if batch.len() * 2 < self.alloc.batch {
            self.gc.request();
        }
        if !seeded_bug!(ReuseBeforeGen) {
            self.write_prios().await?;
        }
        for nr in &batch {
            self.alloc.buckets.borrow_mut().get_mut(*nr).unsettled = false;
        }
        let discard = self.settings.discard.get();
        let geometry = self.cache.geometry;
        let mut rest = batch.into_iter();
        for nr in rest.by_ref() {
            if discard {
                // A failed discard costs nothing but space on the device.
                let _ = self.cache.dev.discard(geometry.bucket_start_byte(nr), geometry.bucket_bytes()).await;
            }
            if !self.alloc.push_free(nr) {
                self.alloc.unpin(nr);
                break;
            }
        }
        // Lists are full: what is left may be chosen again next time.
        for nr in rest {
            self.alloc.unpin(nr);
        }
        Ok(())
    }

    /// Empties a batch of buckets in memory.
    async fn invalidate_batch(&self) -> Vec<BucketNr> {
        let count = self.alloc.batch;
        let chosen = match self.settings.cache_replacement_policy.get() {
            Replacement::Lru => self.lru(count).await,
            Replacement::Fifo => self.fifo(&self.alloc.buckets.borrow(), count),
            Replacement::Random => self.random(&self.alloc.buckets.borrow(), count),
        };
        let mut buckets = self.alloc.buckets.borrow_mut();
        // Some may have been taken into use while others were looked at.
        let chosen: Vec<_> = chosen.into_iter().filter(|nr| buckets.may_invalidate(*nr)).collect();
        for nr in &chosen {
            if buckets.get(*nr).sectors > 0 {
                self.stats.invalidated.add(1);
            }
            buckets.invalidate(*nr);
        }
        chosen
    }

    /// The buckets that are worth least. Weighing all of a large cache takes milliseconds, so others run in between.
    async fn lru(&self, count: usize) -> Vec<BucketNr> {
        let mut weighed: Vec<(u64, BucketNr)> = Vec::new();
        for range in bucket_ranges(&self.cache.geometry) {
            {
                let buckets = self.alloc.buckets.borrow();
                let numbers = range.map(BucketNr).filter(|nr| buckets.may_invalidate(*nr));
                weighed.extend(numbers.map(|nr| (buckets.lru_weight(buckets.get(nr)), nr)));
            }
            if weighed.len() > count {
                weighed.select_nth_unstable(count);
                weighed.truncate(count);
            }
            self.env.yield_now().await;
        }
        weighed.sort_unstable();
        weighed.into_iter().map(|(_, nr)| nr).collect()
    }

    fn fifo(&self, buckets: &Buckets, count: usize) -> Vec<BucketNr> {
        let geometry = buckets.geometry();
        let usable = geometry.nbuckets - geometry.first_bucket;
        let mut next = self.alloc.fifo_next.get().0;
        let mut chosen = Vec::new();
        for _ in 0..usable {
            if !(geometry.first_bucket..geometry.nbuckets).contains(&next) {
                next = geometry.first_bucket;
            }
            let nr = BucketNr(next);
            next += 1;
            if buckets.may_invalidate(nr) {
                chosen.push(nr);
                if chosen.len() == count {
                    break;
                }
            }
        }
        self.alloc.fifo_next.set(BucketNr(next));
        chosen
    }

    fn random(&self, buckets: &Buckets, count: usize) -> Vec<BucketNr> {
        let geometry = buckets.geometry();
        let usable = geometry.nbuckets - geometry.first_bucket;
        let mut chosen = std::collections::BTreeSet::new();
        for _ in 0..usable / 2 {
            let nr = BucketNr(geometry.first_bucket + self.env.random() % usable);
            if buckets.may_invalidate(nr) {
                chosen.insert(nr);
                if chosen.len() == count {
                    break;
                }
            }
        }
        chosen.into_iter().collect()
    }
}
