//! A whole set, put together in recovery's order.

use super::super::finding::Sure;
use super::descend::{bucket_of, descend};
use super::devices::{Backing, Cache, Devices};
use super::extent_map::SeenMap;
use super::fault::{Fault, What};
use super::gens::{DataGens, Gens};
use super::journal::Journal;
use super::node::SeenNode;
use super::prio::PrioChain;
use super::sweep::{Look, Pass, Sweep};
use super::tree::root;
use super::uuids::read_table;
use crate::set::states::{Attaching, attaching};
use bcache_format::uuid_entry::UuidEntry;
use bcache_format::{Bkey, BucketNr, Pos, Structure};
use std::collections::HashSet;
use std::sync::Arc;
use thiserror::Error as ThisError;
use uuid::Uuid;

/// Why a set is not read.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum Refusal {
    /// Something in it cannot be.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Only one cache a set works, and only one set is read at a time.
    #[error("{0} and {1} are both caches: name the devices of one set")]
    TwoCaches(Arc<str>, Arc<str>),
    /// There is nothing to read in it.
    #[error("{0}: the cache has never been used, or its SYNC flag is lost: Linux would start it empty")]
    NotSync(Arc<str>),
    /// A backing device of another set.
    #[error("{backing} belongs to set {wants}, the cache {cache} to set {has}")]
    OtherSet {
        /// The backing device.
        backing: Arc<str>,
        /// The set it is attached to.
        wants: Uuid,
        /// The cache.
        cache: Arc<str>,
        /// The cache's set.
        has: Uuid,
    },
    /// A backing device without its cache.
    #[error(
        "{backing} is attached to cache set {set} and may lack data without it: name the cache device too"
    )]
    NeedsCache {
        /// The backing device.
        backing: Arc<str>,
        /// The set it is attached to.
        set: Uuid,
    },
    /// A dirty backing device that the cache does not know.
    #[error("{backing} is dirty, but the cache {cache} does not know its UUID {uuid}")]
    Unknown {
        /// The backing device.
        backing: Arc<str>,
        /// The cache.
        cache: Arc<str>,
        /// The backing device's UUID.
        uuid: Uuid,
    },
    /// No such volume.
    #[error("{cache} has {count} flash-only volumes, counted from 0: there is no volume {number}")]
    NoVolume {
        /// The cache.
        cache: Arc<str>,
        /// Volumes there are.
        count: usize,
        /// The one asked for.
        number: usize,
    },
}

/// How a backing device stands to a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Keys with this inode are its.
    Slot(u32),
    /// Nothing in the cache is its: it was never attached, was detached, or ran without its cache.
    Alone,
}

/// A cache set, read as far as it can be.
#[derive(Clone)]
pub struct SetView {
    /// The cache.
    pub cache: Cache,
    /// The journal's entries.
    pub journal: Journal,
    /// The prio sets.
    pub prios: PrioChain,
    /// Generations, raised by all pointers.
    pub gens: Gens,
    /// The uuid table; empty when it could not be read.
    pub uuids: Vec<UuidEntry>,
    /// The root; nothing when no journal entry names one.
    pub root: Option<SeenNode>,
    /// Keys that count whatever the btree says: the journal's, newest wins, and below them what was found of lost
    /// nodes.
    pub replayed: SeenMap,
    /// What is known beyond doubt whatever is wrong with the btree.
    pub sure: Sure,
    /// What the btree consists of.
    pub tree: TreeTotals,
    /// Buckets of btree nodes, readable or not.
    pub nodes: HashSet<BucketNr>,
    /// The leaves, in key order.
    pub leaves: Vec<SeenNode>,
    /// Buckets that a node should be in of which nothing is there: they may be free, or hold data.
    pub garbage: Vec<BucketNr>,
    /// Leaves that count: those, and what was found of others.
    pub used_leaves: usize,
    /// Buckets of interior nodes.
    interior: HashSet<BucketNr>,
}

/// What a walk over the whole btree counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeTotals {
    /// Nodes that could be read, interior ones included.
    pub nodes: u64,
    /// Extents of all leaves.
    pub extents: u64,
    /// Bytes of bsets.
    pub bytes: u64,
}

