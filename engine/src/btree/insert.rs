//! Inserting extents.

use super::extent::Extent;
use super::extent_map::ExtentMap;
use super::misses::MissId;
use super::node::{Body, Node};
use crate::error::Result;
use crate::set::CacheSet;
use bcache_format::Seq;
use bcache_format::bkey::KEY_SIZE_MAX;
use bcache_format::{Pos, SECTOR_SIZE};
use bcache_format::{Sector, Sectors, Span};
use std::collections::VecDeque;
use std::rc::Rc;

/// Words a bset may gather before it is written: a page, less what allocators keep of it in the kernel, whose leaves
/// are written at the same size.
const LEAF_WRITE_BYTES: u64 = 4096 - 48;
/// Words one extent can add to a bset: itself, and the halves of one that it splits.
const WORDS_PER_INSERT: usize = 9;

/// How a key survives until its leaf is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It is added to the journal.
    Journal,
    /// The same, and it is not added at all if a flush of the backing device has failed since so many had: it says clean,
    /// and what is below may be older.
    JournalUnlessDoubtful(u64),
    /// It is in this journal entry already: replay.
    Replayed(Seq),
    /// It need not: what it replaces is as good until GC frees the bucket, and GC writes the leaves first.
    Unjournaled,
    /// The same, and only as long as nothing else was inserted where this cache miss was seen.
    Miss(MissId),
}

impl CacheSet {
    /// Says that sectors of an inode are where `extent` says, or nowhere if it is a hole. What was known of them before
    /// is forgotten. Journal entry and leaf change together: no other key comes in between.
    pub(crate) async fn insert(self: &Rc<Self>, extent: Extent, durability: Durability) -> Result<()> {
        let mut rest = Some(extent);
        while let Some(extent) = rest {
            let mut later = None;
            let mut apply = |leaf: &Rc<Node>| {
                if let Durability::Miss(miss) = durability
                    && !self.misses.holds(miss)
                {
                    return;
                }
                if let Durability::JournalUnlessDoubtful(failures) = durability
                    && self.flush_failures(extent.inode()) != failures
                {
                    return;
                }
                let (now, behind) = cut_at(extent, leaf.max);
                later = behind;
                self.insert_in_leaf(leaf, now, durability);
            };
            self.with_leaf(extent.start_pos(), extent.is_hole(), &mut apply).await?;
            rest = later;
        }
        if matches!(durability, Durability::Journal | Durability::JournalUnlessDoubtful(_)) {
            self.journal_soon();
        }
        Ok(())
    }

    /// Inserts the keys of journal entry `seq`, whose order is that of the journal.
    ///
    /// They are laid over each other first, so that each leaf gets all that it has room for at once: a leaf that must be
    /// written anew for them needs a bucket, buckets need room in the journal, and the journal may be full of what is being
    /// replayed.
    pub(crate) async fn insert_replayed(self: &Rc<Self>, extents: &[Extent], seq: Seq) -> Result<()> {
        let mut rest: VecDeque<Extent> = self.laid_over_each_other(extents).iter().copied().collect();
        while let Some(first) = rest.front() {
            let at = first.start_pos();
            self.with_leaf(at, true, &mut |leaf| self.replay_in_leaf(leaf, &mut rest, seq)).await?;
        }
        Ok(())
    }

    /// Inserts keys that a process before this one added to the journal, in that order, and did not write: into entries of
    /// its own. What it needs comes first, as for keys that are replayed.
    pub(crate) async fn insert_behind(self: &Rc<Self>, extents: &[Extent]) -> Result<()> {
        let mut rest: VecDeque<Extent> = self.laid_over_each_other(extents).iter().copied().collect();
        while let Some(first) = rest.front() {
            let at = first.start_pos();
            self.journal_admission().await?;
            let mut apply = |leaf: &Rc<Node>| {
                let Some(extent) = rest.pop_front() else { return };
                let (now, behind) = cut_at(extent, leaf.max);
                self.insert_in_leaf(leaf, now, Durability::Journal);
                behind.into_iter().for_each(|behind| rest.push_front(behind));
            };
            self.with_leaf(at, true, &mut apply).await?;
        }
        Ok(())
    }

