//! What went wrong on a device, and where.

use std::fmt;
use std::io;
use std::sync::Arc;

/// The operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DevOp {
    /// Opening or examining the device.
    Open,
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush of the device's volatile cache.
    Flush,
    /// A discard.
    Discard,
    /// A write of zeroes.
    WriteZeroes,
}

impl fmt::Display for DevOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DevOp::Open => "open",
            DevOp::Read => "read",
            DevOp::Write => "write",
            DevOp::Flush => "flush",
            DevOp::Discard => "discard",
            DevOp::WriteZeroes => "zeroing",
        })
    }
}

/// A failed device operation.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{device}: {op} of {len} bytes at byte {at}: {}", io::Error::from_raw_os_error(*errno))]
pub struct DevError {
    /// The device's name.
    pub device: Arc<str>,
    /// What was tried.
    pub op: DevOp,
    /// First byte of the range.
    pub at: u64,
    /// Length of the range in bytes.
    pub len: u64,
    /// The operating system's error number, positive.
    pub errno: i32,
}

impl DevError {
    /// An error of `op` on `len` bytes at byte `at` of `device`; `errno` is positive.
    pub fn new(device: &str, op: DevOp, at: u64, len: u64, errno: i32) -> Self {
        DevError { device: device.into(), op, at, len, errno }
    }

    /// The kind the standard library gives this error number.
    pub fn kind(&self) -> io::ErrorKind {
        io::Error::from_raw_os_error(self.errno).kind()
    }
}

impl From<DevError> for io::Error {
    fn from(e: DevError) -> Self {
        io::Error::new(e.kind(), e)
    }
}
