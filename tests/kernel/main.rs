//! Tests against the kernel's bcache, in an emulated machine: `cargo test --test kernel -- --ignored`.

#![allow(clippy::unwrap_used)] // a test says what went wrong by failing

mod golden;
mod handover;
mod machine;
mod made;
mod repair;
mod system;
