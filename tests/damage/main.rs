//! Damaged sets: what reads them names what is wrong, and never panics, loops or allocates without bound.
//!
//! Devices are golden ones with changes on top that exist in memory only.

#![allow(clippy::unwrap_used)] // a test says what went wrong by failing

mod bad_input;
mod bits;
mod broken;
mod cases;
mod content;
mod cuts;
mod enlarge;
mod flush;
mod fsck;
mod kept;
mod links;
mod lost;
mod memory;
mod mutations;
mod patched;
mod programs;
mod regions;
mod salvage;
