//! Devices with what must be known to flush them no more often than needed.

use super::superblock::StoredSuperblock;
use crate::dev::{BlockDev, Buf, DevError, DevOp, Shared};
use crate::error::{Error, Result};
use crate::fsck::image::{MARK, MARK_AT, MARKED};
use bcache_format::magic::SetMagic;
use bcache_format::superblock::{SB_BYTES, SB_OFFSET, Superblock};
use bcache_format::{Geometry, Problem};
use std::cell::Cell;
use std::ops::Deref;
use std::rc::Rc;

/// A device whose writes are counted, so that who needs earlier ones durable knows whether a flush is due.
///
/// The *epoch* is the number of writes completed. A flush that begins at epoch `e` makes all of them durable.
pub struct Tracked {
    /// The device.
    pub dev: Rc<dyn BlockDev>,
    counts: Rc<Counts>,
}

/// What is counted of a device, by all who have it.
#[derive(Default)]
struct Counts {
    epoch: Cell<u64>,
    flushed: Cell<u64>,
    flushes: Cell<u64>,
    failures: Cell<u64>,
    reported: Cell<u64>,
    announced: Cell<u64>,
}

impl Tracked {
    /// Wraps a device. What was written before is taken as not durable.
    pub fn new(dev: Rc<dyn BlockDev>) -> Self {
        Self { dev, counts: Rc::new(Counts { epoch: Cell::new(1), ..Counts::default() }) }
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
    /// Counts a write that completed.
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
    fn flush_failed(&self) -> DevError {
        DevError::new(self.dev.name(), DevOp::Flush, 0, 0, libc::EIO)
    }
}

/// The cache device of a set.
pub struct CacheDev {
    tracked: Tracked,
    /// Its shape.
    pub geometry: Geometry,
    /// Its set's magic numbers.
    pub magic: SetMagic,
    /// Its superblock.
    pub sb: StoredSuperblock,
}

impl Deref for CacheDev {
    type Target = Tracked;
    fn deref(&self) -> &Tracked {
        &self.tracked
    }
}

/// Reads the superblock of a device: it, and the block it came in.
///
/// # Errors
/// The read fails, the superblock is not one, or does not fit the device.
pub async fn read_superblock(dev: &Rc<dyn BlockDev>) -> Result<(Superblock, Vec<u8>)> {
    let geometry = dev.geometry();
    if geometry.bytes < SB_OFFSET + SB_BYTES as u64 {
        return Err(Error::refused(format!("{}: too small for a bcache superblock", dev.name())));
    }
    let block = dev.read(SB_OFFSET, Buf::recycled(SB_BYTES)).await?;
    let refuse = |error: bcache_format::Error| match error.problem {
        Problem::Magic { .. } => Error::refused(format!("{}: not a bcache device", dev.name())),
        _ => Error::refused(format!("{}: {}", dev.name(), error.at(SB_OFFSET))),
    };
    let sb = Superblock::parse(&block).map_err(refuse)?;
    sb.check_device(geometry.bytes, geometry.logical_block).map_err(refuse)?;
    // One that cannot be read there has no mark.
    let page = dev.read(0, Buf::recycled(SB_OFFSET as usize)).await;
    if page.is_ok_and(|page| page.get(MARK_AT as usize..).is_some_and(|rest| rest.starts_with(MARK))) {
        return Err(Error::refused(format!("{}: {MARKED}", dev.name())));
    }
    Ok((sb, block.to_vec()))
}

/// Reads the superblock of a backing device when what it says is durable. It may have been written by a process that died,
/// or failed, before it was: stale, to whoever reads it, and clean after the power cut that keeps data written since.
///
/// # Errors
/// As [`read_superblock`], or the device cannot be flushed.
pub async fn settled_superblock(dev: &Rc<dyn BlockDev>) -> Result<(Superblock, Vec<u8>)> {
    dev.flush().await?;
    read_superblock(dev).await
}

/// [`settled_superblock`] of a device that was, or is, in service elsewhere: a flush that fails is told to its clients.
///
/// # Errors
/// As there.
pub(super) async fn settled_superblock_of(tracked: &Tracked) -> Result<(Superblock, Vec<u8>)> {
    tracked.ensure_flushed(tracked.epoch()).await?;
    // Who has it now may write until requests come here.
    tracked.completed();
    read_superblock(&tracked.dev).await
}

impl CacheDev {
    /// The cache device `dev`, whose superblock was read.
    ///
    /// # Errors
    /// It is not a cache device.
    pub fn new(dev: Rc<dyn BlockDev>, sb: Superblock, block: Vec<u8>) -> Result<Self> {
        let Some(geometry) = sb.geometry() else {
            return Err(Error::refused(format!("{}: a backing device, not a cache", dev.name())));
        };
        let magic = sb.set_magic();
        Ok(Self { tracked: Tracked::new(dev), geometry, magic, sb: StoredSuperblock::new(sb, block) })
    }
    /// Makes the writes completed before `epoch` durable; sends nothing when they are.
    ///
    /// # Errors
    /// This flush failed, or any before it did: metadata that is written from then on could name what that one lost.
    pub async fn ensure_flushed(&self, epoch: u64) -> Result<(), DevError> {
        if self.tracked.failures() > 0 {
            return Err(self.tracked.flush_failed());
        }
        self.tracked.ensure_flushed(epoch).await
    }
    /// Number of the device in its set.
    pub fn this_dev(&self) -> usize {
        self.sb.borrow().cache().map_or(0, |cache| cache.nr_this_dev.into())
    }
    /// Changes the superblock. It is durable when this returns, and everything that was written before it.
    pub async fn update_sb(&self, change: impl FnOnce(&mut Superblock)) -> Result<()> {
        let writer = self.sb.writer(&self.tracked).await;
        self.ensure_flushed(self.tracked.epoch()).await?;
        let change = |sb: &mut Superblock| {
            change(sb);
            sb.seq += 1;
        };
        writer.write(change).await
    }
    /// Writes the numbers of `count` journal buckets to where the superblock will have them. They are not in force, nor
    /// covered by the checksum, before the superblock counts them; the write that does so changes one sector only, which
    /// no power cut can tear.
    pub async fn announce_journal(&self, count: u16) -> Result<()> {
        let place = |sb: &mut Superblock| {
            if let Some(fields) = sb.cache_mut() {
                fields.njournal_buckets = count;
            }
        };
        self.sb.writer(&self.tracked).await.write_beside(place).await
    }
    /// An error about metadata on this device.
    pub fn untrusted(&self, what: impl Into<String>) -> Error {
        Error::Untrusted { device: self.dev.name().into(), what: what.into().into() }
    }
}
