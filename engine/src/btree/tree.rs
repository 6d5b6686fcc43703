//! The nodes in memory.

use super::merge::MergePool;
use super::node::{Body, Node};
use crate::journal::JournalPin;
use crate::sync::{Mutex, WaitQueue};
use bcache_format::BucketNr;
use bcache_format::Seq;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

/// The btree's nodes in memory, and its root.
pub struct Tree {
    nodes: RefCell<HashMap<BucketNr, Rc<Node>, foldhash::fast::FixedState>>,
    root: RefCell<Option<Rc<Node>>>,
    /// Nodes that are being read, with who waits for them: the write lock of a node that is not there yet.
    reading: RefCell<HashMap<BucketNr, Rc<WaitQueue>>>,
    /// What reads of leaves merge their bsets with.
    pub(super) merges: MergePool,
    /// Held by whoever changes which nodes there are.
    pub structure: Mutex<()>,
    /// Order in which eviction looks.
    clock: RefCell<VecDeque<BucketNr>>,
    bytes: Cell<usize>,
    limit: Cell<usize>,
}

/// A node is being read: others that want it wait until this is dropped, and look again.
pub(super) struct Reading<'a> {
    tree: &'a Tree,
    nr: BucketNr,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        // As if there were no guard: only who gets to the end of the read takes the entry away.
        if seeded_bug!(ReadLeftBehind) && !self.tree.nodes.borrow().contains_key(&self.nr) {
            return;
        }
        let waiting = self.tree.reading.borrow_mut().remove(&self.nr);
        if let Some(waiting) = waiting {
            waiting.wake_all();
        }
    }
}

