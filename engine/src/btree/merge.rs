//! Laying the bsets of a leaf over each other as it is read.
//!
//! A leaf on disk is a log of bsets, each sorted, in which newer keys cut older ones. All are merged at once: a cursor for
//! each bset, and a tree of losers that knows which of them comes next, so that every key is looked at once and every
//! extent that is left comes out in order. What was started and does not end yet lies in a pile, the newest on top.
//!
//! A node has as many bsets as blocks at most, which is more than should lie on a stack. So the cursors come from a pool, as
//! the kernel's do. It holds one set of them, large enough for any node, from the start of the cache set on; a read takes
//! those, or, where another read has them, asks for memory for as many as it has bsets, or, where there is none, waits for
//! the other. [`Merge`] gives back what it took when it is dropped, on every path: no read fails for want of cursors.

use super::extent::Extent;
use crate::sync::WaitQueue;
use bcache_format::bkey::{Bkey, KEY_PTRS_MAX};
use bcache_format::bset::{Bset, HEADER_BYTES, Keys};
use bcache_format::{Pos, Structure};
use std::cell::RefCell;

/// How far a bset has been read.
struct Cursor {
    /// What comes next of it.
    extent: Extent,
    /// Byte of the key behind that, from the first key on.
    next: u32,
}

/// Where the next extent of a bset starts.
#[derive(Clone, Copy)]
struct Start {
    /// The position in one number, from 1 on; [`END`] behind the last extent.
    at: u128,
    /// Number of the bset: the higher, the newer.
    set: u32,
}

/// What a bset without further extents starts at.
const END: u128 = u128::MAX;

impl Start {
    fn new(extent: &Extent, set: u32) -> Self {
        let pos = extent.start_pos();
        Self { at: (u128::from(pos.inode) << 64 | u128::from(pos.offset)) + 1, set }
    }
}

/// An extent that was started.
struct Started {
    /// What may be left of it.
    extent: Extent,
    set: u32,
}

/// Room to merge in. Each part has room for as many bsets as the others.
#[derive(Default)]
struct Cursors {
    /// One for each bset.
    cursors: Vec<Cursor>,
    /// In front what starts first of all; at `n` what lost between the bsets below `2 * n` and `2 * n + 1`.
    losers: Vec<Start>,
    /// The newest on top. Each ends behind those above it, and all go beyond what was started last.
    pile: Vec<Started>,
}

impl Cursors {
    fn try_reserve(&mut self, sets: usize) -> Option<()> {
        self.cursors.try_reserve_exact(sets).ok()?;
        self.losers.try_reserve_exact(sets).ok()?;
        self.pile.try_reserve_exact(sets).ok()
    }
    fn clear(&mut self) {
        self.cursors.clear();
        self.losers.clear();
        self.pile.clear();
    }
}

/// Where cursors come from.
pub(super) struct MergePool {
    reserve: RefCell<Option<Cursors>>,
    returned: WaitQueue,
    /// No memory is to be had but the reserve.
    #[cfg(test)]
    starved: std::cell::Cell<bool>,
}

impl MergePool {
    /// A pool whose reserve is enough for `sets` bsets, as many as a node can have.
    pub(super) fn new(sets: usize) -> Self {
        let reserve = Cursors {
            cursors: Vec::with_capacity(sets),
            losers: Vec::with_capacity(sets),
            pile: Vec::with_capacity(sets),
        };
        Self {
            reserve: RefCell::new(Some(reserve)),
            returned: WaitQueue::new(),
            #[cfg(test)]
            starved: std::cell::Cell::new(false),
        }
    }

