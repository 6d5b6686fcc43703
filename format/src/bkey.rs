//! Keys and pointers.
//!
//! ```text
//! word 0, high:  63 set (a relic) | 60..62 pointers | 56..57 data checksum | 36 dirty | 20..35 size | 0..19 inode
//! word 1, low:   offset of the END of the extent, in sectors
//! word 2..:      pointers: 51..62 device | 8..50 sector on the cache device | 0..7 gen of its bucket
//! ```
//!
//! A leaf key is an extent: sectors `offset - size .. offset` of `inode`. An interior key's pointer is a btree node
//! that covers everything up to and including the key's position.

use std::cmp::Ordering;
use std::fmt;

/// Words of a key with one pointer: what nearly every key is.
pub const KEY_WORDS: usize = 3;
/// Sectors an extent can have.
pub const KEY_SIZE_MAX: u64 = 0xffff;
/// Largest inode of a key; that of the largest key.
pub const KEY_INODE_MAX: u32 = 0xf_ffff;
/// Offset of the largest key.
pub const KEY_OFFSET_MAX: u64 = u64::MAX >> 1;
/// Pointers a key can have room for.
pub const KEY_PTRS_MAX: usize = 6;
/// Device number of the placeholder that a cache miss puts into the btree.
pub const PTR_CHECK_DEV: u16 = 0xfff;
/// Devices a set can have; larger device numbers name none.
pub const MAX_CACHES_PER_SET: u16 = 8;

const SIZE_SHIFT: u32 = 20;
const SIZE_MASK: u64 = KEY_SIZE_MAX << SIZE_SHIFT;
const DIRTY_BIT: u64 = 1 << 36;
const PTRS_SHIFT: u32 = 60;
const RELIC_BIT: u64 = 1 << 63;

/// A position in the btree's key space: keys sort by inode, then by where they end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Pos {
    /// Slot of the uuid table.
    pub inode: u32,
    /// Sector.
    pub offset: u64,
}

impl Pos {
    /// Where every walk starts.
    pub const ZERO: Self = Self { inode: 0, offset: 0 };
    /// Where every walk ends: the root's key.
    pub const MAX: Self = Self { inode: KEY_INODE_MAX, offset: KEY_OFFSET_MAX };

    /// A position.
    #[must_use]
    pub const fn new(inode: u32, offset: u64) -> Self {
        Self { inode, offset }
    }
}

impl Pos {
    /// As one number, so that a search compares without branching.
    const fn number(self) -> u128 {
        (self.inode as u128) << 64 | self.offset as u128
    }
}

impl Ord for Pos {
    fn cmp(&self, other: &Self) -> Ordering {
        self.number().cmp(&other.number())
    }
}

impl PartialOrd for Pos {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
    fn le(&self, other: &Self) -> bool {
        self.number() <= other.number()
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.inode, self.offset)
    }
}

/// Where a btree node or an extent's data is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ptr(pub u64);

impl Ptr {
    /// A pointer to sector `offset` of device `dev`, valid while its bucket's generation is `gen`.
    #[must_use]
    pub const fn new(dev: u16, offset: u64, generation: u8) -> Self {
        Self(((dev as u64 & 0xfff) << 51) | ((offset & ((1 << 43) - 1)) << 8) | generation as u64)
    }
    /// Number of the device in its set.
    #[must_use]
    pub const fn dev(self) -> u16 {
        ((self.0 >> 51) & 0xfff) as u16
    }
    /// Sector on the device.
    #[must_use]
    pub const fn offset(self) -> u64 {
        (self.0 >> 8) & ((1 << 43) - 1)
    }
    /// Generation of the bucket when the pointer was made.
    #[must_use]
    pub const fn generation(self) -> u8 {
        self.0 as u8
    }
    /// Whether the device number is one that a set can have.
    #[must_use]
    pub const fn is_device(self) -> bool {
        self.dev() < MAX_CACHES_PER_SET
    }
    /// The same pointer `sectors` further on.
    #[must_use]
    pub const fn advanced(self, sectors: u64) -> Self {
        Self::new(self.dev(), self.offset() + sectors, self.generation())
    }
}

impl fmt::Display for Ptr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dev() == PTR_CHECK_DEV {
            return f.write_str("check dev");
        }
        write!(f, "{}:{} gen {}", self.dev(), self.offset(), self.generation())
    }
}

/// How far `a` is ahead of `b` on the wheel of 256 generations: 1 to 128, or 0 when it is not ahead (`gen_after`).
#[must_use]
pub const fn gen_after(a: u8, b: u8) -> u8 {
    let ahead = a.wrapping_sub(b);
    if ahead > 128 { 0 } else { ahead }
}

