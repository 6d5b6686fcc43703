//! What can be put together where the way to it is lost: the one picture that check, repair and salvage have.
//!
//! Nothing here is looked at while everything can be reached. Where the journal, the root, an interior node or a bset
//! is lost, the whole cache is scanned for what nothing leads to any more: leaves, older uuid tables and chains of prio
//! sets. A leaf counts when its bucket was not given up since (generation), and when no other was written in its place
//! ([`super::salvage::lives`]). Of what is found only dirty data is taken: a clean copy may be older than what the
//! backing device has.

use super::ranges::Ranges;
use super::salvage::lives::{Leaf, in_use};
use super::salvage::scan::{Scanned, scan};
use super::view::extent_map::SeenMap;
use super::view::{Gens, SetView};
use bcache_format::{Bkey, BucketNr, Geometry, Pos, Ptr};
use std::collections::HashSet;

/// What a scan of the whole cache found.
pub struct Evidence {
    scanned: Scanned,
    lost: Ranges,
}

/// What of a scan became part of the picture.
#[derive(Default)]
pub struct Completed {
    /// The uuid table is one that nothing leads to: an older one, perhaps.
    pub table: bool,
    /// Buckets that it was taken from.
    pub buckets: Vec<BucketNr>,
}

impl Evidence {
    /// Scans the cache for what it has of `lost` ranges.
    #[must_use]
    pub fn gather(view: &SetView, lost: Vec<(Pos, Pos)>, progress: &mut dyn FnMut(u64, u64)) -> Self {
        let lost: Ranges = lost.into_iter().collect();
        Self { scanned: scan(&view.cache, &lost, progress), lost }
    }
    /// Nodes that a bit may be wrong of.
    #[must_use]
    pub fn broken(&self) -> &[BucketNr] {
        &self.scanned.broken
    }
    /// Leaves that were found.
    #[must_use]
    pub const fn leaves(&self) -> usize {
        self.scanned.all_leaves
    }

    /// Puts into the view what it has none of: generations and the uuid table.
    pub fn complete(&self, view: &mut SetView) -> Completed {
        let mut completed = Completed::default();
        let chain = &self.scanned.prios;
        if view.journal.newest().is_none() && !chain.entries.is_empty() {
            view.prios.entries.clone_from(&chain.entries);
            view.prios.buckets = vec![(BucketNr(0), chain.seq)];
            let gens = chain.entries.iter().map(|entry| entry.generation).collect();
            let mut gens = Gens::new(view.cache.geometry, gens);
            view.raise_by_journal(&mut gens);
            view.gens = gens;
            completed.buckets.extend(&chain.buckets);
        }
        if view.uuids.iter().all(|entry| entry.is_free()) && !self.scanned.uuids.is_empty() {
            view.uuids.clone_from(&self.scanned.uuids);
            completed.table = true;
            completed.buckets.extend(self.scanned.uuid_bucket);
        }
        completed
    }

