//! Errors, delays and lies on chosen ranges.

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

/// What a medium does wrong without saying so. The operation succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// A write changes nothing.
    Lost,
    /// A write goes so many bytes further on, round the end of the disk, and a read comes from there.
    Elsewhere(u64),
    /// A read has this bit of its first byte in the range flipped.
    Flipped(u8),
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
    /// What it does without failing, if anything.
    pub lie: Option<Lie>,
    /// Added to the operation's time.
    pub delay: Duration,
    /// How many operations it strikes before it is gone; none for ever.
    pub times: Option<u32>,
}

impl Fault {
    /// `EIO` for ever on `range`.
    pub fn eio(on: FaultOn, range: Range<u64>) -> Self {
        Fault { on, range, errno: Some(libc::EIO), lie: None, delay: Duration::ZERO, times: None }
    }

    /// A fault that only slows `range` down.
    pub fn slow(on: FaultOn, range: Range<u64>, delay: Duration) -> Self {
        Fault { on, range, errno: None, lie: None, delay, times: None }
    }

    /// A fault that nobody is told of.
    pub fn lie(on: FaultOn, range: Range<u64>, lie: Lie) -> Self {
        Fault { on, range, errno: None, lie: Some(lie), delay: Duration::ZERO, times: None }
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
