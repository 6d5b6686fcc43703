//! What is counted of extents: those that are sound, one by one, and those of a slot of the uuid table together.

use bcache_format::{Bkey, Ptr};

/// An extent with data: the little that is counted of it.
#[derive(Clone, Copy, Debug)]
pub struct Sound {
    /// Slot of the uuid table.
    pub inode: u32,
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub size: u64,
    /// Only the cache has it.
    pub dirty: bool,
    /// Where the data is.
    pub ptr: Ptr,
}

impl Sound {
    /// Of a key with its pointer.
    #[inline]
    #[must_use]
    pub fn new(key: &Bkey, ptr: Ptr) -> Self {
        let (inode, start, size, dirty) = (key.inode(), key.start(), key.size(), key.dirty());
        Self { inode, start, size, dirty, ptr }
    }
    /// The key.
    #[must_use]
    pub fn key(&self) -> Bkey {
        Bkey::extent(self.inode, self.start + self.size, self.size, self.ptr, self.dirty)
    }
}

/// Live data of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotUse {
    /// Sectors that only the cache has.
    pub dirty: u64,
    /// All sectors.
    pub all: u64,
    /// First sector.
    pub start: u64,
    /// Sector behind the last.
    pub end: u64,
    /// First dirty sector.
    pub dirty_start: u64,
    /// Sector behind the last dirty one.
    pub dirty_end: u64,
}

impl SlotUse {
    /// What one extent is.
    #[must_use]
    pub const fn of(extent: &Sound) -> Self {
        let (all, start, end) = (extent.size, extent.start, extent.start + extent.size);
        let (dirty, dirty_start, dirty_end) = if extent.dirty { (all, start, end) } else { (0, 0, 0) };
        Self { dirty, all, start, end, dirty_start, dirty_end }
    }
    /// Adds what others of the slot are.
    pub fn add(&mut self, other: &Self) {
        if other.all > 0 {
            self.start = if self.all == 0 { other.start } else { self.start.min(other.start) };
            self.end = self.end.max(other.end);
            self.all += other.all;
        }
        if other.dirty > 0 {
            let first = self.dirty == 0;
            self.dirty_start =
                if first { other.dirty_start } else { self.dirty_start.min(other.dirty_start) };
            self.dirty_end = self.dirty_end.max(other.dirty_end);
            self.dirty += other.dirty;
        }
    }
}