/// A key with its pointers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Bkey {
    /// First word: inode, size, flags, number of pointers.
    pub high: u64,
    /// Second word: offset of the end.
    pub low: u64,
    /// The pointers; those beyond the key's number are zero.
    ptrs: [Ptr; KEY_PTRS_MAX],
}

impl Bkey {
    /// The largest key: that of the root.
    pub const MAX: Self = Self::new(KEY_INODE_MAX, KEY_OFFSET_MAX, 0);
    /// The smallest key.
    pub const ZERO: Self = Self::new(0, 0, 0);

    /// A key without pointers that ends at `offset` of `inode`.
    #[must_use]
    pub const fn new(inode: u32, offset: u64, size: u64) -> Self {
        Self {
            high: RELIC_BIT | ((size << SIZE_SHIFT) & SIZE_MASK) | (inode & KEY_INODE_MAX) as u64,
            low: offset,
            ptrs: [Ptr(0); KEY_PTRS_MAX],
        }
    }
    /// An extent of `size` sectors that ends at `offset` of `inode`, its data at `ptr`.
    #[must_use]
    pub const fn extent(inode: u32, offset: u64, size: u64, ptr: Ptr, dirty: bool) -> Self {
        let mut key = Self::new(inode, offset, size);
        key.high |= 1 << PTRS_SHIFT;
        if dirty {
            key.high |= DIRTY_BIT;
        }
        key.ptrs[0] = ptr;
        key
    }
    /// The key whose words start `words`; nothing when they end before it does, or when it claims more pointers
    /// than a key has room for.
    #[must_use]
    pub fn from_words(words: &[u64]) -> Option<Self> {
        let (&high, &low) = (words.first()?, words.get(1)?);
        let mut key = Self { high, low, ptrs: [Ptr(0); KEY_PTRS_MAX] };
        let stored = words.get(2..2 + key.n_ptrs())?;
        for (to, &from) in key.ptrs.get_mut(..stored.len())?.iter_mut().zip(stored) {
            *to = Ptr(from);
        }
        Some(key)
    }
    /// The key that starts `bytes`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |i: usize| Some(u64::from_le_bytes(*bytes.get(i * 8..)?.first_chunk()?));
        let mut key = Self { high: word(0)?, low: word(1)?, ptrs: [Ptr(0); KEY_PTRS_MAX] };
        if key.n_ptrs() > KEY_PTRS_MAX {
            return None;
        }
        let count = key.n_ptrs();
        for (i, ptr) in key.ptrs.iter_mut().take(count).enumerate() {
            *ptr = Ptr(word(2 + i)?);
        }
        Some(key)
    }
    /// The key in `bytes`, and its pointer if it has one, as nearly all extents do: it is for the caller to ask. Made
    /// for loops over many keys, in which every branch counts.
    #[inline]
    #[must_use]
    pub fn with_one_ptr(bytes: &[u8; 24]) -> (Self, Ptr) {
        let (words, _) = bytes.as_chunks::<8>();
        let word = |i: usize| words.get(i).map_or(0, |word| u64::from_le_bytes(*word));
        let ptr = Ptr(word(2));
        let mut key = Self { high: word(0), low: word(1), ..Self::default() };
        key.ptrs[0] = ptr;
        (key, ptr)
    }
    /// The key's words: two and one a pointer.
    pub fn words(&self) -> impl Iterator<Item = u64> + '_ {
        [self.high, self.low].into_iter().chain(self.ptrs().iter().map(|ptr| ptr.0))
    }
    /// Appends the key's bytes.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        for word in self.words() {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
    /// Slot of the uuid table this belongs to.
    #[must_use]
    pub const fn inode(&self) -> u32 {
        (self.high & KEY_INODE_MAX as u64) as u32
    }
    /// Sector after the last.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.low
    }
    /// Sectors.
    #[must_use]
    pub const fn size(&self) -> u64 {
        (self.high & SIZE_MASK) >> SIZE_SHIFT
    }
    /// First sector; wraps like the kernel's when the size exceeds the offset, which is never valid.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.low.wrapping_sub(self.size())
    }
    /// Where the key sorts: its end.
    #[must_use]
    pub const fn pos(&self) -> Pos {
        Pos { inode: self.inode(), offset: self.low }
    }
    /// Where the extent starts.
    #[must_use]
    pub const fn start_pos(&self) -> Pos {
        Pos { inode: self.inode(), offset: self.start() }
    }
    /// Whether this is the only place that holds the data.
    #[must_use]
    pub const fn dirty(&self) -> bool {
        self.high & DIRTY_BIT != 0
    }
    /// Whether the data carries a checksum, and of which kind.
    #[must_use]
    pub const fn csum(&self) -> u8 {
        ((self.high >> 56) & 3) as u8
    }
    /// Number of pointers: at most six in a key that parsed.
    #[must_use]
    pub const fn n_ptrs(&self) -> usize {
        ((self.high >> PTRS_SHIFT) & 7) as usize
    }
    /// The pointers.
    #[must_use]
    pub fn ptrs(&self) -> &[Ptr] {
        self.ptrs.get(..self.n_ptrs()).unwrap_or(&self.ptrs)
    }
    /// The first pointer, if there is one.
    #[must_use]
    pub fn ptr(&self) -> Option<Ptr> {
        self.ptrs().first().copied()
    }
    /// Words the key takes on disk.
    #[must_use]
    pub const fn u64s(&self) -> usize {
        2 + self.n_ptrs()
    }
    /// Sets the size, in sectors; the end stays.
    pub const fn set_size(&mut self, size: u64) {
        self.high = (self.high & !SIZE_MASK) | ((size << SIZE_SHIFT) & SIZE_MASK);
    }
    /// Sets the end.
    pub const fn set_offset(&mut self, offset: u64) {
        self.low = offset;
    }
    /// Sets the inode.
    pub const fn set_inode(&mut self, inode: u32) {
        self.high = (self.high & !(KEY_INODE_MAX as u64)) | (inode & KEY_INODE_MAX) as u64;
    }
    /// Sets whether the data is dirty.
    pub const fn set_dirty(&mut self, dirty: bool) {
        self.high = if dirty { self.high | DIRTY_BIT } else { self.high & !DIRTY_BIT };
    }
    /// Replaces the pointers; more than a key has room for are left out.
    pub fn set_ptrs(&mut self, ptrs: &[Ptr]) {
        let count = ptrs.len().min(KEY_PTRS_MAX);
        self.ptrs = [Ptr(0); KEY_PTRS_MAX];
        for (to, from) in self.ptrs.iter_mut().zip(ptrs) {
            *to = *from;
        }
        self.high = (self.high & !(7 << PTRS_SHIFT)) | ((count as u64) << PTRS_SHIFT);
    }
    /// Removes everything before `at` from an extent: the pointers move with the start. True when something was
    /// left. `at` at or before the start changes nothing.
    pub fn cut_front(&mut self, at: Pos) -> bool {
        if at <= self.start_pos() {
            return self.size() > 0;
        }
        if at >= self.pos() {
            self.set_size(0);
            return false;
        }
        let removed = at.offset - self.start();
        for ptr in self.ptrs.iter_mut().take(((self.high >> PTRS_SHIFT) & 7) as usize) {
            *ptr = ptr.advanced(removed);
        }
        self.set_size(self.size() - removed);
        true
    }
    /// Removes everything from `at` on from an extent. True when something was left.
    pub fn cut_back(&mut self, at: Pos) -> bool {
        if at >= self.pos() {
            return self.size() > 0;
        }
        let start = self.start_pos();
        if at <= start {
            self.low = start.offset;
            self.set_size(0);
            return false;
        }
        self.set_size(at.offset - start.offset);
        self.low = at.offset;
        true
    }
}

