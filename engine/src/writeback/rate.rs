//! How fast: a PI controller that holds the dirty data at `writeback_percent` of the cache.

use crate::set::{CacheSet, Device};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Parts of the cache's dirty target that devices share by their sizes.
const SHARE_SHIFT: u32 = 14;
/// Sectors a second at most.
const RATE_MAX: i64 = 1_000_000_000;

/// The controller's memory.
#[derive(Default)]
pub struct Controller {
    integral: Cell<i64>,
}

/// One step: the new rate in sectors a second, from how many sectors are dirty and how many may be.
fn next_rate(
    dirty: i64,
    target: i64,
    integral: &Cell<i64>,
    p_inverse: i64,
    i_inverse: i64,
    seconds: i64,
    minimum: i64,
) -> i64 {
    let error = dirty - target;
    let proportional = error / p_inverse.max(1);
    if (error < 0 && integral.get() > 0) || error > 0 {
        integral.set(integral.get().saturating_add(error.saturating_mul(seconds)));
    }
    (proportional + integral.get() / i_inverse.max(1)).clamp(minimum, RATE_MAX)
}

impl CacheSet {
    /// Runs until the set or the device stops: sets the rate every few seconds.
    pub(crate) async fn writeback_rate_task(self: Rc<Self>, device: Rc<Device>) {
        let settings = &device.settings;
        let mut last = self.env.now();
        loop {
            let seconds = settings.writeback_rate_update_seconds.get().max(1);
            while self.env.now().saturating_sub(last) < seconds * 1_000_000_000 {
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
            let rate = next_rate(
                self.dirty_sectors(inode) as i64,
                self.dirty_target(&device) as i64,
                &device.writeback.controller.integral,
                settings.writeback_rate_p_term_inverse.get() as i64,
                settings.writeback_rate_i_term_inverse.get() as i64,
                seconds as i64,
                settings.writeback_rate_minimum.get() as i64,
            );
            settings.writeback_rate.set(rate as u64);
        }
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
    use super::*;

    #[test]
    fn the_rate_rises_with_what_is_dirty_and_has_a_floor() {
        let integral = Cell::new(0);
        assert_eq!(next_rate(0, 1000, &integral, 40, 10_000, 5, 8), 8);
        assert_eq!(integral.get(), 0, "nothing is wound up below the target");
        let first = next_rate(41_000, 1000, &integral, 40, 10_000, 5, 8);
        assert_eq!(first, 1000 + 20);
        assert!(next_rate(41_000, 1000, &integral, 40, 10_000, 5, 8) > first);
        assert!(next_rate(0, 1000, &integral, 40, 10_000, 5, 8) < first);
    }
}
