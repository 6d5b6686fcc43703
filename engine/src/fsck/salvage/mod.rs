//! Dirty data of a cache whose journal or root is gone.
//!
//! The whole device is scanned for btree nodes by their magic. Nodes do not say whether they are still in use: freed
//! ones stay on the device until their bucket is used again. Whenever a node is replaced (split, coalesced, rewritten)
//! the first bset of the new one holds what the old one held at its end, and that tells them apart: see [`lives`].
//! Bucket generations come from the newest chain of prio sets, found by magic as well, and from the pointers.
//! Whatever the journal still holds is laid on top.

pub mod lives;
pub mod scan;

use super::view::extent_map::ExtentMap;
use super::view::journal::Journal;
use super::view::uuids::read_table;
use super::view::{Backing, Cache, Gens};
use bcache_format::{Bkey, Ptr, SECTOR_SIZE, Sectors};
use lives::Leaf;
use std::collections::BTreeMap;

/// How far an extent can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Belief {
    /// Only one life of a node says anything about it.
    Sure,
    /// Two nodes that both may be in use say different things, or the node's newest keys cannot be read.
    Doubtful,
}

/// What was found.
pub struct Salvage {
    /// The cache.
    pub cache: Cache,
    /// Dirty extents of each slot, in order, without overlaps.
    pub slots: BTreeMap<u32, Vec<(Bkey, Belief)>>,
    /// Slots that a uuid table gives to a device, by its UUID.
    pub uuids: BTreeMap<uuid::Uuid, u32>,
    /// Leaves that were found, and how many of them are in use.
    pub leaves: (usize, usize),
    /// Whether prio sets were found.
    pub prios: bool,
    /// Journal entries that were replayed.
    pub entries: usize,
}

impl Salvage {
    /// Scans a cache. `progress` is told of buckets done, and of all.
    pub fn scan(cache: &Cache, progress: &mut dyn FnMut(u64, u64)) -> Self {
        let scanned = scan::scan(cache, progress);
        let journal = Journal::read(cache).with_hidden();
        let mut gens = Gens::new(cache.geometry, scanned.gens.clone());
        let entries = journal.entries.values();
        let replay: Vec<Bkey> = entries.flat_map(|entry| entry.jset.keys.iter().copied()).collect();
        let live = lives::in_use(&scanned.leaves);
        let used: Vec<&Leaf> =
            scanned.leaves.iter().zip(&live).filter(|(_, live)| **live).map(|(leaf, _)| leaf).collect();
        let pointed = used.iter().flat_map(|leaf| &leaf.keys).chain(&replay).flat_map(|key| key.ptrs());
        pointed.for_each(|ptr| gens.raise(*ptr));
        let slots = merge(cache, &used, &replay, &gens);
        let mut uuids = scanned.uuids;
        if let Some(table) = journal.newest().and_then(|newest| read_table(cache, newest).ok()) {
            let named = (0u32..).zip(&table).filter(|(_, entry)| !entry.is_free() && !entry.is_detached());
            uuids.extend(named.map(|(slot, entry)| (entry.uuid, slot)));
        }
        Self {
            cache: cache.clone(),
            slots,
            uuids,
            leaves: (scanned.leaves.len(), used.len()),
            prios: !scanned.gens.is_empty(),
            entries: journal.entries.len(),
        }
    }

    /// The slot of a backing device: what a uuid table says, or the only one whose extents can be its.
    #[must_use]
    pub fn slot_of(&self, backing: &Backing) -> Option<u32> {
        if let Some(slot) = self.uuids.get(&backing.sb.uuid) {
            return Some(*slot);
        }
        let (start, end) = (backing.fields.data_offset.0, Sectors::from_bytes(backing.device.size()).0);
        let inside =
            |keys: &[(Bkey, Belief)]| keys.iter().all(|(key, _)| key.start() >= start && key.offset() <= end);
        let mut fit = self.slots.iter().filter(|(_, keys)| inside(keys)).map(|(slot, _)| *slot);
        match (fit.next(), fit.next()) {
            (Some(slot), None) => Some(slot),
            _ => None,
        }
    }
}

/// The dirty extents that all nodes in use and the journal leave.
fn merge(cache: &Cache, used: &[&Leaf], replay: &[Bkey], gens: &Gens) -> BTreeMap<u32, Vec<(Bkey, Belief)>> {
    let mut map = ExtentMap::default();
    let mut doubtful = ExtentMap::default();
    for leaf in used {
        for key in &leaf.keys {
            let here = map.from(key.start_pos()).take_while(|other| other.start_pos() < key.pos());
            let clash = here.into_iter().any(|other| other.size() > 0 && !same_data(&other, key));
            if clash || !leaf.whole {
                doubtful.insert(*key);
            }
            map.insert(*key);
        }
    }
    for key in replay.iter().filter(|key| key.size() > 0 && key.size() <= key.offset()) {
        map.insert(*key);
        // What the journal says is newer than all nodes.
        let mut sure = *key;
        sure.set_ptrs(&[]);
        doubtful.insert(sure);
    }
    let mut slots: BTreeMap<u32, Vec<(Bkey, Belief)>> = BTreeMap::new();
    for key in map.into_keys() {
        let live = key.ptr().is_some_and(Ptr::is_device) && gens.stale_key(&key) == 0;
        if !key.dirty() || !live || cache.geometry.ptr_problem(&key).is_some() {
            continue;
        }
        let mut doubts = doubtful.from(key.start_pos()).take_while(|other| other.start_pos() < key.pos());
        let doubt = doubts.any(|other| other.n_ptrs() > 0);
        let belief = if doubt { Belief::Doubtful } else { Belief::Sure };
        slots.entry(key.inode()).or_default().push((key, belief));
    }
    slots
}

/// Whether two overlapping extents say the same of the sectors they share.
fn same_data(a: &Bkey, b: &Bkey) -> bool {
    match (a.ptr(), b.ptr()) {
        (Some(x), Some(y)) => {
            x.dev() == y.dev()
                && x.generation() == y.generation()
                && x.offset().wrapping_sub(a.start()) == y.offset().wrapping_sub(b.start())
        }
        _ => false,
    }
}

/// First byte of an extent's data on the cache.
#[must_use]
pub fn data_byte(key: &Bkey) -> u64 {
    key.ptr().map_or(0, |ptr| ptr.offset().saturating_mul(SECTOR_SIZE))
}
