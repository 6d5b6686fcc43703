//! A btree node in memory.

use super::extent::Extent;
use super::extent_map::ExtentMap;
use crate::alloc::PrioBlock;
use crate::journal::JournalPin;
use crate::sync::{Mutex, WaitQueue};
use bcache_format::bkey::Bkey;
use bcache_format::{BucketNr, Geometry, Pos, Ptr};
use std::cell::{Cell, Ref, RefCell, RefMut};

/// A node that an interior node points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// Everything up to here is in it.
    pub max: Pos,
    /// Where it is.
    pub ptr: Ptr,
}

/// What a node holds.
pub enum Body {
    /// Extents, and those of them that the next bset will hold.
    Leaf {
        /// All.
        map: ExtentMap,
        /// Not on disk yet, holes included.
        pending: ExtentMap,
        /// The node's bsets, or what is pending, may have holes, which `map` does not show.
        hides_holes: bool,
    },
    /// Live children in order, and keys for the next bset.
    Interior {
        /// Live children.
        children: Vec<Child>,
        /// Pointers in the node's bsets whose nodes were freed. They are on disk until the node is rewritten, so their
        /// generations must not come around.
        stale: Vec<Ptr>,
        /// Not on disk yet: new children and freeing markers.
        pending: Vec<Bkey>,
    },
}

/// What belongs to the bset that is being gathered.
///
/// What it holds of others it holds until it is dropped: when the bset is durable, or has become needless.
#[derive(Default)]
pub struct PendingWrite {
    /// Oldest journal entry with keys of this bset.
    pub pin: Option<JournalPin>,
    /// The data that the keys name is durable once the device was flushed at this epoch.
    pub epoch: u64,
    /// Clean keys of these inodes are in it: their backing devices must be flushed at these epochs first. What is clean
    /// in the cache must be what the backing device has, also after it lost its volatile writes.
    pub below: Vec<(u32, u64)>,
    /// Freed nodes whose markers are in this bset: their new generations must not reach the prio sets before it.
    pub prio_blocks: Vec<PrioBlock>,
    /// When the first key came, in nanoseconds of the runtime's clock.
    pub since: u64,
}

/// The changing part of a node.
pub struct NodeState {
    /// Content.
    pub body: Body,
    /// Blocks of bsets on disk, or on their way there.
    pub written: u64,
    /// The bset that is being gathered.
    pub write: PendingWrite,
}

/// A node that is to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeRef {
    /// Where it is.
    pub ptr: Ptr,
    /// Its level.
    pub level: u8,
    /// Everything up to here is in it.
    pub max: Pos,
}

/// A btree node.
pub struct Node {
    /// Where it is.
    pub ptr: Ptr,
    /// Its bucket, which names it.
    pub bucket: BucketNr,
    /// 0 for leaves.
    pub level: u8,
    /// Names the life of the node.
    pub seq: u64,
    /// Everything up to here is in it.
    pub max: Pos,
    /// Orders writes.
    pub io: Mutex<()>,
    state: RefCell<NodeState>,
    /// Takes no keys: how many want that.
    frozen: Cell<u32>,
    thawed: WaitQueue,
    /// Replaced: not part of the tree any more.
    dead: Cell<bool>,
    /// A write was asked for and did not begin yet.
    pub(crate) write_queued: Cell<bool>,
    /// Keys that were taken from it are being written.
    pub(super) writing: Cell<bool>,
    /// Used since eviction last looked.
    pub(super) used: Cell<bool>,
}

