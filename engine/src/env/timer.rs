//! Timers as futures.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Core;

/// Completes when its time is over. Dropping it takes the timer back.
pub struct Sleep {
    core: Rc<Core>,
    state: State,
}

enum State {
    New(Duration),
    Armed((u64, u64)),
    Over,
}

impl Sleep {
    pub(super) fn new(core: Rc<Core>, duration: Duration) -> Self {
        Sleep { core, state: State::New(duration) }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.state {
            State::New(duration) => {
                let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
                let deadline = self.core.host.now().saturating_add(nanos);
                let key = self.core.add_timer(deadline, cx.waker().clone());
                self.state = State::Armed(key);
                Poll::Pending
            }
            State::Armed(key) if self.core.rearm_timer(key, cx.waker()) => Poll::Pending,
            State::Armed(_) | State::Over => {
                self.state = State::Over;
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let State::Armed(key) = self.state {
            self.core.remove_timer(key);
        }
    }
}

/// The time given to a future ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

/// A future with a limit to its time.
pub struct Timeout<F> {
    sleep: Sleep,
    future: Pin<Box<F>>,
}

impl<F: Future> Timeout<F> {
    pub(super) fn new(sleep: Sleep, future: F) -> Self {
        Timeout { sleep, future: Box::pin(future) }
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(value) = self.future.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(&mut self.sleep).poll(cx).map(|()| Err(Elapsed))
    }
}
