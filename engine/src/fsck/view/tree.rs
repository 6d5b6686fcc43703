//! Walking the btree in key order, a node at a time.
//!
//! Which children are followed is the kernel's choice (`bch_btree_ptr_bad`): those that are not stale and not at
//! (0,0), from whichever bset. A child is never followed twice, whoever points at it, so that neither a cycle nor a
//! shared subtree can make a walk longer than there are nodes.

use super::devices::Cache;
use super::fault::{Fault, What};
use super::gens::Gens;
use super::journal::Entry;
use super::node::{NodeRef, NodeView};
use bcache_format::{Bkey, BucketNr, Pos, Structure};
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
pub fn root(cache: &Cache, entry: &Entry) -> Result<NodeRef, Fault> {
    let named_at = entry.byte.saturating_add(ROOT_AT);
    if entry.jset.btree_level > LEVEL_MAX {
        return Err(cache.fault(Structure::BtreeNode, named_at, What::TooDeep(entry.jset.btree_level)));
    }
    // The journal keeps the root's pointer and size; its range is everything.
    Ok(NodeRef { key: entry.jset.btree_root, level: entry.jset.btree_level, lower: Pos::ZERO, named_at })
}

/// A walk over the nodes that cover a range, parents before children, leaves in key order.
pub struct Walk<'c> {
    cache: &'c Cache,
    /// Nodes still to be read, the next one last.
    pending: Vec<NodeRef>,
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
    pub fn new(cache: &'c Cache, root: NodeRef, from: Pos, to: Pos) -> Self {
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
        children: impl FnOnce(&NodeView, &Cache, &mut VecDeque<Fault>) -> Vec<NodeRef>,
    ) -> Option<Step> {
        if let Some(fault) = self.faults.pop_front() {
            return Some(Step::Fault(fault));
        }
        let at = self.pending.pop()?;
        let node = match self.read(at) {
            Ok(node) => node,
            Err(fault) => return Some(Step::Fault(fault)),
        };
        let below = children(&node, self.cache, &mut self.faults);
        let (from, to) = (self.from, self.to);
        self.pending
            .extend(below.into_iter().filter(|child| child.key.pos() > from && child.lower < to).rev());
        Some(Step::Node(node))
    }

    fn read(&mut self, at: NodeRef) -> Result<NodeView, Fault> {
        if let Some(ptr) = at.key.ptr().filter(|ptr| ptr.is_device())
            && !self.seen.insert(self.cache.geometry.ptr_bucket(ptr))
        {
            return Err(self.cache.fault(Structure::BtreeNode, at.named_at, What::NodeTwice(ptr)));
        }
        NodeView::read(self.cache, at)
    }
}

/// Marks a node's own pointer and all its keys' (`bch_btree_check_recurse`).
fn raise(gens: &mut Gens, node: &NodeView) {
    for key in node.keys.iter().chain([&node.at.key]) {
        key.ptrs().iter().for_each(|ptr| gens.raise(*ptr));
    }
}

/// The live children of an interior node, in key order.
fn children(node: &NodeView, cache: &Cache, gens: &Gens, faults: &mut VecDeque<Fault>) -> Vec<NodeRef> {
    let Some(level) = node.at.level.checked_sub(1) else { return Vec::new() };
    let mut fault = |what| faults.push_back(cache.fault(Structure::BtreeNode, node.byte, what));
    let freed: HashSet<BucketNr> = markers(node).map(|ptr| cache.geometry.ptr_bucket(ptr)).collect();
    let mut live = Vec::new();
    let mut lower = node.at.lower;
    for key in node.keys.iter().filter(|key| key.pos() != Pos::ZERO) {
        if key.ptrs().iter().any(|ptr| !ptr.is_device()) {
            continue;
        }
        let stale = gens.stale_key(key);
        if stale > 0 {
            let lost = |ptr| !freed.contains(&cache.geometry.ptr_bucket(ptr));
            if key.ptr().is_some_and(lost) {
                fault(What::ChildLost { key: key.to_string(), stale });
            }
            continue;
        }
        if key.pos() <= lower {
            let (lower, upper) = (lower.to_string(), node.at.key.pos().to_string());
            fault(What::KeyRange { key: key.to_string(), lower, upper });
            continue;
        }
        live.push(NodeRef { key: *key, level, lower, named_at: node.byte });
        lower = key.pos();
    }
    if live.is_empty() {
        fault(What::NoChild);
    } else if lower < node.at.key.pos() {
        fault(What::ChildrenEnd { end: lower.to_string(), upper: node.at.key.pos().to_string() });
    }
    live
}

/// Pointers of the freeing markers of a node.
fn markers(node: &NodeView) -> impl Iterator<Item = bcache_format::Ptr> + '_ {
    let marker = |key: &&Bkey| key.pos() == Pos::ZERO;
    node.keys.iter().filter(marker).flat_map(|key| key.ptrs().iter().copied())
}
