//! A cache set: one cache device, its backing devices and volumes.

mod abandon;
mod attach;
mod attributes;
mod audit;
mod cache_dev;
mod device;
mod kept;
mod left;
mod recover;
mod stop;
mod superblock;
#[cfg(test)]
mod tests;
mod uuids;

pub use abandon::Absent;
pub use attributes::{Attribute, LEFT_OUT};
pub use cache_dev::{CacheDev, Tracked, read_superblock, settled_superblock};
pub use device::{Backing, Device, Kind};
pub use superblock::{NewestInCache, StoredSuperblock, leave_cache};
pub use uuids::UuidTable;

use crate::alloc::Alloc;
use crate::btree::{Extent, Node, Tree};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::gc::Gc;
use crate::journal::{Journal, Roots};
use crate::request::{Congestion, IoErrors, Misses};
use crate::settings::SetSettings;
use crate::stats::{SetStats, Timings};
use crate::sync::{Mutex, WaitQueue};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use uuid::Uuid;

/// When a task stops: those of a stage need all later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Works for a device: cache misses on their way, writeback.
    Device = 0,
    /// Finds space: GC, allocation, late leaves.
    Space = 1,
    /// The journal.
    Journal = 2,
}

/// A running cache set.
pub struct CacheSet {
    /// Clock, chance and tasks.
    pub env: Env,
    /// The cache device.
    pub cache: CacheDev,
    /// Buckets.
    pub alloc: Alloc,
    /// The journal.
    pub journal: Journal,
    /// The btree.
    pub tree: Tree,
    pub(crate) gc: Gc,
    pub(crate) misses: Rc<Misses>,
    pub(crate) congestion: Congestion,
    pub(crate) uuids: RefCell<UuidTable>,
    pub(crate) uuids_io: Mutex<()>,
    /// Dirty sectors of each inode.
    dirty: RefCell<BTreeMap<u32, i64>>,
    /// Where the dirty data of each inode ended at the start, in sectors of the backing device.
    dirty_ends: RefCell<BTreeMap<u32, u64>>,
    /// UUIDs of backing devices that are being attached.
    attaching: RefCell<BTreeSet<Uuid>>,
    /// Devices that are of the set no more.
    left: RefCell<Vec<Weak<Device>>>,
    /// Attached devices by inode.
    pub(crate) devices: RefCell<BTreeMap<u32, Rc<Device>>>,
    /// Settings.
    pub settings: SetSettings,
    /// Counters.
    pub stats: SetStats,
    /// Durations.
    pub timings: Timings,
    /// Errors of the cache device.
    pub io_errors: IoErrors,
    /// Rounds of setting the writeback rate in which no request came.
    idle_rounds: Cell<u64>,
    /// Writing back goes as fast as it can, because nothing else is asked for.
    at_max_rate: Cell<bool>,
    failure: RefCell<Option<Rc<str>>>,
    /// Dirty extents whose buckets had moved on when the tree was walked at the start.
    stale_dirty: RefCell<Vec<Extent>>,
    /// See [`CacheSet::outlive`].
    pub(crate) outlived: Cell<bool>,
    closing: Cell<bool>,
    /// What works for the set, by when it stops.
    tasks: [Cell<usize>; 3],
    tasks_ended: WaitQueue,
}

/// Works for a set until it is dropped: a stop waits for it.
pub(crate) struct AtWork {
    set: Rc<CacheSet>,
    stage: Stage,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let running = &self.set.tasks[self.stage as usize];
        running.set(running.get() - 1);
        if running.get() == 0 {
            self.set.tasks_ended.wake_all();
        }
    }
}

