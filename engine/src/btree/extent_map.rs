//! Extents of a leaf in memory: sorted, never overlapping.
//!
//! On disk a node is a log of bsets in which newer keys cut older ones. In memory the log is folded as it is read and
//! as keys are inserted, so a lookup is one search in one place. The extents stand in runs of at most [`RUN_MAX`]; where
//! a run ends stands beside the pointer to it, and groups of runs have an index. An insert moves no more than one run.
//!
//! Each of the three steps of a search counts all of a short piece of memory instead of halving it. What is searched is
//! seldom in the processor's cache: the loads of a count are all under way at once, those of a bisection wait for each
//! other.

use super::extent::Extent;
use bcache_format::bkey::Pos;
use std::ops::Deref;

/// Extents in a run: 768 bytes to search or to move.
const RUN_MAX: usize = 32;
/// Runs that one entry of the index stands for.
const GROUP: usize = 8;
/// A run that shrank below this is joined with its neighbour when both fit.
const RUN_MIN: usize = RUN_MAX / 4;

/// Up to [`RUN_MAX`] extents, with what a search asks of them: where the last one ends, and where they are.
#[derive(Clone)]
struct Run {
    inode: u32,
    len: u32,
    end: u64,
    extents: Box<[Extent; RUN_MAX]>,
}

impl Run {
    fn new(extents: &[Extent]) -> Self {
        let mut run = Self { inode: 0, len: 0, end: 0, extents: Box::new([Extent::default(); RUN_MAX]) };
        run.extend(extents);
        run
    }
    const fn len(&self) -> usize {
        self.len as usize
    }
    const fn end(&self) -> Pos {
        Pos { inode: self.inode, offset: self.end }
    }
    fn set_end(&mut self) {
        if let Some(last) = self.last() {
            (self.inode, self.end) = (last.inode(), last.end().0);
        }
    }
    fn set(&mut self, index: usize, extent: Extent) {
        self.extents[index] = extent;
        self.set_end();
    }
    fn insert(&mut self, index: usize, extent: Extent) {
        let len = self.len();
        self.extents.copy_within(index..len, index + 1);
        self.len += 1;
        self.set(index, extent);
    }
    fn remove(&mut self, index: usize) -> Extent {
        let (extent, len) = (self[index], self.len());
        self.extents.copy_within(index + 1..len, index);
        self.len -= 1;
        self.set_end();
        extent
    }
    fn extend(&mut self, extents: &[Extent]) {
        self.extents[self.len as usize..][..extents.len()].copy_from_slice(extents);
        self.len += extents.len() as u32;
        self.set_end();
    }
    /// Takes the extents from `index` on out into a run of their own.
    fn split_off(&mut self, index: usize) -> Self {
        let tail = Self::new(&self[index..]);
        self.len = index as u32;
        self.set_end();
        tail
    }
}

impl Deref for Run {
    type Target = [Extent];
    fn deref(&self) -> &[Extent] {
        &self.extents[..self.len as usize]
    }
}

/// Sorted extents that do not overlap.
#[derive(Clone, Default)]
pub struct ExtentMap {
    /// End of the last run of each [`GROUP`] of runs.
    tops: Vec<Pos>,
    runs: Vec<Run>,
    len: usize,
    words: usize,
}

/// Where an extent stands.
#[derive(Clone, Copy, PartialEq, Eq)]
struct At {
    run: usize,
    index: usize,
}

