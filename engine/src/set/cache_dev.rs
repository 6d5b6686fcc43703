//! The cache device, and reading superblocks.

use super::superblock::StoredSuperblock;
use crate::dev::FlushTracked;
use crate::dev::{BlockDev, Buf, DevError};
use crate::error::{Error, Result};
use crate::fsck::image::{MARK, MARK_AT, MARKED};
use bcache_format::magic::SetMagic;
use bcache_format::superblock::{SB_BYTES, SB_OFFSET, Superblock};
use bcache_format::{Geometry, Problem};
use std::ops::Deref;
use std::rc::Rc;

/// The cache device of a set.
pub struct CacheDev {
    tracked: FlushTracked,
    /// Its shape.
    pub geometry: Geometry,
    /// Its set's magic numbers.
    pub magic: SetMagic,
    /// Its superblock.
    pub sb: StoredSuperblock,
}

impl Deref for CacheDev {
    type Target = FlushTracked;
    fn deref(&self) -> &FlushTracked {
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
pub(super) async fn settled_superblock_of(tracked: &FlushTracked) -> Result<(Superblock, Vec<u8>)> {
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
        Ok(Self { tracked: FlushTracked::new(dev), geometry, magic, sb: StoredSuperblock::new(sb, block) })
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