    /// Cursors for `sets` bsets.
    pub(super) async fn take(&self, sets: usize) -> Merge<'_> {
        let take = || {
            let reserve = self.reserve.borrow_mut().take_if(|reserve| reserve.cursors.capacity() >= sets);
            let is_reserve = reserve.is_some();
            let inner = reserve.or_else(|| self.allocate(sets))?;
            Some(Merge { pool: self, inner, is_reserve })
        };
        self.returned.wait_for(take).await
    }

    fn allocate(&self, sets: usize) -> Option<Cursors> {
        #[cfg(test)]
        if self.starved.get() {
            return None;
        }
        let mut cursors = Cursors::default();
        cursors.try_reserve(sets)?;
        Some(cursors)
    }

    #[cfg(test)]
    pub(super) fn starve(&self) {
        self.starved.set(true);
    }

    /// Whether the reserve is there.
    pub(super) fn is_whole(&self) -> bool {
        self.reserve.borrow().is_some()
    }
}

/// Cursors that were taken from a pool, to which they go back when this is dropped.
pub(super) struct Merge<'a> {
    pool: &'a MergePool,
    inner: Cursors,
    is_reserve: bool,
}

impl Drop for Merge<'_> {
    fn drop(&mut self) {
        if self.is_reserve {
            self.inner.clear();
            *self.pool.reserve.borrow_mut() = Some(std::mem::take(&mut self.inner));
            self.pool.returned.wake_one();
        }
    }
}

/// The bsets of a leaf, oldest first, each with its byte, and where the leaf ends.
pub(super) struct Sets<'a> {
    /// The bsets.
    pub sets: &'a [(u64, Bset<'a>)],
    /// No key may end behind this.
    pub max: Pos,
    /// A hole was among their keys.
    pub has_holes: bool,
}

impl Sets<'_> {
    /// The extent of the first key from byte `next` of a bset on that says something, which may not start before `last`,
    /// and the byte behind that key.
    fn extent(&mut self, set: u32, mut next: u32, last: Pos) -> Result<Option<(Extent, u32)>, String> {
        let Some((byte, bset)) = self.sets.get(set as usize) else { return Ok(None) };
        loop {
            let rest = bset.key_bytes().get(next as usize..).unwrap_or_default();
            let Some(key) = key(rest, next).map_err(|error| error.at(*byte).to_string())? else {
                return Ok(None);
            };
            next += key.u64s() as u32 * 8;
            if key.size() == 0 {
                continue;
            }
            let Some(extent) = Extent::from_key(&key) else {
                return Err(format!("bset at byte {byte}: key {key} starts before the first sector"));
            };
            if extent.start_pos() < last || extent.pos() > self.max {
                return Err(format!("bset at byte {byte}: key {key} is out of order"));
            }
            self.has_holes |= extent.is_hole();
            return Ok(Some((extent, next)));
        }
    }
}

/// The key in front of `rest`, which is at byte `at` of a bset's keys.
fn key(rest: &[u8], at: u32) -> Result<Option<Bkey>, bcache_format::Error> {
    const { assert!(KEY_PTRS_MAX > 1) };
    if let Some(front) = rest.first_chunk::<24>() {
        let (key, _) = Bkey::with_one_ptr(front);
        if key.n_ptrs() == 1 {
            return Ok(Some(key));
        }
    }
    Keys::new(rest, HEADER_BYTES as u64 + u64::from(at), Structure::Bset).next().transpose()
}

impl Merge<'_> {
    /// Hands what the bsets say together to `each`, holes included: in order, without overlaps, newer over older.
    ///
    /// # Errors
    /// A bset's keys overlap, are not in order, go beyond the leaf or do not fit; or `each` says no.
    pub(super) fn run(
        &mut self,
        sets: &mut Sets<'_>,
        mut each: impl FnMut(Extent) -> Result<(), String>,
    ) -> Result<(), String> {
        if sets.sets.len() == 1 {
            // Nothing to merge, as in each leaf that was written anew.
            let (mut next, mut last) = (0, Pos::ZERO);
            while let Some((extent, behind)) = sets.extent(0, next, last)? {
                (next, last) = (behind, extent.pos());
                each(extent)?;
            }
            return Ok(());
        }
        self.inner.begin(sets)?;
        while let Some(&Start { set, .. }) = self.inner.losers.first().filter(|first| first.at != END) {
            let extent = self.inner.advance(set, sets)?;
            self.inner.start(extent, set, &mut each)?;
        }
        self.inner.settle(Pos::MAX, &mut each)
    }
}

