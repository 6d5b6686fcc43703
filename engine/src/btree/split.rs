//! Changing which nodes there are: splits, compaction, coalescing, a new root.
//!
//! All are one operation: some neighbouring nodes are *replaced* by new ones with the same keys. Order, and what a crash
//! after each step leaves:
//! 1. the old nodes are frozen, what they hold is copied into new nodes, and these are written (durable; named by nobody);
//! 2. the parent gets one bset with the new children and a freeing marker for each old one (durable: one checksum, so
//!    all of it or nothing); or, where the parent has no room, it is itself replaced by nodes that have the new children;
//!    or the root is set, and the journal names it from its next entry on;
//! 3. only now the old nodes' journal pins are dropped and their buckets are free.
//!
//! Interior nodes are not journaled; this order is what replaces it.

use super::extent::Extent;
use super::extent_map::ExtentMap;
use super::node::NodeRef;
use super::node::{Body, Child, Node, child_key, freeing_marker};
use crate::alloc::{BucketPin, Reserve, TakenBucket};
use crate::error::{Error, Result};
use crate::set::CacheSet;
use crate::sync::MutexGuard;
use bcache_format::bkey::KEY_WORDS;
use bcache_format::bset::{self, HEADER_BYTES};
use bcache_format::{Pos, Ptr};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

/// Content of a node to be.
enum Content {
    Leaf(ExtentMap),
    Interior(Vec<Child>),
}

/// A node to be: where it ends, and what it holds.
struct Plan {
    max: Pos,
    content: Content,
}

impl CacheSet {
    /// Makes room for `words` in the leaf at `pos`: it is written anew, as one node or as several, with what `apply` does
    /// to it just before. A node may be one block, and then has no room for a second bset, ever. False when the leaf was
    /// not touched, because there is room by now or too few buckets were taken.
    pub(super) async fn split(
        self: &Rc<Self>,
        pos: Pos,
        words: usize,
        makes_room: bool,
        apply: &mut dyn FnMut(&Rc<Node>),
    ) -> Result<bool> {
        // Buckets first, with nothing held: they may take a while, and GC, to come.
        let count = self.nodes_for_split();
        let spare = if makes_room { 0 } else { count };
        let mut buckets = self.alloc.take_nodes(count, spare).await?;
        self.split_with(pos, words, &mut buckets, apply).await
    }

    /// Nodes that a split can need: up to five leaves, since each key may have split an older one; three of each level
    /// above; a root.
    pub(crate) fn nodes_for_split(&self) -> usize {
        6 + 3 * usize::from(self.tree.root().level)
    }

    async fn split_with(
        self: &Rc<Self>,
        pos: Pos,
        words: usize,
        buckets: &mut Vec<TakenBucket<'_>>,
        apply: &mut dyn FnMut(&Rc<Node>),
    ) -> Result<bool> {
        let _structure = self.tree.structure.lock().await;
        let leaf = self.node_at(pos, 0).await?;
        // Somebody else may have made room meanwhile, and the tree may have grown.
        if leaf.has_room(words, &self.cache.geometry) || self.nodes_for_split() > buckets.len() {
            return Ok(false);
        }
        self.stats.splits.add(1);
        self.rewrite(&[Rc::clone(&leaf)], buckets, 0, &mut || apply(&leaf)).await?;
        Ok(true)
    }

    /// Replaces neighbouring nodes of one parent by `fewer` nodes less than they are, or by as many as their keys need.
    /// `prepare` runs when nothing else can change the old nodes any more. `structure` must be held.
    pub(crate) async fn rewrite(
        self: &Rc<Self>,
        olds: &[Rc<Node>],
        buckets: &mut Vec<TakenBucket<'_>>,
        fewer: usize,
        prepare: &mut dyn FnMut(),
    ) -> Result<()> {
        let began = self.env.now();
        for old in olds {
            old.freeze();
        }
        let result = async {
            let mut held = Vec::new();
            for old in olds {
                held.push(old.io.lock().await);
            }
            prepare();
            // The new nodes have no keys that wait for a flush. The old ones take none; a flush that fails removes some.
            for old in olds {
                if self.flush_below(old).await {
                    old.thaw();
                }
            }
            let plans = self.plan(olds, fewer).await;
            self.replace_nodes(olds, plans, buckets).await
        }
        .await;
        for old in olds {
            old.thaw();
        }
        self.timings.btree_split.record(began, self.env.now());
        result.inspect_err(|error| self.fail(error.clone()))
    }

