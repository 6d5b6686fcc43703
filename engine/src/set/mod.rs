//! A cache set: one cache device, its backing devices and volumes.
//!
//! # Which file has which methods of [`CacheSet`]
//!
//! Here is what it consists of, what is dirty in it, how it fails, and what a journal entry says of it.
//!
//! | file | methods |
//! |---|---|
//! | `recover.rs` | starting: `start`, `start_outliving`, and what they do in order |
//! | `recover/known.rs` | what a start reads and marks: `read_root`, `walk_tree`, `mark_journal`, `mark_roots` |
//! | `stop.rs` | stopping: `stop`, `checkpoint`, `mark_clean` |
//! | `tasks.rs` | what runs and when it ends: `task`, `at_work`, `is_closing`, `closed`, `accounting_task` |
//! | `attach.rs` | devices and volumes that come and go: `attach`, `detach`, `drain`, `create_volume`, `resize_volume`, `remove_volume` |
//! | `abandon.rs` | those that part with it in disorder: `absent`, `forget_device`, `abandon` |
//! | `flush_backing.rs` | `flush_backing`, `flush_below_since`, `doubt_if_failed` |
//! | `uuids.rs` | the table of devices: `change_uuids`, `take_slot`, `invalidate_slot` |
//! | `attributes.rs` | sysfs names: `attributes`, `set_attribute`, `device_attributes`, `set_device_attribute` |
//! | `audit.rs` | what must hold: `audit` |
//! | `left.rs` | what must be nothing after a stop: `left_behind` |
//! | `request/read.rs` | `read` |
//! | `request/write.rs` | `write`, `flush`, `discard` |
//! | `request/bypass.rs` | `should_bypass`, `should_writeback` |
//! | `request/place.rs` | places on the cache device: `place`, `try_place` |
//! | `request/errors.rs` | counting errors: `count_cache_io` |
//! | `btree/lookup.rs` | `node_at`, `pieces`, `pieces_resident` |
//! | `btree/insert.rs` | `insert`, `insert_replayed`, `insert_behind`, `replace` |
//! | `btree/node_io.rs` | `node`, `node_write` |
//! | `btree/flusher.rs` | `flusher_task` |
//! | `btree/split.rs` | `split`, `rewrite`, `create_first_root`, `new_root` |
//! | `journal/write.rs` | `journal_soon`, `journal_admission`, `commit_keys`, `commit_roots`, `journal_task` |
//! | `journal/reclaim.rs` | room in the journal: `journal_space`, `journal_reclaim_task` |
//! | `alloc/refill.rs` | `refill_task` |
//! | `alloc/prio.rs` | `write_prios` |
//! | `gc/mod.rs` | `gc_task`, `gc_pass`, `trigger_gc` |
//! | `gc/moving.rs` | `moving_gc` |
//! | `writeback/mod.rs` | `writeback_task` |
//! | `writeback/rate.rs` | `writeback_rate_task` |

mod abandon;
mod attach;
mod attributes;
mod audit;
mod cache_dev;
mod device;
mod flush_backing;
mod kept;
mod left;
mod recover;
pub mod states;
mod stop;
mod superblock;
mod tasks;
#[cfg(test)]
mod tests;
mod uuids;

pub use abandon::Absent;
pub use attributes::{Attribute, LEFT_OUT};
pub use cache_dev::{CacheDev, read_superblock, settled_superblock};
pub use device::{Backing, Device, DeviceKind};
pub use superblock::{NewestInCache, StoredSuperblock, leave_cache};
pub(crate) use tasks::{AtWork, Stage};
pub use uuids::UuidTable;

use crate::alloc::Alloc;
use crate::btree::{Extent, Misses, Node, Tree};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::gc::Gc;
use crate::journal::{Journal, Roots};
use crate::request::{Congestion, IoErrors};
use crate::settings::SetSettings;
use crate::stats::{SetStats, Timings};
use crate::sync::{Mutex, WaitQueue};
use bcache_format::Sector;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use uuid::Uuid;

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
    dirty_ends: RefCell<BTreeMap<u32, Sector>>,
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
    /// Wakes those who wait for the set to close.
    closed: WaitQueue,
    /// What works for the set, by when it stops.
    tasks: [Cell<usize>; 3],
    tasks_ended: WaitQueue,
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
        end.map_or(0, |end| end.0.saturating_sub(device.end_sector().0))
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
        self.wake_to_close();
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
    /// Attached devices and volumes, by inode.
    pub fn devices(&self) -> Vec<Rc<Device>> {
        self.devices.borrow().values().cloned().collect()
    }
}
