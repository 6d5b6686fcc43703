//! How fast: a PI controller that holds the dirty data at `writeback_percent` of the cache.

use crate::set::{CacheSet, Device};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Parts of the cache's dirty target that devices share by their sizes.
const SHARE_SHIFT: u32 = 14;
/// Sectors a second at most.
const RATE_MAX: i64 = 1_000_000_000;

/// Per cent of the cache in use from which on fragmentation counts, in three steps.
const FRAGMENT_THRESHOLDS: [u64; 3] = [50, 57, 64];
/// Buckets' worth of sectors to one dirty sector from which on dirty data counts as fragmented.
const FRAGMENTED: i64 = 3;
/// Writing back keeps up when it is no later than this, in nanoseconds.
const KEEPS_UP: u64 = 1_000_000;

/// What a step goes by.
struct Inputs {
    /// Sectors that are dirty, and that may be.
    dirty: i64,
    target: i64,
    /// The proportional term that fragmentation asks for; 0 for none.
    fragment_term: i64,
    /// Writing back is as fast as it was told to be.
    keeps_up: bool,
    p_inverse: i64,
    i_inverse: i64,
    seconds: i64,
    minimum: i64,
}

/// One step: the new rate in sectors a second.
fn next_rate(integral: &Cell<i64>, inputs: &Inputs) -> i64 {
    let error = inputs.dirty - inputs.target;
    let proportional = (error / inputs.p_inverse.max(1)).max(inputs.fragment_term);
    if (error < 0 && integral.get() > 0) || (error > 0 && inputs.keeps_up) {
        integral.set(integral.get().saturating_add(error.saturating_mul(inputs.seconds)));
    }
    let wanted = proportional.saturating_add(integral.get() / inputs.i_inverse.max(1));
    if seeded_bug!(RateClampPanics) {
        return wanted.clamp(inputs.minimum, RATE_MAX);
    }
    // Not `clamp`, which panics where the least is more than the most.
    wanted.max(inputs.minimum).min(RATE_MAX)
}

/// The proportional term that little dirty data in many buckets asks for: without it the cache could be full of dirty
/// buckets before `writeback_percent` of it is dirty.
fn fragment_term(dirty: i64, dirty_buckets: i64, bucket_sectors: i64, in_use: u64, terms: [u64; 3]) -> i64 {
    let step = FRAGMENT_THRESHOLDS.iter().rposition(|threshold| in_use > *threshold);
    let Some(step) = step.filter(|_| dirty > 0 && dirty_buckets > 0) else { return i64::MIN };
    if dirty_buckets * bucket_sectors / dirty <= FRAGMENTED {
        return i64::MIN;
    }
    let term = terms[step].saturating_mul(in_use - FRAGMENT_THRESHOLDS[step]);
    (dirty / dirty_buckets).saturating_mul(i64::try_from(term).unwrap_or(i64::MAX))
}

impl CacheSet {
    /// Runs until the set or the device stops: sets the rate every few seconds.
    pub(crate) async fn writeback_rate_task(self: Rc<Self>, device: Rc<Device>) {
        let settings = &device.settings;
        let mut last = self.env.now();
        loop {
            let seconds = settings.writeback_rate_update_seconds.get().max(1);
            while self.env.now().saturating_sub(last) / 1_000_000_000 < seconds {
                if device.writeback.is_closed() || self.is_closing() {
                    return;
                }
                self.env.sleep(Duration::from_millis(500)).await;
            }
            last = self.env.now();
            let Some(inode) = device.inode.get() else { continue };
            if settings.writeback_percent.get() == 0 {
                continue;
            }
            if self.is_idle() {
                settings.writeback_rate.set(i32::MAX as u64);
                continue;
            }
            let controller = &device.writeback.controller;
            let dirty = self.dirty_sectors(inode) as i64;
            let inputs = Inputs {
                dirty,
                target: self.dirty_target(&device) as i64,
                fragment_term: self.fragment_term(&device, dirty),
                keeps_up: self.env.now() < controller.next.get() + KEEPS_UP,
                p_inverse: settings.writeback_rate_p_term_inverse.get() as i64,
                i_inverse: settings.writeback_rate_i_term_inverse.get() as i64,
                seconds: seconds as i64,
                minimum: settings.writeback_rate_minimum.get() as i64,
            };
            settings.writeback_rate.set(next_rate(&controller.integral, &inputs) as u64);
        }
    }

