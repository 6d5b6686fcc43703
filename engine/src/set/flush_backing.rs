//! Flushing backing devices, and what a flush that failed leaves in doubt.

use super::{CacheSet, Device};
use crate::btree::{Body, Extent, NodeState};
use crate::error::Result;
use bcache_format::Span;

impl CacheSet {
    /// Makes what was written to the device's backing device before `epoch` durable.
    pub(crate) async fn flush_backing(&self, device: &Device, epoch: u64) -> Result<()> {
        let Some(backing) = device.backing() else { return Ok(()) };
        let failures = device.flush_failures();
        let result = backing.dev.ensure_flushed(epoch).await;
        self.doubt_if_failed(device, failures);
        Ok(result?)
    }

    /// Makes durable what was written to the backing device since `failures` of its flushes had failed.
    pub(crate) async fn flush_below_since(&self, device: &Device, failures: u64) -> Result<()> {
        let Some(backing) = device.backing() else { return Ok(()) };
        self.flush_backing(device, backing.dev.epoch()).await?;
        Ok(backing.dev.none_failed_since(failures)?)
    }

    /// After a failed flush of a backing device nobody knows which of its latest writes it still has. What the cache
    /// calls clean, but not yet durably so, is read from below again; and what is read from below may be gone after a power
    /// cut, so that nothing of it is cached until the set starts again.
    pub(crate) fn doubt_if_failed(&self, device: &Device, failures: u64) {
        let failed = device.flush_failures() != failures;
        if failed {
            device.count_backing_error();
        }
        let Some(inode) = device.inode.get().filter(|_| failed) else { return };
        tracing::warn!(inode, "a flush of the backing device failed, its latest clean copies are forgotten");
        self.misses.invalidate(Span::whole(inode), None);
        let bucket_sectors = u64::from(self.cache.geometry.bucket_sectors);
        for node in self.tree.dirty_nodes() {
            let mut state = node.state_mut();
            let NodeState { body: Body::Leaf { map, pending, hides_holes }, write, .. } = &mut *state else {
                continue;
            };
            // What was flushed in time is not in doubt. It may have been copied into a node that is to take this one's
            // place, too, where it would not be forgotten.
            let due = write.below.iter().find(|(other, _)| *other == inode);
            let in_doubt = due.is_some_and(|(_, epoch)| {
                device.backing().is_some_and(|backing| !backing.dev.is_flushed(*epoch))
            });
            if !in_doubt && !seeded_bug!(DoubtsTheFlushed) {
                continue;
            }
            let doubtful = |extent: &&Extent| extent.inode() == inode && !extent.dirty() && !extent.is_hole();
            let doubtful: Vec<Extent> = pending.iter().filter(doubtful).copied().collect();
            for extent in doubtful {
                let hole = Extent::hole_of(extent.span());
                if !seeded_bug!(DoubtInMemory) {
                    // What is on disk may be an older key that says dirty. Before anything newer is written below the hole
                    // must be durable: see `write_around`.
                    let seq = self.journal.add(hole.key());
                    if write.pin.is_none() {
                        write.pin = Some(self.journal.pin(seq));
                    }
                    device.doubt.set(seq);
                }
                map.overlay(hole, false, bucket_sectors, |_| ());
                pending.overlay(hole, true, bucket_sectors, |_| ());
                *hides_holes = true;
            }
            write.below.retain(|(other, _)| *other != inode);
        }
    }
}
