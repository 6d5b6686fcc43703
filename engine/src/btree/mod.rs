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
//! # Rules of btree I/O
//! Each says where it holds, and which test would notice if it did not; without a path that is a test of
//! `rules/tree.rs`, with `arranged::` one of `rules/arranged.rs` or, with its seeded mistake, of `rules.rs`.
//!
//! 1. **A node read is synchronous to who wants the node.** [`CacheSet::node`] returns when the read and its checks are
//!    over; only its caller waits, others run. `btree_io_a_lookup_that_has_to_read_stalls_nobody_else`.
//! 2. **It happens under the node's write lock.** A node that is not there yet has no lock of its own: its entry in
//!    [`Tree::reading`] stands for it, and the node is in the tree only when all checks have passed. There is no node that
//!    is half read, and no flag for it. `btree_io_nobody_sees_a_node_before_it_was_read_and_checked`,
//!    `btree_io_nobody_sees_a_node_that_is_broken`.
//! 3. **Writing now and noting for later are two operations.** [`CacheSet::node_write`] writes a node's keys as one bset
//!    and returns when that is durable; [`CacheSet::leaf_dirty`] notes that a leaf has keys to write, and which journal
//!    entry that pins. (New nodes, which nobody can see, are written whole by [`CacheSet::write_bset`].)
//!    `btree_io_a_dirty_leaf_is_noted_and_written_when_somebody_says_so`.
//! 4. **What a node blocks lives in its pending write.** [`PendingWrite::prio_blocked`](node::PendingWrite) counts the
//!    freed nodes whose markers that write carries; their new generations reach no prio set before the write is durable,
//!    which is when they are given free. The set only has the sum.
//!    `arranged::btree_io_a_freed_nodes_generation_waits_for_the_parents_write` (`FreeWithoutBlock`).
//! 5. **GC blocks prio writes from its start to its end** ([`CacheSet::gc_pass`]), because it raises generations that
//!    count only when it is through. `arranged::btree_io_gc_blocks_prio_writes_from_its_start_to_its_end`.
//! 6. **A read merges its bsets with an iterator from a pool** that has one in reserve, is sized by the read, and gets it
//!    back on every path ([`merge`]). `btree_io_a_node_of_as_many_bsets_as_blocks_is_read`, and `merge::tests`, where
//!    laying bsets over each other one by one says what must come out. Keys of an interior node do not cut each other: what
//!    is live of them generations say, in whatever order they are looked at.
//! 7. **A clean stop writes every dirty node, one after an error writes none** ([`CacheSet::stop`]).
//!    `btree_io_a_clean_stop_writes_every_dirty_node` (`StopLeavesNodes`), `btree_io_a_stop_after_an_error_writes_no_node`.
//! 8. **A new root is written, and durable, before it is named as root** ([`CacheSet::create_first_root`],
//!    [`CacheSet::new_root`], which says why its journal entry is not waited for).
//!    `arranged::rule_4_a_child_is_durable_before_its_parent_names_it` (`ChildNotDurable`).

// Half of what the rules name is private: whoever reads them has the code at hand.
#![allow(rustdoc::private_intra_doc_links)]

#[cfg(doc)]
use crate::set::CacheSet;

mod extent;
mod extent_map;
mod flusher;
mod insert;
mod lookup;
mod merge;
mod misses;
mod node;
mod node_io;
mod split;
mod tree;

pub use extent::Extent;
pub use extent_map::ExtentMap;
pub use insert::Durability;
pub use lookup::Piece;
pub use misses::{MissGuard, MissId, Misses};
pub use node::{Body, Child, Node, NodeState};
pub(crate) use node::{NodeRef, PendingWrite};
pub(crate) use split::children_of;
pub use tree::Tree;
