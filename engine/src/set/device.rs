//! A backing device or flash-only volume.

use super::superblock::StoredSuperblock;
use crate::dev::FlushTracked;
use crate::error::{Error, Result};
use crate::request::{Ranges, Streams};
use crate::settings::DeviceSettings;
use crate::stats::{DeviceStats, Windows};
use crate::sync::WaitQueue;
use crate::writeback::Writeback;
use bcache_format::Seq;
use bcache_format::superblock::{BackingState, Label, Superblock};
use bcache_format::{Sector, Sectors};
use std::cell::Cell;
use uuid::Uuid;

/// The slow device below a cached device.
pub struct Backing {
    /// The device.
    pub dev: FlushTracked,
    /// Its superblock.
    pub sb: StoredSuperblock,
    /// First sector of the data.
    pub data_offset: u64,
}

/// Where data goes that the cache does not hold.
pub enum DeviceKind {
    /// A backing device.
    Cached(Box<Backing>),
    /// Nothing: the cache is all there is.
    FlashOnly {
        /// Size.
        sectors: Cell<u64>,
    },
}

/// A device that is served.
pub struct Device {
    /// Where data goes that the cache does not hold.
    pub kind: DeviceKind,
    /// Slot in the set's uuid table while attached.
    pub inode: Cell<Option<u32>>,
    /// UUID.
    pub uuid: Uuid,
    /// Label.
    pub label: Cell<Label>,
    /// Settings.
    pub settings: DeviceSettings,
    /// Counters.
    pub stats: DeviceStats,
    /// What they said lately.
    pub windows: Windows,
    /// Errors of the backing device.
    pub(crate) io_errors: Cell<u64>,
    /// Writes under way.
    pub(crate) writes: Ranges,
    pub(crate) writeback: Writeback,
    pub(crate) streams: Streams,
    /// Being detached: everything bypasses the cache.
    pub(crate) detaching: Cell<bool>,
    /// The journal entry with the last of the holes that stand for what a failed flush put in doubt.
    pub(crate) doubt: Cell<Seq>,
    /// Dirty writes that are not in the btree yet.
    pub(crate) dirty_writers: Cell<u32>,
    /// The set stops: no more requests.
    pub(crate) closed: Cell<bool>,
    pub(crate) requests: Cell<u32>,
    pub(crate) idle: WaitQueue,
}

impl Backing {
    /// A backing device whose superblock was read. Nothing when it is a cache.
    #[must_use]
    pub fn new(dev: FlushTracked, sb: Superblock, block: Vec<u8>) -> Option<Self> {
        let data_offset = sb.backing()?.data_offset.0;
        Some(Self { dev, sb: StoredSuperblock::new(sb, block), data_offset })
    }
    /// Changes the superblock. It is durable when this returns, and only then it counts.
    pub(crate) async fn update(&self, change: impl FnOnce(&mut Superblock)) -> Result<()> {
        self.sb.writer(&self.dev).await.write(change).await
    }
    /// Sees to it that the superblock on disk says dirty before anything dirty is acknowledged.
    pub(crate) async fn mark_dirty(&self) -> Result<()> {
        if self.says_dirty() {
            return Ok(());
        }
        let writer = self.sb.writer(&self.dev).await;
        if self.says_dirty() {
            return Ok(());
        }
        if !self.is_of_a_set() {
            return Err(Error::refused(format!("{}: it was detached meanwhile", self.dev.dev.name())));
        }
        writer.write(|sb| sb.set_state(BackingState::Dirty)).await
    }
    /// Whether the superblock says that a cache counts. Only who may write it can rely on that.
    fn is_of_a_set(&self) -> bool {
        let none = self.sb.borrow().state().is_whole();
        !none || seeded_bug!(LeftButMarked)
    }
    /// Whether the superblock on disk says dirty.
    pub(crate) fn says_dirty(&self) -> bool {
        self.sb.says_dirty()
    }
    /// Whether it may say so: a write of it may have failed.
    pub(crate) fn may_say_dirty(&self) -> bool {
        self.sb.may_say_dirty()
    }
    /// Marks the superblock clean if `still_clean` is true when nobody else can change it any more. Everything written back
    /// is flushed.
    pub(crate) async fn mark_clean(&self, still_clean: impl Fn() -> bool) -> Result<()> {
        let writer = self.sb.writer(&self.dev).await;
        // It may have been detached while this waited for its turn.
        if !self.is_of_a_set() || !self.sb.may_say_dirty() || !(still_clean() || seeded_bug!(CleanTooEarly)) {
            return Ok(());
        }
        let before = writer.doubt_dirty();
        self.dev.ensure_flushed(self.dev.epoch()).await.inspect_err(|_| writer.restore_dirty(before))?;
        writer.write(|sb| sb.set_state(BackingState::Clean)).await
    }
    /// Bytes of data.
    pub fn data_bytes(&self) -> u64 {
        self.dev.dev.geometry().bytes.saturating_sub(self.data_offset * bcache_format::SECTOR_SIZE)
    }
}

impl Device {
    /// A device that is not attached.
    #[must_use]
    pub fn new(kind: DeviceKind, uuid: Uuid, label: Label) -> Self {
        let settings = DeviceSettings::default();
        if let DeviceKind::Cached(backing) = &kind
            && let Some(mode) = backing.sb.borrow().cache_mode()
        {
            settings.cache_mode.set(mode);
        }
        Self {
            kind,
            inode: Cell::new(None),
            uuid,
            label: Cell::new(label),
            settings,
            stats: DeviceStats::default(),
            windows: Windows::default(),
            io_errors: Cell::new(0),
            writes: Ranges::default(),
            writeback: Writeback::default(),
            streams: Streams::default(),
            detaching: Cell::new(false),
            doubt: Cell::new(Seq::NONE),
            dirty_writers: Cell::new(0),
            closed: Cell::new(false),
            requests: Cell::new(0),
            idle: WaitQueue::new(),
        }
    }
    /// The backing device, if there is one.
    #[must_use]
    pub const fn backing(&self) -> Option<&Backing> {
        match &self.kind {
            DeviceKind::Cached(backing) => Some(backing),
            DeviceKind::FlashOnly { .. } => None,
        }
    }
    /// Flushes of the backing device that failed.
    pub(crate) fn flush_failures(&self) -> u64 {
        self.backing().map_or(0, |backing| backing.dev.failures())
    }
    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.kind {
            DeviceKind::Cached(backing) => backing.data_bytes(),
            DeviceKind::FlashOnly { sectors } => sectors.get() * bcache_format::SECTOR_SIZE,
        }
    }
    /// Sector in keys of the device's first: keys of a backing device hold its own sectors.
    #[must_use]
    pub const fn first_sector(&self) -> Sector {
        match &self.kind {
            DeviceKind::Cached(backing) => Sector(backing.data_offset),
            DeviceKind::FlashOnly { .. } => Sector::ZERO,
        }
    }
    /// The sector behind its last, in the same terms.
    #[must_use]
    pub fn end_sector(&self) -> Sector {
        self.first_sector() + Sectors::from_bytes(self.bytes())
    }
}