    /// What the new nodes hold: the keys of the old ones without those that say nothing any more.
    async fn plan(&self, olds: &[Rc<Node>], fewer: usize) -> VecDeque<Plan> {
        let (Some(first), Some(last)) = (olds.first(), olds.last()) else { return VecDeque::new() };
        let max_words = self.node_words();
        if first.level > 0 {
            let children: Vec<Child> = olds.iter().flat_map(|old| children_of(old)).collect();
            return plan_interior(&children, last.max, max_words);
        }
        let mut extents = Vec::new();
        for old in olds {
            // A large node takes as long as anybody should have to wait.
            self.env.yield_now().await;
            let buckets = self.alloc.buckets.borrow();
            let state = old.state();
            let Body::Leaf { map, .. } = &state.body else { continue };
            // Of the others those too that a crash would bring back: who makes them untrue must know of them.
            extents.extend(map.iter().filter(|extent| buckets.may_count(extent.ptr())).copied());
        }
        let nodes = (fewer > 0).then(|| olds.len().saturating_sub(fewer).max(1));
        plan_leaves(&extents, last.max, max_words, nodes)
    }

    /// Words of keys that a node has room for as one bset.
    pub(crate) fn node_words(&self) -> usize {
        (self.cache.geometry.btree_node_bytes() as usize - HEADER_BYTES) / 8
    }

    /// Steps 1 to 3. The nodes in `olds` are frozen and their `io` is held by the caller.
    fn replace_nodes<'a, 'b: 'a>(
        self: &'a Rc<Self>,
        olds: &'a [Rc<Node>],
        plans: VecDeque<Plan>,
        buckets: &'a mut Vec<TakenBucket<'b>>,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>> {
        Box::pin(async move {
            let Some(old) = olds.first() else { return Ok(()) };
            // Pinned until the tree leads to them.
            let (mut news, mut pins) = (Vec::new(), Vec::new());
            for plan in plans {
                let (node, pin) = self.create(old.level, plan, buckets).await?;
                news.push(node);
                pins.push(pin);
            }
            // Nobody writes a new node, and so drops pins for it, before the tree on disk leads to it.
            let mut held: Vec<MutexGuard<'_, ()>> = Vec::new();
            for new in &news {
                held.push(new.io.lock().await);
            }
            let root = self.tree.root();
            if olds.iter().any(|old| Rc::ptr_eq(old, &root)) {
                self.new_root(&news, buckets).await?;
            } else {
                self.relink(olds, &news, buckets).await?;
            }
            drop(pins);
            for old in olds {
                self.bury(old);
            }
            Ok(())
        })
    }