impl CacheSet {
    /// Dirty sectors of `inode`.
    pub fn dirty_sectors(&self, inode: u32) -> u64 {
        u64::try_from(self.dirty.borrow().get(&inode).copied().unwrap_or(0)).unwrap_or(0)
    }
    /// By how many sectors a backing device is too short for the dirty data that it had when the set started.
    #[must_use]
    pub fn missing_sectors(&self, device: &Device) -> u64 {
        let ends = self.dirty_ends.borrow();
        let end = device.backing().and(device.inode.get()).and_then(|inode| ends.get(&inode).copied());
        let there = device.first_sector() + device.bytes() / bcache_format::SECTOR_SIZE;
        end.map_or(0, |end| end.saturating_sub(there))
    }
    /// Whether an extent is data that only the cache has. One whose bucket was given to others was written back, or written
    /// anew, before.
    pub(crate) fn counts_as_dirty(&self, extent: &Extent) -> bool {
        extent.dirty()
            && (self.alloc.buckets.borrow().staleness(extent.ptr()) == 0 || seeded_bug!(StaleDirtyCounts))
    }
    pub(crate) fn account_dirty(&self, inode: u32, change: i64) {
        if change == 0 {
            return;
        }
        let mut dirty = self.dirty.borrow_mut();
        let sectors = dirty.entry(inode).or_default();
        *sectors += change;
        // Dirty data also ends by being overwritten, and somebody may wait for the last of it.
        if *sectors == 0
            && let Some(device) = self.devices.borrow().get(&inode)
        {
            device.writeback.wake();
            device.writeback.progress.wake_all();
        }
    }
    /// Inodes that have dirty data, with how much.
    pub fn dirty_inodes(&self) -> Vec<(u32, u64)> {
        let dirty = self.dirty.borrow();
        dirty
            .iter()
            .filter(|(_, sectors)| **sectors > 0)
            .map(|(inode, sectors)| (*inode, *sectors as u64))
            .collect()
    }
    /// From now on a write is acknowledged only when its keys are durable.
    ///
    /// Whoever serves clients that outlive this process asks for it. They see no crash when the process is killed: they
    /// go on with its successor, and nothing makes them write again what they were told is written. Without it a write
    /// may be acknowledged up to `journal_delay_ms` before its keys are in the journal, which is as good while a crash
    /// ends clients, too. It is as good, too, where the keys are kept by memory that outlives the process
    /// ([`Self::start_outliving`]).
    pub fn outlive(&self) {
        self.outlived.set(true);
    }
    /// Waits for the keys of what is about to be acknowledged, where a crash of this process alone must not lose it.
    pub(crate) async fn commit_if_outlived(&self) -> Result<()> {
        if !self.outlived.get() {
            return Ok(());
        }
        if self.journal.is_kept() { self.check() } else { self.commit_keys().await }
    }
    /// A request came: the set is not idle.
    pub(crate) fn request_came(&self) {
        self.idle_rounds.set(0);
        if self.at_max_rate.replace(false) {
            for device in self.devices() {
                device.settings.writeback_rate.set(device.settings.writeback_rate_minimum.get().max(1));
            }
        }
    }
    /// Nobody asked for anything for some rounds of setting the writeback rate of each device.
    pub(crate) fn is_idle(&self) -> bool {
        const ROUNDS: u64 = 6;
        self.idle_rounds.set(self.idle_rounds.get() + 1);
        let devices = self.devices.borrow().len() as u64;
        let idle = self.settings.idle_max_writeback_rate.get()
            && self.alloc.buckets.borrow().marks_valid
            && self.idle_rounds.get() >= devices * ROUNDS;
        self.at_max_rate.set(idle);
        idle
    }
    /// Ends all writing because of `error`. The first one counts.
    pub(crate) fn fail(&self, error: Error) {
        if matches!(error, Error::Stopping | Error::Failed(_) | Error::Refused(_) | Error::NoSpace(_)) {
            return;
        }
        if self.failure.borrow().is_none() {
            tracing::error!(%error, "the cache set stops writing");
            self.give_up(&error.to_string());
        }
    }
    /// Ends all writing, and all waiting for it, if nothing did before.
    pub(crate) fn give_up(&self, why: &str) {
        self.failure.borrow_mut().get_or_insert_with(|| why.into());
        self.journal.leave_tail(self.cache.failures() > 0);
        self.journal.close();
        self.alloc.close();
        self.gc.close();
        // Whoever waits for what a failed set will not do any more looks again.
        for device in self.devices() {
            device.writeback.wake();
            device.writeback.progress.wake_all();
        }
    }
    pub(crate) fn fail_if_untrusted(&self, error: &Error) {
        if matches!(error, Error::Untrusted { .. } | Error::Dev(_)) {
            self.fail(error.clone());
        }
    }
    pub(crate) fn is_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }
    /// Why the set stopped writing, if it did.
    pub fn failure(&self) -> Option<Rc<str>> {
        self.failure.borrow().clone()
    }
    /// Whether tasks should end.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get() || self.is_failed()
    }
    /// An error once the set has failed.
    pub(crate) fn check(&self) -> Result<()> {
        match &*self.failure.borrow() {
            Some(why) => Err(Error::Failed(Rc::clone(why))),
            None => Ok(()),
        }
    }
    pub(crate) fn format_error(&self, error: bcache_format::Error) -> Error {
        self.cache.untrusted(error.to_string())
    }
    /// Where the metadata is, for the next journal entry.
    pub(crate) fn roots(&self) -> Roots {
        let root: Rc<Node> = self.tree.root();
        Roots {
            btree_root: root.key(&self.cache.geometry),
            btree_level: root.level.into(),
            uuid_bucket: self.uuids.borrow().key,
            prio_bucket: self.alloc.prio_head.get(),
        }
    }
    /// Runs a task of the set until it ends by itself.
    pub(crate) fn task(self: &Rc<Self>, stage: Stage, future: impl Future<Output = ()> + 'static) {
        let at_work = self.at_work(stage);
        self.env
            .spawn(async move {
                let _at_work = at_work;
                future.await;
            })
            .detach();
    }
    /// Something that a stop waits for.
    pub(crate) fn at_work(self: &Rc<Self>, stage: Stage) -> AtWork {
        let running = &self.tasks[stage as usize];
        running.set(running.get() + 1);
        AtWork { set: Rc::clone(self), stage }
    }
    /// Attached devices and volumes, by inode.
    pub fn devices(&self) -> Vec<Rc<Device>> {
        self.devices.borrow().values().cloned().collect()
    }
}
