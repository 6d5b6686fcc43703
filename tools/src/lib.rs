//! The programs' code. Each file in `bin/` only calls into [`cli`], where one module a program or subcommand has its
//! arguments and prints its answer.

pub mod cli;
pub mod describe;
pub mod frontend;
pub mod make;
pub mod serve;
pub mod signature;
pub mod target;
