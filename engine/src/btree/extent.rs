//! An extent as a leaf holds it in memory: 24 bytes, one pointer.

use bcache_format::bkey::{Bkey, KEY_SIZE_MAX, KEY_WORDS, Pos, Ptr};
use bcache_format::{Sector, Sectors, Span};

const INODE_MASK: u64 = bcache_format::bkey::KEY_INODE_MAX as u64;
const SIZE_SHIFT: u32 = 20;
const DIRTY_BIT: u64 = 1 << 36;
const PTR_BIT: u64 = 1 << 60;
const RELIC_BIT: u64 = 1 << 63;

/// Sectors `start .. end` of an inode and where they are on the cache device, or that they are nowhere.
///
/// The words are those of the key on disk, so that a lookup compares what it read and writing a bset copies.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    high: u64,
    end: u64,
    ptr: Ptr,
}

impl Extent {
    /// `size` sectors (1 to 65535) before `end` of `inode`, at `ptr`.
    #[must_use]
    pub const fn new(inode: u32, end: u64, size: u64, ptr: Ptr, dirty: bool) -> Self {
        let dirty = if dirty { DIRTY_BIT } else { 0 };
        Self {
            high: RELIC_BIT
                | PTR_BIT
                | dirty
                | (size & KEY_SIZE_MAX) << SIZE_SHIFT
                | inode as u64 & INODE_MASK,
            end,
            ptr,
        }
    }
    /// That the `size` sectors before `end` of `inode` are not in the cache.
    #[must_use]
    pub const fn hole(inode: u32, end: u64, size: u64) -> Self {
        let high = RELIC_BIT | (size & KEY_SIZE_MAX) << SIZE_SHIFT | inode as u64 & INODE_MASK;
        Self { high, end, ptr: Ptr(0) }
    }
    /// That the sectors of `span` are at `ptr`.
    #[must_use]
    pub const fn of(span: Span, ptr: Ptr, dirty: bool) -> Self {
        Self::new(span.inode, span.end.0, span.end.0 - span.start.0, ptr, dirty)
    }
    /// That the sectors of `span` are not in the cache.
    #[must_use]
    pub const fn hole_of(span: Span) -> Self {
        Self::hole(span.inode, span.end.0, span.end.0 - span.start.0)
    }
    /// What a leaf's key says; nothing when it says nothing: no sectors, or sectors before the first.
    /// A pointer to no device of a set (the kernel's placeholder of a cache miss) is a hole.
    #[must_use]
    pub fn from_key(key: &Bkey) -> Option<Self> {
        if key.size() == 0 || key.size() > key.offset() {
            return None;
        }
        Some(match key.ptr() {
            Some(ptr) if ptr.is_device() => {
                Self::new(key.inode(), key.offset(), key.size(), ptr, key.dirty())
            }
            _ => Self::hole(key.inode(), key.offset(), key.size()),
        })
    }
    /// The key on disk.
    #[must_use]
    pub const fn key(&self) -> Bkey {
        if self.is_hole() {
            Bkey::new(self.inode(), self.end, self.size().0)
        } else {
            Bkey::extent(self.inode(), self.end, self.size().0, self.ptr, self.dirty())
        }
    }
    /// Slot of the uuid table.
    #[must_use]
    pub const fn inode(&self) -> u32 {
        (self.high & INODE_MASK) as u32
    }
    /// First sector.
    #[must_use]
    pub const fn start(&self) -> Sector {
        Sector(self.end - self.size().0)
    }
    /// Sector after the last.
    #[must_use]
    pub const fn end(&self) -> Sector {
        Sector(self.end)
    }
    /// Sectors, at least 1.
    #[must_use]
    pub const fn size(&self) -> Sectors {
        Sectors((self.high >> SIZE_SHIFT) & KEY_SIZE_MAX)
    }
    /// The sectors that it is about.
    #[must_use]
    pub const fn span(&self) -> Span {
        Span::new(self.inode(), self.start(), self.end())
    }
    /// The byte of the cache device where its data begins.
    #[must_use]
    pub const fn place(&self) -> u64 {
        Sector(self.ptr.offset()).byte()
    }
    /// Bytes of its data.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.size().bytes() as usize
    }
    /// Where the first sector is.
    #[must_use]
    pub const fn ptr(&self) -> Ptr {
        self.ptr
    }
    /// Whether the backing device does not have this data.
    #[must_use]
    pub const fn dirty(&self) -> bool {
        self.high & DIRTY_BIT != 0
    }
    /// Whether this says that the range is not in the cache.
    #[must_use]
    pub const fn is_hole(&self) -> bool {
        self.high & PTR_BIT == 0
    }
    /// The same extent, dirty or clean.
    #[must_use]
    pub const fn with_dirty(mut self, dirty: bool) -> Self {
        self.high = if dirty { self.high | DIRTY_BIT } else { self.high & !DIRTY_BIT };
        self
    }
    /// Where it sorts.
    #[must_use]
    pub const fn pos(&self) -> Pos {
        Pos { inode: self.inode(), offset: self.end }
    }
    /// Where it starts.
    #[must_use]
    pub const fn start_pos(&self) -> Pos {
        Pos { inode: self.inode(), offset: self.start().0 }
    }
    /// Words of the key on disk.
    #[must_use]
    pub const fn words(&self) -> usize {
        if self.is_hole() { KEY_WORDS - 1 } else { KEY_WORDS }
    }
    /// The part that lies in `start .. end` of the same inode. The ranges must overlap.
    #[must_use]
    pub const fn part(&self, start: Sector, end: Sector) -> Self {
        let from = if start.0 > self.start().0 { start.0 } else { self.start().0 };
        let to = if end.0 < self.end { end.0 } else { self.end };
        let ptr = if self.is_hole() { self.ptr } else { self.ptr.advanced(from - self.start().0) };
        Self { high: (self.high & !(KEY_SIZE_MAX << SIZE_SHIFT)) | (to - from) << SIZE_SHIFT, end: to, ptr }
    }
    /// This and `next` as one, when `next` goes on where this ends, in the key space and on the device, within a
    /// bucket of `bucket_sectors`. A key's size has 16 bits, which limits it.
    #[must_use]
    pub const fn joined(&self, next: &Self, bucket_sectors: u64) -> Option<Self> {
        let size = self.size().0 + next.size().0;
        let same = (self.high ^ next.high) & !(KEY_SIZE_MAX << SIZE_SHIFT) == 0;
        if !same || self.end != next.start().0 || size > KEY_SIZE_MAX {
            return None;
        }
        let adjacent = self.is_hole()
            || (self.ptr.advanced(self.size().0).0 == next.ptr.0
                && !next.ptr.offset().is_multiple_of(bucket_sectors));
        if !adjacent {
            return None;
        }
        let high = (self.high & !(KEY_SIZE_MAX << SIZE_SHIFT)) | size << SIZE_SHIFT;
        Some(Self { high, end: next.end, ptr: self.ptr })
    }
}

impl std::fmt::Debug for Extent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.key().fmt(f)
    }
}
