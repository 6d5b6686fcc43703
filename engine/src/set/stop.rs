//! Stopping a set.

use super::{Backing, CacheSet, Device, Stage};
use crate::btree::PendingWrite;
use crate::error::Result;
use std::rc::Rc;

impl CacheSet {
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
        self.wake_to_close();
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
