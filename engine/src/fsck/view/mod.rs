//! A read-only view of a cache set at rest: what a reader of its cached devices would see right now.
//!
//! The order is the kernel's at start-up (`run_cache_set`): superblocks, journal, prio sets, uuid table, btree, and
//! the journal's keys on top. Nothing is written; the journal is replayed in memory.
//!
//! **Which key wins.** Inside a btree node, keys of newer bsets cut those of older ones. Keys of journal entries
//! `last_seq..=newest` are laid over the btree in their order, each cutting what was there. Only then is a pointer
//! judged: a stale one, or one to no device, is a miss, also where it hides an older key that is not stale.
//!
//! **Generations.** A bucket's generation is the one of the prio sets, raised by every newer pointer in the btree
//! (freeing markers included) and in the journal. Staleness is judged after all have been seen: [`SetView::read`]
//! reads the whole tree, the leaves in the order of the device on all cores, and [`SetView::extents`] reads leaves
//! again.
//!
//! Memory: 3 bytes a bucket, the journal's live entries, one key a leaf, and a node for each thread.

pub mod content;
mod descend;
pub mod devices;
pub mod extent_map;
pub mod extents;
pub mod fault;
pub mod gens;
pub mod journal;
pub mod node;
pub mod overlay;
pub(super) mod packed;
pub mod prio;
pub mod read_at;
pub mod set;
pub(super) mod slot;
pub(super) mod sweep;
pub mod tree;
pub mod uuids;

pub use content::{Content, Piece, Source};
pub use devices::{Backing, Cache, Devices};
pub use extents::{Extents, PtrState, SeenExtent};
pub use fault::{Fault, What};
pub use gens::Gens;
pub use read_at::{Device, FileDevice, MemDevice, ReadAt};
pub use set::{Refusal, SetView};
