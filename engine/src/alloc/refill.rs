//! Refilling the free lists: choose buckets to empty, make their new generations durable, discard, hand out.

use super::bucket::{Buckets, Mark, bucket_ranges};
use crate::error::{Error, Result};
use crate::set::CacheSet;
use bcache_format::BucketNr;
use bcache_format::superblock::Replacement;
use std::rc::Rc;
use std::time::Duration;

/// A full cache in which nobody waits for a bucket is looked at again after this.
const FULL_STEP: Duration = Duration::from_secs(5);
/// How long writing back may take to make room before a full cache is called full.
const WRITEBACK_PATIENCE: Duration = Duration::from_secs(5);

impl CacheSet {
    /// Runs until the set stops: keeps the free lists filled.
    pub(crate) async fn refill_task(self: Rc<Self>) {
        while !self.is_closing() {
            self.alloc.refill.wait_until(|| self.is_closing() || self.alloc.wants_more()).await;
            if self.is_closing() {
                return;
            }
            match self.refill_once().await {
                Ok(()) | Err(Error::NoSpace(_)) => {}
                Err(error) => {
                    self.fail(error);
                    return;
                }
            }
        }
    }

    async fn refill_once(&self) -> Result<()> {
        // Buckets that are emptied before their generations can be made durable would be of no use to anybody.
        let batch = if self.alloc.has_prios() { self.invalidate_batch().await } else { Vec::new() };
        if batch.is_empty() {
            return self.wait_for_more().await;
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
                drop(self.alloc.take_pin(nr));
                break;
            }
        }
        // Lists are full: what is left may be chosen again next time.
        for nr in rest {
            drop(self.alloc.take_pin(nr));
        }
        Ok(())
    }

    /// Nothing can be emptied by what is known: GC has to look. If it finds nothing either, those who wait for buckets are
    /// told, unless writing back is making some.
    async fn wait_for_more(&self) -> Result<()> {
        self.alloc.wants_gc.set(true);
        let before = self.written_back();
        self.gc.request();
        self.gc.wait_for_pass(self).await;
        if self.is_closing() {
            return Ok(());
        }
        self.hand_out_for_prios();
        let any = |nr| self.alloc.buckets.borrow().may_invalidate(nr);
        let found = self.alloc.has_prios()
            && bucket_ranges(&self.cache.geometry).flatten().any(|nr| any(BucketNr(nr)));
        if found || self.writing_back_helps(before) {
            return Ok(());
        }
        self.alloc.found_nothing();
        if !self.alloc.is_awaited() {
            // There is no hurry. Whoever wants a bucket wakes us.
            let _ = self.env.timeout(FULL_STEP, self.alloc.refill.wait()).await;
        }
        Ok(())
    }

    fn written_back(&self) -> u64 {
        self.devices().iter().map(|device| device.stats.written_back_sectors.get()).sum()
    }

    /// Whether writing back is making room, or was a short while ago: slow disks take their time.
    fn writing_back_helps(&self, before: u64) -> bool {
        let now = self.env.now();
        if self.written_back() != before {
            self.alloc.progress.set(now);
        }
        let patience = WRITEBACK_PATIENCE.as_nanos() as u64;
        self.devices().iter().any(|device| self.may_write_back(device))
            && now.saturating_sub(self.alloc.progress.get()) < patience
    }

    /// Gives buckets in which GC has just found nothing to the prio sets, if those have too few: no key on disk points there
    /// that counts, so that their generations need not be durable first, and without them none can be. What the newest
    /// durable journal entry names is not among them, though memory may have something newer by now.
    fn hand_out_for_prios(&self) {
        if self.alloc.has_prios() {
            return;
        }
        let empty: Vec<BucketNr> = {
            let buckets = self.alloc.buckets.borrow();
            let empty = buckets.usable().filter(|(nr, bucket)| {
                let empty = bucket.mark == Mark::Free && bucket.sectors == 0 && buckets.may_invalidate(*nr);
                empty && (!self.journal.names(&self.cache.geometry, *nr) || seeded_bug!(PriosOverRoots))
            });
            empty.map(|(nr, _)| nr).collect()
        };
        for nr in empty {
            if self.alloc.has_prios() {
                return;
            }
            self.alloc.buckets.borrow_mut().invalidate(nr);
            self.alloc.buckets.borrow_mut().get_mut(nr).unsettled = false;
            // The prio sets' list comes first.
            if !self.alloc.push_free(nr) {
                drop(self.alloc.take_pin(nr));
                return;
            }
        }
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