    /// Puts into the view the dirty data of lost ranges that leaves have to which nothing leads. Tells of which ranges
    /// they say different things.
    pub fn recover(&self, view: &mut SetView) -> Ranges {
        let lost = &self.lost;
        let geometry = view.cache.geometry;
        let reached: HashSet<BucketNr> =
            view.leaves.iter().filter_map(|at| bucket(&geometry, &at.key)).collect();
        let mut gens = view.gens.clone();
        let own = |leaf: &Leaf| Ptr::new(0, geometry.bucket_start(leaf.bucket).0, leaf.generation);
        // A bucket's generation is durable before the bucket is used: a node that is ahead of it was written by a
        // repair that was cut off. One that is behind was given up, and so was whatever it had replaced: neither does
        // it count, nor does it say anything about those that are not behind.
        let may_count = |leaf: &&Leaf| gens.get(leaf.bucket.0).is_none_or(|known| known == leaf.generation);
        let leaves: Vec<&Leaf> = self.scanned.leaves.iter().filter(may_count).collect();
        let live = in_use(&geometry, &leaves, &|key| gens.stale_key(key) == 0);
        let used = leaves
            .into_iter()
            .zip(live)
            .filter(|(leaf, live)| *live && !reached.contains(&leaf.bucket))
            .map(|(leaf, _)| leaf);
        let mut parts: Vec<(&Leaf, Vec<(Pos, Pos)>)> = Vec::new();
        for leaf in used {
            let range = self.scanned.ranges.get(&(leaf.bucket, leaf.generation)).copied();
            // What a leaf has is in its range, whatever a node says that may have lost who came before it.
            let (from, to) = range.unwrap_or(leaf.hull);
            let of_lost: Vec<_> = lost.inside((from.min(leaf.hull.0), to.max(leaf.hull.1))).collect();
            if !of_lost.is_empty() {
                view.used_leaves += usize::from(view.nodes.insert(leaf.bucket));
                parts.push((leaf, of_lost));
            }
        }
        for (leaf, _) in &parts {
            leaf.keys.iter().flat_map(|key| key.ptrs()).chain([&own(leaf)]).for_each(|ptr| gens.raise(*ptr));
        }
        // What is laid later is seen. Of a leaf that is not whole there may be newer bsets alone, written after another
        // had been copied into its first one. A leaf that has what the journal has is newer than one that has not.
        let in_journal = |leaf: &Leaf| {
            let newest = |key: &Bkey| view.sure.journal.from(key.start_pos()).next();
            let same = |key: &&Bkey| newest(key).is_some_and(|newest| is_same(&newest, key));
            leaf.keys.iter().filter(same).count()
        };
        parts.sort_by_cached_key(|(leaf, _)| (!leaf.whole, in_journal(leaf), leaf.bucket));
        let live = |key: &Bkey| key.ptr().is_some_and(Ptr::is_device) && gens.stale_key(key) == 0;
        let keys = parts.iter().map(|(leaf, _)| leaf.keys.len()).sum::<usize>();
        let mut laid = Laid::new(COMPARED_LEAST.saturating_add(keys.saturating_mul(COMPARED_OF_A_KEY)));
        let (mut partial, mut unfollowed, mut behind) =
            (Ranges::default(), Ranges::default(), Ranges::default());
        // What something leads to is no other leaf.
        let named = view.journal.newest().map(|newest| &newest.jset);
        let prios = named.into_iter().flat_map(|jset| jset.prio_bucket);
        let table = named.and_then(|jset| bucket(&geometry, &jset.uuid_bucket));
        let named: HashSet<BucketNr> = prios.chain(table).collect();
        let unread = self.scanned.unread.iter();
        let unread = unread.filter(|bucket| !view.nodes.contains(bucket) && !named.contains(bucket)).count();
        for (leaf, of_lost) in &parts {
            for part in of_lost {
                laid.lay(*part, &cut(&leaf.keys, *part).filter(live).collect::<Vec<_>>());
                // What a key said that cannot be followed is lost.
                let wrong = |key: &&Bkey| key.dirty() && geometry.ptr_problem(key).is_some();
                leaf.keys.iter().filter(wrong).for_each(|key| unfollowed.add((key.start_pos(), key.pos())));
                // Nor can one whose bucket has moved on: with the tree, or its generation, more would be known.
                let stale = |key: &Bkey| key.dirty() && geometry.ptr_problem(key).is_none() && !live(key);
                let stale = cut(&leaf.keys, *part).filter(stale);
                stale.for_each(|key| behind.add((key.start_pos(), key.pos())));
                // A bucket that cannot be read may have had a newer one.
                if leaf.whole && unread == 0 && !self.scanned.cut_off {
                    view.sure.ranges.add(*part);
                } else {
                    partial.add(*part);
                }
            }
        }
        // What the leaves that can be reached still have is newer.
        let damaged = |at: &&super::view::node::SeenNode| lost.touch((at.lower, at.key.pos()));
        let of_damaged: HashSet<BucketNr> = view
            .leaves
            .iter()
            .filter(damaged)
            .filter_map(|at| {
                partial.add((at.lower, at.key.pos()));
                bucket(&geometry, &at.key)
            })
            .collect();
        let Laid { mut map, doubt, .. } = laid;
        for leaf in self.scanned.leaves.iter().filter(|leaf| of_damaged.contains(&leaf.bucket)) {
            leaf.keys.iter().for_each(|key| map.insert(*key));
        }
        // What the bsets said that cannot be read nobody knows.
        let unsure = partial.iter().chain(doubt.iter()).chain(unfollowed.iter());
        unsure.for_each(|range| view.sure.ranges.remove(range));
        doubt.iter().for_each(|range| view.sure.doubtful.add(range));
        let keep = |key: &Bkey| key.dirty() && live(key) && geometry.ptr_problem(key).is_none();
        let all = map.into_keys();
        // Where another leaf has something that can be followed that is newer.
        let followed: Ranges = all.iter().map(|key| (key.start_pos(), key.pos())).collect();
        for range in behind.iter() {
            followed.outside(range).for_each(|range| view.sure.ranges.remove(range));
        }
        let found: Vec<Bkey> = all.into_iter().filter(keep).collect();
        view.gens = gens;
        view.lay_below_journal(found);
        doubt
    }
}

