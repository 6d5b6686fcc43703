//! A backing device or flash-only volume.

use super::cache_dev::{Tracked, write_superblock};
use crate::error::Result;
use crate::request::{Ranges, Streams};
use crate::settings::DeviceSettings;
use crate::stats::{DeviceStats, Windows};
use crate::sync::{Mutex, WaitQueue};
use crate::writeback::Writeback;
use bcache_format::superblock::{BackingState, Label, Superblock};
use std::cell::{Cell, RefCell};
use uuid::Uuid;

/// The slow device below a cached device.
pub struct Backing {
    /// The device.
    pub dev: Tracked,
    /// Its superblock.
    pub sb: RefCell<Superblock>,
    block: RefCell<Vec<u8>>,
    sb_io: Mutex<()>,
    /// The superblock on disk says dirty, and nobody is changing that.
    dirty: Cell<bool>,
    /// First sector of the data.
    pub data_offset: u64,
}

/// What is below.
pub enum Kind {
    /// A backing device.
    Cached(Box<Backing>),
    /// Nothing: the cache is all there is.
    FlashOnly {
        /// Size.
        sectors: u64,
    },
}

/// A device that is served.
pub struct Device {
    /// What is below.
    pub kind: Kind,
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
    pub fn new(dev: Tracked, sb: Superblock, block: Vec<u8>) -> Option<Self> {
        let data_offset = sb.backing()?.data_offset.0;
        let dirty = Cell::new(sb.state() == BackingState::Dirty);
        let (sb, block) = (RefCell::new(sb), RefCell::new(block));
        Some(Self { dev, sb, block, sb_io: Mutex::new(()), dirty, data_offset })
    }
    /// Changes the superblock and makes it durable.
    pub(crate) async fn update(&self, change: impl FnOnce(&mut Superblock)) -> Result<()> {
        let _one = self.sb_io.lock().await;
        change(&mut self.sb.borrow_mut());
        self.dirty.set(self.sb.borrow().state() == BackingState::Dirty);
        write_superblock(&self.dev, &self.sb, &self.block).await
    }
    /// Sees to it that the superblock on disk says dirty before anything dirty is acknowledged.
    pub(crate) async fn mark_dirty(&self) -> Result<()> {
        if self.dirty.get() {
            return Ok(());
        }
        let _one = self.sb_io.lock().await;
        if !self.dirty.get() {
            self.sb.borrow_mut().set_state(BackingState::Dirty);
            write_superblock(&self.dev, &self.sb, &self.block).await?;
            self.dirty.set(true);
        }
        Ok(())
    }
    /// Whether the superblock on disk says dirty.
    pub(crate) fn says_dirty(&self) -> bool {
        self.dirty.get()
    }
    /// Says clean, if `still_clean` says so when nobody else can change it any more. Everything written back is flushed.
    pub(crate) async fn mark_clean(&self, still_clean: impl Fn() -> bool) -> Result<()> {
        let _one = self.sb_io.lock().await;
        if !self.dirty.get() || !(still_clean() || seeded_bug!(CleanTooEarly)) {
            return Ok(());
        }
        // Who wants to write dirty data from here on waits for us, and then says dirty again.
        self.dirty.set(false);
        self.dev.ensure_flushed(self.dev.epoch()).await.inspect_err(|_| self.dirty.set(true))?;
        self.sb.borrow_mut().set_state(BackingState::Clean);
        write_superblock(&self.dev, &self.sb, &self.block).await
    }
    /// Bytes of data.
    pub fn data_bytes(&self) -> u64 {
        self.dev.dev.geometry().bytes.saturating_sub(self.data_offset * bcache_format::SECTOR_SIZE)
    }
}

impl Device {
    /// A device that is not attached.
    #[must_use]
    pub fn new(kind: Kind, uuid: Uuid, label: Label) -> Self {
        let settings = DeviceSettings::default();
        if let Kind::Cached(backing) = &kind
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
            Kind::Cached(backing) => Some(backing),
            Kind::FlashOnly { .. } => None,
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
            Kind::Cached(backing) => backing.data_bytes(),
            Kind::FlashOnly { sectors } => sectors * bcache_format::SECTOR_SIZE,
        }
    }
    /// Sector in keys of the device's first: keys of a backing device hold its own sectors.
    #[must_use]
    pub const fn first_sector(&self) -> u64 {
        match &self.kind {
            Kind::Cached(backing) => backing.data_offset,
            Kind::FlashOnly { .. } => 0,
        }
    }
}
