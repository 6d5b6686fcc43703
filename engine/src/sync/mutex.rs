//! A fair lock for one.

use super::{Permit, Semaphore};
use std::cell::{RefCell, RefMut};
use std::ops::{Deref, DerefMut};

/// One holder at a time, in the order of asking.
pub struct Mutex<T> {
    turn: Semaphore,
    value: RefCell<T>,
}

/// Sole access to a [`Mutex`]'s value, until dropped.
pub struct MutexGuard<'a, T> {
    // Before the turn, for fields are dropped in this order.
    value: RefMut<'a, T>,
    _turn: Permit<'a>,
}

impl<T> Mutex<T> {
    /// An unlocked mutex around `value`.
    pub const fn new(value: T) -> Self {
        Mutex { turn: Semaphore::new(1), value: RefCell::new(value) }
    }

    /// Waits for the lock.
    pub async fn lock(&self) -> MutexGuard<'_, T> {
        let turn = self.turn.acquire(1).await;
        MutexGuard { value: self.value.borrow_mut(), _turn: turn }
    }

    /// The lock if nobody holds or awaits it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let turn = self.turn.try_acquire(1)?;
        Some(MutexGuard { value: self.value.borrow_mut(), _turn: turn })
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}
