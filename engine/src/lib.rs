//! The cache engine.

pub mod dev;
pub mod env;
pub mod fsck;
pub mod net;
mod raw;
pub mod sim;
pub mod sync;
pub mod volume;
