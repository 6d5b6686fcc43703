//! The `bcache` program: a subcommand for everything.

use clap::{Parser, Subcommand};

use super::{Out, Outcome, completions};

/// Format, inspect and read bcache devices, without the kernel's bcache
#[derive(Debug, Parser)]
#[command(name = "bcache", version, arg_required_else_help = true)]
pub struct Bcache {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Completions(completions::Args),
}

/// Runs the subcommand that the command line names.
pub fn run(bcache: Bcache, out: &mut Out) -> Outcome {
    match bcache.command {
        Command::Completions(args) => completions::run(args, out),
    }
}
