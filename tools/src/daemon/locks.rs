//! A lock for each of a few things.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bcache_engine::sync::{OwnedWriteGuard, RwLock};

/// Locks by key. One that was made stays, for parts and devices are few.
pub struct Locks<K>(RefCell<BTreeMap<K, Rc<RwLock<()>>>>);

impl<K> Default for Locks<K> {
    fn default() -> Self {
        Locks(RefCell::default())
    }
}

impl<K: Ord> Locks<K> {
    /// Waits until nobody else has the lock of `key`.
    pub async fn lock(&self, key: K) -> OwnedWriteGuard<()> {
        let lock = Rc::clone(self.0.borrow_mut().entry(key).or_insert_with(|| Rc::new(RwLock::new(()))));
        lock.write_owned().await
    }
}
