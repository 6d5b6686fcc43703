//! Counted permits, for bounding what is under way.

use std::rc::Rc;

use super::fifo::Fifo;

/// A fixed number of permits, handed out in the order of asking. A large request at the head of the line holds
/// smaller ones behind it back, so it cannot starve.
pub struct Semaphore {
    fifo: Fifo,
}

impl Semaphore {
    /// A semaphore with `permits` permits.
    pub const fn new(permits: u64) -> Self {
        Semaphore { fifo: Fifo::new(permits) }
    }

    /// Waits for `count` permits. More than there are at all are never granted.
    pub async fn acquire(&self, count: u64) -> Permit<'_> {
        self.fifo.acquire(count).await;
        Permit { semaphore: self, count }
    }

    /// `count` permits if they are there and nobody waits.
    pub fn try_acquire(&self, count: u64) -> Option<Permit<'_>> {
        self.fifo.try_acquire(count).then(|| Permit { semaphore: self, count })
    }

    /// [`acquire`](Self::acquire) with a permit that keeps the semaphore alive.
    pub async fn acquire_owned(self: Rc<Self>, count: u64) -> OwnedPermit {
        self.fifo.acquire(count).await;
        OwnedPermit { semaphore: self, count }
    }

    /// [`try_acquire`](Self::try_acquire) with a permit that keeps the semaphore alive.
    pub fn try_acquire_owned(self: &Rc<Self>, count: u64) -> Option<OwnedPermit> {
        if !self.fifo.try_acquire(count) {
            return None;
        }
        Some(OwnedPermit { semaphore: Rc::clone(self), count })
    }

    /// Permits nobody holds.
    pub fn available(&self) -> u64 {
        self.fifo.available()
    }
}

/// Permits, given back when dropped.
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    count: u64,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.semaphore.fifo.release(self.count);
    }
}

/// Permits that keep their semaphore alive, given back when dropped.
pub struct OwnedPermit {
    semaphore: Rc<Semaphore>,
    count: u64,
}

impl Drop for OwnedPermit {
    fn drop(&mut self) {
        self.semaphore.fifo.release(self.count);
    }
}