impl fmt::Display for Bkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} len {} -> [", self.inode(), self.start(), self.size())?;
        for (i, ptr) in self.ptrs().iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            ptr.fmt(f)?;
        }
        f.write_str("]")?;
        if self.dirty() {
            f.write_str(" dirty")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Bkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cutting_moves_the_pointer_with_the_front_and_leaves_it_with_the_back() {
        let key = Bkey::extent(1, 100, 20, Ptr::new(0, 1000, 7), true);
        let mut front = key;
        assert!(front.cut_front(Pos::new(1, 85)));
        assert_eq!((front.start(), front.offset(), front.size()), (85, 100, 15));
        assert_eq!(front.ptr(), Some(Ptr::new(0, 1005, 7)));
        let mut back = key;
        assert!(back.cut_back(Pos::new(1, 85)));
        assert_eq!((back.start(), back.offset(), back.size()), (80, 85, 5));
        assert_eq!(back.ptr(), key.ptr());
        assert!(!{ key }.cut_front(Pos::new(1, 100)));
        assert!(!{ key }.cut_back(Pos::new(1, 80)));
    }

    #[test]
    fn generations_wrap() {
        assert_eq!(gen_after(5, 5), 0);
        assert_eq!(gen_after(6, 5), 1);
        assert_eq!(gen_after(5, 6), 0);
        assert_eq!(gen_after(2, 254), 4);
        assert_eq!(gen_after(128, 0), 128);
        assert_eq!(gen_after(129, 0), 0);
    }

    #[test]
    fn a_key_of_seven_pointers_is_refused() {
        let mut words = [0u64; 16];
        words[0] = 7 << 60;
        assert_eq!(Bkey::from_words(&words), None);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(Bkey::from_bytes(&bytes), None);
    }
}
