//! One btree node, read and merged.

use super::super::ranges::Ranges;
use super::devices::Cache;
use super::extent_map::SeenMap;
use super::fault::{Fault, What};
use super::overlay::{merge, merge_all};
use bcache_format::bset::Bset;
use bcache_format::node::{Broken, Node, parse};
use bcache_format::{Bkey, Pos, Ptr, SECTOR_SIZE, Structure};

/// Places of a node that keys out of order are told by; where there are more, they are told as one.
const PLACES_MAX: usize = 256;

/// Where a node is, and what its parent says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeenNode {
    /// Its key: the pointer, and the end of its range.
    pub key: Bkey,
    /// Leaves are 0.
    pub level: u16,
    /// Its range starts behind this position: the end of the sibling before it.
    pub lower: Pos,
    /// Byte of the device where the key stands, or where the structure starts that holds it.
    pub named_at: u64,
}

/// One bset of a node, as a summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetSummary {
    /// Where it starts, in bytes from the start of the node.
    pub offset: u64,
    /// Bytes of header and keys.
    pub bytes: u64,
    /// Keys in it.
    pub keys: usize,
}

/// A node's content.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// What its parent says of it.
    pub at: SeenNode,
    /// The pointer that was followed.
    pub ptr: Ptr,
    /// First byte on the device.
    pub byte: u64,
    /// Name of its life.
    pub seq: u64,
    /// The bsets that could be read, oldest first.
    pub sets: Vec<SetSummary>,
    /// Bytes of the node that are in use.
    pub written: u64,
    /// A leaf's extents, merged: in order, without overlaps, none empty. An interior node's keys of all its bsets,
    /// sorted by position, newer before older.
    pub keys: Vec<Bkey>,
    /// What is wrong with it. With any, `keys` is what is left and not the node's content.
    pub faults: Vec<Fault>,
    /// All its bsets could be read. Without, `keys` has of a leaf what counts whatever the others say: what is newer
    /// than the bad ones, and older dirty data, of which some may be out of date. Older clean data is only a copy,
    /// perhaps of what is no more, and left out.
    pub whole: bool,
    /// Its keys can be used at all: they are those of its place and level.
    pub usable: bool,
}

impl NodeView {
    /// Reads the node.
    ///
    /// # Errors
    /// A pointer that cannot be followed, or a device that cannot be read. Faults inside the node are in
    /// [`Self::faults`].
    pub fn read(cache: &Cache, at: SeenNode) -> Result<Self, Fault> {
        let ptr = place(cache, &at)?;
        let byte = ptr.offset().saturating_mul(SECTOR_SIZE);
        let len = at.key.size().saturating_mul(SECTOR_SIZE);
        let (bytes, fault) = cache.read_around(Structure::BtreeNode, byte, len)?;
        let mut view =
            Self::of(cache, at, ptr, parse(&bytes, ptr, cache.magic, cache.geometry.block_bytes()));
        if let Some(fault) = fault {
            view.unread(fault);
        }
        Ok(view)
    }

    /// Notes that a part of it could not be read, and was taken for zeros.
    pub(super) fn unread(&mut self, fault: Fault) {
        if self.whole && self.at.level == 0 {
            // Which bset was there nobody knows: all clean data is as old as the oldest.
            self.keys.retain(Bkey::dirty);
        }
        self.faults.retain(|fault| !matches!(fault.structure, Structure::Bset | Structure::BtreeNode));
        self.lose(fault);
    }

