//! Errors and delays on chosen ranges.

use std::ops::Range;
use std::time::Duration;

use crate::dev::DevOp;

/// Which operations a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOn {
    /// Reads.
    Read,
    /// Writes, discards and zeroing.
    Write,
    /// Flushes; the range does not matter.
    Flush,
    /// Everything.
    Any,
}

/// Something wrong with a range of a disk.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The operations it strikes.
    pub on: FaultOn,
    /// The bytes it strikes; an operation that touches any of them is struck.
    pub range: Range<u64>,
    /// The error number to fail with, or none for a fault that only delays.
    pub errno: Option<i32>,
    /// Added to the operation's time.
    pub delay: Duration,
    /// How many operations it strikes before it is gone; none for ever.
    pub times: Option<u32>,
}

impl Fault {
    /// `EIO` for ever on `range`.
    pub fn eio(on: FaultOn, range: Range<u64>) -> Self {
        Fault { on, range, errno: Some(libc::EIO), delay: Duration::ZERO, times: None }
    }

    /// A fault that only slows `range` down.
    pub fn slow(on: FaultOn, range: Range<u64>, delay: Duration) -> Self {
        Fault { on, range, errno: None, delay, times: None }
    }

    /// The same fault, gone after `times` strikes.
    pub fn times(self, times: u32) -> Self {
        Fault { times: Some(times), ..self }
    }

    pub(super) fn strikes(&self, op: DevOp, at: u64, len: u64) -> bool {
        let kind = match self.on {
            FaultOn::Any => true,
            FaultOn::Read => op == DevOp::Read,
            FaultOn::Write => matches!(op, DevOp::Write | DevOp::Discard | DevOp::WriteZeroes),
            FaultOn::Flush => op == DevOp::Flush,
        };
        kind && (op == DevOp::Flush || at < self.range.end && self.range.start < at + len)
    }
}
