//! Stopping a set, and writing leaves that have waited long.

use super::{Backing, CacheSet, Device, Stage};
use crate::btree::PendingWrite;
use crate::error::Result;
use crate::stats::TICK;
use std::rc::Rc;
use std::time::Duration;

/// Leaves are written this long after their first key, if nothing else wrote them before.
const LEAF_DELAY: Duration = Duration::from_secs(30);
/// How often is looked for such leaves.
const FLUSHER_STEP: Duration = Duration::from_secs(5);

impl CacheSet {
    /// Writes leaves whose keys have waited long enough.
    pub(crate) async fn flusher_task(self: Rc<Self>) {
        loop {
            if self.env.timeout(FLUSHER_STEP, self.gc.closed()).await.is_ok() || self.is_closing() {
                return;
            }
            self.tree.recount();
            self.tree.evict();
            let before = self.env.now().saturating_sub(LEAF_DELAY.as_nanos() as u64);
            for node in self.tree.dirty_nodes() {
                let since = node.state().write.since;
                // A failure ends the set, and with it this task.
                if since != 0 && since <= before && self.node_write(&node).await.is_err() && self.is_closing()
                {
                    return;
                }
            }
        }
    }

    /// Moves the windows of what was counted lately.
    pub(crate) async fn accounting_task(self: Rc<Self>) {
        while self.env.timeout(TICK, self.gc.closed()).await.is_err() && !self.is_closing() {
            for device in self.devices() {
                device.windows.tick(&device.stats);
            }
        }
    }

    /// Stops the set: waits for requests under way, writes every node that has keys to write, and closes the journal.
    /// After a failure nothing is written: what is on disk is what recovery can trust.
    ///
    /// # Errors
    /// Something could not be written; recovery will replay the journal.
    pub fn stop(self: &Rc<Self>) -> impl Future<Output = Result<()>> + use<> {
        let set = Rc::clone(self);
        self.env.finish(async move { set.stop_now().await })
    }

    async fn stop_now(self: &Rc<Self>) -> Result<()> {
        let devices = self.devices();
        for device in &devices {
            device.closed.set(true);
        }
        // Requests under way end: those that wait for buckets do it now, with an error, for what makes some ends first.
        self.alloc.refuse_to_wait();
        for device in &devices {
            device.close().await;
        }
        self.ended(Stage::Device).await;
        self.closing.set(true);
        self.alloc.close();
        self.gc.close();
        self.ended(Stage::Space).await;
        let mut result = if self.is_failed() {
            self.check()
        } else if seeded_bug!(StopLeavesNodes) {
            self.commit_keys().await
        } else {
            self.checkpoint().await
        };
        if result.is_ok() {
            for device in &devices {
                let settled = self.settle(device).await;
                result = result.and(settled);
            }
        }
        self.journal.close();
        self.ended(Stage::Journal).await;
        if result.is_ok() {
            self.journal.retire_tail();
        }
        // After a failure nodes keep what nobody may write any more: nothing waits for that.
        for node in self.tree.dirty_nodes() {
            node.state_mut().write = PendingWrite::default();
        }
        result
    }

    async fn ended(&self, stage: Stage) {
        self.tasks_ended.wait_until(|| self.tasks[stage as usize].get() == 0).await;
    }

    /// Writes every node that has keys to write, and a journal entry that needs none before it: what is on disk then is
    /// what is in memory now, with nothing to replay.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        self.commit_keys().await?;
        for node in self.tree.dirty_nodes() {
            self.node_write(&node).await?;
        }
        self.commit_roots().await
    }

    /// Leaves the backing superblock saying what is so, and what was acknowledged durable.
    async fn settle(&self, device: &Device) -> Result<()> {
        let (Some(backing), Some(inode)) = (device.backing(), device.inode.get()) else { return Ok(()) };
        self.mark_clean(device, backing, inode).await?;
        // As a client's: of a failure that no client has heard of, whoever stops the set must.
        Ok(backing.dev.client_flush(backing.dev.epoch(), backing.dev.reported()).await?)
    }

    /// Whether nothing of the device is dirty, nor on its way to be.
    pub(crate) fn has_nothing_dirty(&self, device: &Device, inode: u32) -> bool {
        self.dirty_sectors(inode) == 0 && device.dirty_writers.get() == 0
    }

    /// The backing superblock says clean, if nothing is dirty.
    pub(crate) async fn mark_clean(&self, device: &Device, backing: &Backing, inode: u32) -> Result<()> {
        let failures = device.flush_failures();
        let marked = backing.mark_clean(|| self.has_nothing_dirty(device, inode)).await;
        self.doubt_if_failed(device, failures);
        marked
    }
}

impl Device {
    /// No new requests; waits for those under way.
    pub(crate) async fn close(&self) {
        self.closed.set(true);
        self.writeback.close();
        self.idle.wait_until(|| self.requests.get() == 0).await;
    }
}
