//! Which requests bypass the cache.

use crate::set::{CacheSet, Device};
use bcache_format::superblock::CacheMode;
use std::cell::{Cell, RefCell};

/// Streams that are remembered (`RECENT_IO`).
const STREAMS: usize = 128;
/// How long, in nanoseconds.
const STREAM_LIFE: u64 = 5_000_000_000;
/// Per cent of the cache in use beyond which nothing is added.
pub const CUTOFF_CACHE_ADD: u64 = 95;
/// Most that congestion is counted.
const CONGESTED_MAX: i64 = 1024;

#[derive(Clone, Copy, Default)]
struct Stream {
    last: u64,
    until: u64,
    bytes: u64,
}

/// Recent sequential streams of a device.
#[derive(Default)]
pub struct Streams {
    recent: RefCell<Vec<Stream>>,
    /// Bytes of the stream that the last request belongs to, and the weighted mean over past streams.
    current: Cell<u64>,
    average: Cell<u64>,
}

impl Streams {
    /// Counts a request and answers the bytes of the stream it belongs to.
    pub fn count(&self, start: u64, sectors: u64, now: u64) -> u64 {
        let mut recent = self.recent.borrow_mut();
        let known = recent.iter().position(|stream| stream.last == start && now < stream.until);
        let mut stream = match known {
            Some(index) => recent.remove(index),
            None => {
                // A weighted mean of the streams so far, with weight 8.
                self.average.set((self.average.get() * 7 + self.current.get()) / 8);
                if recent.len() >= STREAMS {
                    recent.remove(0);
                }
                Stream::default()
            }
        };
        stream.bytes = stream.bytes.saturating_add(sectors * bcache_format::SECTOR_SIZE);
        stream.last = start + sectors;
        stream.until = now + STREAM_LIFE;
        self.current.set(stream.bytes);
        recent.push(stream);
        stream.bytes.max(self.average.get())
    }
}

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
    pub(crate) fn should_bypass(&self, device: &Device, start: u64, sectors: u64, write: bool) -> bool {
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
        let block = u64::from(self.cache.geometry.block_sectors);
        if !start.is_multiple_of(block) || !sectors.is_multiple_of(block) {
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
    fn a_stream_is_recognised_where_it_goes_on() {
        let streams = Streams::default();
        for i in 0..8u64 {
            assert_eq!(streams.count(i * 8, 8, 0), (i + 1) * 4096);
        }
        // Another place: a new stream, but the mean of the old ones counts.
        assert_eq!(streams.count(10_000, 8, 0), 4096);
        assert_eq!(streams.count(64, 8, 0), 9 * 4096);
        assert_eq!(
            streams.count(72, 8, STREAM_LIFE + 1),
            8192,
            "forgotten after five seconds; the mean is not"
        );
    }

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
