//! One btree node, read and merged.

use super::devices::Cache;
use super::extent_map::ExtentMap;
use super::fault::{Fault, What};
use super::overlay::merge_all;
use bcache_format::bset::Bset;
use bcache_format::node::parse;
use bcache_format::{Bkey, Pos, Ptr, SECTOR_SIZE, Structure};

/// Where a node is, and what its parent says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRef {
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
    pub at: NodeRef,
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
}

impl NodeView {
    /// Reads the node.
    ///
    /// # Errors
    /// A pointer that cannot be followed, or a device that cannot be read. Faults inside the node are in
    /// [`Self::faults`].
    pub fn read(cache: &Cache, at: NodeRef) -> Result<Self, Fault> {
        let ptr = place(cache, &at)?;
        let byte = ptr.offset().saturating_mul(SECTOR_SIZE);
        let bytes = cache.read(Structure::BtreeNode, byte, at.key.size().saturating_mul(SECTOR_SIZE))?;
        let mut view = Self {
            at,
            ptr,
            byte,
            seq: 0,
            sets: Vec::new(),
            written: 0,
            keys: Vec::new(),
            faults: Vec::new(),
        };
        let broken;
        let node = match parse(&bytes, ptr, cache.magic, cache.geometry.block_bytes()) {
            Ok(node) => node,
            Err(error) => {
                broken = *error;
                view.faults.push(Fault::format(&cache.name, broken.error, byte));
                broken.readable
            }
        };
        view.written = node.written;
        let sets: Vec<Vec<Bkey>> =
            node.sets.iter().map(|(offset, set)| view.take_set(cache, *offset, set)).collect();
        if at.level == 0 {
            view.keys = merge_all(sets);
            view.check_extents(cache);
        } else {
            // Newer sets first, then a stable sort: of keys with one position the newest comes first.
            view.keys = sets.into_iter().rev().flatten().collect();
            view.keys.sort_by_key(Bkey::pos);
            view.check_pointers(cache);
        }
        view.check_end(cache);
        Ok(view)
    }

    /// The keys of one bset that can be used.
    fn take_set(&mut self, cache: &Cache, offset: u64, set: &Bset<'_>) -> Vec<Bkey> {
        self.seq = set.seq();
        let mut keys = Vec::with_capacity(set.key_bytes().len() / 24);
        let mut summary = SetSummary { offset, bytes: set.header().bytes(), keys: 0 };
        let (mut before, mut in_order) = (Bkey::ZERO, true);
        let mut walk = set.keys();
        loop {
            let byte = self.byte.saturating_add(offset).saturating_add(walk.byte());
            let key = match walk.next() {
                None => break,
                Some(Ok(key)) => key,
                Some(Err(error)) => {
                    let base = self.byte.saturating_add(offset);
                    self.faults.push(Fault::format(&cache.name, error, base));
                    break;
                }
            };
            summary.keys += 1;
            if self.at.level == 0 {
                // Keys cut to nothing stay where they were until the node is rewritten.
                if key.size() == 0 {
                    continue;
                }
                if key.size() > key.offset() {
                    let what = What::KeySize(key.to_string());
                    self.faults.push(cache.fault(Structure::Bkey, byte, what));
                    continue;
                }
            }
            let start = if self.at.level == 0 { key.start_pos() } else { key.pos() };
            if start < before.pos() && in_order {
                in_order = false;
                let what = What::KeyOrder { key: key.to_string(), before: before.to_string() };
                self.faults.push(cache.fault(Structure::Bkey, byte, what));
            }
            before = key;
            keys.push(key);
        }
        self.sets.push(summary);
        if !in_order && self.at.level == 0 {
            let mut map = ExtentMap::default();
            keys.into_iter().for_each(|key| map.insert(key));
            return map.into_keys();
        }
        keys
    }

    /// Drops extents whose pointer leaves its bucket or the device. Only those that newer keys have not covered are
    /// still there.
    fn check_extents(&mut self, cache: &Cache) {
        let (byte, faults) = (self.byte, &mut self.faults);
        self.keys.retain(|key| {
            let Some(why) = cache.geometry.ptr_problem(key) else { return true };
            faults.push(cache.fault(Structure::Bkey, byte, What::Pointer { key: key.to_string(), why }));
            false
        });
    }

    fn check_pointers(&mut self, cache: &Cache) {
        let (byte, faults) = (self.byte, &mut self.faults);
        self.keys.retain(|key| {
            let Some(why) = cache.metadata_key_problem(key) else { return true };
            faults.push(cache.fault(Structure::Bkey, byte, What::Pointer { key: key.to_string(), why }));
            false
        });
    }

    /// The kernel refuses a node whose last key is beyond its own ("short btree key"). A first key before the range
    /// it does not notice, though it belongs to the sibling.
    fn check_end(&mut self, cache: &Cache) {
        let (lower, upper) = (self.at.lower, self.at.key.pos());
        let before = |key: &&Bkey| self.at.level == 0 && key.start_pos() < lower;
        let outside = [self.keys.first().filter(before), self.keys.last().filter(|key| key.pos() > upper)];
        for key in outside.into_iter().flatten() {
            let (lower, upper) = (lower.to_string(), upper.to_string());
            let what = What::KeyRange { key: key.to_string(), lower, upper };
            self.faults.push(cache.fault(Structure::BtreeNode, self.byte, what));
        }
    }
}

/// The pointer to follow to a node.
fn place(cache: &Cache, at: &NodeRef) -> Result<Ptr, Fault> {
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
