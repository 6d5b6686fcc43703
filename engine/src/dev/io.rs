//! The future of a device operation.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::DevError;

/// A device operation under way.
///
/// Dropping it lets the operation go on. An operation whose device vanished without an answer (power cut in the
/// simulator, runtime torn down) stays pending for ever: there is nothing true to report.
#[must_use = "an operation's outcome is known only by awaiting it"]
pub struct Io<T>(State<T>);

enum State<T> {
    Ready(Option<Result<T, DevError>>),
    Pending(Rc<RefCell<Slot<T>>>),
}

enum Slot<T> {
    Waiting(Option<Waker>),
    Done(Result<T, DevError>),
    Taken,
}

/// The other end of an [`Io`]: whoever carries the operation out answers through it.
pub struct Completer<T>(Rc<RefCell<Slot<T>>>);

impl<T> Io<T> {
    /// An operation to be completed later.
    pub fn pair() -> (Completer<T>, Io<T>) {
        let slot = Rc::new(RefCell::new(Slot::Waiting(None)));
        (Completer(Rc::clone(&slot)), Io(State::Pending(slot)))
    }

    /// An operation that is over already.
    pub fn ready(result: Result<T, DevError>) -> Io<T> {
        Io(State::Ready(Some(result)))
    }
}

impl<T> Completer<T> {
    /// Ends the operation and wakes whoever awaits it. The value is dropped if nobody does.
    pub fn complete(self, result: Result<T, DevError>) {
        let previous = self.0.replace(Slot::Done(result));
        if let Slot::Waiting(Some(waker)) = previous {
            waker.wake();
        }
    }
}

impl<T> Unpin for Io<T> {}

impl<T> Future for Io<T> {
    type Output = Result<T, DevError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Ready(result) => match result.take() {
                Some(result) => Poll::Ready(result),
                None => Poll::Pending,
            },
            State::Pending(slot) => {
                let mut slot = slot.borrow_mut();
                if let Slot::Waiting(waker) = &mut *slot {
                    match waker {
                        Some(known) if known.will_wake(cx.waker()) => {}
                        _ => *waker = Some(cx.waker().clone()),
                    }
                    return Poll::Pending;
                }
                match std::mem::replace(&mut *slot, Slot::Taken) {
                    Slot::Done(result) => Poll::Ready(result),
                    _ => Poll::Pending,
                }
            }
        }
    }
}
