//! How long something takes, as the kernel's `internal` directory tells it.

use std::cell::Cell;

/// Durations of one kind of work, in nanoseconds of the runtime's clock.
#[derive(Debug, Default)]
pub struct Timing {
    count: Cell<u64>,
    total: Cell<u64>,
    max: Cell<u64>,
    first: Cell<u64>,
    last: Cell<u64>,
}

impl Timing {
    /// Counts work that began and ended then.
    pub fn record(&self, began: u64, ended: u64) {
        let took = ended.saturating_sub(began);
        if self.count.get() == 0 {
            self.first.set(ended);
        }
        self.count.set(self.count.get() + 1);
        self.total.set(self.total.get() + took);
        self.max.set(self.max.get().max(took));
        self.last.set(ended);
    }
    /// Mean duration.
    pub fn average_duration(&self) -> u64 {
        self.total.get() / self.count.get().max(1)
    }
    /// Mean time from one to the next.
    pub fn average_frequency(&self) -> u64 {
        (self.last.get() - self.first.get()) / self.count.get().saturating_sub(1).max(1)
    }
    /// The longest.
    pub fn max_duration(&self) -> u64 {
        self.max.get()
    }
    /// How long ago the last one ended; nothing if there was none.
    pub fn since_last(&self, now: u64) -> Option<u64> {
        (self.count.get() > 0).then(|| now.saturating_sub(self.last.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_extremes() {
        let timing = Timing::default();
        assert_eq!((timing.average_duration(), timing.since_last(5)), (0, None));
        timing.record(10, 20);
        timing.record(100, 130);
        timing.record(200, 220);
        assert_eq!((timing.average_duration(), timing.max_duration()), (20, 30));
        assert_eq!((timing.average_frequency(), timing.since_last(300)), (100, Some(80)));
    }
}