    /// Writes a node that nobody names yet. Its bucket stays pinned until the tree leads to it: a GC that begins in
    /// between clears the marks of what is not pinned, and may have passed the place where the node will be.
    async fn create<'a>(
        &'a self,
        level: u8,
        plan: Plan,
        buckets: &mut Vec<TakenBucket<'_>>,
    ) -> Result<(Rc<Node>, BucketPin<'a>)> {
        // Many in a row would be a long time for everybody else.
        self.env.yield_now().await;
        let geometry = &self.cache.geometry;
        let reserve = || self.alloc.try_take(Reserve::Btree);
        let Some(pin) = buckets.pop().or_else(reserve).map(|taken| self.alloc.take_pin(taken.used().leave()))
        else {
            return Err(Error::Failed("no bucket is left for a btree node".into()));
        };
        let bucket = pin.nr();
        let generation = self.alloc.buckets.borrow().generation(bucket);
        let ptr = Ptr::new(self.cache.this_dev() as u16, geometry.bucket_start(bucket).0, generation);
        let keys: Vec<_> = match &plan.content {
            Content::Leaf(map) => map.iter().map(Extent::key).collect(),
            Content::Interior(children) => {
                children.iter().map(|child| child_key(child.max, child.ptr, geometry)).collect()
            }
        };
        // A node's life is never numbered 0.
        let seq = self.env.random() | 1;
        let image = bset::write(&keys, seq, bset::VERSION, ptr, self.cache.magic)
            .map_err(|error| self.format_error(error))?;
        let written = (image.len() as u64).div_ceil(geometry.block_bytes());
        let body = match plan.content {
            Content::Leaf(map) => Body::Leaf { map, pending: ExtentMap::new(), hides_holes: false },
            Content::Interior(children) => {
                Body::Interior { children, stale: Vec::new(), pending: Vec::new() }
            }
        };
        let node = Rc::new(Node::new(NodeRef { ptr, level, max: plan.max }, geometry, seq, body, written));
        // Children are durable when they are named; data is only written.
        let epoch = if level == 0 { self.cache.epoch() } else { 0 };
        if seeded_bug!(NewNodeUnpinned) {
            drop(pin);
            self.write_bset(&node, 0, image, epoch).await?;
            return Ok((node, self.alloc.pin(bucket)));
        }
        self.write_bset(&node, 0, image, epoch).await?;
        Ok((node, pin))
    }

    /// An empty leaf, written, as the root of a new set.
    pub(crate) async fn create_first_root(&self) -> Result<()> {
        let mut buckets = vec![self.alloc.take(Reserve::Btree).await?];
        let plan = Plan { max: Pos::MAX, content: Content::Leaf(ExtentMap::new()) };
        let (root, _pin) = self.create(0, plan, &mut buckets).await?;
        self.tree.add(&root);
        self.tree.set_root(&root);
        Ok(())
    }

    /// The root was replaced: one node becomes the root; several get one above them.
    ///
    /// The new root is durable, and its journal entry need not be waited for, as Linux does: until an entry names it, the
    /// newest durable one names the old root, which is whole on disk. Its bucket is released after this, but before anybody
    /// can write to it its new generation must be durable, and `write_prios` says so with a journal entry of its own
    /// (`commit_roots`), which names the roots of that moment. Keys that only the new leaves have are in the journal, from
    /// the entry on that the old leaves pinned; those pins count no more only once a newer entry says so, which again names
    /// the new root.
    async fn new_root(&self, news: &[Rc<Node>], buckets: &mut Vec<TakenBucket<'_>>) -> Result<()> {
        let mut above = None;
        let root = match news {
            [only] => Rc::clone(only),
            _ => {
                let children = news.iter().map(|node| Child { max: node.max, ptr: node.ptr }).collect();
                let plan = Plan { max: Pos::MAX, content: Content::Interior(children) };
                let level = news.first().map_or(1, |node| node.level + 1);
                let (root, pin) = self.create(level, plan, buckets).await?;
                above = Some(pin);
                self.tree.add(&root);
                root
            }
        };
        for new in news {
            self.tree.add(new);
        }
        self.tree.set_root(&root);
        drop(above);
        Ok(())
    }

    /// The parent learns of its new children and that the old ones are freed.
    async fn relink(
        self: &Rc<Self>,
        olds: &[Rc<Node>],
        news: &[Rc<Node>],
        buckets: &mut Vec<TakenBucket<'_>>,
    ) -> Result<()> {
        let Some(last) = olds.last() else { return Ok(()) };
        let parent = self.parent_of(last).await?;
        let changed = |children: &[Child]| -> Vec<Child> {
            let old = |child: &Child| olds.iter().any(|old| old.ptr == child.ptr);
            let mut children: Vec<Child> = children.iter().filter(|child| !old(child)).copied().collect();
            children.extend(news.iter().map(|node| Child { max: node.max, ptr: node.ptr }));
            children.sort_unstable_by_key(|child| child.max);
            children
        };
        let words = KEY_WORDS * (olds.len() + news.len());
        if !parent.has_room(words, &self.cache.geometry) {
            let _io = parent.io.lock().await;
            let plans = plan_interior(&changed(&children_of(&parent)), parent.max, self.node_words());
            for new in news {
                self.tree.add(new);
            }
            return self.replace_nodes(&[Rc::clone(&parent)], plans, buckets).await;
        }
        {
            let mut state = parent.state_mut();
            let Body::Interior { children, stale, pending } = &mut state.body else { return Ok(()) };
            *children = changed(children);
            let geometry = &self.cache.geometry;
            pending.extend(news.iter().map(|node| node.key(geometry)));
            for old in olds {
                // The new generation may not reach the prio sets before the marker that says so is on disk, or a crash would
                // leave a parent whose child is stale and nothing in its place.
                let generation = self.alloc.buckets.borrow_mut().next_generation(old.bucket);
                pending.push(freeing_marker(old.ptr, generation, geometry));
                stale.push(old.ptr);
            }
            if !seeded_bug!(FreeWithoutBlock) {
                state.write.prio_blocks.extend(olds.iter().map(|_| self.alloc.block_prio()));
            }
            for new in news {
                self.tree.add(new);
            }
        }
        self.node_write(&parent).await
    }

    /// Nothing on disk leads to the node any more.
    fn bury(&self, old: &Rc<Node>) {
        old.kill();
        drop(std::mem::take(&mut old.state_mut().write));
        self.tree.remove(old);
        self.alloc.release(old.bucket);
    }

    /// The node whose child `node` is.
    pub(crate) async fn parent_of(&self, node: &Node) -> Result<Rc<Node>> {
        // A child's own end is behind every position in it but itself.
        let inside = Pos::new(node.max.inode, node.max.offset.saturating_sub(1));
        let parent = self.node_at(inside, node.level + 1).await?;
        let known = children_of(&parent).iter().any(|child| child.ptr == node.ptr);
        if known {
            Ok(parent)
        } else {
            Err(self.cache.untrusted(format!("no parent has btree node {}", node.ptr)))
        }
    }
}

