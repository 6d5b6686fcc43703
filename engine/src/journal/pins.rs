//! Which entries are needed: an entry is in the journal as long as somebody holds a pin on it, or on an older one.

use crate::sync::WaitQueue;
use bcache_format::Seq;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// The pins of all entries from the oldest that is needed on.
pub(super) struct Pins {
    counts: RefCell<VecDeque<u32>>,
    /// The oldest entry that somebody needs.
    front: Cell<Seq>,
    /// The oldest one is not needed any more.
    pub(super) unpinned: WaitQueue,
}

/// Entry `seq` and all after it are kept as long as this lives.
#[must_use = "the entry is given up when this is dropped"]
pub struct JournalPin {
    pins: Rc<Pins>,
    seq: Seq,
}

impl Pins {
    /// No pins; the oldest entry there can be one of is `front`.
    pub(super) fn new(front: Seq) -> Rc<Self> {
        Rc::new(Self { counts: RefCell::default(), front: Cell::new(front), unpinned: WaitQueue::new() })
    }
    /// The oldest entry that somebody needs.
    pub(super) fn front(&self) -> Seq {
        self.front.get()
    }
    /// The first pin of the next entry.
    pub(super) fn next(self: &Rc<Self>) -> JournalPin {
        let mut counts = self.counts.borrow_mut();
        counts.push_back(1);
        JournalPin { pins: Rc::clone(self), seq: Seq(self.front.get().0 + counts.len() as u64 - 1) }
    }
    /// One more pin of an entry that has some. Of an older one that nobody needs any more there is nothing to keep.
    pub(super) fn pin(self: &Rc<Self>, seq: Seq) -> JournalPin {
        let mut counts = self.counts.borrow_mut();
        let at = seq.behind(self.front.get()).and_then(|at| usize::try_from(at).ok());
        match at.and_then(|at| counts.get_mut(at)) {
            Some(count) => *count += 1,
            None => debug_assert!(false, "entry {seq} is not pinned by anybody"),
        }
        JournalPin { pins: Rc::clone(self), seq }
    }
    fn unpin(&self, seq: Seq) {
        let mut counts = self.counts.borrow_mut();
        let at = seq.behind(self.front.get()).and_then(|at| usize::try_from(at).ok());
        if let Some(count) = at.and_then(|at| counts.get_mut(at)) {
            *count = count.saturating_sub(1);
        }
        let mut moved = false;
        // The last one is the open entry's.
        while counts.len() > 1 && counts.front() == Some(&0) {
            counts.pop_front();
            self.front.set(self.front.get().next());
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
    pub const fn seq(&self) -> Seq {
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
        let pins = Pins::new(Seq(5));
        let (five, six, open) = (pins.next(), pins.next(), pins.next());
        assert_eq!((five.seq(), six.seq(), open.seq()), (Seq(5), Seq(6), Seq(7)));
        let more = pins.pin(Seq(5));
        drop(five);
        drop(six);
        assert_eq!(pins.front(), Seq(5));
        drop(more);
        assert_eq!(pins.front(), Seq(7));
    }
}
