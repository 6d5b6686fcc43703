//! What a device has of its writeback.

use crate::request::Ranges;
use crate::sync::WaitQueue;
use std::cell::Cell;

/// How far writing back may run ahead of its rate, and how far its debts go back, in nanoseconds.
pub(super) const AHEAD_MAX: u64 = 2_500_000_000;
const BEHIND_MAX: u64 = 2_000_000_000;

/// Writeback of one device.
#[derive(Default)]
pub struct Writeback {
    /// Ranges that are being written back.
    pub(crate) active: Ranges,
    /// Something became clean, or the set is stopping.
    pub(crate) progress: WaitQueue,
    pub(super) woken: WaitQueue,
    pub(super) closed: Cell<bool>,
    /// Dirty sectors that this pass could not read from the cache, and that have no place on the backing device.
    pub(super) unreadable: Cell<u64>,
    pub(super) unwritable: Cell<u64>,
    /// Both, of the last whole pass: sectors that stay dirty whatever is tried.
    pub(crate) stuck: Cell<u64>,
    /// Those of them that lie behind the end of the backing device.
    pub(crate) behind_end: Cell<u64>,
    pub(crate) controller: Controller,
}

impl Writeback {
    /// There may be something to do.
    pub(crate) fn wake(&self) {
        self.woken.wake_all();
    }
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.woken.wake_all();
        self.progress.wake_all();
    }
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }
}

/// The controller's memory.
#[derive(Default)]
pub(crate) struct Controller {
    pub(super) integral: Cell<i64>,
    /// When the next write is due, by the rate.
    pub(super) next: Cell<u64>,
}

impl Controller {
    /// Counts sectors that were written back; answers how long to wait, in nanoseconds, before the next.
    pub(super) fn wait(&self, sectors: u64, rate: u64, now: u64) -> u64 {
        let nanos = u128::from(sectors) * 1_000_000_000 / u128::from(rate.max(1));
        let due = self.next.get().saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX));
        let due = due.clamp(now.saturating_sub(BEHIND_MAX), now.saturating_add(AHEAD_MAX));
        self.next.set(due);
        due.saturating_sub(now)
    }
}
