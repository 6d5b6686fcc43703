//! Handles to work going on elsewhere: tasks and helper threads.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// A spawned task. Awaiting it gives its value; dropping it lets the task go on alone.
#[must_use = "dropping a task detaches it: say so with `detach`"]
pub struct Task<T>(Option<async_task::Task<T>>);

impl<T> Task<T> {
    pub(crate) fn new(task: async_task::Task<T>) -> Self {
        Task(Some(task))
    }

    /// Lets the task go on alone.
    pub fn detach(self) {}

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.0.as_ref().is_none_or(|task| task.is_finished())
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.detach();
        }
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match &mut self.0 {
            Some(task) => Pin::new(task).poll(cx),
            None => Poll::Pending,
        }
    }
}

/// The value of an offloaded job, when it is there.
pub struct Offloaded<T>(Arc<Mutex<Outcome<T>>>);

pub(super) enum Outcome<T> {
    Waiting(Option<Waker>),
    Done(T),
    Panicked,
    Taken,
}

/// The job's side: tells the waiting task even when the job panics.
pub(super) struct Answer<T>(pub(super) Arc<Mutex<Outcome<T>>>);

impl<T> Answer<T> {
    pub(super) fn give(self, value: T) {
        self.set(Outcome::Done(value));
    }

    fn set(&self, outcome: Outcome<T>) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Outcome::Waiting(waker) = &mut *slot {
            let waker = waker.take();
            *slot = outcome;
            drop(slot);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        self.set(Outcome::Panicked);
    }
}

impl<T> Offloaded<T> {
    pub(super) fn pair() -> (Arc<Mutex<Outcome<T>>>, Offloaded<T>) {
        let shared = Arc::new(Mutex::new(Outcome::Waiting(None)));
        (Arc::clone(&shared), Offloaded(shared))
    }
}

impl<T> Future for Offloaded<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Outcome::Waiting(waker) = &mut *slot {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match std::mem::replace(&mut *slot, Outcome::Taken) {
            Outcome::Done(value) => Poll::Ready(value),
            Outcome::Panicked => panic!("an offloaded job panicked"),
            _ => Poll::Pending,
        }
    }
}
