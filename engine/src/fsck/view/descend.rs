//! From the root to all leaves, a level at a time.
//!
//! Interior nodes come before everything below them, so a node that is also pointed at from further down belongs to
//! whoever points at it from further up. Only leaves' places come out of this; reading them is [`super::sweep`]'s.

use super::super::salvage::scan::is_interior_node;
use super::devices::Cache;
use super::fault::{Fault, What};
use super::gens::Gens;
use super::node::{NodeView, SeenNode};
use super::tree::{children, raise};
use bcache_format::{BucketNr, Pos, Structure};
use std::collections::{HashSet, VecDeque};

/// What lies above the leaves.
#[derive(Clone, Debug, Default)]
pub(super) struct Interior {
    /// The leaves' places, in key order.
    pub leaves: Vec<SeenNode>,
    /// Buckets of interior nodes.
    pub nodes: HashSet<BucketNr>,
    /// Buckets that a node should be in of which nothing is there.
    pub garbage: Vec<BucketNr>,
    /// Interior nodes that could be read.
    pub read: u64,
    /// Bytes of their bsets.
    pub bytes: u64,
}

/// Reads the interior nodes below `root`. Pointers seen raise `gens`, as recovery does.
pub(super) fn descend(
    cache: &Cache,
    root: SeenNode,
    gens: &mut Gens,
    report: &mut dyn FnMut(Fault),
) -> Interior {
    let mut found = Interior::default();
    let mut level = vec![root];
    while level.first().is_some_and(|at| at.level > 0) {
        let mut below = Vec::new();
        for at in level {
            let node = match read(cache, at, &mut found.nodes) {
                Ok(node) => node,
                Err(fault) => {
                    report(fault.hiding(at.lower, at.key.pos()));
                    continue;
                }
            };
            found.read += 1;
            found.bytes += node.sets.iter().map(|set| set.bytes).sum::<u64>();
            raise(gens, &node);
            if node.sets.is_empty()
                && let Some(bucket) = bucket_of(cache, &at)
            {
                // The pointer may be wrong, and the bucket anybody's.
                found.nodes.remove(&bucket);
                found.garbage.push(bucket);
            }
            if !node.whole {
                // Which of the children that are left are still in use only the lost bset said.
                node.faults.into_iter().for_each(&mut *report);
                continue;
            }
            let mut faults = VecDeque::new();
            below.extend(children(&node, cache, gens, &mut faults));
            // A root whose children end before it does may be another node, and not have the first ones either.
            let whole = |fault: &mut Fault| {
                if at.key.pos() == Pos::MAX
                    && at.lower == Pos::ZERO
                    && matches!(fault.what, What::ChildrenEnd { .. })
                {
                    fault.range = Some(Box::new((Pos::ZERO, Pos::MAX)));
                }
            };
            faults.iter_mut().for_each(whole);
            node.faults.into_iter().chain(faults).for_each(&mut *report);
        }
        level = below;
    }
    // With a wrong level, or a wrong root, interior nodes stand where leaves should be.
    let known = |at: &SeenNode| bucket_of(cache, at).is_some_and(|bucket| found.nodes.contains(&bucket));
    let wrong = |at: &&SeenNode| !known(at) && is_interior_node(cache, at);
    let ends = [level.first().copied(), level.last().copied()];
    if let Some(at) = ends.iter().flatten().find(wrong) {
        let byte =
            bucket_of(cache, at).map_or(at.named_at, |bucket| cache.geometry.bucket_start_byte(bucket));
        report(cache.fault(Structure::BtreeNode, byte, What::NotALeaf).hiding(Pos::ZERO, Pos::MAX));
        level.clear();
    }
    found.leaves = level;
    found
}

fn read(cache: &Cache, at: SeenNode, nodes: &mut HashSet<BucketNr>) -> Result<NodeView, Fault> {
    let bucket = bucket_of(cache, &at);
    if let Some(bucket) = bucket
        && !nodes.insert(bucket)
    {
        return Err(twice(cache, &at));
    }
    let node = NodeView::read(cache, at)?;
    if node.is_elsewhere()
        && let Some(bucket) = bucket
    {
        // Somebody else's child: whoever it belongs to may still read it. Nothing below it is followed here.
        nodes.remove(&bucket);
    }
    Ok(node)
}

/// The bucket that a key points into, if it points anywhere.
pub(super) fn bucket_of(cache: &Cache, at: &SeenNode) -> Option<BucketNr> {
    let ptr = at.key.ptr().filter(|ptr| ptr.is_device())?;
    Some(cache.geometry.ptr_bucket(ptr))
}

/// The fault of a node that is reached a second time.
pub(super) fn twice(cache: &Cache, at: &SeenNode) -> Fault {
    let what = What::NodeTwice(at.key.ptr().unwrap_or_default());
    cache.fault(Structure::BtreeNode, at.named_at, what)
}
