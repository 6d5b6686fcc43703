//! How long requests take, counted by length of time.

use std::cell::Cell;

use serde_json::{Value, json};

/// Bounds of the counts in microseconds, each the longest time that falls below it: from a hit in memory to the time after
/// which a request fails. What takes longer still is counted behind them.
pub const BOUNDS_US: [u64; 19] = [
    20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000, 5_000_000, 10_000_000, 30_000_000,
];

/// Times, as a count for each of [`BOUNDS_US`], one for what is longer, and a sum.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [Cell<u64>; BOUNDS_US.len() + 1],
    sum_ns: Cell<u64>,
}

impl Histogram {
    /// Counts a time.
    pub fn add(&self, nanos: u64) {
        let at = BOUNDS_US.partition_point(|bound| bound * 1000 < nanos);
        if let Some(count) = self.counts.get(at) {
            count.set(count.get() + 1);
        }
        self.sum_ns.set(self.sum_ns.get().wrapping_add(nanos));
    }

    /// Times counted so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().map(Cell::get).sum()
    }

    fn json(&self) -> Value {
        let counts: Vec<u64> = self.counts.iter().map(Cell::get).collect();
        json!({"bounds_us": BOUNDS_US, "counts": counts, "sum_ns": self.sum_ns.get()})
    }
}

/// The requests of a device, by what they ask.
#[derive(Debug, Default)]
pub struct Latency {
    /// Reads.
    pub read: Histogram,
    /// Writes, of zeroes too.
    pub write: Histogram,
    /// Flushes.
    pub flush: Histogram,
    /// Discards.
    pub discard: Histogram,
}

impl Latency {
    /// All of it.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "read": self.read.json(),
            "write": self.write.json(),
            "flush": self.flush.json(),
            "discard": self.discard.json(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_below_the_bound_that_it_does_not_exceed() {
        let histogram = Histogram::default();
        for nanos in [0, 20_000, 20_001, 30_000_000_000, 30_000_000_001] {
            histogram.add(nanos);
        }
        let counts: Vec<u64> = histogram.counts.iter().map(Cell::get).collect();
        assert_eq!((counts[0], counts[1], counts[18], counts[19]), (2, 1, 1, 1));
        assert_eq!(histogram.count(), 5);
        assert!(BOUNDS_US.is_sorted());
    }
}
