//! What should be nothing once nobody is at work, and is nothing after a stop.

use super::CacheSet;

impl CacheSet {
    /// What is still held, counted or waited for, each with how much. Meant for after a stop, whatever it answered: until
    /// then requests and tasks have every right to it.
    pub fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut look = |what: &str, count: u64| {
            if count > 0 {
                left.push(format!("{what}: {count}"));
            }
        };
        look("sectors of cache misses", self.misses.sectors().0);
        look("reads of btree nodes", self.tree.reads_under_way() as u64);
        look("merges of bsets", u64::from(!self.tree.merges_are_whole()));
        look("blocks of prio writes", u64::from(self.alloc.prio_blocks()));
        look("tasks that wait for a bucket", u64::from(self.alloc.is_awaited()));
        for (stage, tasks) in self.tasks.iter().enumerate() {
            look(&format!("tasks of stage {stage}"), tasks.get() as u64);
        }
        for device in self.devices() {
            look("requests", device.requests.get() as u64);
            look("dirty writes", device.dirty_writers.get() as u64);
            look("held ranges", u64::from(!device.writes.is_free()));
            look("held ranges of writeback", u64::from(!device.writeback.active.is_free()));
        }
        left
    }
}
