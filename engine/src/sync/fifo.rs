//! Counted permits handed out strictly in the order of asking: what all locks here are made of.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Permits and the queue of those who wait for some.
pub(super) struct Fifo {
    available: Cell<u64>,
    queue: RefCell<VecDeque<Rc<Waiter>>>,
}

struct Waiter {
    need: u64,
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Fifo {
    pub(super) const fn new(available: u64) -> Fifo {
        Fifo { available: Cell::new(available), queue: RefCell::new(VecDeque::new()) }
    }

    pub(super) fn available(&self) -> u64 {
        self.available.get()
    }

    /// Takes `need` permits if they are there and nobody waits.
    pub(super) fn try_acquire(&self, need: u64) -> bool {
        let available = self.available.get();
        let free = available >= need && self.queue.borrow().is_empty();
        if free {
            self.available.set(available - need);
        }
        free
    }

    /// Takes `need` permits, waiting in line for them.
    pub(super) fn acquire(&self, need: u64) -> Acquire<'_> {
        Acquire { fifo: self, need, waiter: None, done: false }
    }

    /// Gives `count` permits back and serves those at the head of the line. They own their permits from here on,
    /// so nobody can come in between.
    pub(super) fn release(&self, count: u64) {
        self.available.set(self.available.get() + count);
        self.serve();
    }

    fn serve(&self) {
        loop {
            let mut queue = self.queue.borrow_mut();
            let Some(head) = queue.front() else { return };
            let available = self.available.get();
            if head.need > available {
                return;
            }
            self.available.set(available - head.need);
            head.granted.set(true);
            let waker = head.waker.borrow_mut().take();
            queue.pop_front();
            drop(queue);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// Waiting in line for permits.
pub(super) struct Acquire<'a> {
    fifo: &'a Fifo,
    need: u64,
    waiter: Option<Rc<Waiter>>,
    done: bool,
}

impl Future for Acquire<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(waiter) = &self.waiter {
            if !waiter.granted.get() {
                *waiter.waker.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            }
        } else if !self.fifo.try_acquire(self.need) {
            let waiter = Rc::new(Waiter {
                need: self.need,
                granted: Cell::new(false),
                waker: RefCell::new(Some(cx.waker().clone())),
            });
            self.fifo.queue.borrow_mut().push_back(Rc::clone(&waiter));
            self.waiter = Some(waiter);
            return Poll::Pending;
        }
        self.done = true;
        Poll::Ready(())
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take().filter(|_| !self.done) else { return };
        if waiter.granted.get() {
            self.fifo.release(self.need);
        } else {
            self.fifo.queue.borrow_mut().retain(|other| !Rc::ptr_eq(other, &waiter));
            // It may have been the one at the head that all others waited for.
            self.fifo.serve();
        }
    }
}
