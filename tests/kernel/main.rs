//! Tests against the kernel's bcache, in an emulated machine: `cargo test --test kernel -- --ignored`.

#![allow(clippy::unwrap_used)] // a test says what went wrong by failing

#[path = "../damage/cases.rs"]
#[allow(dead_code)] // what only the tests of damage use
mod cases;
mod golden;
mod handover;
mod log_writes;
mod machine;
mod made;
mod package;
#[path = "../damage/patched.rs"]
#[allow(dead_code)]
mod patched;
#[path = "../damage/regions.rs"]
#[allow(dead_code)]
mod regions;
mod repair;
mod system;
mod trace;
