//! The programs' code. Each file in `bin/` only calls into [`cli`], where one module a program or subcommand has its
//! arguments and prints its answer.

#![warn(unreachable_pub)]

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod describe;
pub mod devices;
pub mod dm;
pub mod expose;
pub mod frontend;
pub mod hold;
pub mod identify;
pub mod in_use;
pub mod kept;
pub mod kernel;
pub mod latency;
pub mod log;
pub mod make;
pub mod module;
pub mod names;
pub mod process;
pub mod queue;
mod raw;
pub mod register;
pub mod scan;
pub mod serve;
pub mod signature;
pub mod target;
pub mod text;