/// Extents that are compared at least, and for each that leaves have: an image made to be slow has a thousand leaves that
/// all say that they hold everything.
const COMPARED_LEAST: usize = 1 << 20;
const COMPARED_OF_A_KEY: usize = 64;

/// Leaves laid over each other, and where they contradict what was there before.
struct Laid {
    map: SeenMap,
    covered: Ranges,
    doubt: Ranges,
    /// Extents that may still be compared.
    left: usize,
}

impl Laid {
    fn new(left: usize) -> Self {
        Self { map: SeenMap::default(), covered: Ranges::default(), doubt: Ranges::default(), left }
    }
    /// Lays live extents, in order and inside `part`, of which a leaf holds all there is.
    fn lay(&mut self, part: (Pos, Pos), keys: &[Bkey]) {
        let (map, doubt, left) = (&self.map, &mut self.doubt, &mut self.left);
        for (from, to) in self.covered.inside(part) {
            let before: Vec<Bkey> = cut_from(map.from(from), (from, to)).take(*left).collect();
            *left = left.saturating_sub(before.len());
            if *left == 0 {
                doubt.add((from, to));
                continue;
            }
            let now: Vec<Bkey> = cut(keys, (from, to)).collect();
            unsaid(&before, &now).chain(unsaid(&now, &before)).for_each(|range| doubt.add(range));
        }
        keys.iter().for_each(|key| self.map.insert(*key));
        self.covered.add(part);
    }
}

/// Where one list of extents has dirty data of which the other has not the same. A clean copy says the same as dirty data
/// in the same place of the cache: it was written back.
fn unsaid<'k>(of: &'k [Bkey], by: &'k [Bkey]) -> impl Iterator<Item = (Pos, Pos)> + 'k {
    of.iter().filter(|key| key.dirty()).flat_map(move |key| {
        let first = by.partition_point(|other| other.pos() <= key.start_pos());
        let near = by.get(first..).unwrap_or_default();
        let near = near.iter().take_while(move |other| other.start_pos() < key.pos());
        let same: Ranges =
            near.filter(|other| is_same(other, key)).map(|key| (key.start_pos(), key.pos())).collect();
        same.outside((key.start_pos(), key.pos())).collect::<Vec<_>>()
    })
}

/// Whether two extents that overlap have the same data there.
pub(super) fn is_same(one: &Bkey, other: &Bkey) -> bool {
    let line = |key: &Bkey| key.ptr().map(|ptr| (ptr.offset().wrapping_sub(key.start()), ptr.generation()));
    let overlap = one.start_pos() < other.pos() && other.start_pos() < one.pos();
    overlap && line(one).is_some() && line(one) == line(other)
}

/// The parts of extents that are in a range.
fn cut(keys: &[Bkey], range: (Pos, Pos)) -> impl Iterator<Item = Bkey> + '_ {
    let first = keys.partition_point(|key| key.pos() <= range.0);
    cut_from(keys.get(first..).unwrap_or_default().iter().copied(), range)
}

/// The parts of extents in order, of which none ends before a range, that are in it.
fn cut_from(keys: impl Iterator<Item = Bkey>, (from, to): (Pos, Pos)) -> impl Iterator<Item = Bkey> {
    let inside = keys.take_while(move |key| key.start_pos() < to);
    inside.filter_map(move |mut key| (key.cut_front(from) && key.cut_back(to)).then_some(key))
}

fn bucket(geometry: &Geometry, key: &Bkey) -> Option<BucketNr> {
    key.ptr().filter(|ptr| ptr.is_device()).map(|ptr| geometry.ptr_bucket(ptr))
}
