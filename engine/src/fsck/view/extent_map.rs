//! Extents in memory, newest wins: for the journal's keys.

use bcache_format::{Bkey, Pos};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Extents that do not overlap, sorted by where they end.
#[derive(Clone, Debug, Default)]
pub struct SeenMap {
    extents: BTreeMap<Pos, Bkey>,
}

impl SeenMap {
    /// Adds an extent; what it overlaps is cut. One without size changes nothing.
    pub fn insert(&mut self, key: Bkey) {
        if key.size() == 0 {
            return;
        }
        let (start, end) = (key.start_pos(), key.pos());
        loop {
            let behind_start = (Bound::Excluded(start), Bound::Unbounded);
            let Some((&old_end, &old)) = self.extents.range(behind_start).next() else { break };
            if old.start_pos() >= end {
                break;
            }
            self.extents.remove(&old_end);
            let mut front = old;
            if front.cut_back(start) {
                self.extents.insert(front.pos(), front);
            }
            let mut back = old;
            if back.cut_front(end) {
                self.extents.insert(back.pos(), back);
                break;
            }
        }
        self.extents.insert(end, key);
    }
    /// Extents that end behind `from`, in order.
    pub fn from(&self, from: Pos) -> impl Iterator<Item = Bkey> + '_ {
        self.extents.range((Bound::Excluded(from), Bound::Unbounded)).map(|(_, key)| *key)
    }
    /// Extents that are at least in part between two positions, in order.
    pub fn between(&self, from: Pos, to: Pos) -> impl Iterator<Item = Bkey> + '_ {
        self.from(from).take_while(move |key| key.start_pos() < to)
    }
    /// Whether there is any between two positions.
    #[must_use]
    pub fn overlaps(&self, from: Pos, to: Pos) -> bool {
        self.between(from, to).next().is_some()
    }
    /// All extents, in order.
    #[must_use]
    pub fn into_keys(self) -> Vec<Bkey> {
        self.extents.into_values().collect()
    }
    /// Number of extents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.extents.len()
    }
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }
}