    /// The node that `parsed`, read at `ptr`, holds.
    pub(super) fn of(
        cache: &Cache,
        at: SeenNode,
        ptr: Ptr,
        parsed: Result<Node<'_>, Box<Broken<'_>>>,
    ) -> Self {
        let byte = ptr.offset().saturating_mul(SECTOR_SIZE);
        let mut view = Self {
            at,
            ptr,
            byte,
            seq: 0,
            sets: Vec::new(),
            written: 0,
            keys: Vec::new(),
            faults: Vec::new(),
            whole: true,
            usable: true,
        };
        let (node, behind) = match parsed {
            Ok(node) => (node, Vec::new()),
            Err(broken) => {
                view.lose(Fault::format(&cache.name, broken.error, byte));
                (broken.readable, broken.behind)
            }
        };
        view.written = node.written;
        let mut take = |sets: &[(u64, Bset<'_>)]| -> Vec<Vec<Bkey>> {
            sets.iter().map(|(offset, set)| view.take_set(cache, *offset, set)).collect()
        };
        let (mut sets, mut behind) = (take(&node.sets), take(&behind));
        if !view.has_level(cache, sets.iter().chain(&behind).flatten()) {
            (sets, behind) = Default::default();
        }
        if at.level == 0 {
            view.keys = merge_all(sets);
            if !view.whole {
                view.keys.retain(Bkey::dirty);
            }
            view.keys = merge(std::mem::take(&mut view.keys), merge_all(behind));
            view.check_extents(cache);
        } else {
            // Newer sets first, then a stable sort: of keys with one position the newest comes first.
            view.keys = sets.into_iter().chain(behind).rev().flatten().collect();
            view.keys.sort_by_key(Bkey::pos);
            view.check_pointers(cache);
        }
        view.check_end(cache);
        view
    }

    /// Notes a fault that makes the whole node's range unknown.
    fn lose(&mut self, fault: Fault) {
        self.whole = false;
        self.faults.push(fault.hiding(self.at.lower, self.at.key.pos()));
    }

    /// Where keys of a leaf that are out of order may belong, and where they stand: of each two one is wrong, and which of
    /// them nobody knows. It was between its neighbours.
    fn in_doubt(&self, keys: &[Bkey]) -> Vec<(Pos, Pos)> {
        let (lower, upper) = (self.at.lower, self.at.key.pos());
        let mut places = Ranges::default();
        for (index, pair) in keys.windows(2).enumerate() {
            let [before, key] = pair else { continue };
            if key.start_pos() < before.pos() {
                let left = index.checked_sub(1).and_then(|index| keys.get(index)).map_or(lower, Bkey::pos);
                let right = keys.get(index + 2).map_or(upper, Bkey::start_pos);
                for (from, to) in
                    [(left, right), (key.start_pos(), key.pos()), (before.start_pos(), before.pos())]
                {
                    places.add((from, to));
                }
            }
        }
        match (places.len() <= PLACES_MAX, places.iter().next(), places.iter().last()) {
            (false, Some((from, _)), Some((_, to))) => vec![(from, to)],
            _ => places.iter().collect(),
        }
    }

    /// The keys of one bset that can be used.
    fn take_set(&mut self, cache: &Cache, offset: u64, set: &Bset<'_>) -> Vec<Bkey> {
        self.seq = set.seq();
        let mut keys = Vec::with_capacity(set.key_bytes().len() / 24);
        let mut summary = SetSummary { offset, bytes: set.header().bytes(), keys: 0 };
        let (mut before, mut in_order, mut disorder) = (Bkey::ZERO, true, None);
        // Keys whose place is not known yet: faults from this one on.
        let mut unplaced = self.faults.len();
        let mut walk = set.keys();
        loop {
            let byte = self.byte.saturating_add(offset).saturating_add(walk.byte());
            let key = match walk.next() {
                None => break,
                Some(Ok(key)) => key,
                Some(Err(error)) => {
                    let base = self.byte.saturating_add(offset);
                    self.lose(Fault::format(&cache.name, error, base));
                    break;
                }
            };
            summary.keys += 1;
            if self.at.level == 0 {
                // Keys cut to nothing stay where they were until the node is rewritten.
                if key.size() == 0 {
                    continue;
                }
                if key.size() > key.offset() && key.pos() != Pos::ZERO {
                    // One of its two numbers is wrong, so it is anywhere between its neighbours.
                    let fault = cache.fault(Structure::Bkey, byte, What::KeySize(key.to_string()));
                    let from = if in_order { before.pos().max(self.at.lower) } else { self.at.lower };
                    self.faults.push(fault.hiding(from, self.at.key.pos()));
                    continue;
                }
                self.place_before(&mut unplaced, &key);
            }
            let start = if self.at.level == 0 { key.start_pos() } else { key.pos() };
            if start < before.pos() && in_order {
                in_order = false;
                disorder = Some((byte, key, before));
            }
            before = key;
            keys.push(key);
        }
        self.sets.push(summary);
        if let Some((byte, key, before)) = disorder {
            let (key, before) = (key.to_string(), before.to_string());
            let places = if self.at.level == 0 { self.in_doubt(&keys) } else { Vec::new() };
            self.faults.push(cache.fault(Structure::Bkey, byte, What::KeyOrder { key, before, places }));
        }
        if !in_order && self.at.level == 0 {
            let mut map = SeenMap::default();
            keys.into_iter().for_each(|key| map.insert(key));
            return map.into_keys();
        }
        keys
    }

    /// Keys of unknown place end before the one that comes behind them.
    fn place_before(&mut self, unplaced: &mut usize, key: &Bkey) {
        for fault in self.faults.iter_mut().skip(*unplaced) {
            if let (What::KeySize(_), Some(range)) = (&fault.what, &mut fault.range)
                && range.0 < key.start_pos()
            {
                range.1 = range.1.min(key.start_pos());
            }
        }
        *unplaced = self.faults.len();
    }

    /// Drops extents whose pointer leaves its bucket or the device. Only those that newer keys have not covered are
    /// still there.
    fn check_extents(&mut self, cache: &Cache) {
        let (byte, faults) = (self.byte, &mut self.faults);
        self.keys.retain(|key| {
            let Some(why) = cache.geometry.ptr_problem(key) else { return true };
            let fault = cache.fault(Structure::Bkey, byte, What::Pointer { key: key.to_string(), why });
            faults.push(fault.hiding(key.start_pos(), key.pos()));
            false
        });
    }

    fn check_pointers(&mut self, cache: &Cache) {
        let (byte, faults) = (self.byte, &mut self.faults);
        let (mut before, upper) = (self.at.lower, self.at.key.pos());
        self.keys.retain(|key| {
            let Some(why) = cache.metadata_key_problem(key) else {
                before = before.max(key.pos());
                return true;
            };
            let fault = cache.fault(Structure::BtreeNode, byte, What::Pointer { key: key.to_string(), why });
            // Whatever child it was: it began behind a sibling, or behind one that is dead by now.
            faults.push(fault.hiding(before, key.pos().min(upper)));
            false
        });
    }

    /// The kernel refuses a node whose last key is beyond its own ("short btree key"). A first key before the range
    /// it does not notice, though it belongs to the sibling.
    fn check_end(&mut self, cache: &Cache) {
        let (lower, upper) = (self.at.lower, self.at.key.pos());
        let leaf = self.at.level == 0;
        let outside = |key: &Bkey| key.pos() > upper || (leaf && key.start_pos() < lower);
        let count = self.keys.iter().filter(|key| outside(key)).count();
        if count > 0 && count * 2 > self.keys.len() {
            let what = What::Misplaced { outside: count, keys: self.keys.len(), lower, upper };
            self.usable = false;
            self.lose(cache.fault(Structure::BtreeNode, self.byte, what));
            return;
        }
        let (byte, faults) = (self.byte, &mut self.faults);
        let slots = cache.geometry.nr_uuids();
        self.keys.retain(|key| {
            let what = if outside(key) {
                What::KeyRange { key: key.to_string(), lower, upper }
            } else if leaf && key.inode() as usize >= slots {
                What::KeyInode { key: key.to_string(), slots }
            } else {
                return true;
            };
            // Where it should be nobody knows, except that it is in this node's range.
            faults.push(cache.fault(Structure::BtreeNode, byte, what).hiding(lower, upper));
            false
        });
    }

    /// Most of its keys are outside its range: it is another's child, or the parent's key is wrong.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.faults.iter().any(|fault| matches!(fault.what, What::Misplaced { .. }))
    }

