//! Room in the ring of journal buckets.
//!
//! The ring is reclaimed by writing the leaves that pin its oldest entries. One bucket always stays free: an entry that
//! says that others are not needed must have a place to go, also during the recovery after a crash.

use super::{Journal, Ring};
use crate::error::Result;
use crate::set::CacheSet;
use bcache_format::Seq;
use std::rc::Rc;

impl Ring {
    /// Buckets, other than the current, in which no entry from `last_seq` on stands.
    fn free(&self, last_seq: Seq) -> usize {
        let current = self.current;
        self.buckets
            .iter()
            .enumerate()
            .filter(|(i, bucket)| *i != current && bucket.newest < last_seq)
            .count()
    }
    fn next(&self) -> usize {
        (self.current + 1) % self.buckets.len()
    }
    /// Newest entry that must be unpinned for `buckets` more to be free.
    fn oldest_entries(&self, buckets: usize, last_seq: Seq) -> Option<Seq> {
        let mut used: Vec<Seq> =
            self.buckets.iter().map(|bucket| bucket.newest).filter(|newest| *newest >= last_seq).collect();
        used.sort_unstable();
        used.get(buckets.saturating_sub(1)).or(used.last()).copied()
    }
}

impl Journal {
    /// Moves on to the next bucket if it may be written: nothing in it is needed by the newest durable entry, and a
    /// bucket stays free behind it or the entry to be written frees one.
    fn try_advance(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        let next = ring.next();
        let durable_last = self.durable_last.get();
        let durable_last = if seeded_bug!(ReclaimPinnedJournal) { self.open_seq() } else { durable_last };
        let free_now = ring.free(durable_last);
        if ring.buckets[next].newest >= durable_last && ring.buckets[next].newest != Seq::NONE {
            // A ring that was left full (never by us): the entry to be written is the first to free anything. Its
            // bucket holds nothing that memory still needs, which is as much as the kernel asks for.
            let emergency = free_now == 0 && ring.buckets[next].newest < self.last_seq();
            if !emergency {
                return false;
            }
        }
        let free_then = ring.free(self.last_seq());
        if free_now < 2 && free_then < 2 && ring.buckets[ring.current].newest >= self.last_seq() {
            return false;
        }
        ring.current = next;
        ring.used = 0;
        true
    }
    fn current_start(&self) -> u64 {
        let ring = self.ring.borrow();
        ring.buckets[ring.current].nr.0 * self.bucket_bytes
    }
    fn low_on_space(&self) -> Option<Seq> {
        let ring = self.ring.borrow();
        let last_seq = self.last_seq();
        let wanted = (ring.buckets.len() / 2).max(1);
        let free = ring.free(last_seq);
        (free < wanted).then(|| ring.oldest_entries(wanted - free, last_seq)).flatten()
    }
    /// Bucket numbers of the ring: for the checks of tests.
    pub fn bucket_numbers(&self) -> Vec<u64> {
        self.ring.borrow().buckets.iter().map(|bucket| bucket.nr.0).collect()
    }
}

impl CacheSet {
    /// Waits until the ring has room for an entry of `bytes`.
    pub(crate) async fn journal_space(&self, bytes: u64) -> Result<()> {
        let journal = &self.journal;
        loop {
            let fits = journal.ring.borrow().used + bytes <= journal.bucket_bytes;
            if fits {
                return Ok(());
            }
            if journal.try_advance() {
                if self.settings.discard.get() {
                    let at = journal.current_start();
                    let discard = self.cache.dev.discard(at, journal.bucket_bytes);
                    // Entries are found by their magic and sequence; what a discard leaves of old ones is harmless.
                    let _ = discard.await;
                }
                journal.reclaimer.wake_all();
                return Ok(());
            }
            self.stats.journal_full.add(1);
            let before = journal.last_seq();
            self.write_pinning_leaves(Seq::MAX).await?;
            self.check()?;
            if journal.last_seq() == before {
                // Others are writing what pins the oldest entry. Only the caller advances the ring, so until something
                // is unpinned nothing can have changed.
                journal.pins.unpinned.wait().await;
                self.check()?;
            }
        }
    }

    /// Runs until the set stops: keeps half of the ring free by writing the leaves that pin the oldest entries.
    pub(crate) async fn journal_reclaim_task(self: Rc<Self>) {
        let journal = &self.journal;
        loop {
            let target = journal.reclaimer.wait_for(|| {
                if journal.closing.get() { Some(None) } else { journal.low_on_space().map(Some) }
            });
            let Some(target) = target.await else { return };
            if let Err(error) = self.write_pinning_leaves(target).await {
                self.fail(error);
                return;
            }
            // What still pins is in the open entry, or being written by others.
            if journal.low_on_space().is_some() {
                journal.reclaimer.wait().await;
            }
        }
    }

    /// Writes the leaves that pin entries up to `target`.
    async fn write_pinning_leaves(&self, target: Seq) -> Result<()> {
        for leaf in self.tree.leaves_pinning(target) {
            self.node_write(&leaf).await?;
        }
        Ok(())
    }
}
