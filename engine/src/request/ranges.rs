//! Ranges of sectors that something is happening to.

use crate::sync::WaitQueue;
use bcache_format::Sector;
use std::cell::{Cell, RefCell};

#[derive(Clone, Copy, Debug)]
struct Range {
    id: u64,
    start: Sector,
    end: Sector,
}

/// Ranges of one device that are being written. Two writes of overlapping ranges never run at once: the order in which
/// the backing device does them and that in which the btree learns of them would differ. Who waits is served in the order
/// of asking: a large range is not kept waiting for ever by small ones that come and go in it.
#[derive(Default)]
pub struct Ranges {
    held: RefCell<Vec<Range>>,
    waiting: RefCell<Vec<Range>>,
    next: Cell<u64>,
    freed: WaitQueue,
}

/// A range that is held until this is dropped.
pub struct RangeGuard<'a> {
    ranges: &'a Ranges,
    id: u64,
}

/// A place in the line of those who wait for a range.
struct InLine<'a> {
    ranges: &'a Ranges,
    range: Range,
}

impl Range {
    fn overlaps(&self, start: Sector, end: Sector) -> bool {
        self.start < end && start < self.end
    }
}

impl Ranges {
    /// Whether any part of `start .. end` is held.
    pub fn overlaps(&self, start: Sector, end: Sector) -> bool {
        self.held.borrow().iter().any(|held| held.overlaps(start, end))
    }
    /// Whether nothing is held.
    pub fn is_free(&self) -> bool {
        self.held.borrow().is_empty()
    }
    /// Whether somebody who asked before `id` waits for a part of the range.
    fn is_asked_for(&self, start: Sector, end: Sector, id: u64) -> bool {
        let waiting = self.waiting.borrow();
        waiting.iter().any(|other| other.id < id && other.overlaps(start, end)) && !seeded_bug!(RangesUnfair)
    }
    fn number(&self) -> u64 {
        let id = self.next.get();
        self.next.set(id + 1);
        id
    }
    fn take(&self, range: Range) -> Option<RangeGuard<'_>> {
        let Range { id, start, end } = range;
        if self.overlaps(start, end) || self.is_asked_for(start, end, id) {
            return None;
        }
        self.held.borrow_mut().push(range);
        Some(RangeGuard { ranges: self, id })
    }
    /// Holds a range if nobody else holds a part of it, or waits for one.
    pub fn try_hold(&self, start: Sector, end: Sector) -> Option<RangeGuard<'_>> {
        self.take(Range { id: self.number(), start, end })
    }
    /// Holds a range; waits until nobody else holds a part of it.
    pub async fn hold(&self, start: Sector, end: Sector) -> RangeGuard<'_> {
        let range = Range { id: self.number(), start, end };
        if let Some(guard) = self.take(range) {
            return guard;
        }
        self.waiting.borrow_mut().push(range);
        let line = InLine { ranges: self, range };
        self.freed.wait_for(|| self.take(line.range)).await
    }
    /// Waits until nobody holds a part of a range.
    pub async fn wait_free(&self, start: Sector, end: Sector) {
        self.freed.wait_until(|| !self.overlaps(start, end)).await;
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.ranges.waiting.borrow_mut().retain(|other| other.id != self.range.id);
        self.ranges.freed.wake_all();
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        self.ranges.held.borrow_mut().retain(|held| held.id != self.id);
        self.ranges.freed.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn overlapping_ranges_exclude_each_other() {
        let ranges = Ranges::default();
        let held = ranges.try_hold(Sector(10), Sector(20)).unwrap();
        assert!(ranges.try_hold(Sector(19), Sector(30)).is_none());
        assert!(ranges.try_hold(Sector(20), Sector(30)).is_some());
        drop(held);
        assert!(ranges.try_hold(Sector(19), Sector(30)).is_some());
    }

    #[test]
    fn who_waits_for_a_large_range_has_its_turn() {
        let runtime = crate::sim::Runtime::new(1);
        let ranges = Rc::new(Ranges::default());
        runtime.block_on(async {
            let small = ranges.try_hold(Sector(10), Sector(20)).unwrap();
            let all = Rc::clone(&ranges);
            let waits = runtime.env().spawn(async move { drop(all.hold(Sector(0), Sector(100)).await) });
            runtime.env().sleep(std::time::Duration::from_secs(1)).await;
            assert!(ranges.try_hold(Sector(50), Sector(60)).is_none(), "somebody waits for it");
            drop(small);
            waits.await;
            assert!(ranges.try_hold(Sector(50), Sector(60)).is_some());
        });
    }
}
