//! Which requests bypass the cache.

use crate::set::{CacheSet, Device};
use bcache_format::superblock::CacheMode;
use bcache_format::{Sector, Sectors};
use std::cell::Cell;

/// Per cent of the cache in use beyond which nothing is added.
pub const CUTOFF_CACHE_ADD: u64 = 95;
/// Most that congestion is counted.
const CONGESTED_MAX: i64 = 1024;

/// How late the cache device answers.
#[derive(Default)]
pub struct Congestion {
    count: Cell<i64>,
    last: Cell<u64>,
}

impl Congestion {
    /// Counts an answer of the cache device that took `micros`; `threshold` 0 counts nothing.
    pub fn count(&self, micros: u64, threshold: u64, now: u64) {
        if threshold == 0 {
            return;
        }
        let count = self.count.get();
        if micros > threshold {
            let late = ((micros / 1024) as i64).min(CONGESTED_MAX + count);
            self.last.set(now);
            self.count.set(count - late);
        } else if count < 0 {
            self.count.set(count + 1);
        }
    }
    /// Sectors of a stream beyond which requests bypass the cache now; nothing when it keeps up.
    pub fn limit(&self, now: u64, random: u64) -> Option<u64> {
        let since = (now.saturating_sub(self.last.get()) / 1_048_576) as i64;
        let late = since + self.count.get();
        if late >= 0 {
            return None;
        }
        let left = late + CONGESTED_MAX;
        // 2 to the power of left / 64, as the kernel approximates it.
        let limit = if left > 0 { (1i64 << (left >> 6)) + ((left & 63) << (left >> 6) >> 6) } else { 0 };
        Some((limit - i64::from((random as u32).count_ones())).max(1) as u64)
    }
}

impl CacheSet {
    /// Whether a request should not use the cache (`check_should_bypass`). Counts it as part of its stream.
    pub(crate) fn should_bypass(
        &self,
        device: &Device,
        start: Sector,
        sectors: Sectors,
        write: bool,
    ) -> bool {
        let mode = device.settings.cache_mode.get();
        let none = mode == CacheMode::None || (mode == CacheMode::Writearound && write);
        if device.detaching.get() || none || self.io_errors.is_retired() {
            return true;
        }
        if device.settings.bypass_torture_test.get() && self.env.random() & 3 == 3 {
            return true;
        }
        if self.alloc.in_use_percent() > CUTOFF_CACHE_ADD {
            self.gc.request();
            return true;
        }
        let block = Sectors(self.cache.geometry.block_sectors.into());
        if !start.is_multiple_of(block) || !sectors.0.is_multiple_of(block.0) {
            return true;
        }
        let cutoff = device.settings.sequential_cutoff.get();
        let now = self.env.now();
        let congested = self.congestion.limit(now, self.env.random());
        if congested.is_some() || cutoff > 0 {
            let bytes = device.streams.count(start, sectors, now);
            if cutoff > 0 && bytes >= cutoff {
                return true;
            }
            if congested.is_some_and(|limit| bytes / bcache_format::SECTOR_SIZE >= limit) {
                return true;
            }
        }
        self.alloc.buckets.borrow_mut().age(sectors);
        false
    }
    /// Whether a write goes to the cache only (`should_writeback`). Front ends do not tell who waits for a write and who
    /// does not; every write counts as one that somebody waits for.
    pub(crate) fn should_writeback(&self, device: &Device, bypass: bool) -> bool {
        device.settings.cache_mode.get() == CacheMode::Writeback
            && !device.detaching.get()
            && !bypass
            && self.alloc.in_use_percent() <= self.settings.cutoff_writeback_sync.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn congestion_comes_with_late_answers_and_goes_with_time() {
        let congestion = Congestion::default();
        assert_eq!(congestion.limit(0, 0), None);
        for _ in 0..600 {
            congestion.count(3000, 2000, 1_000_000_000);
        }
        assert!(congestion.limit(1_000_000_000, 0).is_some());
        assert_eq!(congestion.limit(4_000_000_000, 0), None);
        congestion.count(3000, 0, 0);
    }
}