impl Node {
    /// A node with this content.
    pub(crate) fn new(at: NodeRef, geometry: &Geometry, seq: u64, body: Body, written: u64) -> Self {
        let NodeRef { ptr, level, max } = at;
        Self {
            ptr,
            bucket: geometry.ptr_bucket(ptr),
            level,
            seq,
            max,
            io: Mutex::new(()),
            state: RefCell::new(NodeState { body, written, write: PendingWrite::default() }),
            frozen: Cell::new(0),
            thawed: WaitQueue::new(),
            dead: Cell::new(false),
            write_queued: Cell::new(false),
            writing: Cell::new(false),
            used: Cell::new(true),
        }
    }
    /// The changing part.
    pub fn state(&self) -> Ref<'_, NodeState> {
        self.state.borrow()
    }
    /// The changing part, to change it.
    pub fn state_mut(&self) -> RefMut<'_, NodeState> {
        self.state.borrow_mut()
    }
    /// The key of this node in its parent, or in the journal.
    #[must_use]
    pub fn key(&self, geometry: &Geometry) -> Bkey {
        child_key(self.max, self.ptr, geometry)
    }
    /// Whether there are keys that are not on disk, or not known to be.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        if self.writing.get() {
            return true;
        }
        match &self.state().body {
            Body::Leaf { pending, .. } => !pending.is_empty(),
            Body::Interior { pending, .. } => !pending.is_empty(),
        }
    }
    /// Whether `words` more of keys fit into the node's next bset.
    #[must_use]
    pub fn has_room(&self, words: usize, geometry: &Geometry) -> bool {
        let state = self.state();
        let pending = state.body.pending_words();
        let bytes = bcache_format::bset::HEADER_BYTES as u64 + (pending + words) as u64 * 8;
        state.written + bytes.div_ceil(geometry.block_bytes()) <= geometry.btree_node_blocks()
    }
    /// Calls `each` with every extent of a leaf, in order.
    pub fn for_each_extent(&self, mut each: impl FnMut(&Extent)) {
        if let Body::Leaf { map, .. } = &self.state().body {
            map.iter().for_each(&mut each);
        }
    }
    /// Whether it takes no keys just now.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen.get() > 0
    }
    /// From now on it takes no keys, until whoever asked for that calls [`thaw`](Self::thaw).
    pub fn freeze(&self) {
        self.frozen.set(self.frozen.get() + 1);
    }
    /// Takes keys again, unless others froze it too, or was replaced.
    pub fn thaw(&self) {
        self.frozen.set(self.frozen.get().saturating_sub(1));
        if !self.is_frozen() {
            self.thawed.wake_all();
        }
    }
    /// Waits while it takes no keys.
    pub async fn wait_thawed(&self) {
        self.thawed.wait_until(|| !self.is_frozen()).await;
    }
    /// Whether it was replaced.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.dead.get()
    }
    /// It was replaced.
    pub fn kill(&self) {
        self.dead.set(true);
    }
    /// Bytes of memory, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + match &self.state().body {
                Body::Leaf { map, pending, .. } => map.bytes() + pending.bytes(),
                Body::Interior { children, stale, pending } => {
                    children.capacity() * size_of::<Child>()
                        + stale.capacity() * 8
                        + pending.capacity() * size_of::<Bkey>()
                }
            }
    }
}

impl PendingWrite {
    /// Notes that the backing device of `inode` must be flushed at `epoch` first.
    pub fn needs_below(&mut self, inode: u32, epoch: u64) {
        match self.below.iter_mut().find(|(other, _)| *other == inode) {
            Some((_, known)) => *known = epoch.max(*known),
            None => self.below.push((inode, epoch)),
        }
    }
}

impl Body {
    /// Words of the keys that the next bset will hold.
    #[must_use]
    pub fn pending_words(&self) -> usize {
        match self {
            Self::Leaf { pending, .. } => pending.words(),
            Self::Interior { pending, .. } => pending.iter().map(Bkey::u64s).sum(),
        }
    }
}

/// The key of a node in its parent.
#[must_use]
pub(super) fn child_key(max: Pos, ptr: Ptr, geometry: &Geometry) -> Bkey {
    let sectors = geometry.btree_node_bytes() / bcache_format::SECTOR_SIZE;
    Bkey::extent(max.inode, max.offset, sectors, ptr, false)
}

/// The key that says that the node at `ptr` is freed: its bucket has the generation of the key's pointer.
#[must_use]
pub(super) fn freeing_marker(ptr: Ptr, generation: u8, geometry: &Geometry) -> Bkey {
    let sectors = geometry.btree_node_bytes() / bcache_format::SECTOR_SIZE;
    Bkey::extent(0, 0, sectors, Ptr::new(ptr.dev(), ptr.offset(), generation), false)
}
