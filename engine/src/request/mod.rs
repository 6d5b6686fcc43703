//! Requests: reads, writes, flushes and discards of the devices that a set serves.

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
