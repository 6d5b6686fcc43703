//! Allocation: which bucket holds what, and which may be reused.
//!
//! A bucket's life: data or metadata is in it; GC finds nothing that must stay; it is *invalidated* (its generation
//! goes up, so all pointers into it are stale); its new generation becomes *durable* (the prio sets, then the journal
//! entry that names them); only then it stands on a *free list* and may be written. A crash before that leaves the old
//! generation on disk with the old content still in place.

mod bucket;
mod guards;
mod open_bucket;
mod prio;
mod refill;

pub(crate) use bucket::bucket_ranges;
pub use bucket::{Bucket, Buckets, Mark, Parts};
pub use guards::{BucketPin, PrioBlock, TakenBucket};
pub use open_bucket::{OpenBuckets, Space, WritePoint};
pub use prio::PrioChain;

use crate::error::{Error, Result};
use crate::sync::{Mutex, WaitQueue};
use bcache_format::prio::{BTREE_PRIO, INITIAL_PRIO};
use bcache_format::{BucketNr, Geometry};
use guards::PrioBlocks;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

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
/// Buckets kept for btree nodes: what two splits of a tree of three levels can need. What makes room needs splits, too.
const NODES: usize = 24;
/// Fruitless passes of GC after which waiting for a bucket ends: the first may have begun before the waiting did.
const PATIENCE: u64 = 2;
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
    /// Tasks that wait for a free bucket.
    waiters: WaitQueue,
    /// Wakes the task that refills the free lists.
    refill: WaitQueue,
    /// Freed nodes whose parents' writes are not on disk, and a running GC: no prio write may start.
    prio_blocks: Rc<PrioBlocks>,
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
    /// The set stops: writes of clients wait no more, since what could free a bucket for them is ending.
    no_patience: Cell<bool>,
    /// Passes of GC after which there was still nothing to free.
    fruitless: Cell<u64>,
    /// The latest pass was one of those.
    starving: Cell<bool>,
    /// When writing back was last seen to make room.
    progress: Cell<u64>,
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
            capacity: [NODES, prio, free.min(64), low + batch],
            low,
            waiters: WaitQueue::new(),
            refill: WaitQueue::new(),
            prio_blocks: Rc::default(),
            prio: RefCell::default(),
            prio_io: Mutex::new(()),
            prio_head: Cell::new(BucketNr(0)),
            open: RefCell::default(),
            fifo_next: Cell::new(BucketNr(0)),
            wants_gc: Cell::new(false),
            batch,
            available: Cell::new(geometry.nbuckets),
            closed: Cell::new(false),
            no_patience: Cell::new(false),
            fruitless: Cell::new(0),
            starving: Cell::new(false),
            progress: Cell::new(0),
        }
    }
    /// A bucket for `reserve` if one is free now. It is pinned once and marked as in use.
    pub fn try_take(&self, reserve: Reserve) -> Option<TakenBucket<'_>> {
        let bucket = {
            let mut free = self.free.borrow_mut();
            // Prio sets have buckets of their own, always: what fills the general list needs them.
            let general = match reserve {
                Reserve::Prio => None,
                _ => free[Reserve::None as usize].pop_front(),
            };
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
        Some(TakenBucket::new(self, nr))
    }
    /// A bucket for `reserve`; waits until there is one. Never call it with a node or the tree's structure locked.
    ///
    /// # Errors
    /// The set failed or stops, or there is nothing left to free.
    pub async fn take(&self, reserve: Reserve) -> Result<TakenBucket<'_>> {
        let since = self.fruitless.get();
        let impatient = || reserve == Reserve::None && self.no_patience.get();
        self.waiters.wait_for(|| self.or_given_up(self.try_take(reserve), since, impatient())).await
    }
    fn or_given_up<T>(&self, taken: Option<T>, since: u64, impatient: bool) -> Option<Result<T>> {
        let given_up = || {
            if self.closed.get() || impatient {
                return Some(Err(Error::Stopping));
            }
            let full = self.fruitless.get() >= since + PATIENCE && !seeded_bug!(WaitsForEver);
            full.then_some(Err(Error::NoSpace("all buckets hold dirty data or metadata")))
        };
        taken.map(Ok).or_else(given_up)
    }
    /// Writes of clients wait for no bucket any more: the set stops.
    pub(crate) fn refuse_to_wait(&self) {
        if !seeded_bug!(StopWaitsForBuckets) {
            self.no_patience.set(true);
            self.waiters.wake_all();
        }
    }
    /// GC has looked, and there was nothing to free.
    fn found_nothing(&self) {
        self.fruitless.set(self.fruitless.get() + 1);
        self.starving.set(true);
        self.waiters.wake_all();
    }
    /// Whether GC finds nothing to free, so that only writing back can make room.
    pub(crate) fn is_starving(&self) -> bool {
        self.starving.get()
    }
    /// `count` buckets for btree nodes at once, if as many as `spare` are left then, or none.
    pub fn try_take_nodes(&self, count: usize, spare: usize) -> Option<Vec<TakenBucket<'_>>> {
        let enough = {
            let free = self.free.borrow();
            free[Reserve::None as usize].len() + free[Reserve::Btree as usize].len() >= count + spare
        };
        enough.then(|| (0..count).filter_map(|_| self.try_take(Reserve::Btree)).collect())
    }
    /// `count` buckets for btree nodes at once; waits for them without holding any. What makes the tree larger leaves as many
    /// as `spare` to what makes room.
    ///
    /// # Errors
    /// The set failed or stops, or there is nothing left to free.
    pub async fn take_nodes(&self, count: usize, spare: usize) -> Result<Vec<TakenBucket<'_>>> {
        let since = self.fruitless.get();
        // Where nothing was taken for nodes nobody asked for more of them.
        self.refill.wake_all();
        self.waiters.wait_for(|| self.or_given_up(self.try_take_nodes(count, spare), since, false)).await
    }
    /// All buckets that a write of the prio sets needs, or none.
    fn try_take_prios(&self) -> Option<Vec<TakenBucket<'_>>> {
        let count = self.capacity[Reserve::Prio as usize];
        let there = self.free.borrow()[Reserve::Prio as usize].len() >= count;
        there.then(|| (0..count).filter_map(|_| self.try_take(Reserve::Prio)).collect())
    }
    /// Whether there are buckets for a write of the prio sets.
    fn has_prios(&self) -> bool {
        self.free.borrow()[Reserve::Prio as usize].len() >= self.capacity[Reserve::Prio as usize]
            || seeded_bug!(PriosFromTheGeneralList)
    }
    /// Gives up a bucket of the prio chain before the present one. Nothing but that chain ever named it, so it may hold the
    /// next one at once: or a write of the prio sets could want for buckets that only itself makes free.
    fn retire_prio(&self, nr: BucketNr) {
        self.release(nr);
        if seeded_bug!(PriosFromTheGeneralList) {
            return;
        }
        self.buckets.borrow_mut().get_mut(nr).pin += 1;
        let mut free = self.free.borrow_mut();
        if free[Reserve::Prio as usize].len() < self.capacity[Reserve::Prio as usize] {
            free[Reserve::Prio as usize].push_back(nr);
        } else {
            drop(free);
            self.unpin(nr);
        }
    }
    /// Gives back a bucket that was taken and not used.
    fn give_back(&self, nr: BucketNr) {
        if !seeded_bug!(GivenBackNotAvailable) {
            self.available.set(self.available.get() + 1);
        }
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
                self.starving.set(false);
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
    /// Buckets on each free list, in the order of [`Reserve`]: for the checks of tests.
    #[must_use]
    pub fn free_lists(&self) -> [usize; RESERVES] {
        self.free.borrow().each_ref().map(VecDeque::len)
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
        self.prio_blocks.unblocked.wake_all();
    }
    /// Marks a bucket that is not needed any more as free; GC's marks and the generation take it from there.
    pub fn release(&self, nr: BucketNr) {
        self.available.set(self.available.get() + 1);
        let mut buckets = self.buckets.borrow_mut();
        let bucket = buckets.get_mut(nr);
        bucket.mark = Mark::Free;
        bucket.sectors = 0;
    }
    /// Pins a bucket.
    pub fn pin(&self, nr: BucketNr) -> BucketPin<'_> {
        self.buckets.borrow_mut().get_mut(nr).pin += 1;
        BucketPin::new(self, nr)
    }
    /// Takes over a pin that was left with something that is no value of its own: an open bucket, a list.
    pub(crate) fn take_pin(&self, nr: BucketNr) -> BucketPin<'_> {
        debug_assert!(self.buckets.borrow().get(nr).pin > 0);
        BucketPin::new(self, nr)
    }
    fn unpin(&self, nr: BucketNr) {
        let mut buckets = self.buckets.borrow_mut();
        let bucket = buckets.get_mut(nr);
        debug_assert!(bucket.pin > 0);
        bucket.pin = bucket.pin.saturating_sub(1);
    }
    /// No write of the prio sets begins while the answer lives.
    pub fn block_prio(&self) -> PrioBlock {
        PrioBlock::new(&self.prio_blocks)
    }
    /// Reasons not to write prios now.
    #[must_use]
    pub fn prio_blocks(&self) -> u32 {
        self.prio_blocks.count()
    }
}

impl fmt::Debug for Alloc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alloc").field("free", &self.free).finish_non_exhaustive()
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
            drop(alloc.try_take_nodes(6, 0).unwrap());
        }
        let general = alloc.free.borrow()[Reserve::None as usize].len();
        assert!(general > 0, "data has buckets, too");
        assert!(
            alloc.free.borrow()[Reserve::Btree as usize].len() <= alloc.capacity[Reserve::Btree as usize]
        );
    }
}
