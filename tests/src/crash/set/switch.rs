//! A volume whose inside changes while it is in use, as device-mapper changes a table.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bcache_engine::dev::Shared;
use bcache_engine::sync::WaitQueue;
use bcache_engine::volume::{Volume, VolumeFuture, VolumeId};

/// What is behind it now, and how many requests are under way.
pub struct Switch {
    inner: RefCell<Rc<dyn Volume>>,
    running: Cell<u32>,
    held: Cell<bool>,
    /// What was behind it before had a flush that failed: the next client's flush must be told.
    doomed: Cell<bool>,
    changed: WaitQueue,
}

struct Running<'a>(&'a Switch);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.changed.wake_all();
    }
}

impl Switch {
    pub fn new(inner: Rc<dyn Volume>) -> Self {
        Switch {
            inner: RefCell::new(inner),
            running: Cell::new(0),
            held: Cell::new(false),
            doomed: Cell::new(false),
            changed: WaitQueue::new(),
        }
    }
    /// Holds new requests back, and waits for those under way.
    pub async fn suspend(&self) {
        self.held.set(true);
        self.changed.wait_until(|| self.running.get() == 0).await;
    }
    /// Lets requests go on, to something else if there is something.
    pub fn resume(&self, inner: Option<Rc<dyn Volume>>) {
        if let Some(inner) = inner {
            *self.inner.borrow_mut() = inner;
        }
        self.held.set(false);
        self.changed.wake_all();
    }
    /// The next flush fails.
    pub fn doom(&self) {
        self.doomed.set(true);
    }
    async fn enter(&self) -> (Running<'_>, Rc<dyn Volume>) {
        self.changed.wait_until(|| !self.held.get()).await;
        self.running.set(self.running.get() + 1);
        (Running(self), Rc::clone(&self.inner.borrow()))
    }
    fn now(&self) -> Rc<dyn Volume> {
        Rc::clone(&self.inner.borrow())
    }
}

impl Volume for Switch {
    fn size_bytes(&self) -> u64 {
        self.now().size_bytes()
    }
    fn block_size(&self) -> u32 {
        self.now().block_size()
    }
    fn id(&self) -> VolumeId {
        self.now().id()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, at: u64, len: u32) -> VolumeFuture<'_, Vec<Shared>> {
        Box::pin(async move {
            let (_running, inner) = self.enter().await;
            inner.read(at, len).await
        })
    }
    fn write(&self, at: u64, data: Shared, fua: bool) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let (_running, inner) = self.enter().await;
            inner.write(at, data, fua).await
        })
    }
    fn flush(&self) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let (_running, inner) = self.enter().await;
            let doomed = self.doomed.take();
            let flushed = inner.flush().await;
            if doomed {
                return Err(bcache_engine::volume::VolumeError::new(5, "an earlier flush failed"));
            }
            flushed
        })
    }
    fn discard(&self, at: u64, len: u64) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let (_running, inner) = self.enter().await;
            inner.discard(at, len).await
        })
    }
    fn write_zeroes(&self, at: u64, len: u64, fua: bool, no_hole: bool) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let (_running, inner) = self.enter().await;
            inner.write_zeroes(at, len, fua, no_hole).await
        })
    }
}