impl Tree {
    /// No nodes, and room for `limit` bytes of them, each of `blocks` blocks at most.
    #[must_use]
    pub fn new(limit: usize, blocks: u64) -> Self {
        Self {
            nodes: RefCell::default(),
            root: RefCell::default(),
            reading: RefCell::default(),
            merges: MergePool::new(blocks as usize + 1),
            structure: Mutex::new(()),
            clock: RefCell::default(),
            bytes: Cell::new(0),
            limit: Cell::new(limit),
        }
    }
    /// The node in bucket `nr`, if it is in memory.
    #[must_use]
    pub fn get(&self, nr: BucketNr) -> Option<Rc<Node>> {
        let nodes = self.nodes.borrow();
        let node = nodes.get(&nr)?;
        node.used.set(true);
        Some(Rc::clone(node))
    }
    /// The root.
    ///
    /// # Panics
    /// Before recovery has set one.
    #[must_use]
    #[allow(clippy::expect_used)]
    pub fn root(&self) -> Rc<Node> {
        Rc::clone(self.root.borrow().as_ref().expect("recovery sets a root first"))
    }
    /// Makes `node` the root. Each journal entry names the root there is when it is written.
    pub fn set_root(&self, node: &Rc<Node>) {
        *self.root.borrow_mut() = Some(Rc::clone(node));
    }
    /// Who waits for the node in bucket `nr`, if it is being read.
    pub(super) fn being_read(&self, nr: BucketNr) -> Option<Rc<WaitQueue>> {
        self.reading.borrow().get(&nr).cloned()
    }
    /// The node in bucket `nr` is being read as long as the answer lives.
    pub(super) fn begin_read(&self, nr: BucketNr) -> Reading<'_> {
        self.reading.borrow_mut().insert(nr, Rc::new(WaitQueue::new()));
        Reading { tree: self, nr }
    }
    /// Takes a node into memory.
    pub fn add(&self, node: &Rc<Node>) {
        self.bytes.set(self.bytes.get() + node.bytes());
        self.nodes.borrow_mut().insert(node.bucket, Rc::clone(node));
        self.clock.borrow_mut().push_back(node.bucket);
        self.tidy_clock();
    }
    /// Drops places in the order of eviction whose nodes are gone, when they are more than half.
    fn tidy_clock(&self) {
        let (nodes, mut clock) = (self.nodes.borrow(), self.clock.borrow_mut());
        if clock.len() > 2 * nodes.len() + 16 && !seeded_bug!(ClockGrows) {
            let mut seen = HashSet::with_capacity(nodes.len());
            clock.retain(|nr| nodes.contains_key(nr) && seen.insert(*nr));
        }
    }
    /// Forgets a node.
    pub fn remove(&self, node: &Node) {
        if self.nodes.borrow_mut().remove(&node.bucket).is_some() {
            self.bytes.set(self.bytes.get().saturating_sub(node.bytes()));
        }
    }
    /// Nodes grow as keys are inserted; this looks again how large they are.
    pub fn recount(&self) {
        self.bytes.set(self.nodes.borrow().values().map(|node| node.bytes()).sum());
    }
    /// Nodes in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.borrow().len()
    }
    /// Entries in the order in which eviction looks: for the checks of tests.
    #[must_use]
    pub fn clock_len(&self) -> usize {
        self.clock.borrow().len()
    }
    /// Whether no node is in memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.borrow().is_empty()
    }
    /// Bytes of the nodes in memory, as of the last look.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }
    /// Sets the bound on [`Self::bytes`].
    pub fn set_limit(&self, bytes: usize) {
        self.limit.set(bytes);
    }
    /// Leaves with keys that are not on disk, in no order.
    #[must_use]
    pub fn dirty_nodes(&self) -> Vec<Rc<Node>> {
        self.nodes.borrow().values().filter(|node| node.is_dirty()).cloned().collect()
    }
    /// Leaves that pin journal entries up to `target`, those with the oldest first.
    #[must_use]
    pub fn leaves_pinning(&self, target: Seq) -> Vec<Rc<Node>> {
        let pin = |node: &Rc<Node>| {
            node.state().write.pin.as_ref().map(JournalPin::seq).filter(|seq| *seq <= target)
        };
        let mut found: Vec<_> =
            self.nodes.borrow().values().filter_map(|node| Some((pin(node)?, Rc::clone(node)))).collect();
        found.sort_by_key(|(pin, node)| (*pin, node.bucket));
        found.into_iter().map(|(_, node)| node).collect()
    }
    /// Puts nodes out of memory until they fit the bound: clean ones that were not used lately and are in nobody's
    /// hands. The root stays.
    pub fn evict(&self) {
        if self.bytes.get() <= self.limit.get() {
            return;
        }
        let mut looks = self.clock.borrow().len() * 2;
        while self.bytes.get() > self.limit.get() && looks > 0 {
            looks -= 1;
            let Some(nr) = self.clock.borrow_mut().pop_front() else { return };
            let Some(node) = self.nodes.borrow().get(&nr).cloned() else { continue };
            // One hand is the table's, one is ours.
            let idle = Rc::strong_count(&node) == 2 && !node.is_dirty() && !node.is_frozen();
            if node.used.replace(false) || !idle || self.is_root(&node) {
                self.clock.borrow_mut().push_back(nr);
                continue;
            }
            self.bytes.set(self.bytes.get().saturating_sub(node.bytes()));
            self.nodes.borrow_mut().remove(&nr);
        }
    }
    /// Puts every node out of memory that nobody needs there.
    pub fn prune(&self) {
        let limit = self.limit.replace(0);
        self.recount();
        self.evict();
        self.limit.set(limit);
    }
    /// Nodes that are being read.
    pub(crate) fn reads_under_way(&self) -> usize {
        self.reading.borrow().len()
    }
    /// Nobody merges bsets just now, and the cursors for that are in their pool.
    pub(crate) fn merges_are_whole(&self) -> bool {
        self.merges.is_whole()
    }
    fn is_root(&self, node: &Rc<Node>) -> bool {
        self.root.borrow().as_ref().is_some_and(|root| Rc::ptr_eq(root, node))
    }
    /// Extents in the leaves in memory.
    #[must_use]
    pub fn extents(&self) -> usize {
        let count = |node: &Rc<Node>| match &node.state().body {
            Body::Leaf { map, .. } => map.len(),
            Body::Interior { .. } => 0,
        };
        self.nodes.borrow().values().map(count).sum()
    }
}
