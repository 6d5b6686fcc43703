//! Garbage collection: finds out what is in every bucket.
//!
//! Insertions do not keep count of what they leave behind. GC walks the whole btree and marks the buckets that live keys
//! point to; the others may be reused. It runs beside requests in slices of `SLICE`: what is allocated meanwhile is
//! marked when it is allocated, what is inserted meanwhile is pinned until it is in the tree, so a bucket is never
//! unmarked that anybody needs.
//!
//! Leaves are written before GC ends. Replacing keys are not journaled, so until then a crash would bring back keys that
//! point into buckets which the marks call free. Prio writes are blocked from GC's start to its end.

use crate::alloc::bucket_ranges;
use crate::btree::{Body, Node, children_of};
use crate::error::Result;
use crate::set::CacheSet;
use crate::sync::WaitQueue;
use bcache_format::Sectors;
use bcache_format::bkey::KEY_WORDS;
use bcache_format::{Geometry, Pos};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

mod moving;

/// How long GC works before it lets others run.
const SLICE: Duration = Duration::from_micros(200);
/// Extents that are marked between two looks at the clock.
const MARKED_AT_ONCE: usize = 1024;
/// Nodes that are joined at most at once.
const MERGE_NODES: usize = 4;
/// Staleness of a key beyond which its node is written anew.
const STALE_REWRITE: u8 = 10;
/// Passes follow each other no faster than this when they free nothing.
const PAUSE: Duration = Duration::from_millis(100);

/// GC's state.
pub struct Gc {
    requested: Cell<bool>,
    wake: WaitQueue,
    passes: Cell<u64>,
    done: WaitQueue,
    /// Sectors that may be written until the next pass.
    budget: Cell<i64>,
    interval: i64,
    running: Cell<bool>,
    moving: Cell<bool>,
}

impl Gc {
    /// A pass for every sixteenth of the cache that is written.
    #[must_use]
    pub fn new(geometry: &Geometry) -> Self {
        let interval = (geometry.nbuckets * u64::from(geometry.bucket_sectors) / 16) as i64;
        Self {
            requested: Cell::new(false),
            wake: WaitQueue::new(),
            passes: Cell::new(0),
            done: WaitQueue::new(),
            budget: Cell::new(interval),
            interval,
            running: Cell::new(false),
            moving: Cell::new(false),
        }
    }
    /// Asks for a pass.
    pub fn request(&self) {
        self.requested.set(true);
        self.wake.wake_all();
    }
    /// Counts sectors written.
    pub fn wrote(&self, sectors: Sectors) {
        self.budget.set(self.budget.get() - sectors.0 as i64);
        if self.budget.get() < 0 {
            self.wake.wake_all();
        }
    }
    /// Whether a pass is running.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.get()
    }
    /// Waits until a pass that has not ended yet ends.
    pub(crate) async fn wait_for_pass(&self, set: &CacheSet) {
        let before = self.passes.get();
        self.done.wait_until(|| self.passes.get() > before || set.is_closing()).await;
    }
    /// The set closes, and whoever waits for a pass, or to begin one, looks again.
    pub(crate) fn wake(&self) {
        self.wake.wake_all();
        self.done.wake_all();
    }
}

/// What marking a node found.
#[derive(Default)]
struct Marked {
    all: usize,
    good: usize,
    oldest: u8,
}

impl Marked {
    /// So little of the node is of use that it should be written anew.
    const fn little_is_of_use(&self) -> bool {
        self.oldest > STALE_REWRITE || (self.all - self.good) * 2 > self.all
    }
}

/// Gives way to others when GC has worked for [`SLICE`].
struct Slice {
    since: u64,
}

impl Slice {
    fn begin(set: &CacheSet) -> Self {
        Self { since: set.env.now() }
    }
    async fn pause(&mut self, set: &CacheSet) -> Result<()> {
        let worked = Duration::from_nanos(set.env.now() - self.since);
        if worked > SLICE {
            if set.alloc.is_awaited() {
                set.env.yield_now().await;
            } else {
                // A request takes several turns, and each would wait for a slice. Half of the time is for requests, but
                // what GC waited itself was theirs already.
                set.env.give_way(worked.min(SLICE * 4)).await;
            }
            if set.is_closing() {
                return Err(crate::error::Error::Stopping);
            }
            self.since = set.env.now();
        }
        Ok(())
    }
}

impl CacheSet {
    /// Asks for a pass (`trigger_gc`).
    pub fn trigger_gc(&self) {
        self.gc.request();
    }

