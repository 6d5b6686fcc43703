//! Tests against the kernel's bcache, in an emulated machine: `cargo test --test kernel -- --ignored`.

mod golden;
mod machine;