impl Cursors {
    /// A cursor for each bset, and which of them comes first.
    fn begin(&mut self, sets: &mut Sets<'_>) -> Result<(), String> {
        let count = sets.sets.len() as u32;
        // Everything wins against what comes before all, so that none of it is left when all have played.
        self.losers.resize(count as usize, Start { at: 0, set: 0 });
        for set in 0..count {
            let first = sets.extent(set, 0, Pos::ZERO)?;
            let (extent, next) = first.unwrap_or_default();
            self.cursors.push(Cursor { extent, next });
        }
        for set in (0..count).rev() {
            let extent = &self.cursors[set as usize].extent;
            let start = Start::new(extent, set);
            self.replay(if extent.size().0 == 0 { Start { at: END, set } } else { start });
        }
        Ok(())
    }

    /// The next extent of a bset, behind which its cursor goes on.
    fn advance(&mut self, set: u32, sets: &mut Sets<'_>) -> Result<Extent, String> {
        let cursor = &mut self.cursors[set as usize];
        let extent = cursor.extent;
        let start = match sets.extent(set, cursor.next, extent.pos())? {
            Some((next, byte)) => {
                *cursor = Cursor { extent: next, next: byte };
                Start::new(&next, set)
            }
            None => Start { at: END, set },
        };
        self.replay(start);
        Ok(extent)
    }

    /// A bset starts elsewhere: plays against all that it can meet on the way to the front.
    fn replay(&mut self, mut start: Start) {
        let mut at = (start.set as usize + self.losers.len()) / 2;
        while at > 0 {
            let loser = &mut self.losers[at];
            // Without a branch: who wins cannot be foretold.
            let (winner, lost) = if loser.at < start.at { (*loser, start) } else { (start, *loser) };
            (*loser, start) = (lost, winner);
            at /= 2;
        }
        if let Some(first) = self.losers.first_mut() {
            *first = start;
        }
    }

    /// Puts an extent on the pile, where it belongs by age. All that comes later starts where it does or behind that.
    fn start(
        &mut self,
        extent: Extent,
        set: u32,
        each: &mut impl FnMut(Extent) -> Result<(), String>,
    ) -> Result<(), String> {
        self.settle(extent.start_pos(), each)?;
        let mut place = self.pile.len();
        while let Some(newer) = self.pile[..place].last().filter(|other| other.set > set) {
            if newer.extent.end() >= extent.end() {
                return Ok(());
            }
            place -= 1;
        }
        if place == self.pile.len()
            && let Some(top) = self.pile.last_mut().filter(|top| top.extent.start() < extent.start())
        {
            each(top.extent.part(top.extent.start(), extent.start()))?;
            top.extent = top.extent.part(extent.start(), top.extent.end());
        }
        let hidden = self.pile[..place].iter().rev().take_while(|older| older.extent.end() <= extent.end());
        let first_hidden = place - hidden.count();
        self.pile.drain(first_hidden..place);
        self.pile.insert(first_hidden, Started { extent, set });
        Ok(())
    }

    /// Hands out what ends at `pos` or before: nothing can cut it any more.
    fn settle(
        &mut self,
        pos: Pos,
        each: &mut impl FnMut(Extent) -> Result<(), String>,
    ) -> Result<(), String> {
        while let Some(Started { extent, .. }) = self.pile.pop_if(|top| top.extent.pos() <= pos) {
            each(extent)?;
            if let Some(below) = self.pile.last_mut() {
                below.extent = below.extent.part(extent.end(), below.extent.end());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
