//! Requests: reads, writes, flushes and discards of the devices that a set serves.

mod alone;
mod bypass;
mod errors;
mod place;
mod ranges;
mod read;
mod volume;
mod write;

pub use alone::AloneVolume;
pub use bypass::{CUTOFF_CACHE_ADD, Congestion, Streams};
pub use errors::IoErrors;
pub use ranges::{MissGuard, MissId, Misses, RangeGuard, Ranges};
pub use volume::DeviceVolume;
