//! A fair lock for one.

use std::ops::{Deref, DerefMut};

use super::{RwLock, WriteGuard};

/// One holder at a time, in the order of asking.
#[derive(Debug)]
pub struct Mutex<T>(RwLock<T>);

/// Sole access to a [`Mutex`]'s value, until dropped.
pub struct MutexGuard<'a, T>(WriteGuard<'a, T>);

impl<T> Mutex<T> {
    /// An unlocked mutex around `value`.
    pub fn new(value: T) -> Self {
        Mutex(RwLock::new(value))
    }

    /// Waits for the lock.
    pub async fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(self.0.write().await)
    }

    /// The lock if nobody holds or awaits it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_write().map(MutexGuard)
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
