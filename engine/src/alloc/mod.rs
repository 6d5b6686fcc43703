//! Allocation: which bucket holds what, and which may be reused.
//!
//! A bucket's life: data or metadata is in it; GC finds nothing that must stay; it is *invalidated* (its generation
//! goes up, so all pointers into it are stale); its new generation becomes *durable* (the prio sets, then the journal
//! entry that names them); only then it stands on a *free list* and may be written. A crash before that leaves the old
//! generation on disk with the old content still in place.

mod bucket;
mod open_bucket;
mod prio;
mod refill;

pub(crate) use bucket::bucket_ranges;
pub use bucket::{Bucket, Buckets, Mark, Parts};
pub use open_bucket::{OpenBuckets, Space, WritePoint};
pub use prio::PrioChain;

use crate::error::{Error, Result};
use crate::sync::{Mutex, WaitQueue};
use bcache_format::prio::{BTREE_PRIO, INITIAL_PRIO};
use bcache_format::{BucketNr, Geometry};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// Whom a free bucket is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// Btree nodes: a split must never wait for what a split would free.
    Btree = 0,
    /// Prio sets: without them no bucket becomes free.
    Prio = 1,
    /// Data moved by GC.
    MovingGc = 2,
    /// Everything else.
    None = 3,
}

const RESERVES: usize = 4;
/// Sectors that can be written, about, while more buckets are made ready.
const LOW_SECTORS: u64 = 8 << 11;

/// The allocator's state.
pub struct Alloc {
    /// Every bucket.
    pub buckets: RefCell<Buckets>,
    free: RefCell<[VecDeque<BucketNr>; RESERVES]>,
    capacity: [usize; RESERVES],
    /// With fewer on the general list a batch is added: enough to live on while that is made durable.
    low: usize,
    /// Buckets that wait for a free one.
    waiters: WaitQueue,
    /// Wakes the task that refills the free lists.
    refill: WaitQueue,
    /// Freed nodes whose parents' writes are not on disk, and a running GC: no prio write may start.
    prio_blocked: Cell<u32>,
    prio_unblocked: WaitQueue,
    /// The prio sets on disk.
    pub(crate) prio: RefCell<PrioChain>,
    /// One write of the prio sets at a time.
    pub(crate) prio_io: Mutex<()>,
    /// Bucket the newest prio chain starts with.
    pub(crate) prio_head: Cell<BucketNr>,
    /// Where data is being written.
    pub open: RefCell<OpenBuckets>,
    /// Where fifo replacement goes on.
    pub(crate) fifo_next: Cell<BucketNr>,
    /// Invalidation found too little; GC must look first.
    pub(crate) wants_gc: Cell<bool>,
    /// Buckets that are emptied at once.
    batch: usize,
    /// Buckets that held nothing that must stay at the last GC, less those taken since.
    available: Cell<u64>,
    /// The set failed or stops: nobody waits any more.
    closed: Cell<bool>,
}

