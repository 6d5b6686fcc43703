//! What is wrong with a set, and where.

use bcache_format::{BucketNr, Error, Pos, Problem, Ptr, Structure};
use std::io;
use std::sync::Arc;
use thiserror::Error as ThisError;

/// One thing that cannot be: on which device, in which structure, at which byte of the device.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("{device}: {structure} at byte {byte}: {what}")]
pub struct Fault {
    /// Name of the device.
    pub device: Arc<str>,
    /// The structure.
    pub structure: Structure,
    /// Where, from the start of the device.
    pub byte: u64,
    /// What is wrong.
    pub what: What,
    /// The keys that cannot be known because of it: behind the first position, up to and including the second.
    pub range: Option<Box<(Pos, Pos)>>,
}

/// What is wrong at a place.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum What {
    /// The device could not be read there.
    #[error("cannot be read: {message}")]
    Io {
        /// The kind of error.
        kind: io::ErrorKind,
        /// The device's words.
        message: String,
    },
    /// The bytes are not what the format asks for.
    #[error("{0}")]
    Format(Problem),
    /// The cache has no valid journal entry at all.
    #[error("the journal holds no valid entry")]
    JournalEmpty,
    /// Entries that must be replayed are not there.
    #[error("journal entries {from} to {to} are missing, those from {last_seq} to {newest} are needed")]
    JournalMissing {
        /// First that is missing.
        from: u64,
        /// Last that is missing.
        to: u64,
        /// First that is needed.
        last_seq: u64,
        /// Newest there is.
        newest: u64,
    },
    /// A valid entry behind a damaged one: what is between cannot be replayed.
    #[error(
        "entry {seq} is valid but cannot be reached, the newest that can is {newest}: an entry between is damaged"
    )]
    JournalHole {
        /// Newest that recovery finds.
        newest: u64,
        /// The one behind the damage.
        seq: u64,
    },
    /// The chain of prio sets comes back to a bucket.
    #[error("the chain of prio sets comes back to bucket {0}")]
    PrioLoop(BucketNr),
    /// The chain of prio sets names a bucket that cannot hold one.
    #[error("the chain of prio sets goes to bucket {0}, which cannot hold one")]
    PrioBucket(BucketNr),
    /// A pointer that cannot be followed.
    #[error("{key}: {why}")]
    Pointer {
        /// The key, as text.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Keys of a bset are not in their order, so that lookups in it go wrong.
    #[error("{key} comes after {before}: keys out of order")]
    KeyOrder {
        /// Where they and those beside them may belong.
        places: Vec<(Pos, Pos)>,
        /// The key.
        key: String,
        /// The one before it.
        before: String,
    },
    /// A key outside the range that the node's parent gives it.
    #[error("{key} is outside the node's range {lower} to {upper}")]
    KeyRange {
        /// The key.
        key: String,
        /// The node's range starts here.
        lower: Pos,
        /// The node's range ends here.
        upper: Pos,
    },
    /// A key of a slot that the uuid table does not have.
    #[error("{key}: the uuid table has {slots} slots")]
    KeyInode {
        /// The key.
        key: String,
        /// How many slots there are.
        slots: usize,
    },
    /// A child that ends where the one before it does, or earlier.
    #[error("child {key} ends before its place, {lower} to {upper}")]
    ChildOverlap {
        /// Its key.
        key: String,
        /// The child before it ends here.
        lower: Pos,
        /// The node ends here.
        upper: Pos,
    },
    /// A node whose keys are not those of its range.
    #[error(
        "{outside} of {keys} keys are outside the node's range {lower} to {upper}: it is another's child"
    )]
    Misplaced {
        /// Keys outside.
        outside: usize,
        /// All keys.
        keys: usize,
        /// The node's range starts here.
        lower: Pos,
        /// The node's range ends here.
        upper: Pos,
    },
    /// A node at the level of leaves that has an interior node's keys.
    #[error("an interior node where a leaf should be: the level is wrong")]
    NotALeaf,
    /// An extent that is longer than its end is far from the start of the device.
    #[error("{0}: longer than its end allows")]
    KeySize(String),
    /// A node is reached twice: a cycle, or levels that do not descend, or two parents.
    #[error("node {0} is reached a second time")]
    NodeTwice(Ptr),
    /// The level of the root is more than any btree needs.
    #[error("a btree of {0} levels")]
    TooDeep(u16),
    /// An interior node without a live child.
    #[error("interior node without a live child")]
    NoChild,
    /// The children of a node end before the node does.
    #[error("the children end at {end}, the node at {upper}")]
    ChildrenEnd {
        /// End of the last live child.
        end: Pos,
        /// End of the node.
        upper: Pos,
    },
    /// A child that is stale although the node never freed it.
    #[error("child {key} is stale by {stale} but was never freed: the bucket's generation is ahead")]
    ChildLost {
        /// Its key.
        key: String,
        /// How far its bucket's generation is ahead.
        stale: u8,
    },
    /// A pointer so far behind its bucket that the two cannot be compared any more.
    #[error("{key} is stale by {stale}, more than 96: the bucket's generation cannot be trusted")]
    TooStale {
        /// The key.
        key: String,
        /// How far its bucket's generation is ahead.
        stale: u8,
    },
}

impl Fault {
    /// A fault of `structure` at `byte` of the device called `device`.
    #[must_use]
    pub fn new(device: &Arc<str>, structure: Structure, byte: u64, what: What) -> Self {
        Self { device: Arc::clone(device), structure, byte, what, range: None }
    }
    /// The same fault, which makes the keys between two positions unknown.
    #[must_use]
    pub fn hiding(mut self, from: Pos, to: Pos) -> Self {
        self.range.get_or_insert_with(|| Box::new((from, to)));
        self
    }
    /// What a parser said of bytes that start at `base` of the device.
    #[must_use]
    pub fn format(device: &Arc<str>, error: Error, base: u64) -> Self {
        let error = error.at(base);
        Self::new(device, error.structure, error.byte, What::Format(error.problem))
    }
    /// What the device said when it was read.
    #[must_use]
    pub fn io(device: &Arc<str>, structure: Structure, byte: u64, error: &io::Error) -> Self {
        let what = What::Io { kind: error.kind(), message: error.to_string() };
        Self::new(device, structure, byte, what)
    }
}
