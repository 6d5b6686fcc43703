//! Which entries are needed: an entry is in the journal as long as somebody holds a pin on it, or on an older one.

use crate::sync::WaitQueue;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// The pins of all entries from the oldest that is needed on.
pub(super) struct Pins {
    counts: RefCell<VecDeque<u32>>,
    /// The oldest entry that somebody needs.
    front: Cell<u64>,
    /// The oldest one is not needed any more.
    pub(super) unpinned: WaitQueue,
}

/// Entry `seq` and all after it are kept as long as this lives.
#[must_use = "the entry is given up when this is dropped"]
pub struct JournalPin {
    pins: Rc<Pins>,
    seq: u64,
}

impl Pins {
    /// No pins; the oldest entry there can be one of is `front`.
    pub(super) fn new(front: u64) -> Rc<Self> {
        Rc::new(Self { counts: RefCell::default(), front: Cell::new(front), unpinned: WaitQueue::new() })
    }
    /// The oldest entry that somebody needs.
    pub(super) fn front(&self) -> u64 {
        self.front.get()
    }
    /// The first pin of the next entry.
    pub(super) fn next(self: &Rc<Self>) -> JournalPin {
        let mut counts = self.counts.borrow_mut();
        counts.push_back(1);
        JournalPin { pins: Rc::clone(self), seq: self.front.get() + counts.len() as u64 - 1 }
    }
    /// One more pin of an entry that has some. Of an older one that nobody needs any more there is nothing to keep.
    pub(super) fn pin(self: &Rc<Self>, seq: u64) -> JournalPin {
        let mut counts = self.counts.borrow_mut();
        let at = seq.checked_sub(self.front.get()).and_then(|at| usize::try_from(at).ok());
        match at.and_then(|at| counts.get_mut(at)) {
            Some(count) => *count += 1,
            None => debug_assert!(false, "entry {seq} is not pinned by anybody"),
        }
        JournalPin { pins: Rc::clone(self), seq }
    }
    fn unpin(&self, seq: u64) {
        let mut counts = self.counts.borrow_mut();
        let at = seq.checked_sub(self.front.get()).and_then(|at| usize::try_from(at).ok());
        if let Some(count) = at.and_then(|at| counts.get_mut(at)) {
            *count = count.saturating_sub(1);
        }
        let mut moved = false;
        // The last one is the open entry's.
        while counts.len() > 1 && counts.front() == Some(&0) {
            counts.pop_front();
            self.front.set(self.front.get() + 1);
            moved = true;
        }
        drop(counts);
        if moved {
            self.unpinned.wake_all();
        }
    }
}

impl JournalPin {
    /// The entry.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }
}

impl Drop for JournalPin {
    fn drop(&mut self) {
        self.pins.unpin(self.seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_needed_as_long_as_it_or_an_older_one_is_pinned() {
        let pins = Pins::new(5);
        let (five, six, open) = (pins.next(), pins.next(), pins.next());
        assert_eq!((five.seq(), six.seq(), open.seq()), (5, 6, 7));
        let more = pins.pin(5);
        drop(five);
        drop(six);
        assert_eq!(pins.front(), 5);
        drop(more);
        assert_eq!(pins.front(), 7);
    }
}
