//! Devices with what must be known to flush them no more often than needed.

use super::{BlockDev, DevError, DevOp, Shared};
use std::cell::Cell;
use std::rc::Rc;

/// A device whose writes are counted, so that who needs earlier ones durable knows whether a flush is due.
///
/// The *epoch* is the number of writes completed. A flush that begins at epoch `e` makes all of them durable.
pub struct FlushTracked {
    /// The device.
    pub dev: Rc<dyn BlockDev>,
    counts: Rc<FlushCounts>,
}

/// What is counted of a device, by all who have it.
#[derive(Default)]
struct FlushCounts {
    epoch: Cell<u64>,
    flushed: Cell<u64>,
    flushes: Cell<u64>,
    failures: Cell<u64>,
    reported: Cell<u64>,
    announced: Cell<u64>,
}

impl FlushTracked {
    /// Wraps a device. What was written before is taken as not durable.
    pub fn new(dev: Rc<dyn BlockDev>) -> Self {
        Self { dev, counts: Rc::new(FlushCounts { epoch: Cell::new(1), ..FlushCounts::default() }) }
    }
    /// Wraps a device that others have, or had: a flush of theirs that failed is one of its.
    /// What was written past both is taken as not durable.
    pub fn shared(dev: Rc<dyn BlockDev>, other: &Self) -> Self {
        let shared = Self { dev, counts: Rc::clone(&other.counts) };
        shared.completed();
        shared
    }
    /// Writes completed so far.
    pub fn epoch(&self) -> u64 {
        self.counts.epoch.get()
    }
    /// Flushes sent so far.
    pub fn flushes(&self) -> u64 {
        self.counts.flushes.get()
    }
    /// FlushCounts a write that completed.
    pub fn completed(&self) {
        self.counts.epoch.set(self.counts.epoch.get() + 1);
    }
    /// Writes; durable after a flush.
    pub async fn write(&self, at: u64, data: Shared) -> Result<(), DevError> {
        let result = self.dev.write(at, data, false).await;
        self.completed();
        result
    }
    /// Writes; durable when it returns. Earlier writes are not, for all that.
    pub async fn write_fua(&self, at: u64, data: Shared) -> Result<(), DevError> {
        self.dev.write(at, data, true).await
    }
    /// Makes the writes completed before `epoch` durable; sends nothing when they are.
    ///
    /// # Errors
    /// This flush failed, or another meanwhile. What had been written is lost perhaps, and no later flush makes it
    /// durable: it must be written again.
    pub async fn ensure_flushed(&self, epoch: u64) -> Result<(), DevError> {
        if self.is_flushed(epoch) {
            return Ok(());
        }
        let (covers, failures) = (self.counts.epoch.get(), self.counts.failures.get());
        self.counts.flushes.set(self.counts.flushes.get() + 1);
        if let Err(error) = self.dev.flush().await {
            self.counts.failures.set(self.counts.failures.get() + 1);
            return Err(error);
        }
        self.none_failed_since(failures)?;
        self.counts.flushed.set(self.counts.flushed.get().max(covers));
        Ok(())
    }
    /// Whether the writes completed before `epoch` are durable.
    pub fn is_flushed(&self, epoch: u64) -> bool {
        self.counts.flushed.get() >= epoch
    }
    /// Flushes that failed.
    pub fn failures(&self) -> u64 {
        self.counts.failures.get()
    }
    /// Failed flushes that some client was told of. Whoever flushes for a client takes it down before waiting for anything.
    pub fn reported(&self) -> u64 {
        self.counts.reported.get()
    }
    /// Whether a flush failed that no client was told of.
    pub fn owes_clients(&self) -> bool {
        self.counts.failures.get() > self.counts.reported.get()
    }
    /// A client's flush, which began when so many failures were [reported](Self::reported). A failure of any flush, whoever
    /// sent it, is told to every client whose flush began before that was told to one.
    ///
    /// # Errors
    /// As of [`Self::ensure_flushed`].
    pub async fn client_flush(&self, epoch: u64, reported: u64) -> Result<(), DevError> {
        let result = self.ensure_flushed(epoch).await;
        let failures = self.counts.failures.get();
        if failures > reported {
            self.counts.reported.set(failures);
            return result.and(Err(self.flush_failed()));
        }
        result
    }
    /// A flush for whoever operates the device. A failure that nobody was told of is told, once: the next client's flush is
    /// told of it all the same, for what an operator reads reaches no client.
    ///
    /// # Errors
    /// As of [`Self::ensure_flushed`].
    pub async fn operator_flush(&self) -> Result<(), DevError> {
        let result = self.ensure_flushed(self.epoch()).await;
        let failures = self.counts.failures.get();
        if failures > self.counts.reported.get().max(self.counts.announced.get()) {
            self.counts.announced.set(failures);
            if seeded_bug!(DetachHearsForClients) {
                self.counts.reported.set(failures);
            }
            return result.and(Err(self.flush_failed()));
        }
        result
    }
    /// Something is acknowledged only now that was written when so many flushes had failed: the next client's flush is told
    /// of those that failed since, though other clients were told already.
    pub fn tell_again(&self, failures: u64) {
        if !seeded_bug!(FailureToldOnce) {
            self.counts.reported.set(self.counts.reported.get().min(failures));
            self.counts.announced.set(self.counts.announced.get().min(failures));
        }
    }
    /// An error if a flush failed since `failures` had.
    pub fn none_failed_since(&self, failures: u64) -> Result<(), DevError> {
        if self.counts.failures.get() == failures { Ok(()) } else { Err(self.flush_failed()) }
    }
    pub(crate) fn flush_failed(&self) -> DevError {
        DevError::new(self.dev.name(), DevOp::Flush, 0, 0, libc::EIO)
    }
}
