//! What fields of a superblock can say.

use crate::units::Sectors;

/// Versions of superblocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u64)]
pub enum Version {
    /// Cache device whose uuid entries may have 64 bytes; raised to `CacheWithUuid` at the first run.
    Cache = 0,
    /// Backing device with its data at the default offset.
    Backing = 1,
    /// Cache device.
    CacheWithUuid = 3,
    /// Backing device with a data offset.
    BackingWithOffset = 4,
    /// Cache device with feature words: large buckets.
    CacheWithFeatures = 5,
    /// Backing device with feature words, which nobody reads.
    BackingWithFeatures = 6,
}

impl Version {
    /// The version numbered `number`.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Cache,
            1 => Self::Backing,
            3 => Self::CacheWithUuid,
            4 => Self::BackingWithOffset,
            5 => Self::CacheWithFeatures,
            6 => Self::BackingWithFeatures,
            _ => return None,
        })
    }
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self as u64
    }
    /// Whether it is of a backing device.
    #[must_use]
    pub const fn is_backing(self) -> bool {
        matches!(self, Self::Backing | Self::BackingWithOffset | Self::BackingWithFeatures)
    }
}

/// How buckets are chosen for reuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Replacement {
    Lru,
    Fifo,
    Random,
}

impl Replacement {
    /// The policies, by their numbers.
    pub const ALL: [Self; 3] = [Self::Lru, Self::Fifo, Self::Random];
    /// The kernel's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Fifo => "fifo",
            Self::Random => "random",
        }
    }
}

/// What the cache does with writes to a backing device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// To both; acknowledged when both have it.
    Writethrough,
    /// To the cache; to the backing device later.
    Writeback,
    /// To the backing device; dropped from the cache.
    Writearound,
    /// Nothing is cached, neither reads nor writes.
    None,
}

impl CacheMode {
    /// The modes, by their numbers.
    pub const ALL: [Self; 4] = [Self::Writethrough, Self::Writeback, Self::Writearound, Self::None];
    /// The kernel's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Writethrough => "writethrough",
            Self::Writeback => "writeback",
            Self::Writearound => "writearound",
            Self::None => "none",
        }
    }
}

/// What a backing superblock says of the device's dirty data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackingState {
    /// Never attached, or detached.
    None,
    /// Attached, no dirty data.
    Clean,
    /// Attached; the cache may hold data that the device does not have.
    Dirty,
    /// Ran without its cache: what the cache holds is out of date.
    Stale,
}

impl BackingState {
    pub(super) const ALL: [Self; 4] = [Self::None, Self::Clean, Self::Dirty, Self::Stale];
    /// All of the device's data is on it: whatever a cache may have of it is out of date.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        matches!(self, Self::None | Self::Stale)
    }
}

/// What only superblocks of caches have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFields {
    /// Buckets of the device.
    pub nbuckets: u64,
    /// Sectors of a bucket.
    pub bucket_sectors: u32,
    /// Caches in the set: 1.
    pub nr_in_set: u16,
    /// Number of this one.
    pub nr_this_dev: u16,
    /// First bucket behind the superblock; the journal starts there.
    pub first_bucket: u16,
    /// Journal buckets, from `first_bucket` on; 0 before the first run.
    pub njournal_buckets: u16,
}

/// What only superblocks of backing devices have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingFields {
    /// Where the data starts.
    pub data_offset: Sectors,
    /// The bucket size it was formatted with, in sectors; of no meaning for the device.
    pub bucket_sectors: u16,
}

/// Cache or backing device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Role {
    Cache(CacheFields),
    Backing(BackingFields),
}
