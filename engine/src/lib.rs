//! The cache engine.
//!
//! One cache set runs on one thread as cooperating tasks; see [`set::CacheSet`]. Code here sees devices only as
//! [`dev::BlockDev`] and everything else that is not determined only through [`env::Env`], so that the same code runs in
//! production and in the simulator ([`sim`]).

/// Whether a mistake of `sim_bugs` is switched on; never, where they are not compiled in.
macro_rules! seeded_bug {
    ($bug:ident) => {{
        #[cfg(any(test, sim_bugs))]
        let on = crate::sim_bugs::on(crate::sim_bugs::Bug::$bug);
        #[cfg(not(any(test, sim_bugs)))]
        let on = false;
        on
    }};
}

// The harness of power cuts names this crate from outside; its unit tests include it, to switch mistakes on.
#[cfg(test)]
extern crate self as bcache_engine;

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
#[cfg(test)]
mod rules;
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