impl SetView {
    /// Reads the set and refuses one that cannot be trusted.
    ///
    /// # Errors
    /// A cache that holds no set, or the first fault.
    pub fn open(cache: Cache) -> Result<Self, Refusal> {
        if !cache.sb.sync() {
            return Err(Refusal::NotSync(cache.name));
        }
        let mut first = None;
        let view = Self::read(cache, &mut |fault| {
            first.get_or_insert(fault);
        });
        first.map_or(Ok(view), |fault| Err(fault.into()))
    }

    /// Reads what can be read of the set and reports what cannot, in recovery's order.
    pub fn read(cache: Cache, report: &mut dyn FnMut(Fault)) -> Self {
        let journal = Journal::read(&cache);
        if let Err(fault) = journal.replayable(&cache) {
            report(fault);
        }
        Self::read_with(cache, journal, report)
    }

    /// The same with a journal that was read before; nothing is said of that.
    pub fn read_with(cache: Cache, journal: Journal, report: &mut dyn FnMut(Fault)) -> Self {
        let mut view = Self::above_leaves(cache, journal, report);
        view.sweep(&Look, [], report, &mut |()| {});
        view
    }

    /// The same up to the leaves, which are not read yet: [`Self::sweep`] has to follow.
    pub(crate) fn above_leaves(cache: Cache, journal: Journal, report: &mut dyn FnMut(Fault)) -> Self {
        let mut view = Self {
            gens: Gens::new(cache.geometry, Vec::new()),
            cache,
            journal,
            prios: PrioChain::default(),
            uuids: Vec::new(),
            root: None,
            replayed: SeenMap::default(),
            sure: Sure::default(),
            tree: TreeTotals::default(),
            nodes: HashSet::new(),
            leaves: Vec::new(),
            used_leaves: 0,
            garbage: Vec::new(),
            interior: HashSet::new(),
        };
        view.read_named(report);
        view.replay(report);
        view.descend(report);
        view
    }

    /// What the newest entry names: prio sets, uuid table, root.
    fn read_named(&mut self, report: &mut dyn FnMut(Fault)) {
        let Some(newest) = self.journal.newest() else { return };
        let cache = &self.cache;
        let number = cache.sb.cache().map_or(0, |cache| cache.nr_this_dev);
        let first = newest.jset.prio_bucket.get(usize::from(number)).copied().unwrap_or_default();
        self.prios = PrioChain::read(cache, first, newest.byte);
        if let Some(fault) = self.prios.broken.clone() {
            report(fault);
        }
        self.gens = Gens::new(cache.geometry, self.prios.gens());
        match read_table(cache, newest) {
            Ok(table) => self.uuids = table,
            Err(fault) => report(fault),
        }
        match root(cache, newest) {
            Ok(root) => self.root = Some(root),
            Err(fault) => report(fault),
        }
    }

    /// Reads the interior nodes.
    fn descend(&mut self, report: &mut dyn FnMut(Fault)) {
        let Some(root) = self.root else { return };
        let found = descend(&self.cache, root, &mut self.gens, report);
        self.tree = TreeTotals { nodes: found.read, extents: 0, bytes: found.bytes };
        let leaves = found.leaves.iter().filter_map(|at| bucket_of(&self.cache, at));
        self.nodes = found.nodes.iter().copied().chain(leaves).collect();
        (self.leaves, self.interior, self.garbage) = (found.leaves, found.nodes, found.garbage);
        self.used_leaves = self.leaves.len();
    }

    /// Reads all leaves, and raises the generations by what they point at. An extent in a bucket of `metadata` is
    /// something special. `take` gets what `pass` made of each leaf, in the order of the device. False when generations were raised: then the pass went by wrong ones, and a second
    /// sweep is needed for what it is to find out.
    pub(crate) fn sweep<P: Pass>(
        &mut self,
        pass: &P,
        metadata: impl IntoIterator<Item = BucketNr>,
        report: &mut dyn FnMut(Fault),
        take: &mut dyn FnMut(P::Out),
    ) -> bool {
        let (cache, gens, journal, interior) = (&self.cache, &self.gens, &self.replayed, &self.interior);
        let data_gens = &DataGens::new(gens, metadata);
        let sweep = Sweep { cache, gens, data_gens, journal, interior, pass };
        let tree = &mut self.tree;
        let mut wrong = HashSet::new();
        let raises = sweep.run(&self.leaves, &mut |swept| {
            tree.nodes += u64::from(swept.is_leaf);
            tree.extents += swept.extents;
            tree.bytes += swept.bytes;
            if !swept.is_leaf {
                wrong.insert(swept.at);
            }
            swept.faults.into_iter().for_each(&mut *report);
            take(swept.out);
        });
        self.leaves.retain(|at| !wrong.contains(at));
        let settled = raises.is_empty();
        raises.into_iter().for_each(|(bucket, generation)| self.gens.raise_bucket(bucket, generation));
        settled
    }

