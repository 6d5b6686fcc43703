//! What front ends serve: a disk made by the engine, whatever is behind it.

use std::future::Future;
use std::pin::Pin;

use uuid::Uuid;

use crate::dev::{DevError, Shared};

/// A request under way. It borrows the volume, so a front end keeps its `Rc<dyn Volume>` until the end.
pub type VolumeFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, VolumeError>> + 'a>>;

/// A request that failed: what to tell the client and what to tell the operator.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
pub struct VolumeError {
    /// The operating system's error number, positive; front ends translate it to their protocol's.
    pub errno: i32,
    /// What went wrong, for the log.
    pub detail: String,
}

impl VolumeError {
    /// An error with a positive error number and its story.
    pub fn new(errno: i32, detail: impl Into<String>) -> Self {
        VolumeError { errno, detail: detail.into() }
    }
}

impl From<DevError> for VolumeError {
    fn from(error: DevError) -> Self {
        VolumeError { errno: error.errno, detail: error.to_string() }
    }
}

/// The byte behind a range, which must lie within a volume of `size` bytes and be of whole `unit`s.
///
/// # Errors
/// It is not: `EINVAL`.
pub(crate) fn check_range(at: u64, len: u64, size: u64, unit: u64) -> Result<u64, VolumeError> {
    let end = at.checked_add(len).filter(|end| *end <= size);
    let aligned = at.is_multiple_of(unit) && len.is_multiple_of(unit);
    end.filter(|_| aligned).ok_or_else(|| {
        let what = format!("{len} bytes at {at} are not a range of whole blocks of this device");
        VolumeError::new(libc::EINVAL, what)
    })
}

/// Who a volume is, for clients that choose one and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeId {
    /// The name it is served under.
    pub name: String,
    /// The label in its superblock or uuid entry; may be empty.
    pub label: String,
    /// The uuid of the backing device or of the flash-only volume.
    pub uuid: Uuid,
}

/// A disk made by the engine.
///
/// Offsets and lengths are bytes and multiples of 512; the range lies within the volume. Front ends check that
/// before they ask; a volume refuses anything else with `EINVAL`.
///
/// Requests run concurrently and complete in any order. Dropping the future of a request is harmless: what has begun to
/// change something is finished all the same, and its outcome is unknown. What [`flush`](Self::flush) and `fua`
/// promise is what [`BlockDev`](crate::dev::BlockDev) promises.
pub trait Volume {
    /// Size in bytes.
    fn size_bytes(&self) -> u64;

    /// Preferred granularity of requests in bytes, a power of two.
    fn block_size(&self) -> u32;

    /// Name, label and uuid.
    fn id(&self) -> VolumeId;

    /// Whether every change is refused.
    fn read_only(&self) -> bool;

    /// Reads `len` bytes from `at` on. The pieces, in order, add up to `len`.
    fn read(&self, at: u64, len: u32) -> VolumeFuture<'_, Vec<Shared>>;

    /// Writes `data` at `at`; durable on completion if `fua`.
    fn write(&self, at: u64, data: Shared, fua: bool) -> VolumeFuture<'_, ()>;

    /// Makes every request completed before this call durable.
    fn flush(&self) -> VolumeFuture<'_, ()>;

    /// Tells the volume that a range is not needed: its content is undefined afterwards.
    fn discard(&self, at: u64, len: u64) -> VolumeFuture<'_, ()>;

    /// Makes a range read as zeroes, durable on completion if `fua`. With `no_hole` space is kept allocated.
    fn write_zeroes(&self, at: u64, len: u64, fua: bool, no_hole: bool) -> VolumeFuture<'_, ()>;
}
