//! A fair lock for many readers or one writer.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use super::fifo::Fifo;

/// All permits: what a writer takes. A reader takes one.
const ALL: u64 = u32::MAX as u64;

/// Many readers or one writer, in the order of asking: a waiting writer holds later readers back.
///
/// The value lies in an `Rc` that readers clone and a writer takes out whole, which makes guards that own their
/// lock possible without unsafe code.
pub struct RwLock<T> {
    fifo: Fifo,
    /// Empty exactly while a write guard lives.
    value: RefCell<Option<Rc<T>>>,
}

impl<T> RwLock<T> {
    /// An unlocked lock around `value`.
    pub fn new(value: T) -> Self {
        RwLock { fifo: Fifo::new(ALL), value: RefCell::new(Some(Rc::new(value))) }
    }

    /// Waits for a read lock.
    pub async fn read(&self) -> ReadGuard<'_, T> {
        self.fifo.acquire(1).await;
        ReadGuard { value: self.share(), lock: self }
    }

    /// Waits for the write lock.
    pub async fn write(&self) -> WriteGuard<'_, T> {
        self.fifo.acquire(ALL).await;
        WriteGuard { value: self.take(), lock: self }
    }

    /// A read lock if there is neither a writer nor anyone waiting.
    pub fn try_read(&self) -> Option<ReadGuard<'_, T>> {
        self.fifo.try_acquire(1).then(|| ReadGuard { value: self.share(), lock: self })
    }

    /// The write lock if nobody holds or awaits the lock.
    pub fn try_write(&self) -> Option<WriteGuard<'_, T>> {
        self.fifo.try_acquire(ALL).then(|| WriteGuard { value: self.take(), lock: self })
    }

    /// [`read`](Self::read) with a guard that keeps the lock alive.
    pub async fn read_owned(self: Rc<Self>) -> OwnedReadGuard<T> {
        self.fifo.acquire(1).await;
        OwnedReadGuard { value: self.share(), lock: self }
    }

    /// [`write`](Self::write) with a guard that keeps the lock alive.
    pub async fn write_owned(self: Rc<Self>) -> OwnedWriteGuard<T> {
        self.fifo.acquire(ALL).await;
        OwnedWriteGuard { value: self.take(), lock: self }
    }

    /// [`try_read`](Self::try_read) with a guard that keeps the lock alive.
    pub fn try_read_owned(self: &Rc<Self>) -> Option<OwnedReadGuard<T>> {
        self.fifo.try_acquire(1).then(|| OwnedReadGuard { value: self.share(), lock: Rc::clone(self) })
    }

    /// [`try_write`](Self::try_write) with a guard that keeps the lock alive.
    pub fn try_write_owned(self: &Rc<Self>) -> Option<OwnedWriteGuard<T>> {
        self.fifo.try_acquire(ALL).then(|| OwnedWriteGuard { value: self.take(), lock: Rc::clone(self) })
    }

    /// Whether anyone holds the lock.
    pub fn is_locked(&self) -> bool {
        self.fifo.available() != ALL
    }

    /// The value, without locking.
    pub fn into_inner(self) -> T {
        match self.value.into_inner().and_then(Rc::into_inner) {
            Some(value) => value,
            None => unreachable!("guards borrow or own the lock"),
        }
    }

    fn share(&self) -> Rc<T> {
        match &*self.value.borrow() {
            Some(value) => Rc::clone(value),
            None => unreachable!("readers and a writer exclude each other"),
        }
    }

    fn take(&self) -> Option<Rc<T>> {
        self.value.borrow_mut().take()
    }

    fn unlock_write(&self, value: Option<Rc<T>>, permits: u64) {
        *self.value.borrow_mut() = value;
        self.fifo.release(permits);
    }
}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RwLock(locked: {})", self.is_locked())
    }
}

fn value_of<T>(value: &Option<Rc<T>>) -> &T {
    match value {
        Some(value) => value,
        None => unreachable!("a write guard holds the value until it is dropped"),
    }
}

fn value_mut<T>(value: &mut Option<Rc<T>>) -> &mut T {
    match value.as_mut().and_then(Rc::get_mut) {
        Some(value) => value,
        None => unreachable!("a write guard holds the only reference"),
    }
}

macro_rules! guards {
    ($read:ident, $write:ident, $lock:ty, [$($life:lifetime)?]) => {
        /// Read access to the value, until dropped.
        pub struct $read<$($life,)? T> {
            // Freed after `drop` has run, which is before any task woken by it can run.
            value: Rc<T>,
            lock: $lock,
        }

        /// Sole access to the value, until dropped.
        pub struct $write<$($life,)? T> {
            value: Option<Rc<T>>,
            lock: $lock,
        }

        impl<$($life,)? T> Deref for $read<$($life,)? T> {
            type Target = T;

            fn deref(&self) -> &T {
                &self.value
            }
        }

        impl<$($life,)? T> Drop for $read<$($life,)? T> {
            fn drop(&mut self) {
                self.lock.fifo.release(1);
            }
        }

        impl<$($life,)? T> Deref for $write<$($life,)? T> {
            type Target = T;

            fn deref(&self) -> &T {
                value_of(&self.value)
            }
        }

        impl<$($life,)? T> DerefMut for $write<$($life,)? T> {
            fn deref_mut(&mut self) -> &mut T {
                value_mut(&mut self.value)
            }
        }

        impl<$($life,)? T> Drop for $write<$($life,)? T> {
            fn drop(&mut self) {
                if let Some(value) = self.value.take() {
                    self.lock.unlock_write(Some(value), ALL);
                }
            }
        }

        impl<$($life,)? T: fmt::Debug> fmt::Debug for $read<$($life,)? T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                (**self).fmt(f)
            }
        }

        impl<$($life,)? T: fmt::Debug> fmt::Debug for $write<$($life,)? T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                (**self).fmt(f)
            }
        }
    };
}

guards!(ReadGuard, WriteGuard, &'a RwLock<T>, ['a]);
guards!(OwnedReadGuard, OwnedWriteGuard, Rc<RwLock<T>>, []);

impl<'a, T> WriteGuard<'a, T> {
    /// Turns the write lock into a read lock; no writer can come in between.
    pub fn downgrade(mut self) -> ReadGuard<'a, T> {
        let lock = self.lock;
        lock.unlock_write(self.value.take(), ALL - 1);
        ReadGuard { value: lock.share(), lock }
    }
}

impl<T> OwnedWriteGuard<T> {
    /// Turns the write lock into a read lock; no writer can come in between.
    pub fn downgrade(mut self) -> OwnedReadGuard<T> {
        let lock = Rc::clone(&self.lock);
        lock.unlock_write(self.value.take(), ALL - 1);
        OwnedReadGuard { value: lock.share(), lock }
    }

    /// The lock this guard holds.
    pub fn lock(&self) -> &Rc<RwLock<T>> {
        &self.lock
    }
}

impl<T> OwnedReadGuard<T> {
    /// The lock this guard holds.
    pub fn lock(&self) -> &Rc<RwLock<T>> {
        &self.lock
    }
}
