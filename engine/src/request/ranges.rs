//! Ranges of sectors that something is happening to.

use crate::sync::WaitQueue;
use std::cell::{Cell, RefCell};

#[derive(Clone, Copy, Debug)]
struct Range {
    id: u64,
    start: u64,
    end: u64,
}

/// Ranges of one device that are being written. Two writes of overlapping ranges never run at once: the order in which
/// the backing device does them and that in which the btree learns of them would differ.
#[derive(Default)]
pub struct Ranges {
    held: RefCell<Vec<Range>>,
    next: Cell<u64>,
    freed: WaitQueue,
}

/// A range that is held until this is dropped.
pub struct RangeGuard<'a> {
    ranges: &'a Ranges,
    id: u64,
}

impl Ranges {
    /// Whether any part of `start .. end` is held.
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        self.held.borrow().iter().any(|held| held.start < end && start < held.end)
    }
    /// Holds a range if nobody else holds a part of it.
    pub fn try_hold(&self, start: u64, end: u64) -> Option<RangeGuard<'_>> {
        if self.overlaps(start, end) {
            return None;
        }
        let id = self.next.get();
        self.next.set(id + 1);
        self.held.borrow_mut().push(Range { id, start, end });
        Some(RangeGuard { ranges: self, id })
    }
    /// Holds a range; waits until nobody else holds a part of it.
    pub async fn hold(&self, start: u64, end: u64) -> RangeGuard<'_> {
        self.freed.wait_for(|| self.try_hold(start, end)).await
    }
    /// Waits until nobody holds a part of a range.
    pub async fn wait_free(&self, start: u64, end: u64) {
        self.freed.wait_until(|| !self.overlaps(start, end)).await;
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        self.ranges.held.borrow_mut().retain(|held| held.id != self.id);
        self.ranges.freed.wake_all();
    }
}

/// Names a cache miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissId(u64);

#[derive(Clone, Copy, Debug)]
struct Miss {
    id: u64,
    inode: u32,
    start: u64,
    end: u64,
}

/// Cache misses whose data is on its way: placeholders in the key space. Whatever is inserted over one ends it, so that
/// data read from the backing device before a write is never cached after it.
#[derive(Default)]
pub struct Misses {
    list: RefCell<Vec<Miss>>,
    next: Cell<u64>,
    sectors: Cell<u64>,
}

impl Misses {
    /// Notes a miss. It must stand in the same breath as the lookup that missed.
    pub fn begin(&self, inode: u32, start: u64, end: u64) -> MissId {
        let id = self.next.get();
        self.next.set(id + 1);
        self.list.borrow_mut().push(Miss { id, inode, start, end });
        self.sectors.set(self.sectors.get() + (end - start));
        MissId(id)
    }
    /// Whether nothing was inserted over it since.
    pub fn holds(&self, miss: MissId) -> bool {
        self.list.borrow().iter().any(|other| other.id == miss.0)
    }
    /// Forgets a miss of `sectors`.
    pub fn end(&self, miss: MissId, sectors: u64) {
        self.list.borrow_mut().retain(|other| other.id != miss.0);
        self.sectors.set(self.sectors.get().saturating_sub(sectors));
    }
    /// Something was inserted: all misses that overlap it end, but not `own`.
    pub fn invalidate(&self, inode: u32, start: u64, end: u64, own: Option<MissId>) {
        if seeded_bug!(MissOverwritesWrite) {
            return;
        }
        self.list.borrow_mut().retain(|miss| {
            let hit = miss.inode == inode && miss.start < end && start < miss.end;
            !hit || own == Some(MissId(miss.id))
        });
    }
    /// Sectors of misses that are not done.
    pub fn sectors(&self) -> u64 {
        self.sectors.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insert_ends_the_misses_it_overlaps() {
        let misses = Misses::default();
        let a = misses.begin(1, 0, 8);
        let b = misses.begin(1, 8, 16);
        misses.invalidate(1, 7, 8, None);
        assert!(!misses.holds(a) && misses.holds(b));
        misses.invalidate(2, 0, 100, None);
        assert!(misses.holds(b));
        misses.invalidate(1, 8, 9, Some(b));
        assert!(misses.holds(b));
        misses.end(b, 8);
        assert!(!misses.holds(b));
    }

    #[test]
    fn overlapping_ranges_exclude_each_other() {
        let ranges = Ranges::default();
        let held = ranges.try_hold(10, 20).unwrap();
        assert!(ranges.try_hold(19, 30).is_none());
        assert!(ranges.try_hold(20, 30).is_some());
        drop(held);
        assert!(ranges.try_hold(19, 30).is_some());
    }
}
