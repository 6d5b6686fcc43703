//! What a check found.

use super::finding::{Finding, Findings};
use super::kind::{Kind, Severity};
use super::repair::Plan;
use super::usage::{SectorMap, Use};
use super::view::journal::Journal;
use super::view::slot::SlotUse;
use super::view::{Backing, Cache, SetView};
use bcache_format::superblock::{BackingState, Label};
use bcache_format::{Bkey, BucketNr, Pos, Superblock};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// What was found.
#[derive(Default)]
pub struct Checked {
    /// The findings, in the order of the passes.
    pub findings: Findings,
    /// The cache, if one was named.
    pub cache: Option<Cache>,
    /// Its set, as far as it can be read, with entries behind holes of the journal replayed too.
    pub set: Option<SetView>,
    /// The backing devices.
    pub backings: Vec<Backing>,
    /// What the journal looks like to recovery.
    pub journal: Journal,
    /// Keys that only memory has, oldest first. In the set they are of the newest entry.
    pub kept: Vec<Bkey>,
    /// Sectors of live data of each slot: dirty, all, and where they end.
    pub slots: BTreeMap<u32, SlotUse>,
    /// Sectors of the cache that live data is in.
    pub sectors: SectorMap,
    /// Ends of extents whose data cannot be used.
    pub dropped: HashSet<Pos>,
    /// Buckets of metadata.
    pub metadata: HashMap<BucketNr, Use>,
    /// Writes that put flipped bits back; everything else is as it is after them.
    pub bits: Plan,
    /// Nodes with something that is not sound, which such a scan found.
    pub broken_nodes: Vec<BucketNr>,
    /// Leaves that a scan of the whole cache found, where something could not be reached.
    pub found_leaves: usize,
    /// The uuid table is one that a scan found: an older one, perhaps.
    pub table_found: bool,
    /// Buckets that something was taken from to which nothing leads: they look free, and must not be written to.
    pub reserved: HashSet<BucketNr>,
    /// Buckets whose generation is ahead of dirty data that nobody replaced: by the check, the data is live.
    pub revived: HashSet<BucketNr>,
}

impl Checked {
    /// Whether nothing uses a bucket.
    #[must_use]
    pub fn is_free(&self, bucket: BucketNr) -> bool {
        !self.has_data(bucket) && !self.metadata.contains_key(&bucket)
    }
    /// Whether live data is in a bucket.
    #[must_use]
    pub fn has_data(&self, bucket: BucketNr) -> bool {
        let Some(cache) = &self.cache else { return false };
        let start = cache.geometry.bucket_start(bucket).0;
        self.sectors.has_any(start, start.saturating_add(cache.geometry.bucket_sectors.into()))
    }
    /// Nothing is known to be in use.
    pub(super) fn forget_usage(&mut self) {
        if let Some(cache) = &self.cache {
            self.sectors = SectorMap::new(&cache.geometry);
        }
    }
    pub(super) fn found(&mut self, finding: Finding) {
        self.findings.add(self.placed(finding));
    }
    /// The finding with the bucket it is in.
    pub(super) fn placed(&self, mut finding: Finding) -> Finding {
        if let Some(cache) = self.cache.as_ref().filter(|cache| cache.name == finding.device) {
            finding.bucket = Some(cache.geometry.bucket_of(finding.byte / bcache_format::SECTOR_SIZE));
        }
        finding
    }
    /// The worst of all findings.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(Finding::severity).max()
    }
    /// Whether a finding of this kind was made.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        self.findings.counts.contains_key(&kind)
    }
    /// Everything that is lost, or whose newest state is, without overlaps.
    #[must_use]
    pub fn lost(&self) -> Vec<(Pos, Pos)> {
        self.findings.lost()
    }
    /// The superblock that repair starts from, of a cache with a set on it.
    #[must_use]
    pub fn superblock(&self) -> Option<&Superblock> {
        self.cache.as_ref().map(|cache| &cache.sb)
    }
}

impl Checked {
    /// Devices without which not everything could be checked.
    #[must_use]
    pub fn absent(&self) -> Vec<Absent> {
        let Some(cache) = &self.cache else {
            let attached = self.backings.iter().filter(|backing| backing.sb.state() != BackingState::None);
            return attached
                .map(|backing| Absent::Cache { set: backing.sb.set_uuid, of: Arc::clone(&backing.name) })
                .collect();
        };
        let whole = cache.geometry.bucket_start_byte(BucketNr(cache.geometry.nbuckets));
        let rest = Absent::Rest { of: Arc::clone(&cache.name), bytes: cache.device.size(), whole };
        let rest = cache.is_cut_off().then_some(rest);
        let uuids = self.set.as_ref().map(|set| set.uuids.as_slice()).unwrap_or_default();
        let named = |uuid: Uuid| self.backings.iter().any(|backing| backing.sb.uuid == uuid);
        let backings = (0u32..)
            .zip(uuids)
            .filter(|(_, entry)| !entry.is_free() && !entry.is_detached() && !entry.is_flash_only())
            .filter(|(_, entry)| !named(entry.uuid))
            .map(|(slot, entry)| Absent::Backing {
                slot,
                uuid: entry.uuid,
                label: entry.label,
                dirty: self.slots.get(&slot).map_or(0, |used| used.dirty),
            });
        rest.into_iter().chain(backings).collect()
    }
}

/// A device of the set, or a part of one, that was not there to be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// The cache that a backing device is attached to.
    Cache {
        /// The set's UUID.
        set: Uuid,
        /// The backing device.
        of: Arc<str>,
    },
    /// A backing device.
    Backing {
        /// Its slot in the uuid table.
        slot: u32,
        /// Its UUID.
        uuid: Uuid,
        /// Its label.
        label: Label,
        /// Sectors that are in the cache alone.
        dirty: u64,
    },
    /// What is behind the end of a cache that was cut off.
    Rest {
        /// The cache.
        of: Arc<str>,
        /// Bytes it has.
        bytes: u64,
        /// Bytes that its superblock speaks of.
        whole: u64,
    },
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cache { set, of } => {
                write!(
                    f,
                    "the cache of set {set}, to which {of} is attached, is not among what could be read"
                )
            }
            Self::Rest { of, bytes, whole } => {
                write!(f, "{of} ends at byte {bytes}; what was there up to byte {whole} could not be read")
            }
            Self::Backing { uuid, label, dirty, .. } => {
                let label = label.to_text();
                let label = if label.is_empty() { label } else { format!(", {label:?},") };
                write!(
                    f,
                    "backing device {uuid}{label} is not among what could be read; \
                     {dirty} sectors of it are in the cache alone"
                )
            }
        }
    }
}