    /// Runs until the set stops: a pass whenever one is asked for or enough was written.
    pub(crate) async fn gc_task(self: Rc<Self>) {
        let gc = &self.gc;
        loop {
            gc.wake.wait_until(|| self.is_closing() || gc.requested.get() || gc.budget.get() < 0).await;
            if self.is_closing() {
                return;
            }
            gc.requested.set(false);
            gc.budget.set(gc.interval);
            let before = self.alloc.in_use_percent();
            if let Err(error) = self.gc_pass().await {
                self.fail(error);
                return;
            }
            if seeded_bug!(MovingInThePass)
                && self.settings.copy_gc_enabled.get()
                && let Err(error) = self.moving_gc().await
            {
                self.fail(error);
            }
            gc.passes.set(gc.passes.get() + 1);
            gc.done.wake_all();
            self.begin_moving();
            if self.alloc.in_use_percent() >= before && self.env.timeout(PAUSE, self.closed()).await.is_ok() {
                return;
            }
        }
    }

    /// Moves data out of little used buckets, as a task of its own: moving may wait for buckets, and buckets for the next pass.
    fn begin_moving(self: &Rc<Self>) {
        if !self.settings.copy_gc_enabled.get() || self.gc.moving.replace(true) {
            return;
        }
        let set = Rc::clone(self);
        self.task(crate::set::Stage::Space, async move {
            if let Err(error) = set.moving_gc().await {
                set.fail(error);
            }
            set.gc.moving.set(false);
        });
    }

    /// What waits for what: for messages of tests.
    #[must_use]
    pub fn stuck_state(&self) -> String {
        format!(
            "{} passes, {} wait for one, free lists {:?} (nodes, prios, moving, all), a bucket is awaited: {}, the \
             structure is free: {}",
            self.gc.passes.get(),
            self.gc.done.waiting(),
            self.alloc.free_lists(),
            self.alloc.is_awaited(),
            self.tree.structure.try_lock().is_some(),
        )
    }

    /// Whether garbage is being collected now.
    #[must_use]
    pub fn collects_garbage(&self) -> bool {
        self.gc.is_running()
    }

    /// Collects garbage now, and waits until a whole pass is done.
    pub async fn collect_garbage(&self) {
        self.gc.request();
        self.gc.wait_for_pass(self).await;
    }

    /// One pass over the whole btree.
    pub(crate) async fn gc_pass(self: &Rc<Self>) -> Result<()> {
        let began = self.env.now();
        self.gc.running.set(true);
        let block = (!seeded_bug!(FreeWithoutBlock)).then(|| self.alloc.block_prio());
        let mut slice = Slice::begin(self);
        let result = async {
            self.gc_start(&mut slice).await?;
            self.gc_walk(&mut slice).await?;
            self.gc_finish(&mut slice).await
        }
        .await;
        drop(block);
        self.gc.running.set(false);
        self.stats.gc_passes.add(1);
        self.timings.btree_gc.record(began, self.env.now());
        result
    }

    async fn gc_start(&self, slice: &mut Slice) -> Result<()> {
        let trusted = self.alloc.buckets.borrow().marks_valid;
        for range in bucket_ranges(&self.cache.geometry) {
            self.alloc.buckets.borrow_mut().begin_marking(range, trusted);
            slice.pause(self).await?;
        }
        Ok(())
    }

    async fn gc_walk(self: &Rc<Self>, slice: &mut Slice) -> Result<()> {
        let top = self.tree.root().level;
        for level in (0..=top).rev() {
            let mut at = Pos::ZERO;
            while at != Pos::MAX {
                // The tree may have changed at each await; the position is what stays.
                let level = level.min(self.tree.root().level);
                let node = self.node_at(at, level).await?;
                let mut found = Marked::default();
                at = self.gc_mark(&node, at, &mut found);
                while at < node.max {
                    slice.pause(self).await?;
                    if node.is_dead() {
                        break;
                    }
                    at = self.gc_mark(&node, at, &mut found);
                }
                if node.is_dead() {
                    // What replaced it is looked at from where this was left.
                    continue;
                }
                if level == 0 && node.is_dirty() && !seeded_bug!(GcWithoutLeaves) {
                    self.node_write(&node).await?;
                }
                if level < self.tree.root().level {
                    let rewrite = found.little_is_of_use() || self.settings.gc_always_rewrite.get();
                    self.gc_improve(&node, rewrite).await?;
                }
                drop(node);
                slice.pause(self).await?;
            }
        }
        Ok(())
    }