    /// A leaf with keys that only interior nodes have: freeing markers, or the end of everything.
    /// True for every other node.
    fn has_level<'k>(&mut self, cache: &Cache, mut keys: impl Iterator<Item = &'k Bkey>) -> bool {
        let interior = |key: &Bkey| key.size() > 0 && (key.pos() == Pos::ZERO || key.pos() == Pos::MAX);
        let wrong = self.at.level == 0 && keys.any(interior);
        if wrong {
            self.usable = false;
            self.lose(cache.fault(Structure::BtreeNode, self.byte, What::NotALeaf));
        }
        !wrong
    }
}

/// The pointer to follow to a node.
pub(in super::super) fn place(cache: &Cache, at: &SeenNode) -> Result<Ptr, Fault> {
    let bad = |why| {
        let what = What::Pointer { key: at.key.to_string(), why };
        cache.fault(Structure::BtreeNode, at.named_at, what)
    };
    if let Some(why) = cache.metadata_key_problem(&at.key) {
        return Err(bad(why));
    }
    if !at.key.size().is_multiple_of(u64::from(cache.geometry.block_sectors)) {
        return Err(bad("a node of parts of blocks"));
    }
    at.key.ptr().filter(|ptr| ptr.is_device()).ok_or_else(|| bad("pointer to no device"))
}
