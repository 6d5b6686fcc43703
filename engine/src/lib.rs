//! The cache engine.
//!
//! One cache set runs on one thread as cooperating tasks; see [`set::CacheSet`]. Code here sees devices only as
//! [`dev::BlockDev`] and everything else that is not determined only through [`env::Env`], so that the same code runs in
//! production and in the simulator ([`sim`]).

pub mod alloc;
pub mod btree;
pub mod dev;
pub mod env;
pub mod error;
pub mod fsck;
pub mod gc;
pub mod journal;
pub mod net;
mod raw;
pub mod request;
pub mod set;
pub mod settings;
pub mod sim;
#[cfg(any(test, sim_bugs))]
pub mod sim_bugs;
pub mod stats;
pub mod sync;
pub mod ublk;
pub mod volume;
pub mod writeback;

pub use error::{Error, Result};
