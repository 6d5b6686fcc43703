//! Block devices as the engine sees them: owned buffers in, owned buffers out.
//!
//! Engine code knows only [`BlockDev`]. Production devices live on the runtime's ring, tests use the
//! simulator's disks, and wrappers (delays, counters) nest around either.

mod buf;
mod error;
mod file;
mod flush;
mod io;
mod ram;
#[cfg(test)]
mod tests;
mod wrap;

pub use buf::{Buf, PAGE, Shared};
pub use error::{DevError, DevOp};
pub use file::{OpenMode, lock, open};
pub use flush::FlushTracked;
pub use io::{Completer, Io};
pub use ram::Ram;
pub use wrap::{Counting, Counts, Delay, ReadOnly};

/// What a device is like. Fixed for as long as the device is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes, a multiple of `logical_block`.
    pub bytes: u64,
    /// Smallest addressable unit in bytes: a power of two, 512 to 4096.
    pub logical_block: u32,
    /// Whether [`BlockDev::discard`] gives anything back; where it is false, discards succeed and do nothing.
    pub discard: bool,
    /// Whether [`BlockDev::write_zeroes`] is cheaper than writing zeroes.
    pub write_zeroes: bool,
    /// Whether seeks cost time.
    pub rotational: bool,
    /// Whether writes, discards and zeroing are refused.
    pub read_only: bool,
}

/// A block device.
///
/// # Contract
///
/// * Offsets and lengths are bytes. Both are multiples of the logical block size and the range lies within the
///   device; anything else is refused with `EINVAL` and touches nothing. A length of zero succeeds.
/// * An operation starts when the method is called, not when its [`Io`] is first polled. Dropping the [`Io`]
///   does not cancel the operation: it runs to its end and its result is lost. The buffer belongs to the
///   device until completion, whether anybody still waits or not, so no memory in flight is ever freed.
/// * Operations in flight together complete in any order. A read that overlaps a write in flight sees, for each
///   sector, the old or the new bytes; of two overlapping writes in flight either may win, sector by sector.
/// * A completed write is seen by every read that starts afterwards. It is durable only once a flush that
///   started after its completion has completed, or at once when it was made with `fua`. FUA speaks for its own
///   bytes and for nothing written earlier.
/// * A power cut may tear a write at any multiple of 512 bytes, whatever the logical block size: each sector not
///   yet durable holds its old bytes or those of any write since, independently of all others.
/// * After a failed write the sectors of its range hold old or new bytes, each on its own. After a failed flush
///   nothing more is durable than before, and a later successful flush does not make it so: the operating system
///   may have dropped the writes.
/// * A discarded range reads as anything until it is written again. A zeroed range reads as zeroes; both are
///   as volatile as a write.
pub trait BlockDev {
    /// The device's size and abilities.
    fn geometry(&self) -> Geometry;

    /// What messages call the device, usually its path.
    fn name(&self) -> &str;

    /// Looks how many bytes the device has now. It is that long from then on if it has grown; of one that has shrunk the
    /// geometry stays, and the shorter length is only told.
    ///
    /// # Errors
    /// The system's.
    fn remeasure(&self) -> Result<u64, DevError> {
        Ok(self.geometry().bytes)
    }

    /// Fills the whole of `buf` from byte `at` on and gives it back.
    fn read(&self, at: u64, buf: Buf) -> Io<Buf>;

    /// Writes `data` at byte `at`; durable on completion if `fua`.
    fn write(&self, at: u64, data: Shared, fua: bool) -> Io<()>;

    /// Makes every write, discard and zeroing completed before this call durable.
    fn flush(&self) -> Io<()>;

    /// Tells the device that `len` bytes from `at` on are not needed. Their content is undefined afterwards.
    fn discard(&self, at: u64, len: u64) -> Io<()>;

    /// Makes `len` bytes from `at` on read as zeroes.
    fn write_zeroes(&self, at: u64, len: u64) -> Io<()>;
}

/// Checks a range against the contract; every backend begins with this.
pub(crate) fn check(dev: &dyn BlockDev, op: DevOp, at: u64, len: u64) -> Result<(), DevError> {
    let geometry = dev.geometry();
    let block = u64::from(geometry.logical_block);
    let inside = at.checked_add(len).is_some_and(|end| end <= geometry.bytes);
    if !inside || !at.is_multiple_of(block) || !len.is_multiple_of(block) {
        return Err(DevError::new(dev.name(), op, at, len, libc::EINVAL));
    }
    if geometry.read_only && !matches!(op, DevOp::Read | DevOp::Flush) {
        return Err(DevError::new(dev.name(), op, at, len, libc::EROFS));
    }
    Ok(())
}
