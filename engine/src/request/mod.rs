//! Requests: reads, writes, flushes and discards of the devices that a set serves.
//!
//! # Pieces, and who meets whom
//!
//! - [`DeviceVolume`] is what a front end sees of an attached device: it checks a request's range, counts it as under way,
//!   and calls the set. [`AloneVolume`] is the same of a backing device without a cache.
//! - `write` chooses a way: to the cache only, to both, or past the cache; `read` looks extents up, reads them, and caches
//!   what was missing. Both ask `bypass`, which knows how sequential a client is ([`streams`](Streams)) and how late the cache.
//! - Writes hold their sectors in [`Ranges`], so that two of the same never run at once; writeback holds its own.
//! - `place` finds room on the cache device: open buckets of [`alloc`](crate::alloc), whose pins the places hold.
//! - What is where is the btree's ([`pieces`](crate::set::CacheSet::pieces), `insert`); a read's data on its way into the
//!   cache is a [`MissGuard`](crate::btree::MissGuard) there, ended by whatever is inserted over it.
//! - `errors` counts what devices fail, and retires them.

mod alone;
mod bypass;
mod errors;
mod place;
mod ranges;
mod read;
mod streams;
mod volume;
mod write;

pub use alone::AloneVolume;
pub use bypass::{CUTOFF_CACHE_ADD, Congestion};
pub use errors::IoErrors;
pub use ranges::{RangeGuard, Ranges};
pub use streams::Streams;
pub use volume::DeviceVolume;
