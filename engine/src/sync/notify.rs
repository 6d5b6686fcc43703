//! Waiting until something is so.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Woken {
    No,
    /// Chosen by `wake_one`: must pass the wake-up on if it goes away without using it.
    One,
    All,
}

struct Waiter {
    woken: Cell<Woken>,
    waker: RefCell<Option<Waker>>,
}

impl Waiter {
    fn wake(&self, how: Woken) {
        self.woken.set(how);
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Wakes tasks that wait for a condition.
///
/// The condition lives elsewhere. Since all tasks share one thread, nothing can happen between a failed check and
/// the call of [`wait`](Self::wait) that follows it, and a wake-up after that call is never lost.
#[derive(Default)]
pub struct WaitQueue {
    queue: RefCell<VecDeque<Rc<Waiter>>>,
}

impl WaitQueue {
    /// A queue with nobody in it.
    pub const fn new() -> Self {
        WaitQueue { queue: RefCell::new(VecDeque::new()) }
    }

    /// Waits until `condition` holds; it is checked at once and after each wake-up.
    pub async fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        while !condition() {
            self.wait().await;
        }
    }

    /// Waits until `attempt` gives a value.
    pub async fn wait_for<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> T {
        loop {
            if let Some(value) = attempt() {
                return value;
            }
            self.wait().await;
        }
    }

    /// Takes a place in the queue, now, and gives the future that waits there for a wake-up.
    pub fn wait(&self) -> Waiting<'_> {
        let waiter = Rc::new(Waiter { woken: Cell::new(Woken::No), waker: RefCell::default() });
        self.queue.borrow_mut().push_back(Rc::clone(&waiter));
        Waiting { queue: self, waiter: Some(waiter) }
    }

    /// Wakes who has waited longest; false if nobody waits.
    pub fn wake_one(&self) -> bool {
        let first = self.queue.borrow_mut().pop_front();
        first.is_some_and(|waiter| {
            waiter.wake(Woken::One);
            true
        })
    }

    /// Wakes all who wait now.
    pub fn wake_all(&self) {
        // Mostly there is nobody, and requests come by here several times.
        if self.queue.borrow().is_empty() {
            return;
        }
        let all = std::mem::take(&mut *self.queue.borrow_mut());
        for waiter in all {
            waiter.wake(Woken::All);
        }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.queue.borrow().len()
    }
}

/// A place in a [`WaitQueue`].
#[must_use = "the place is given up when this is dropped"]
pub struct Waiting<'a> {
    queue: &'a WaitQueue,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Waiting<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(waiter) = &self.waiter {
            if waiter.woken.get() == Woken::No {
                *waiter.waker.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            self.waiter = None;
        }
        Poll::Ready(())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        match waiter.woken.get() {
            Woken::No => self.queue.queue.borrow_mut().retain(|other| !Rc::ptr_eq(other, &waiter)),
            Woken::One => {
                self.queue.wake_one();
            }
            Woken::All => {}
        }
    }
}

/// A flag that one task raises and another waits for: raised while nobody waits, it stays up for the next.
#[derive(Default)]
pub struct Notify {
    raised: Cell<bool>,
    queue: WaitQueue,
}

impl Notify {
    /// A flag that is not raised.
    pub const fn new() -> Self {
        Notify { raised: Cell::new(false), queue: WaitQueue::new() }
    }

    /// Wakes one waiter, or else the next one to come. Raising it twice is raising it once.
    pub fn notify(&self) {
        if !self.queue.wake_one() {
            self.raised.set(true);
        }
    }

    /// Waits for the flag and lowers it.
    pub async fn notified(&self) {
        if !self.raised.take() {
            self.queue.wait().await;
        }
    }
}