    /// What keys of the journal say together. A clean key says that both devices have the same. The journal is durable before
    /// the backing device is flushed, so after a crash that may not be so: read from below again. What was dirty and whose
    /// bucket has moved on was written back, or written anew, before the crash.
    fn laid_over_each_other(&self, extents: &[Extent]) -> ExtentMap {
        let bucket_sectors = u64::from(self.cache.geometry.bucket_sectors);
        let mut all = ExtentMap::new();
        for extent in extents {
            let clean = !self.counts_as_dirty(extent);
            let extent = if clean { Extent::hole_of(extent.span()) } else { *extent };
            all.overlay(extent, true, bucket_sectors, |_| ());
        }
        all
    }

    /// As many of `rest` as belong to `leaf` and as it may take at once.
    fn replay_in_leaf(self: &Rc<Self>, leaf: &Rc<Node>, rest: &mut VecDeque<Extent>, seq: Seq) {
        // One that is frozen is being written anew, and gets no more than its nodes to be have room for.
        let mut inserts =
            if leaf.is_frozen() { self.node_words() / 2 / WORDS_PER_INSERT } else { usize::MAX };
        while let Some(extent) = rest.front().copied().filter(|extent| extent.start_pos() < leaf.max) {
            let (now, behind) = cut_at(extent, leaf.max);
            self.insert_in_leaf(leaf, now, Durability::Replayed(seq));
            rest.pop_front();
            if let Some(behind) = behind {
                rest.push_front(behind);
            }
            inserts = inserts.saturating_sub(1);
            let room = leaf.is_frozen() || leaf.has_room(WORDS_PER_INSERT, &self.cache.geometry);
            if inserts == 0 || !room {
                return;
            }
        }
    }

    /// Compare-and-exchange: where the btree still says what `expected` says, it says `with` from now on, which covers the
    /// same sectors. Answers the sectors that were exchanged.
    pub(crate) async fn replace(self: &Rc<Self>, expected: Extent, with: Extent) -> Result<Sectors> {
        debug_assert_eq!((expected.start_pos(), expected.pos()), (with.start_pos(), with.pos()));
        let mut done = Sectors(0);
        let mut rest = Some((expected, with));
        while let Some((expected, with)) = rest {
            let mut left = None;
            let mut apply = |leaf: &Rc<Node>| {
                let (now, later) = cut_at(expected, leaf.max);
                left = later;
                let Some(found) = first_same(leaf, now) else { return };
                // One at a time: each needs room of its own in the bset.
                self.insert_in_leaf(leaf, with.part(found.start(), found.end()), Durability::Unjournaled);
                done += found.size();
                if found.end() < now.end() {
                    left = Some(expected.part(found.end(), expected.end()));
                }
            };
            self.with_leaf(expected.start_pos(), true, &mut apply).await?;
            rest = left.map(|left| (left, with.part(left.start(), left.end())));
        }
        Ok(done)
    }

    fn flush_failures(&self, inode: u32) -> u64 {
        self.devices.borrow().get(&inode).map_or(0, |device| device.flush_failures())
    }

    /// Calls `apply` once with the leaf of `pos`, with room for one insert. A leaf without room is written anew, with what
    /// `apply` does to it. What does not make room leaves some for what does.
    async fn with_leaf(
        self: &Rc<Self>,
        pos: Pos,
        makes_room: bool,
        apply: &mut dyn FnMut(&Rc<Node>),
    ) -> Result<()> {
        loop {
            self.check()?;
            let leaf = self.node_at(pos, 0).await?;
            if leaf.is_frozen() {
                leaf.wait_thawed().await;
            } else if leaf.has_room(WORDS_PER_INSERT, &self.cache.geometry) {
                apply(&leaf);
                return Ok(());
            } else if self.split(pos, WORDS_PER_INSERT, makes_room, apply).await? {
                return Ok(());
            }
        }
    }