    /// Marks what a node points to, an interior node as a whole, a leaf from `from` on and only so many extents. Answers
    /// where to go on.
    fn gc_mark(&self, node: &Node, from: Pos, found: &mut Marked) -> Pos {
        let geometry = &self.cache.geometry;
        let mut buckets = self.alloc.buckets.borrow_mut();
        buckets.mark_metadata(node.bucket);
        let state = node.state();
        match &state.body {
            Body::Interior { children, stale, .. } => {
                for child in children {
                    buckets.note_oldest(child.ptr);
                    buckets.mark_metadata(geometry.ptr_bucket(child.ptr));
                }
                for ptr in stale {
                    buckets.note_oldest(*ptr);
                    found.oldest = found.oldest.max(buckets.staleness(*ptr));
                }
                found.all += children.len() + stale.len();
                found.good += children.len();
                node.max
            }
            Body::Leaf { map, .. } => {
                let mut end = node.max;
                for (i, extent) in map.iter_from(from).enumerate() {
                    if i == MARKED_AT_ONCE {
                        end = extent.start_pos();
                        break;
                    }
                    buckets.note_oldest(extent.ptr());
                    let stale = buckets.staleness(extent.ptr());
                    found.oldest = found.oldest.max(stale);
                    found.all += 1;
                    if stale == 0 {
                        found.good += 1;
                        buckets.mark_data(extent.ptr(), extent.size(), extent.dirty());
                    }
                }
                end
            }
        }
    }

    /// Joins a node with its neighbours if they fit into fewer, or writes it anew. Neither is worth waiting for buckets.
    async fn gc_improve(self: &Rc<Self>, node: &Rc<Node>, rewrite: bool) -> Result<()> {
        let Some(structure) = self.tree.structure.try_lock() else { return Ok(()) };
        if node.is_dead() {
            return Ok(());
        }
        let siblings = self.gc_siblings(node).await?;
        let sparse = siblings.len() > 1;
        if !sparse && !rewrite {
            return Ok(());
        }
        let Some(mut spare) = self.alloc.try_take_nodes(self.nodes_for_split() + siblings.len(), 0) else {
            return Ok(());
        };
        self.stats.gc_rewrites.add(1);
        let result = if sparse {
            self.rewrite(&siblings, &mut spare, 1, &mut || ()).await
        } else {
            self.rewrite(std::slice::from_ref(node), &mut spare, 0, &mut || ()).await
        };
        drop(structure);
        result
    }

    /// The node and the neighbours in front of it with which it fits into one node less, two thirds full.
    async fn gc_siblings(&self, node: &Rc<Node>) -> Result<Vec<Rc<Node>>> {
        let parent = self.parent_of(node).await?;
        let geometry = &self.cache.geometry;
        let mut run = vec![Rc::clone(node)];
        let mut words = self.gc_words(node);
        let mut best = Vec::new();
        let children = children_of(&parent);
        let here = children.iter().position(|child| child.ptr == node.ptr).unwrap_or(0);
        for child in children.iter().take(here).rev().take(MERGE_NODES - 1) {
            // Only what is in memory: the walk came by here just now.
            let Some(sibling) = self.tree.get(geometry.ptr_bucket(child.ptr)) else { break };
            if sibling.ptr != child.ptr || sibling.is_frozen() {
                break;
            }
            words += self.gc_words(&sibling);
            run.insert(0, sibling);
            if words <= self.node_words() * 2 / 3 * (run.len() - 1) {
                best = run.clone();
            }
        }
        Ok(best)
    }

    fn gc_words(&self, node: &Node) -> usize {
        match &node.state().body {
            Body::Leaf { map, .. } => map.words(),
            Body::Interior { children, .. } => children.len() * KEY_WORDS,
        }
    }

    async fn gc_finish(&self, slice: &mut Slice) -> Result<()> {
        for range in bucket_ranges(&self.cache.geometry) {
            self.alloc.buckets.borrow_mut().end_marking(range);
            slice.pause(self).await?;
        }
        self.mark_roots();
        let journal = self.journal.bucket_numbers();
        let mut buckets = self.alloc.buckets.borrow_mut();
        for nr in journal {
            buckets.mark_metadata(bcache_format::BucketNr(nr));
        }
        buckets.marks_valid = true;
        drop(buckets);
        self.alloc.wants_gc.set(false);
        self.alloc.count_available();
        Ok(())
    }
}
