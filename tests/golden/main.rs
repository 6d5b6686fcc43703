//! Tests over the golden sets.

#![allow(clippy::unwrap_used)] // a test says what went wrong by failing

mod export;
mod fsck;
mod inspect;
mod rescue;
mod seeds;
mod sets;
mod terminal;