    /// Changes one leaf, with nothing awaited: its map, what it will write, the journal and all accounts.
    fn insert_in_leaf(self: &Rc<Self>, leaf: &Rc<Node>, extent: Extent, durability: Durability) {
        let seq = match durability {
            Durability::Journal | Durability::JournalUnlessDoubtful(_) => {
                Some(self.journal.add(extent.key()))
            }
            Durability::Replayed(seq) => Some(seq),
            Durability::Unjournaled | Durability::Miss(_) => None,
        };
        let bucket_sectors = u64::from(self.cache.geometry.bucket_sectors);
        {
            let mut state = leaf.state_mut();
            let Body::Leaf { map, pending, hides_holes } = &mut state.body else { return };
            *hides_holes |= extent.is_hole();
            let top = top_of_split(map, extent, leaf.max, *hides_holes);
            let mut dirty = 0i64;
            let mut cut =
                |old: Extent| dirty -= if self.counts_as_dirty(&old) { old.size().0 as i64 } else { 0 };
            map.overlay(extent, false, bucket_sectors, &mut cut);
            pending.overlay(extent, true, bucket_sectors, |_| ());
            if let Some(top) = top {
                pending.overlay(top, true, bucket_sectors, |_| ());
            }
            dirty += if self.counts_as_dirty(&extent) { extent.size().0 as i64 } else { 0 };
            self.account_dirty(extent.inode(), dirty);
        }
        let own = if let Durability::Miss(miss) = durability { Some(miss) } else { None };
        self.misses.invalidate(extent.span(), own);
        if !extent.dirty() && !extent.is_hole() {
            let device = self.devices.borrow().get(&extent.inode()).cloned();
            if let Some(backing) = device.as_ref().and_then(|device| device.backing()) {
                leaf.state_mut().write.needs_below(extent.inode(), backing.dev.epoch());
            }
        }
        self.leaf_dirty(leaf, seq);
    }

    /// Notes that `leaf` has keys to write, the oldest of them in journal entry `seq`, and leaves the writing to later:
    /// to the journal when it needs the room, to GC, to the flusher, or to a write of its own when the bset is large.
    fn leaf_dirty(self: &Rc<Self>, leaf: &Rc<Node>, seq: Option<Seq>) {
        let large = {
            let mut state = leaf.state_mut();
            if state.write.since == 0 {
                state.write.since = self.env.now();
            }
            state.write.epoch = self.cache.epoch();
            if let Some(seq) = seq
                && !seeded_bug!(LeafWithoutPin)
                && state.write.pin.as_ref().is_none_or(|pin| seq < pin.seq())
            {
                state.write.pin = Some(self.journal.pin(seq));
            }
            state.body.pending_words() as u64 * 8
                > LEAF_WRITE_BYTES.max(self.cache.geometry.block_bytes() - SECTOR_SIZE)
        };
        if large && !leaf.write_queued.replace(true) {
            let (set, leaf) = (Rc::clone(self), Rc::clone(leaf));
            self.env
                .spawn(async move {
                    if let Err(error) = set.node_write(&leaf).await {
                        set.fail(error);
                    }
                })
                .detach();
        }
    }
}

/// The part of an extent up to `max`, and the rest.
fn cut_at(extent: Extent, max: Pos) -> (Extent, Option<Extent>) {
    if extent.pos() <= max {
        return (extent, None);
    }
    let (start, end) = (extent.start(), extent.end());
    (extent.part(start, Sector(max.offset)), Some(extent.part(Sector(max.offset), end)))
}