    /// Lays the keys of all entries over each other, and raises the generations by their pointers
    /// (`bch_journal_mark`, `bch_journal_replay`).
    fn replay(&mut self, report: &mut dyn FnMut(Fault)) {
        for entry in self.journal.entries.values() {
            for key in &entry.jset.keys {
                match journal_key_problem(&self.cache, key) {
                    Some(what) => {
                        // Where a key without a size belongs nobody knows, except for the slot.
                        let whole = key.size() > 0 && key.size() <= key.offset();
                        let slot = (Pos::new(key.inode(), 0), Pos::new(key.inode() + 1, 0));
                        let (from, to) = if whole { (key.start_pos(), key.pos()) } else { slot };
                        report(self.cache.fault(Structure::Jset, entry.byte, what).hiding(from, to));
                    }
                    None => {
                        key.ptrs().iter().for_each(|ptr| self.gens.raise(*ptr));
                        self.replayed.insert(*key);
                    }
                }
            }
        }
        self.sure.journal.clone_from(&self.replayed);
    }

    /// Raises generations by what the journal's keys point at.
    pub(crate) fn raise_by_journal(&self, gens: &mut Gens) {
        self.sure.journal.from(Pos::ZERO).flat_map(|key| key.ptrs().to_vec()).for_each(|ptr| gens.raise(ptr));
    }
    /// Adds keys that were found of lost nodes: the journal's are newer.
    pub(crate) fn lay_below_journal(&mut self, found: Vec<Bkey>) {
        found.into_iter().for_each(|key| self.replayed.insert(key));
        self.sure.journal.from(Pos::ZERO).for_each(|key| self.replayed.insert(key));
    }

    /// How `backing` stands to this set (`bch_cached_dev_attach`).
    ///
    /// # Errors
    /// It belongs to another set, or is dirty and not known here.
    pub fn attachment(&self, backing: &Backing) -> Result<Attachment, Refusal> {
        let known = (0u32..).zip(&self.uuids).find(|(_, entry)| entry.uuid == backing.sb.uuid);
        let its = backing.sb.set_uuid == self.cache.sb.set_uuid;
        match (attaching(backing.sb.state(), its, known.is_some()), known) {
            (Attaching::ItsSlot, Some((slot, _))) => Ok(Attachment::Slot(slot)),
            (Attaching::ItsSlot | Attaching::NewSlot, _) => Ok(Attachment::Alone),
            (Attaching::OtherSet, _) => Err(Refusal::OtherSet {
                backing: Arc::clone(&backing.name),
                wants: backing.sb.set_uuid,
                cache: Arc::clone(&self.cache.name),
                has: self.cache.sb.set_uuid,
            }),
            (Attaching::NotKnown, _) => Err(Refusal::Unknown {
                backing: Arc::clone(&backing.name),
                cache: Arc::clone(&self.cache.name),
                uuid: backing.sb.uuid,
            }),
        }
    }
}

/// The one cache among `devices`, if there is one.
///
/// # Errors
/// There are two.
pub fn single_cache(devices: &Devices) -> Result<Option<&Cache>, Refusal> {
    match devices.caches.as_slice() {
        [] => Ok(None),
        [cache] => Ok(Some(cache)),
        [first, second, ..] => Err(Refusal::TwoCaches(Arc::clone(&first.name), Arc::clone(&second.name))),
    }
}

fn journal_key_problem(cache: &Cache, key: &Bkey) -> Option<What> {
    let pointer = |why| What::Pointer { key: key.to_string(), why };
    if key.size() == 0 {
        Some(pointer("no size"))
    } else if key.size() > key.offset() {
        Some(What::KeySize(key.to_string()))
    } else {
        cache.geometry.ptr_problem(key).map(pointer)
    }
}
