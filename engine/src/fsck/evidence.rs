//! What can be put together where the way to it is lost: the one picture that check, repair and salvage have.
//!
//! Nothing here is looked at while everything can be reached. Where the journal, the root, an interior node or a bset
//! is lost, the whole cache is scanned for what nothing leads to any more: leaves, older uuid tables and chains of prio
//! sets. A leaf counts when its bucket was not given up since (generation), and when no other was written in its place
//! ([`super::salvage::lives`]). Of what is found only dirty data is taken: a clean copy may be older than what the
//! backing device has.

use super::salvage::lives::{Leaf, in_use};
use super::salvage::scan::{Scanned, scan};
use super::view::extent_map::ExtentMap;
use super::view::{Gens, SetView};
use bcache_format::{Bkey, BucketNr, Geometry, Pos, Ptr};
use std::collections::HashSet;

/// What a scan of the whole cache found.
pub struct Evidence {
    scanned: Scanned,
    lost: Vec<(Pos, Pos)>,
}

impl Evidence {
    /// Scans the cache for what it has of `lost` ranges.
    #[must_use]
    pub fn gather(view: &SetView, lost: Vec<(Pos, Pos)>, progress: &mut dyn FnMut(u64, u64)) -> Self {
        Self { scanned: scan(&view.cache, &lost, progress), lost }
    }
    /// Leaves that were found.
    #[must_use]
    pub const fn leaves(&self) -> usize {
        self.scanned.all_leaves
    }

    /// Puts into the view what it has none of: generations and the uuid table.
    pub fn complete(&self, view: &mut SetView) {
        let (seq, entries) = &self.scanned.prios;
        if view.journal.newest().is_none() && !entries.is_empty() {
            view.prios.entries.clone_from(entries);
            view.prios.buckets = vec![(BucketNr(0), *seq)];
            let gens = entries.iter().map(|entry| entry.generation).collect();
            let mut gens = Gens::new(view.cache.geometry, gens);
            view.raise_by_journal(&mut gens);
            view.gens = gens;
        }
        if view.uuids.iter().all(|entry| entry.is_free()) && !self.scanned.uuids.is_empty() {
            view.uuids.clone_from(&self.scanned.uuids);
        }
    }

    /// Puts into the view the dirty data of lost ranges that leaves have to which nothing leads.
    pub fn recover(&self, view: &mut SetView) {
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
        let live = in_use(&leaves);
        let used: Vec<&Leaf> = leaves
            .into_iter()
            .zip(live)
            .filter(|(leaf, live)| *live && !reached.contains(&leaf.bucket))
            .map(|(leaf, _)| leaf)
            .collect();
        let mut map = ExtentMap::default();
        for leaf in used {
            let range = self.scanned.ranges.get(&(leaf.bucket, leaf.generation)).copied();
            let (from, to) = range.unwrap_or(leaf.hull);
            let parts = lost.iter().map(|part| (part.0.max(from), part.1.min(to))).filter(|(a, b)| a < b);
            let mut any = false;
            for part in parts {
                any = true;
                cut(&leaf.keys, part).for_each(|key| map.insert(key));
                if leaf.whole {
                    view.sure.ranges.push(part);
                }
            }
            if any {
                view.used_leaves += usize::from(view.nodes.insert(leaf.bucket));
                leaf.keys
                    .iter()
                    .flat_map(|key| key.ptrs())
                    .chain([&own(leaf)])
                    .for_each(|ptr| gens.raise(*ptr));
            }
        }
        // What the leaves that can be reached still have is newer.
        let partial: Vec<_> = view
            .leaves
            .iter()
            .filter(|at| lost.iter().any(|(from, to)| at.lower < *to && *from < at.key.pos()))
            .filter_map(|at| bucket(&geometry, &at.key))
            .collect();
        for leaf in self.scanned.leaves.iter().filter(|leaf| partial.contains(&leaf.bucket)) {
            leaf.keys.iter().for_each(|key| map.insert(*key));
        }
        let keep = |key: &Bkey| {
            let live = key.ptr().is_some_and(Ptr::is_device) && gens.stale_key(key) == 0;
            key.dirty() && live && geometry.ptr_problem(key).is_none()
        };
        let found: Vec<Bkey> = map.into_keys().into_iter().filter(keep).collect();
        view.gens = gens;
        view.lay_below_journal(found);
    }
}

/// The parts of extents that are in a range.
fn cut(keys: &[Bkey], (from, to): (Pos, Pos)) -> impl Iterator<Item = Bkey> + '_ {
    let first = keys.partition_point(|key| key.pos() <= from);
    let inside = keys.get(first..).unwrap_or_default().iter().take_while(move |key| key.start_pos() < to);
    inside.filter_map(move |key| {
        let mut key = *key;
        (key.cut_front(from) && key.cut_back(to)).then_some(key)
    })
}

fn bucket(geometry: &Geometry, key: &Bkey) -> Option<BucketNr> {
    key.ptr().filter(|ptr| ptr.is_device()).map(|ptr| geometry.ptr_bucket(ptr))
}
