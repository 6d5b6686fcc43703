//! The btree: which sectors of which device are where in the cache.
//!
//! # Nodes in memory
//! A node on disk is a log of bsets. In memory it is folded: a leaf is one [`ExtentMap`] without overlaps, an interior
//! node a sorted list of live children; beside it stand the keys that are not on disk yet, which the next write of the
//! node appends as one bset.
//!
//! # Who may touch what
//! Everything of a set runs on one thread, and code between two awaits runs alone. So a lookup that finds its nodes in
//! memory takes no lock: it sees the tree before or after each change. What takes longer than that is guarded:
//! - a node that is being read is in nobody's hands until it is whole ([`Tree::reading`]);
//! - `io` of a node orders its writes, and is held by who replaces the node until what replaces it is durable;
//! - a *frozen* leaf takes no keys: it is being replaced;
//! - [`Tree::structure`] is held by whoever changes which nodes there are. Splits are rare; one at a time is enough.
//!
//! # The two ways a node is written
//! [`CacheSet::node_write`](crate::set::CacheSet) writes now and returns when it is durable; `leaf_dirty` notes that a leaf
//! has keys to write and which journal entry that pins, and leaves the writing to later.

mod extent;
mod extent_map;
mod insert;
mod lookup;
mod node;
mod node_io;
mod split;
mod tree;

pub use extent::Extent;
pub use extent_map::ExtentMap;
pub use insert::Durability;
pub use lookup::Piece;
pub use node::{Body, Child, Node};
pub(crate) use node_io::NodeRef;
pub(crate) use split::children_of;
pub use tree::Tree;
