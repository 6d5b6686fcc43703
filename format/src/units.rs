//! Units as types: where a sector is, how many there are and the number of a bucket are never mixed.

use crate::bkey::Pos;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};

/// Bytes in a sector.
pub const SECTOR_SIZE: u64 = 512;

/// Bytes of a page, the unit the kernel counts metadata in (x86 and every other machine with pages of 4 KiB).
pub(crate) const PAGE_BYTES: u64 = 4096;

/// A count of 512-byte sectors, or where a structure has one as its offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sectors(pub u64);

impl Sectors {
    /// The same length in bytes; saturates, so that a comparison with a device's size stays right.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(SECTOR_SIZE)
    }
    /// Whole sectors in `bytes`.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes / SECTOR_SIZE)
    }
}

impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a bucket on its cache device, counted from the start of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BucketNr(pub u64);

impl fmt::Display for BucketNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a sector is: on a device, or among the sectors of an inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sector(pub u64);

impl Sector {
    /// The first.
    pub const ZERO: Self = Self(0);
    /// Behind all others.
    pub const MAX: Self = Self(u64::MAX);

    /// Its first byte. Saturates, so that a comparison with a device's size stays right.
    #[must_use]
    pub const fn byte(self) -> u64 {
        self.0.saturating_mul(SECTOR_SIZE)
    }
    /// Whether it is the first of a unit of so many.
    #[must_use]
    pub const fn is_multiple_of(self, unit: Sectors) -> bool {
        self.0.is_multiple_of(unit.0)
    }
}

/// The number of a journal entry: each is one more than that of the entry before. 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// No entry: before all others.
    pub const NONE: Self = Self(0);
    /// Behind all others.
    pub const MAX: Self = Self(u64::MAX);

    /// The entry behind this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
    /// How many entries behind `other` this one is; nothing if it is before it.
    #[must_use]
    pub const fn behind(self, other: Self) -> Option<u64> {
        self.0.checked_sub(other.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Add<Sectors> for Sector {
    type Output = Self;
    fn add(self, count: Sectors) -> Self {
        Self(self.0 + count.0)
    }
}

impl AddAssign<Sectors> for Sector {
    fn add_assign(&mut self, count: Sectors) {
        self.0 += count.0;
    }
}

impl Sub<Sectors> for Sector {
    type Output = Self;
    fn sub(self, count: Sectors) -> Self {
        Self(self.0 - count.0)
    }
}

impl Sub for Sector {
    type Output = Sectors;
    fn sub(self, before: Self) -> Sectors {
        Sectors(self.0 - before.0)
    }
}

impl Add for Sectors {
    type Output = Self;
    fn add(self, more: Self) -> Self {
        Self(self.0 + more.0)
    }
}

impl AddAssign for Sectors {
    fn add_assign(&mut self, more: Self) {
        self.0 += more.0;
    }
}

impl Sub for Sectors {
    type Output = Self;
    fn sub(self, less: Self) -> Self {
        Self(self.0 - less.0)
    }
}

impl SubAssign for Sectors {
    fn sub_assign(&mut self, less: Self) {
        self.0 -= less.0;
    }
}

impl Sum for Sectors {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        Self(counts.map(|count| count.0).sum())
    }
}

/// Sectors of an inode: `start` and what follows, up to `end` and without it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Slot in the uuid table.
    pub inode: u32,
    /// First sector.
    pub start: Sector,
    /// Sector after the last.
    pub end: Sector,
}

impl Span {
    /// Sectors `start .. end` of `inode`.
    #[must_use]
    pub const fn new(inode: u32, start: Sector, end: Sector) -> Self {
        Self { inode, start, end }
    }
    /// All sectors of `inode`.
    #[must_use]
    pub const fn whole(inode: u32) -> Self {
        Self { inode, start: Sector::ZERO, end: Sector::MAX }
    }
    /// How many there are.
    #[must_use]
    pub fn sectors(&self) -> Sectors {
        self.end - self.start
    }
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start.0 >= self.end.0
    }
    /// Whether both have a sector.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.inode == other.inode && self.start.0 < other.end.0 && other.start.0 < self.end.0
    }
    /// What is left of it from `start` on.
    #[must_use]
    pub const fn from(mut self, start: Sector) -> Self {
        self.start = start;
        self
    }
    /// Behind which position its extents end.
    #[must_use]
    pub const fn start_pos(&self) -> Pos {
        Pos { inode: self.inode, offset: self.start.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_and_places_add_up() {
        let span = Span::new(3, Sector(8), Sector(24));
        assert_eq!((span.sectors(), span.sectors().bytes(), span.start.byte()), (Sectors(16), 8192, 4096));
        assert_eq!(span.start + Sectors(16), span.end);
        assert_eq!(span.end - Sectors(16), span.start);
        assert!(span.overlaps(&Span::new(3, Sector(23), Sector(30))) && span.overlaps(&Span::whole(3)));
        assert!(!span.overlaps(&Span::new(3, Sector(24), Sector(30))) && !span.overlaps(&Span::whole(2)));
        assert!(span.from(span.end).is_empty() && !span.is_empty());
        assert_eq!(Sector::MAX.byte(), u64::MAX);
        assert_eq!([Sectors(1), Sectors(2)].into_iter().sum::<Sectors>(), Sectors(3));
    }
}
