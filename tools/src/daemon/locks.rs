//! Locks of the process: one for each of a few things, and one that many share.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bcache_engine::sync::{OwnedPermit, Permit, Semaphore};

/// Locks by key. One that was made stays, for parts and devices are few.
pub(super) struct Locks<K>(RefCell<BTreeMap<K, Rc<Semaphore>>>);

impl<K> Default for Locks<K> {
    fn default() -> Self {
        Locks(RefCell::default())
    }
}

impl<K: Ord> Locks<K> {
    /// Waits until nobody else has the lock of `key`.
    pub(super) async fn lock(&self, key: K) -> OwnedPermit {
        let lock = Rc::clone(self.0.borrow_mut().entry(key).or_insert_with(|| Rc::new(Semaphore::new(1))));
        lock.acquire_owned(1).await
    }
}

/// Many share it, or one has all of it; whoever asked first is first.
pub(crate) struct Shares(Semaphore);

impl Shares {
    /// More than will ever share it.
    const ALL: u64 = u32::MAX as u64;

    pub(crate) const fn new() -> Self {
        Shares(Semaphore::new(Self::ALL))
    }
    /// Waits until nobody has all.
    pub(crate) async fn one(&self) -> Permit<'_> {
        self.0.acquire(1).await
    }
    /// Waits until nobody else has any.
    pub(crate) async fn all(&self) -> Permit<'_> {
        self.0.acquire(Self::ALL).await
    }
}