/// What `new` leaves of the key behind it, if it splits one in two.
///
/// Linux folds a node's bsets into a buffer and goes on writing in it behind the blocks that the bsets took, so the keys of
/// all bsets together must be no fewer than those that are left of them. One that falls into another adds two: it, and what
/// it leaves behind. As Linux does, the latter is written, too, though it says nothing new. Holes are keys as well; where one
/// may have been split that the map does not show, one is said to be behind, which is true.
fn top_of_split(map: &ExtentMap, new: Extent, max: Pos, hides_holes: bool) -> Option<Extent> {
    let inode = new.inode();
    // The first extent that overlaps `new`, touches it, or comes after it.
    let around = map.first_after(Pos::new(inode, new.start().0.saturating_sub(1)));
    let around = around.filter(|extent| extent.inode() == inode);
    match around {
        Some(old) if old.start() < new.start() && old.end() > new.end() => {
            Some(old.part(new.end(), old.end()))
        }
        Some(old) if old.start() <= new.end() => None,
        next => {
            let leaf = Sector(if max.inode == inode { max.offset } else { u64::MAX });
            let end = next.map_or(leaf, Extent::start).min(Sector(new.end().0.saturating_add(KEY_SIZE_MAX)));
            (hides_holes && end > new.end()).then(|| Extent::hole_of(Span::new(inode, new.end(), end)))
        }
    }
}

/// The first part of `expected` that the leaf still has exactly so.
fn first_same(leaf: &Node, expected: Extent) -> Option<Extent> {
    let state = leaf.state();
    let Body::Leaf { map, .. } = &state.body else { return None };
    let within = map.iter_from(expected.start_pos()).take_while(|extent| extent.start_pos() < expected.pos());
    let mut overlapping = within.map(|extent| extent.part(expected.start(), expected.end()));
    overlapping.find(|part| *part == expected.part(part.start(), part.end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bcache_format::Ptr;

    #[test]
    fn extents_are_cut_where_their_leaf_ends() {
        let extent = Extent::new(1, 100, 20, Ptr::new(0, 640, 0), true);
        let (now, later) = cut_at(extent, Pos::new(1, 90));
        assert_eq!((now.start(), now.end(), now.ptr().offset()), (Sector(80), Sector(90), 640));
        let later = later.unwrap();
        assert_eq!((later.start(), later.end(), later.ptr().offset()), (Sector(90), Sector(100), 650));
        assert_eq!(cut_at(extent, Pos::new(1, 100)).1, None);
        assert_eq!(cut_at(extent, Pos::MAX).1, None);
    }

    /// What Linux makes of keys in the order in which they were written: how many are left.
    fn left_of(keys: &[Extent]) -> usize {
        let mut merged: Vec<Extent> = Vec::new();
        for new in keys {
            let old = std::mem::take(&mut merged);
            let overlaps = |old: &Extent| old.start() < new.end() && old.end() > new.start();
            for old in old {
                if !overlaps(&old) {
                    merged.push(old);
                    continue;
                }
                merged.extend((old.start() < new.start()).then(|| old.part(old.start(), new.start())));
                merged.extend((old.end() > new.end()).then(|| old.part(new.end(), old.end())));
            }
            merged.push(*new);
        }
        merged.len()
    }

    #[test]
    fn the_keys_of_all_bsets_are_no_fewer_than_what_is_left_of_them() {
        for seed in 0..200 {
            let mut rng = crate::env::Rng::new(seed);
            let (mut map, mut pending, mut written) = (ExtentMap::new(), ExtentMap::new(), Vec::new());
            let mut hides_holes = false;
            for at in 0..300u64 {
                let size = if rng.chance(1, 2) { rng.between(1, 8) } else { rng.between(1, 200) };
                let end = size + rng.below(1000 - size);
                let new = if rng.chance(1, 3) {
                    Extent::hole(1, end, size)
                } else {
                    Extent::new(1, end, size, Ptr::new(0, 4096 * (at + 1), 0), true)
                };
                hides_holes |= new.is_hole();
                let top = top_of_split(&map, new, Pos::new(1, 1000), hides_holes);
                map.overlay(new, false, 0, |_| ());
                pending.overlay(new, true, 0, |_| ());
                if let Some(top) = top {
                    pending.overlay(top, true, 0, |_| ());
                }
                if rng.chance(1, 4) {
                    written.extend(std::mem::take(&mut pending).iter().copied());
                    let left = left_of(&written);
                    assert!(left <= written.len(), "seed {seed}: {left} of {}", written.len());
                }
            }
        }
    }
}