    /// What the rate goes by at present, in bytes, and when the next write is due.
    pub(crate) fn writeback_rate_debug(&self, device: &Device) -> String {
        let settings = &device.settings;
        let controller = &device.writeback.controller;
        let dirty = device.inode.get().map_or(0, |inode| self.dirty_sectors(inode)) as i64;
        let target = self.dirty_target(device) as i64;
        let proportional = (dirty - target) / (settings.writeback_rate_p_term_inverse.get().max(1) as i64);
        let integral =
            controller.integral.get() / (settings.writeback_rate_i_term_inverse.get().max(1) as i64);
        let bytes = |sectors: i64| sectors.saturating_mul(bcache_format::SECTOR_SIZE as i64);
        format!(
            "rate: {}/sec dirty: {} target: {} proportional: {} integral: {} next io: {}ms",
            bytes(settings.writeback_rate.get() as i64),
            bytes(dirty),
            bytes(target),
            bytes(proportional),
            bytes(integral),
            controller.next.get().saturating_sub(self.env.now()) / 1_000_000
        )
    }

    fn fragment_term(&self, device: &Device, dirty: i64) -> i64 {
        let settings = &device.settings;
        if !settings.writeback_consider_fragment.get() {
            return i64::MIN;
        }
        let terms = [
            settings.writeback_rate_fp_term_low.get(),
            settings.writeback_rate_fp_term_mid.get(),
            settings.writeback_rate_fp_term_high.get(),
        ];
        let in_use = self.alloc.in_use_percent();
        let buckets = (self.cache.geometry.nbuckets * in_use / 100) as i64;
        fragment_term(dirty, buckets, self.cache.geometry.bucket_sectors.into(), in_use, terms)
    }

    /// Sectors of a device that may be dirty: its share of `writeback_percent` of the cache.
    fn dirty_target(&self, device: &Device) -> u64 {
        let geometry = &self.cache.geometry;
        let cache = geometry.nbuckets * u64::from(geometry.bucket_sectors);
        let all: u64 = self.devices().iter().filter(|d| d.backing().is_some()).map(|d| d.bytes()).sum();
        let share = ((u128::from(device.bytes()) << SHARE_SHIFT) / u128::from(all.max(1))).max(1) as u64;
        (cache * device.settings.writeback_percent.get() / 100 * share) >> SHARE_SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::{AHEAD_MAX, Controller};
    use super::*;

    fn inputs(dirty: i64, fragment_term: i64, keeps_up: bool) -> Inputs {
        let (target, p_inverse, i_inverse, seconds, minimum) = (1000, 40, 10_000, 5, 8);
        Inputs { dirty, target, fragment_term, keeps_up, p_inverse, i_inverse, seconds, minimum }
    }

    #[test]
    fn the_rate_rises_with_what_is_dirty_and_has_a_floor() {
        let integral = Cell::new(0);
        let step = |dirty| next_rate(&integral, &inputs(dirty, i64::MIN, true));
        assert_eq!(step(0), 8);
        assert_eq!(integral.get(), 0, "nothing is wound up below the target");
        let first = step(41_000);
        assert_eq!(first, 1000 + 20);
        assert!(step(41_000) > first);
        assert!(step(0) < first);
    }

    #[test]
    fn nothing_is_wound_up_while_the_device_does_not_keep_up() {
        let integral = Cell::new(0);
        assert_eq!(next_rate(&integral, &inputs(41_000, i64::MIN, false)), 1000);
        assert_eq!(integral.get(), 0);
    }

    #[test]
    fn fragmentation_raises_the_rate() {
        let terms = [1, 10, 1000];
        assert_eq!(fragment_term(1000, 100, 1024, 50, terms), i64::MIN, "half of the cache is free");
        assert_eq!(fragment_term(100_000, 100, 1024, 60, terms), i64::MIN, "the buckets are full");
        assert_eq!(fragment_term(1000, 100, 1024, 55, terms), 10 * 5);
        assert_eq!(fragment_term(1000, 100, 1024, 60, terms), 10 * 10 * 3);
        assert_eq!(fragment_term(1000, 100, 1024, 66, terms), 10 * 1000 * 2);
        assert_eq!(next_rate(&Cell::new(0), &inputs(0, 300, true)), 300);
    }

    #[test]
    fn writing_back_waits_by_its_rate_and_debts_are_forgotten() {
        let (controller, second) = (Controller::default(), 1_000_000_000);
        for _ in 0..3 {
            assert_eq!(controller.wait(100, 100, 10 * second), 0, "two seconds behind, at most");
        }
        assert_eq!(controller.wait(100, 100, 10 * second), second);
        assert_eq!(controller.wait(1_000_000, 1, 10 * second), AHEAD_MAX);
    }
}
