//! What is held of the allocator: buckets that were taken, pins, and reasons not to write prio sets. Each ends when its
//! value is dropped, on whatever path that is.

use super::Alloc;
use crate::sync::WaitQueue;
use bcache_format::BucketNr;
use std::cell::Cell;
use std::rc::Rc;

/// A bucket that was taken from the free lists. It goes back there when this is dropped, unless something was put into it.
#[derive(Debug)]
#[must_use = "a bucket that is not used goes back"]
pub struct TakenBucket<'a> {
    alloc: &'a Alloc,
    nr: BucketNr,
}

impl<'a> TakenBucket<'a> {
    pub(super) const fn new(alloc: &'a Alloc, nr: BucketNr) -> Self {
        Self { alloc, nr }
    }
    /// Its number.
    #[must_use]
    pub const fn nr(&self) -> BucketNr {
        self.nr
    }
    /// Something is in it. It stays pinned as long as the answer lives.
    pub fn used(self) -> BucketPin<'a> {
        let pin = BucketPin { alloc: self.alloc, nr: self.nr };
        std::mem::forget(self);
        pin
    }
}

impl Drop for TakenBucket<'_> {
    fn drop(&mut self) {
        self.alloc.give_back(self.nr);
    }
}

/// A pin on a bucket: it is not reused while this lives.
#[derive(Debug)]
#[must_use = "the pin ends when this is dropped"]
pub struct BucketPin<'a> {
    alloc: &'a Alloc,
    nr: BucketNr,
}

impl<'a> BucketPin<'a> {
    pub(super) const fn new(alloc: &'a Alloc, nr: BucketNr) -> Self {
        Self { alloc, nr }
    }
    /// The bucket.
    #[must_use]
    pub const fn nr(&self) -> BucketNr {
        self.nr
    }
    /// Leaves the pin where it is: something that is no value of its own holds the bucket from now on.
    pub fn leave(self) -> BucketNr {
        let nr = self.nr;
        std::mem::forget(self);
        nr
    }
}

impl Drop for BucketPin<'_> {
    fn drop(&mut self) {
        self.alloc.unpin(self.nr);
    }
}

/// Reasons not to write the prio sets, and who waits until there is none.
#[derive(Default)]
pub(super) struct PrioBlocks {
    count: Cell<u32>,
    pub(super) unblocked: WaitQueue,
}

impl PrioBlocks {
    pub(super) fn count(&self) -> u32 {
        self.count.get()
    }
}

/// No write of the prio sets begins while this lives: a freed node whose parent's write is not on disk, or a running GC.
#[must_use = "the block ends when this is dropped"]
pub struct PrioBlock(Rc<PrioBlocks>);

impl PrioBlock {
    pub(super) fn new(blocks: &Rc<PrioBlocks>) -> Self {
        blocks.count.set(blocks.count.get() + 1);
        Self(Rc::clone(blocks))
    }
}

impl Drop for PrioBlock {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if self.0.count.get() == 0 {
            self.0.unblocked.wake_all();
        }
    }
}