impl ExtentMap {
    /// A map without extents.
    #[must_use]
    pub const fn new() -> Self {
        Self { tops: Vec::new(), runs: Vec::new(), len: 0, words: 0 }
    }
    /// Number of extents.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Words that the extents' keys take on disk.
    #[must_use]
    pub const fn words(&self) -> usize {
        self.words
    }
    /// Bytes of memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.runs.capacity() * size_of::<Run>()
            + self.runs.len() * size_of::<[Extent; RUN_MAX]>()
            + self.tops.capacity() * size_of::<Pos>()
    }
    /// The first extent that ends behind `pos`.
    #[must_use]
    pub fn first_after(&self, pos: Pos) -> Option<&Extent> {
        self.get(self.seek(pos))
    }
    /// The extents that end behind `pos`, in order.
    pub fn iter_from(&self, pos: Pos) -> impl Iterator<Item = &Extent> {
        let at = self.seek(pos);
        let first = self.runs.get(at.run).map_or(&[][..], |run| &run[at.index..]);
        first.iter().chain(self.runs.iter().skip(at.run + 1).flat_map(|run| run.iter()))
    }
    /// All extents.
    pub fn iter(&self) -> impl Iterator<Item = &Extent> {
        self.runs.iter().flat_map(|run| run.iter())
    }
    /// Appends an extent that starts at or behind the end of the last.
    pub fn push(&mut self, extent: Extent) {
        debug_assert!(self.runs.last().is_none_or(|run| run.end() <= extent.start_pos()));
        match self.runs.last_mut().filter(|run| run.len() < RUN_MAX) {
            Some(run) => {
                run.extend(&[extent]);
                self.fix_top(self.runs.len() - 1);
            }
            None => {
                self.runs.push(Run::new(&[extent]));
                self.index_from(self.runs.len() - 1);
            }
        }
        self.len += 1;
        self.words += extent.words();
    }
    /// Lays `new` over what is there: what it covers is cut away and handed to `replaced` piece by piece. A hole only
    /// cuts, unless `keep_holes`. The new extent joins its neighbours where `bucket_sectors` allows it.
    pub fn overlay(
        &mut self,
        new: Extent,
        keep_holes: bool,
        bucket_sectors: u64,
        mut replaced: impl FnMut(Extent),
    ) {
        let mut at = self.seek(new.start_pos());
        while let Some(&old) = self.get(at).filter(|old| old.start_pos() < new.pos()) {
            replaced(old.part(new.start(), new.end()));
            let before = (old.start() < new.start()).then(|| old.part(old.start(), new.start()));
            let behind = (old.end() > new.end()).then(|| old.part(new.end(), old.end()));
            match (before, behind) {
                (Some(before), Some(behind)) => {
                    self.set(at, before);
                    at = self.insert(At { index: at.index + 1, ..at }, behind);
                    break;
                }
                (Some(before), None) => {
                    self.set(at, before);
                    at.index += 1;
                    at = self.normal(at);
                }
                (None, Some(behind)) => {
                    self.set(at, behind);
                    break;
                }
                (None, None) => at = self.remove(at),
            }
        }
        if !new.is_hole() || keep_holes {
            self.insert_joining(at, new, bucket_sectors);
        }
    }
    /// Puts `new` in front of `at`, where nothing overlaps it, as one with its neighbours if it can be.
    fn insert_joining(&mut self, at: At, mut new: Extent, bucket_sectors: u64) {
        let mut at = at;
        if let Some(joined) = self.get(at).and_then(|next| new.joined(next, bucket_sectors)) {
            new = joined;
            at = self.remove(at);
        }
        let previous = self.before(at);
        if let Some((place, joined)) =
            previous.and_then(|(place, extent)| Some((place, extent.joined(&new, bucket_sectors)?)))
        {
            self.set(place, joined);
        } else {
            self.insert(at, new);
        }
    }
    /// Where the first extent that ends behind `pos` stands, or the end.
    fn seek(&self, pos: Pos) -> At {
        let group = (count(&self.tops, |top| *top <= pos) * GROUP).min(self.runs.len());
        let runs = &self.runs[group..];
        let run = group + count(runs.get(..GROUP).unwrap_or(runs), |run| run.end() <= pos);
        let index = self.runs.get(run).map_or(0, |run| count(run, |extent| extent.pos() <= pos));
        At { run, index }
    }
    /// Makes the index anew for the runs from `run` on.
    fn index_from(&mut self, run: usize) {
        let group = run / GROUP;
        self.tops.truncate(group);
        let groups = self.runs.chunks(GROUP).skip(group);
        self.tops.extend(groups.filter_map(|runs| runs.last().map(Run::end)));
    }
    fn get(&self, at: At) -> Option<&Extent> {
        self.runs.get(at.run)?.get(at.index)
    }
    fn before(&self, at: At) -> Option<(At, Extent)> {
        let place = if at.index > 0 {
            At { index: at.index - 1, ..at }
        } else {
            let run = at.run.checked_sub(1)?;
            At { run, index: self.runs.get(run)?.len().checked_sub(1)? }
        };
        Some((place, *self.get(place)?))
    }
    /// The same place as the start of the next run when it is the end of one.
    fn normal(&self, at: At) -> At {
        match self.runs.get(at.run) {
            Some(run) if at.index >= run.len() => At { run: at.run + 1, index: 0 },
            _ => at,
        }
    }
    fn set(&mut self, at: At, extent: Extent) {
        self.words = self.words + extent.words() - self.runs[at.run][at.index].words();
        self.runs[at.run].set(at.index, extent);
        self.fix_top(at.run);
    }
    /// Makes the index right where the end of a run may have changed.
    fn fix_top(&mut self, run: usize) {
        if run + 1 == self.runs.len() || (run + 1).is_multiple_of(GROUP) {
            self.tops[run / GROUP] = self.runs[run].end();
        }
    }
    /// Inserts in front of `at` and says where the extent now stands.
    fn insert(&mut self, at: At, extent: Extent) -> At {
        let mut at = at;
        // The end of a run rather than the start of the next: appending moves nothing.
        if (at.run == self.runs.len() || at.index == 0) && at.run > 0 {
            at = At { run: at.run - 1, index: self.runs[at.run - 1].len() };
        }
        if self.runs.is_empty() {
            self.push(extent);
            return At { run: 0, index: 0 };
        }
        if self.runs[at.run].len() >= RUN_MAX {
            let half = self.split_point(at);
            let tail = self.runs[at.run].split_off(half);
            self.runs.insert(at.run + 1, tail);
            if at.index > half || half == RUN_MAX {
                at = At { run: at.run + 1, index: at.index - half };
            }
            self.runs[at.run].insert(at.index, extent);
            self.index_from(at.run.saturating_sub(1));
        } else {
            self.runs[at.run].insert(at.index, extent);
            self.fix_top(at.run);
        }
        self.len += 1;
        self.words += extent.words();
        at
    }
    /// Ascending inserts fill their runs; others halve them.
    fn split_point(&self, at: At) -> usize {
        if at.index == RUN_MAX && at.run + 1 == self.runs.len() { RUN_MAX } else { RUN_MAX / 2 }
    }
    /// Removes and says where what followed now stands.
    fn remove(&mut self, at: At) -> At {
        let extent = self.runs[at.run].remove(at.index);
        self.len -= 1;
        self.words -= extent.words();
        if self.runs[at.run].is_empty() {
            self.runs.remove(at.run);
            self.index_from(at.run);
            return At { run: at.run, index: 0 };
        }
        self.fix_top(at.run);
        let at = self.join_small(at);
        self.normal(at)
    }
    fn join_small(&mut self, at: At) -> At {
        let len = self.runs[at.run].len();
        if len >= RUN_MIN || at.run + 1 >= self.runs.len() {
            return at;
        }
        if len + self.runs[at.run + 1].len() > RUN_MAX {
            return at;
        }
        let next = self.runs.remove(at.run + 1);
        self.runs[at.run].extend(&next);
        self.index_from(at.run);
        at
    }
}

