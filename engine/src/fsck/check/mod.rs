//! The check: passes over one read-only view, each looking for its kinds of findings.
//!
//! Passes only look. What repair would do follows from the findings and from the view they were made over.

mod backings;
mod extents;
mod journal;
mod superblocks;
mod table;

pub(super) use journal::kernel_finds;

use super::finding::Finding;
use super::kind::{Kind, Severity};
use super::usage::{PerBucket, Use};
use super::view::journal::Journal;
use super::view::{Backing, Cache, Device, SetView};
use bcache_format::{BucketNr, Pos, Superblock};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The passes, in their order, with a word on each.
pub const PASSES: [(&str, &str); 8] = [
    ("superblock", "what every device says it is"),
    ("journal", "entries that must be replayed are all there"),
    ("prio", "the chain of prio sets is whole"),
    ("uuid", "the table of backing devices can be read"),
    ("btree", "every node can be reached and read, ranges fit"),
    ("extents", "keys, pointers and generations agree"),
    ("buckets", "no bucket is used twice"),
    ("backing", "backing devices agree with the cache"),
];

/// Findings of one kind that are kept; more are only counted.
const KEPT_OF_A_KIND: usize = 1000;

/// What to check.
#[derive(Clone, Copy, Default)]
pub struct Options<'o> {
    /// Read all data, and compare clean data with the backing device.
    pub data: bool,
    /// Told of the pass, and of how much of it is done.
    pub progress: Option<&'o dyn Fn(&'static str, u64, u64)>,
}

/// What was found.
#[derive(Default)]
pub struct Checked {
    /// The findings, in the order of the passes.
    pub findings: Vec<Finding>,
    /// How many there are of each kind, also those that are not kept.
    pub counts: BTreeMap<Kind, u64>,
    /// The cache, if one was named.
    pub cache: Option<Cache>,
    /// Its set, as far as it can be read, with entries behind holes of the journal replayed too.
    pub set: Option<SetView>,
    /// The backing devices.
    pub backings: Vec<Backing>,
    /// What the journal looks like to recovery.
    pub journal: Journal,
    /// Sectors of live data of each slot: dirty, all, and where they end.
    pub slots: BTreeMap<u32, SlotUse>,
    /// Sectors of live data of each bucket.
    pub data: PerBucket,
    /// Sectors of dirty data of each bucket.
    pub dirty: PerBucket,
    /// Ends of extents whose data cannot be used.
    pub dropped: HashSet<Pos>,
    /// Buckets of metadata.
    pub metadata: HashMap<BucketNr, Use>,
    /// Buckets whose generation is ahead of dirty data that nobody replaced: by the check, the data is live.
    pub revived: HashSet<BucketNr>,
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

impl Checked {
    pub(super) fn found(&mut self, mut finding: Finding) {
        let count = self.counts.entry(finding.kind).or_default();
        *count += 1;
        if *count > KEPT_OF_A_KIND as u64 {
            return;
        }
        if let Some(cache) = &self.cache
            && cache.name == finding.device
        {
            finding.bucket = Some(cache.geometry.bucket_of(finding.byte / bcache_format::SECTOR_SIZE));
        }
        self.findings.push(finding);
    }
    /// The worst of all findings.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(Finding::severity).max()
    }
    /// Whether a finding of this kind was made.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        self.counts.contains_key(&kind)
    }
    /// Everything that is lost, or whose newest state is, without overlaps.
    #[must_use]
    pub fn lost(&self) -> Vec<(Pos, Pos)> {
        let mut lost: Vec<_> =
            self.findings.iter().flat_map(|finding| finding.lost.iter().copied()).collect();
        lost.sort_unstable();
        let mut merged: Vec<(Pos, Pos)> = Vec::new();
        for (from, to) in lost {
            match merged.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        merged
    }
    /// The superblock that repair starts from, of a cache with a set on it.
    #[must_use]
    pub fn superblock(&self) -> Option<&Superblock> {
        self.cache.as_ref().map(|cache| &cache.sb)
    }
}

/// Checks devices: a cache, its backing devices, or some of them, in any order.
pub fn check(devices: impl IntoIterator<Item = Device>, options: Options<'_>) -> Checked {
    let mut checked = Checked::default();
    let progress = |index: usize| {
        if let (Some(progress), Some((name, _))) = (options.progress, PASSES.get(index)) {
            progress(name, index as u64, PASSES.len() as u64);
        }
    };
    progress(0);
    superblocks::pass(&mut checked, devices);
    progress(1);
    if journal::pass(&mut checked) {
        progress(2);
        table::pass(&mut checked);
        progress(5);
        extents::pass(&mut checked, options);
    }
    progress(7);
    backings::pass(&mut checked);
    checked
}
