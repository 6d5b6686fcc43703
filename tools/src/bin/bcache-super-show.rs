//! `bcache-super-show`: prints superblocks.

use bcache_tools::cli::{self, show};

/// Print the superblock of cache and backing devices
#[derive(clap::Parser)]
#[command(name = "bcache-super-show", version)]
struct Program {
    #[command(flatten)]
    args: show::Args,
}

fn main() -> std::process::ExitCode {
    cli::main(|program: Program, out| show::run(program.args, out))
}
