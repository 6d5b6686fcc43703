//! What was counted lately: totals that decay over five minutes, an hour, a day, as the kernel has them.
//!
//! Every [`TICK`] what was counted since the last one is added to each window; a window is multiplied by 31/32 every
//! tick (five minutes), every 12 (an hour) or every 288 (a day).

use super::DeviceStats;
use std::cell::{Cell, RefCell};
use std::time::Duration;

/// Time between two looks at the counters.
pub const TICK: Duration = Duration::from_millis(300_000 / 22);
/// Ticks between two decays of each window.
const RESCALE: [u32; 3] = [1, 12, 288];
/// A window's part that is lost at each decay.
const WEIGHT: u64 = 32;
/// Fraction bits of a window's numbers.
const FRACTION: u32 = 16;

/// What the kernel accounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounted {
    /// Requests served by the cache.
    pub cache_hits: u64,
    /// Requests not served by it.
    pub cache_misses: u64,
    /// Hits of requests that were to bypass it.
    pub cache_bypass_hits: u64,
    /// Misses of those.
    pub cache_bypass_misses: u64,
    /// Misses that were not cached because of a write in between.
    pub cache_miss_collisions: u64,
    /// Sectors that bypassed the cache.
    pub bypassed: u64,
}

impl Accounted {
    fn fields(&mut self) -> [&mut u64; 6] {
        [
            &mut self.cache_hits,
            &mut self.cache_misses,
            &mut self.cache_bypass_hits,
            &mut self.cache_bypass_misses,
            &mut self.cache_miss_collisions,
            &mut self.bypassed,
        ]
    }
    /// The sum of both.
    #[must_use]
    pub fn plus(mut self, mut other: Self) -> Self {
        for (sum, part) in self.fields().into_iter().zip(other.fields()) {
            *sum += *part;
        }
        self
    }
    fn minus(mut self, mut other: Self) -> Self {
        for (left, part) in self.fields().into_iter().zip(other.fields()) {
            *left = left.saturating_sub(*part);
        }
        self
    }
    /// Hits in per cent of requests that were to use the cache.
    #[must_use]
    pub fn hit_ratio(&self) -> u64 {
        (self.cache_hits * 100).checked_div(self.cache_hits + self.cache_misses).unwrap_or(0)
    }
}

impl From<&DeviceStats> for Accounted {
    fn from(stats: &DeviceStats) -> Self {
        Self {
            cache_hits: stats.cache_hits.get(),
            cache_misses: stats.cache_misses.get(),
            cache_bypass_hits: stats.cache_bypass_hits.get(),
            cache_bypass_misses: stats.cache_bypass_misses.get(),
            cache_miss_collisions: stats.cache_miss_collisions.get(),
            bypassed: stats.bypassed_sectors.get(),
        }
    }
}

/// Which window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Since the start, or since it was cleared.
    Total,
    /// The last five minutes or so.
    FiveMinute,
    /// The last hour or so.
    Hour,
    /// The last day or so.
    Day,
}

impl Window {
    /// All.
    pub const ALL: [Self; 4] = [Self::Total, Self::FiveMinute, Self::Hour, Self::Day];
    /// The kernel's name of its directory.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Total => "stats_total",
            Self::FiveMinute => "stats_five_minute",
            Self::Hour => "stats_hour",
            Self::Day => "stats_day",
        }
    }
}

/// The windows of one device.
#[derive(Debug, Default)]
pub struct Windows {
    /// Counters at the last tick.
    seen: Cell<Accounted>,
    /// Counters when the total was cleared.
    cleared: Cell<Accounted>,
    decaying: RefCell<[Accounted; 3]>,
    ticks: Cell<u32>,
}

impl Windows {
    /// A tick: counts what is new since the last.
    pub fn tick(&self, stats: &DeviceStats) {
        let now = Accounted::from(stats);
        let mut new = now.minus(self.seen.replace(now));
        self.ticks.set(self.ticks.get().wrapping_add(1));
        for (window, rescale) in self.decaying.borrow_mut().iter_mut().zip(RESCALE) {
            for (sum, part) in window.fields().into_iter().zip(new.fields()) {
                if self.ticks.get().is_multiple_of(rescale) {
                    *sum -= *sum / WEIGHT;
                }
                *sum = sum.saturating_add(*part << FRACTION);
            }
        }
    }
    /// Begins the total anew; the others go on.
    pub fn clear(&self, stats: &DeviceStats) {
        self.cleared.set(stats.into());
    }
    /// What a window says.
    pub fn read(&self, stats: &DeviceStats, window: Window) -> Accounted {
        let index = match window {
            Window::Total => return Accounted::from(stats).minus(self.cleared.get()),
            Window::FiveMinute => 0,
            Window::Hour => 1,
            Window::Day => 2,
        };
        let mut read = self.decaying.borrow()[index];
        for number in read.fields() {
            *number >>= FRACTION;
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_forget_and_the_total_does_not() {
        let (stats, windows) = (DeviceStats::default(), Windows::default());
        stats.cache_hits.add(1000);
        windows.tick(&stats);
        let hits = |window| windows.read(&stats, window).cache_hits;
        assert_eq!(Window::ALL.map(hits), [1000; 4]);
        // Five minutes are 22 ticks: half is left.
        for _ in 0..22 {
            windows.tick(&stats);
        }
        assert!((480..520).contains(&hits(Window::FiveMinute)), "{}", hits(Window::FiveMinute));
        assert!((930..1000).contains(&hits(Window::Hour)), "{}", hits(Window::Hour));
        assert_eq!((hits(Window::Day), hits(Window::Total)), (1000, 1000));
        windows.clear(&stats);
        stats.cache_misses.add(1);
        assert_eq!((hits(Window::Total), hits(Window::Day)), (0, 1000));
        assert_eq!(windows.read(&stats, Window::Total).cache_misses, 1);
    }

    #[test]
    fn the_hit_ratio_is_of_what_was_to_be_cached() {
        let stats =
            Accounted { cache_hits: 3, cache_misses: 1, cache_bypass_misses: 100, ..Default::default() };
        assert_eq!((stats.hit_ratio(), Accounted::default().hit_ratio()), (75, 0));
    }
}
