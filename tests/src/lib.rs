//! What the project is tested with: the golden sets that Linux wrote, deterministic writes that can be checked
//! afterwards, stock kernels in an emulated machine, and the built programs.

pub mod cmd;
pub mod completions;
pub mod crash;
pub mod golden;
pub mod log_writes;
pub mod man;
pub mod nbd;
pub mod package;
pub mod paths;
#[cfg(test)]
mod shape;
pub mod sparse;
pub mod stamp;
pub mod trace;
pub mod vm;