impl Alloc {
    /// An allocator without free buckets.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        let count = |buckets: u64| usize::try_from(buckets).unwrap_or(usize::MAX);
        let free = count(geometry.nbuckets.next_power_of_two() >> 10).max(8);
        // What is missed and finds no free bucket is not cached. A small cache has none to spare for all that.
        let most = count(geometry.nbuckets / 32).max(8);
        let low = (free * 2).max(count(LOW_SECTORS / u64::from(geometry.bucket_sectors))).min(most);
        // A write of the prio sets is worth many buckets.
        let batch = (free * 4).max(low).min(most);
        let prio = usize::try_from(geometry.prio_buckets()).unwrap_or(1);
        Self {
            buckets: RefCell::new(Buckets::new(geometry)),
            free: RefCell::default(),
            capacity: [16, prio, free.min(64), low + batch],
            low,
            waiters: WaitQueue::new(),
            refill: WaitQueue::new(),
            prio_blocked: Cell::new(0),
            prio_unblocked: WaitQueue::new(),
            prio: RefCell::default(),
            prio_io: Mutex::new(()),
            prio_head: Cell::new(BucketNr(0)),
            open: RefCell::default(),
            fifo_next: Cell::new(BucketNr(0)),
            wants_gc: Cell::new(false),
            batch,
            available: Cell::new(geometry.nbuckets),
            closed: Cell::new(false),
        }
    }
    /// A bucket for `reserve` if one is free now. It is pinned once and marked as in use.
    pub fn try_take(&self, reserve: Reserve) -> Option<BucketNr> {
        let bucket = {
            let mut free = self.free.borrow_mut();
            let general = free[Reserve::None as usize].pop_front();
            general.or_else(|| free[reserve as usize].pop_front())
        };
        self.refill.wake_all();
        let nr = bucket?;
        self.available.set(self.available.get().saturating_sub(1));
        let mut buckets = self.buckets.borrow_mut();
        let sectors = buckets.geometry().bucket_sectors;
        let bucket = buckets.get_mut(nr);
        debug_assert_eq!(bucket.pin, 1, "a free bucket has the pin of its list");
        bucket.sectors = sectors;
        (bucket.mark, bucket.prio) = match reserve {
            Reserve::Btree | Reserve::Prio => (Mark::Metadata, BTREE_PRIO),
            Reserve::MovingGc | Reserve::None => (Mark::Reclaimable, INITIAL_PRIO),
        };
        Some(nr)
    }
    /// A bucket for `reserve`; waits until there is one. Never call it with a node or the tree's structure locked.
    ///
    /// # Errors
    /// The set failed or stops.
    pub async fn take(&self, reserve: Reserve) -> Result<BucketNr> {
        self.waiters.wait_for(|| self.unless_closed(self.try_take(reserve))).await
    }
    fn unless_closed<T>(&self, taken: Option<T>) -> Option<Result<T>> {
        taken.map(Ok).or_else(|| self.closed.get().then_some(Err(Error::Stopping)))
    }
    /// `count` buckets for btree nodes at once, or none.
    pub fn try_take_nodes(&self, count: usize) -> Option<Vec<BucketNr>> {
        let enough = {
            let free = self.free.borrow();
            free[Reserve::None as usize].len() + free[Reserve::Btree as usize].len() >= count
        };
        enough.then(|| (0..count).filter_map(|_| self.try_take(Reserve::Btree)).collect())
    }
    /// `count` buckets for btree nodes at once; waits for them without holding any.
    ///
    /// # Errors
    /// The set failed or stops.
    pub async fn take_nodes(&self, count: usize) -> Result<Vec<BucketNr>> {
        self.waiters.wait_for(|| self.unless_closed(self.try_take_nodes(count))).await
    }
    /// Gives back a bucket that was taken and not used.
    pub fn give_back(&self, nr: BucketNr) {
        {
            let mut buckets = self.buckets.borrow_mut();
            let bucket = buckets.get_mut(nr);
            bucket.mark = Mark::Free;
            bucket.sectors = 0;
        }
        {
            // Node buckets come from the general list first, and must not all end in the reserve of the few.
            let mut free = self.free.borrow_mut();
            let reserve = Reserve::Btree as usize;
            let full = free[reserve].len() >= self.capacity[reserve];
            free[if full { Reserve::None as usize } else { reserve }].push_front(nr);
        }
        self.waiters.wake_all();
    }
    /// Adds a bucket whose generation is durable to a free list that has room, those without which nothing else
    /// works first. False when all are full.
    pub(crate) fn push_free(&self, nr: BucketNr) -> bool {
        let mut free = self.free.borrow_mut();
        for reserve in [Reserve::Prio, Reserve::Btree, Reserve::MovingGc, Reserve::None] {
            if free[reserve as usize].len() < self.capacity[reserve as usize] {
                free[reserve as usize].push_back(nr);
                drop(free);
                self.waiters.wake_all();
                return true;
            }
        }
        false
    }
    /// Whether the free lists have room for more.
    fn wants_more(&self) -> bool {
        let free = self.free.borrow();
        let [btree, prio, _, general] = free.each_ref().map(VecDeque::len);
        general < self.low
            || prio < self.capacity[Reserve::Prio as usize]
            || btree * 2 < self.capacity[Reserve::Btree as usize]
    }
    /// Counts the available buckets anew: GC's marks are complete.
    pub(crate) fn count_available(&self) {
        self.available.set(self.buckets.borrow().available());
    }
    /// Per cent of the cache that holds what must stay, or was written since the last GC.
    #[must_use]
    pub fn in_use_percent(&self) -> u64 {
        let all = self.buckets.borrow().geometry().nbuckets;
        (all - self.available.get().min(all)) * 100 / all.max(1)
    }
    /// Buckets kept for data that GC moves.
    #[must_use]
    pub fn moving_reserve(&self) -> usize {
        self.free.borrow()[Reserve::MovingGc as usize].len()
    }
    /// Buckets on the free lists.
    #[must_use]
    pub fn free_count(&self) -> usize {
        self.free.borrow().iter().map(VecDeque::len).sum()
    }
    /// All buckets on the free lists: for the checks of tests.
    #[must_use]
    pub fn free_buckets(&self) -> Vec<BucketNr> {
        self.free.borrow().iter().flatten().copied().collect()
    }
    /// Whether somebody waits for a bucket.
    pub(crate) fn is_awaited(&self) -> bool {
        self.waiters.waiting() > 0
    }
    /// Ends all waiting: the set failed or stops.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.waiters.wake_all();
        self.refill.wake_all();
        self.prio_unblocked.wake_all();
    }
    /// Marks a bucket that is not needed any more as free; GC's marks and the generation take it from there.
    pub fn release(&self, nr: BucketNr) {
        self.available.set(self.available.get() + 1);
        let mut buckets = self.buckets.borrow_mut();
        let bucket = buckets.get_mut(nr);
        bucket.mark = Mark::Free;
        bucket.sectors = 0;
    }
    /// Drops a pin.
    pub fn unpin(&self, nr: BucketNr) {
        let mut buckets = self.buckets.borrow_mut();
        let bucket = buckets.get_mut(nr);
        debug_assert!(bucket.pin > 0);
        bucket.pin = bucket.pin.saturating_sub(1);
    }
    /// Adds a pin.
    pub fn pin(&self, nr: BucketNr) {
        self.buckets.borrow_mut().get_mut(nr).pin += 1;
    }
    /// No prio write starts until [`Self::unblock_prio`].
    pub fn block_prio(&self) {
        self.prio_blocked.set(self.prio_blocked.get() + 1);
    }
    /// Ends `count` blocks.
    pub fn unblock_prio(&self, count: u32) {
        debug_assert!(self.prio_blocked.get() >= count);
        self.prio_blocked.set(self.prio_blocked.get().saturating_sub(count));
        if self.prio_blocked.get() == 0 {
            self.prio_unblocked.wake_all();
        }
    }
    /// Reasons not to write prios now.
    #[must_use]
    pub fn prio_blocks(&self) -> u32 {
        self.prio_blocked.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every split takes more buckets than it needs and gives the rest back. They all went to the nodes' reserve, until
    /// hundreds stood there and writes of data waited for a bucket for ever.
    #[test]
    fn buckets_given_back_do_not_gather_in_the_reserve_of_nodes() {
        let geometry = Geometry { block_sectors: 1, bucket_sectors: 8, first_bucket: 3, nbuckets: 513 };
        let alloc = Alloc::new(geometry);
        for nr in 3..513 {
            alloc.buckets.borrow_mut().invalidate(BucketNr(nr));
            if !alloc.push_free(BucketNr(nr)) {
                break;
            }
        }
        for _ in 0..100 {
            for bucket in alloc.try_take_nodes(6).unwrap() {
                alloc.give_back(bucket);
            }
        }
        let general = alloc.free.borrow()[Reserve::None as usize].len();
        assert!(general > 0, "data has buckets, too");
        assert!(
            alloc.free.borrow()[Reserve::Btree as usize].len() <= alloc.capacity[Reserve::Btree as usize]
        );
    }
}