/// Children of an interior node; none of a leaf.
pub(crate) fn children_of(node: &Node) -> Vec<Child> {
    match &node.state().body {
        Body::Interior { children, .. } => children.clone(),
        Body::Leaf { .. } => Vec::new(),
    }
}

/// Divides extents among as many leaves as they need, evenly: one when they fill up to four fifths of it, else each three
/// fifths, so that there is room to insert. With `nodes` given, among so many.
fn plan_leaves(extents: &[Extent], max: Pos, node_words: usize, nodes: Option<usize>) -> VecDeque<Plan> {
    let words: usize = extents.iter().map(Extent::words).sum();
    let count = nodes.unwrap_or_else(|| pieces(words, node_words));
    let each = words.div_ceil(count).max(1);
    let mut plans = VecDeque::new();
    let mut rest = extents;
    for i in 1..=count {
        let take = if i == count { rest.len() } else { rest.len().min(each.div_ceil(KEY_WORDS)) };
        let (now, later) = rest.split_at(take);
        rest = later;
        let end = if later.is_empty() { max } else { now.last().map_or(max, Extent::pos) };
        plans.push_back(Plan { max: end, content: Content::Leaf(now.iter().copied().collect()) });
        if later.is_empty() {
            break;
        }
    }
    plans
}

fn plan_interior(children: &[Child], max: Pos, node_words: usize) -> VecDeque<Plan> {
    let count = pieces(children.len() * KEY_WORDS, node_words);
    let each = children.len().div_ceil(count).max(1);
    let chunks = children.chunks(each);
    let last = chunks.len();
    let plan = |(i, chunk): (usize, &[Child])| Plan {
        max: if i + 1 == last { max } else { chunk.last().map_or(max, |child| child.max) },
        content: Content::Interior(chunk.to_vec()),
    };
    chunks.enumerate().map(plan).collect()
}

const fn pieces(words: usize, node_words: usize) -> usize {
    if words <= node_words * 4 / 5 { 1 } else { words.div_ceil(node_words * 3 / 5) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(count: u64) -> Vec<Extent> {
        (0..count).map(|i| Extent::new(1, i * 16 + 8, 8, Ptr::new(0, 640, 0), false)).collect()
    }

    #[test]
    fn one_node_while_it_fits_then_evenly() {
        for (count, nodes) in [(0, 1), (10, 1), (26, 1), (27, 2), (60, 3)] {
            let all = extents(count);
            let plans = plan_leaves(&all, Pos::MAX, 100, None);
            assert_eq!(plans.len(), nodes, "{count} extents");
            assert_eq!(plans.back().unwrap().max, Pos::MAX);
            let mut seen = Vec::new();
            for plan in &plans {
                let Content::Leaf(map) = &plan.content else { unreachable!() };
                assert!(map.words() <= 80);
                assert!(map.iter().all(|extent| extent.pos() <= plan.max));
                seen.extend(map.iter().copied());
            }
            assert_eq!(seen, all);
            assert!(plans.iter().zip(plans.iter().skip(1)).all(|(a, b)| a.max < b.max));
        }
    }

    #[test]
    fn interior_nodes_are_divided_at_their_children() {
        let children: Vec<Child> =
            (1..=60).map(|i| Child { max: Pos::new(1, i * 8), ptr: Ptr::new(0, i * 64, 0) }).collect();
        let end = children.last().unwrap().max;
        let plans = plan_interior(&children, end, 100);
        assert_eq!(plans.len(), 3);
        for plan in &plans {
            let Content::Interior(children) = &plan.content else { unreachable!() };
            assert_eq!(children.last().unwrap().max, plan.max);
        }
    }
}
