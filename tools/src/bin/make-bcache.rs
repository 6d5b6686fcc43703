//! `make-bcache`: formats devices.

use bcache_tools::cli::{self, make};

/// Format a cache device, backing devices, or both at once
///
/// Whatever is wrong is found before anything is written: then nothing is, and the exit code is 1.
#[derive(clap::Parser)]
#[command(name = "make-bcache", version)]
struct Program {
    #[command(flatten)]
    args: make::Args,
}

fn main() -> std::process::ExitCode {
    cli::main(|program: Program, out| make::run(program.args, out))
}
