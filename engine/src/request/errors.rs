//! Counting I/O errors, and what is done when they are too many.
//!
//! A cache device that fails again and again is *retired*: nothing new goes into the cache, reads of clean data come from
//! below, and everything dirty is written back, at full speed. A backing device that does is not used any more, until its
//! errors are cleared: every request is answered with EIO, and dirty data stays in the cache.

use crate::set::{CacheSet, Device};
use std::cell::Cell;

/// Fraction bits of the count of errors, which decays.
const SHIFT: u32 = 20;

/// Errors of the cache device, decayed.
#[derive(Debug, Default)]
pub struct IoErrors {
    errors: Cell<u64>,
    requests: Cell<u64>,
    retired: Cell<bool>,
}

impl IoErrors {
    /// Counts a request. Errors count half after `halflife` requests; 0: they are never forgotten.
    fn count(&self, failed: bool, halflife: u64) {
        // log(1/2) / log(127/128) is about 88: the errors are multiplied by 127/128 so many times in a half-life.
        let refresh = halflife / 88;
        if refresh > 0 {
            self.requests.set(self.requests.get() + 1);
            if self.requests.get() > refresh {
                self.requests.set(0);
                self.errors.set(self.errors.get() * 127 / 128);
            }
        }
        if failed {
            self.errors.set(self.errors.get() + (1 << SHIFT));
        }
    }
    /// Errors that count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.errors.get() >> SHIFT
    }
    /// Whether there were too many.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }
    /// Forgets them, and lets the cache be used again.
    pub(crate) fn clear(&self) {
        self.errors.set(0);
        self.retired.set(false);
    }
}

impl CacheSet {
    /// Counts a read or write of data on the cache device.
    pub(crate) fn count_cache_io(&self, failed: bool) {
        let errors = &self.io_errors;
        errors.count(failed, self.settings.io_error_halflife.get());
        let limit = self.settings.io_error_limit.get();
        if failed && limit > 0 && errors.get() >= limit && !errors.retired.replace(true) {
            tracing::error!(
                device = self.cache.dev.name(),
                errors = errors.get(),
                "too many I/O errors: nothing new is cached, and dirty data is written back"
            );
            for device in self.devices() {
                device.writeback.wake();
            }
        }
    }
}

impl Device {
    /// Counts a failed request of the backing device.
    pub(crate) fn count_backing_error(&self) {
        self.io_errors.set(self.io_errors.get() + 1);
        if self.io_errors.get() == self.settings.io_error_limit.get() {
            tracing::error!(uuid = %self.uuid, "too many I/O errors of the backing device: it is not used any more");
        }
    }
    /// Whether the backing device had too many errors.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        let limit = self.settings.io_error_limit.get();
        limit > 0 && self.io_errors.get() >= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_count_half_after_the_halflife_or_for_ever() {
        let (decaying, lasting) = (IoErrors::default(), IoErrors::default());
        for errors in [&decaying, &lasting] {
            for _ in 0..100 {
                errors.count(true, 0);
            }
        }
        for _ in 0..8800 {
            decaying.count(false, 8800);
            lasting.count(false, 0);
        }
        assert!((48..52).contains(&decaying.get()), "{}", decaying.get());
        assert_eq!(lasting.get(), 100);
    }
}