/// How many of a sorted list come before the place that is looked for. Without a branch: see the top of the file.
fn count<T>(sorted: &[T], before: impl Fn(&T) -> bool) -> usize {
    sorted.iter().map(|item| usize::from(before(item))).sum()
}

impl FromIterator<Extent> for ExtentMap {
    /// From extents in order that do not overlap.
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut map = Self::new();
        for extent in extents {
            map.push(extent);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bcache_format::bkey::Ptr;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const BUCKET: u64 = 64;

    /// What each sector is mapped to.
    type Model = BTreeMap<(u32, u64), (u64, bool)>;

    /// The index says what the runs say, and no run is empty.
    fn check_index(map: &ExtentMap) {
        let tops: Vec<Pos> = map.runs.chunks(GROUP).map(|runs| runs.last().unwrap().end()).collect();
        assert_eq!(map.tops, tops);
        assert!(map.runs.iter().all(|run| run.last().is_some_and(|last| last.pos() == run.end())));
    }

    fn model_of(map: &ExtentMap) -> Model {
        check_index(map);
        let mut model = Model::new();
        let mut last = Pos::ZERO;
        for extent in map.iter() {
            assert!(extent.start_pos() >= last, "sorted, without overlaps");
            last = extent.pos();
            for sector in extent.start().0..extent.end().0 {
                let place = extent.ptr().offset() + sector - extent.start().0;
                model.insert((extent.inode(), sector), (place, extent.dirty()));
            }
        }
        model
    }

    proptest! {
        #[test]
        fn overlaying_is_what_it_says(
            ops in proptest::collection::vec((0..2u32, 0..400u64, 1..40u64, 0..30u64, any::<bool>(), 0..4), 1..600)
        ) {
            let mut map = ExtentMap::new();
            let mut model = Model::new();
            for (inode, start, size, bucket, dirty, kind) in ops {
                let ptr = Ptr::new(0, bucket * BUCKET + start % 16, 0);
                let new = match kind {
                    0 => Extent::hole(inode, start + size, size),
                    _ => Extent::new(inode, start + size, size, ptr, dirty),
                };
                let mut cut = Model::new();
                map.overlay(new, false, BUCKET, |old| {
                    for sector in old.start().0..old.end().0 {
                        let place = old.ptr().offset() + sector - old.start().0;
                        cut.insert((old.inode(), sector), (place, old.dirty()));
                    }
                });
                let mut expected_cut = Model::new();
                for sector in start..start + size {
                    if let Some(value) = model.remove(&(inode, sector)) {
                        expected_cut.insert((inode, sector), value);
                    }
                    if kind != 0 {
                        model.insert((inode, sector), (ptr.offset() + sector - start, dirty));
                    }
                }
                prop_assert_eq!(cut, expected_cut);
                prop_assert_eq!(map.len(), map.iter().count());
                prop_assert_eq!(map.words(), map.iter().map(Extent::words).sum::<usize>());
            }
            prop_assert_eq!(&model_of(&map), &model);
            for pos in (0..450).map(|offset| Pos::new(1, offset)) {
                let found = map.first_after(pos).copied();
                prop_assert_eq!(found, map.iter().find(|extent| extent.pos() > pos).copied());
                prop_assert_eq!(map.iter_from(pos).count(), map.iter().filter(|extent| extent.pos() > pos).count());
            }
        }
    }

    #[test]
    fn many_extents_in_any_order() {
        for order in [0u64, 1, 2] {
            let mut map = ExtentMap::new();
            for i in 0..5000u64 {
                let i = match order {
                    0 => i,
                    1 => 4999 - i,
                    _ => i * 2_654_435_761 % 5000,
                };
                let ptr = Ptr::new(0, (i * 7919) % 100_000 * BUCKET, 0);
                map.overlay(Extent::new(1, i * 8 + 8, 8, ptr, true), false, BUCKET, |_| ());
            }
            assert!(map.iter().count() >= 1000);
            assert!(map.iter().zip(map.iter().skip(1)).all(|(a, b)| a.pos() <= b.start_pos()));
            let full: usize = map.runs.iter().map(Run::len).sum();
            assert_eq!(full, map.len());
            check_index(&map);
            assert!(map.bytes() <= map.len() * 64, "{} bytes for {}", map.bytes(), map.len());
        }
    }

    #[test]
    fn extents_join_within_a_bucket_and_no_further() {
        let mut map = ExtentMap::new();
        for i in 0..16u64 {
            map.overlay(
                Extent::new(1, i * 8 + 8, 8, Ptr::new(0, 640 + i * 8, 3), true),
                false,
                BUCKET,
                |_| (),
            );
        }
        assert_eq!(map.len(), 2, "two buckets, two extents");
        map.overlay(Extent::new(1, 8, 8, Ptr::new(0, 640, 3), false), false, BUCKET, |_| ());
        assert_eq!(map.len(), 3, "clean and dirty do not join");
    }

    #[test]
    fn holes_stay_where_they_are_wanted() {
        let mut map = ExtentMap::new();
        map.overlay(Extent::new(1, 100, 100, Ptr::new(0, 64, 0), true), true, 1024, |_| ());
        map.overlay(Extent::hole(1, 60, 20), true, 1024, |_| ());
        assert_eq!(map.len(), 3);
        assert_eq!(map.words(), 8);
    }
}
