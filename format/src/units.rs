//! Units as types: a count of sectors and the number of a bucket are never mixed.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes in a sector.
pub const SECTOR_SIZE: u64 = 512;

/// Bytes of a page, the unit the kernel counts metadata in (x86 and every other machine with pages of 4 KiB).
pub(crate) const PAGE_BYTES: u64 = 4096;

/// A count or offset in 512-byte sectors.
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
