//! Futures that need the executor: what is finished whoever waits for it, and giving way.

use super::core::Core;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// Something that is finished even if nobody waits for it any more: a future that goes on as a task when it is dropped.
#[must_use = "nothing begins before it is awaited"]
pub struct Finish<F: Future + 'static>
where
    F::Output: 'static,
{
    core: Rc<Core>,
    future: Option<Pin<Box<F>>>,
    begun: bool,
}

impl<F: Future + 'static> Finish<F>
where
    F::Output: 'static,
{
    #[inline]
    pub(super) fn new(core: Rc<Core>, future: F) -> Self {
        Self { core, future: Some(Box::pin(future)), begun: false }
    }
}

impl<F: Future + 'static> Future for Finish<F>
where
    F::Output: 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.begun = true;
        let Some(future) = &mut self.future else { return Poll::Pending };
        let polled = future.as_mut().poll(cx);
        if polled.is_ready() {
            self.future = None;
        }
        polled
    }
}

impl<F: Future + 'static> Drop for Finish<F>
where
    F::Output: 'static,
{
    fn drop(&mut self) {
        let begun = self.begun && !seeded_bug!(NobodyFinishes);
        if let Some(future) = self.future.take().filter(|_| begun) {
            drop(self.core.spawn(future));
        }
    }
}

/// Gives way once to all other tasks, and to I/O.
pub struct YieldNow {
    core: Rc<Core>,
    done: bool,
}

impl YieldNow {
    pub(super) fn new(core: Rc<Core>) -> Self {
        Self { core, done: false }
    }
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.done {
            return Poll::Ready(());
        }
        self.done = true;
        self.core.give_way(cx.waker().clone());
        Poll::Pending
    }
}
