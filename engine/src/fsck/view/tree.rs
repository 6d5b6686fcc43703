//! Walking the btree in key order, a node at a time.
//!
//! Which children are followed is the kernel's choice (`bch_btree_ptr_bad`): those that are not stale and not at
//! (0,0), from whichever bset. A child is never followed twice, whoever points at it, so that neither a cycle nor a
//! shared subtree can make a walk longer than there are nodes.

use super::devices::Cache;
use super::fault::{Fault, What};
use super::gens::Gens;
use super::journal::Entry;
use super::node::{NodeView, SeenNode};
use bcache_format::bkey::gen_after;
use bcache_format::{BucketNr, Pos, Ptr, Structure};
use std::collections::{HashSet, VecDeque};

/// Level above which a root is not believed: with the smallest nodes, this many levels hold more extents than a
/// device has sectors.
pub const LEVEL_MAX: u16 = 15;
/// Byte of the root's key in a journal entry.
const ROOT_AT: u64 = 0x68;

/// The root that a journal entry names.
///
/// # Errors
/// A level no btree has. The key itself is checked when it is followed.
pub fn root(cache: &Cache, entry: &Entry) -> Result<SeenNode, Fault> {
    let named_at = entry.byte.saturating_add(ROOT_AT);
    if entry.jset.btree_level > LEVEL_MAX {
        let what = What::TooDeep(entry.jset.btree_level);
        return Err(cache.fault(Structure::BtreeNode, named_at, what).hiding(Pos::ZERO, Pos::MAX));
    }
    // Whatever position the entry has: the root's range is everything.
    let mut key = entry.jset.btree_root;
    key.set_inode(Pos::MAX.inode);
    key.set_offset(Pos::MAX.offset);
    Ok(SeenNode { key, level: entry.jset.btree_level, lower: Pos::ZERO, named_at })
}

/// A walk over the nodes that cover a range, parents before children, leaves in key order.
pub struct Walk<'c> {
    cache: &'c Cache,
    /// Nodes still to be read, the next one last.
    pending: Vec<SeenNode>,
    seen: HashSet<BucketNr>,
    from: Pos,
    to: Pos,
    faults: VecDeque<Fault>,
}

/// What a walk comes across.
pub enum Step {
    /// A node, with its faults.
    Node(NodeView),
    /// Something wrong between nodes, or a node that could not be read at all.
    Fault(Fault),
}

impl<'c> Walk<'c> {
    /// A walk below `root`, over keys that end behind `from` and start before `to`.
    #[must_use]
    pub fn new(cache: &'c Cache, root: SeenNode, from: Pos, to: Pos) -> Self {
        let (pending, seen, faults) = (vec![root], HashSet::new(), VecDeque::new());
        Self { cache, pending, seen, from, to, faults }
    }

    /// The next step. Pointers seen raise `gens` when `raise` is set, as recovery does.
    pub fn step(&mut self, gens: &mut Gens) -> Option<Step> {
        self.advance(|node, cache, faults| {
            raise(gens, node);
            children(node, cache, gens, faults)
        })
    }

    /// The next step, with generations that are final.
    pub fn step_settled(&mut self, gens: &Gens) -> Option<Step> {
        self.advance(|node, cache, faults| children(node, cache, gens, faults))
    }

    fn advance(
        &mut self,
        children: impl FnOnce(&NodeView, &Cache, &mut VecDeque<Fault>) -> Vec<SeenNode>,
    ) -> Option<Step> {
        if let Some(fault) = self.faults.pop_front() {
            return Some(Step::Fault(fault));
        }
        let at = self.pending.pop()?;
        let node = match self.read(at) {
            Ok(node) => node,
            Err(fault) => return Some(Step::Fault(fault.hiding(at.lower, at.key.pos()))),
        };
        let below = children(&node, self.cache, &mut self.faults);
        let (from, to) = (self.from, self.to);
        self.pending
            .extend(below.into_iter().filter(|child| child.key.pos() > from && child.lower < to).rev());
        Some(Step::Node(node))
    }

    fn read(&mut self, at: SeenNode) -> Result<NodeView, Fault> {
        let Some(ptr) = at.key.ptr().filter(|ptr| ptr.is_device()) else {
            return NodeView::read(self.cache, at);
        };
        let bucket = self.cache.geometry.ptr_bucket(ptr);
        if !self.seen.insert(bucket) {
            return Err(self.cache.fault(Structure::BtreeNode, at.named_at, What::NodeTwice(ptr)));
        }
        let node = NodeView::read(self.cache, at)?;
        if node.is_elsewhere() {
            // Somebody else's child: whoever it belongs to may still read it. Nothing below it is followed here.
            self.seen.remove(&bucket);
        }
        Ok(node)
    }
}

/// Marks a node's own pointer and all its keys' (`bch_btree_check_recurse`).
pub(super) fn raise(gens: &mut Gens, node: &NodeView) {
    for key in node.keys.iter().chain([&node.at.key]) {
        key.ptrs().iter().for_each(|ptr| gens.raise(*ptr));
    }
}

/// The live children of an interior node, in key order.
pub(super) fn children(
    node: &NodeView,
    cache: &Cache,
    gens: &Gens,
    faults: &mut VecDeque<Fault>,
) -> Vec<SeenNode> {
    let Some(level) = node.at.level.checked_sub(1).filter(|_| !node.is_elsewhere()) else {
        return Vec::new();
    };
    let fault = |what, from, to| cache.fault(Structure::BtreeNode, node.byte, what).hiding(from, to);
    // Children that are left out were somewhere before the end of the next one.
    let mut left_out = Vec::new();
    let freed = markers(cache, node);
    let mut live = Vec::new();
    let mut lower = node.at.lower;
    for key in node.keys.iter().filter(|key| key.pos() != Pos::ZERO) {
        if key.ptrs().iter().any(|ptr| !ptr.is_device()) {
            continue;
        }
        let stale = gens.stale_key(key);
        if stale > 0 {
            let was_freed = |ptr: Ptr| {
                let bucket = cache.geometry.ptr_bucket(ptr);
                freed.iter().any(|(freed, by)| *freed == bucket && gen_after(*by, ptr.generation()) > 0)
            };
            if key.ptr().is_none_or(was_freed) {
                continue;
            }
            // Its checksum is seeded with the pointer, generation included: if it reads, it is the child.
            faults.push_back(fault(What::ChildLost { key: key.to_string(), stale }, key.pos(), key.pos()));
        }
        if key.pos() <= lower {
            let upper = node.at.key.pos();
            left_out.push(What::ChildOverlap { key: key.to_string(), lower, upper });
            continue;
        }
        faults.extend(left_out.drain(..).map(|what| fault(what, lower, key.pos())));
        live.push(SeenNode { key: *key, level, lower, named_at: node.byte });
        lower = key.pos();
    }
    let upper = node.at.key.pos();
    faults.extend(left_out.drain(..).map(|what| fault(what, lower, upper)));
    if live.is_empty() {
        faults.push_back(fault(What::NoChild, lower, upper));
    } else if lower < upper {
        faults.push_back(fault(What::ChildrenEnd { end: lower, upper }, lower, upper));
    }
    live
}

/// The freeing markers of a node: which bucket, and with which generation.
fn markers(cache: &Cache, node: &NodeView) -> Vec<(BucketNr, u8)> {
    let markers = node.keys.iter().filter(|key| key.pos() == Pos::ZERO);
    let ptrs = markers.flat_map(|key| key.ptrs().iter().filter(|ptr| ptr.is_device()));
    ptrs.map(|ptr| (cache.geometry.ptr_bucket(*ptr), ptr.generation())).collect()
}
