//! Tests of the programs' command lines. Those in modules called `debian` compare with Debian's bcache-tools.

#![allow(clippy::unwrap_used)] // a test says what went wrong by failing

mod checkers;
mod help;
mod make;
mod make_bytes;
mod man;
mod metrics;
mod show;
