//! `bcache completions`: what a shell needs to complete the command line.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Out, Outcome, bcache::Bcache};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache completions bash > /etc/bash_completion.d/bcache")]
pub struct Args {
    /// The shell to complete in
    shell: Shell,
}

/// Prints the script for `bcache` and all its subcommands.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    // The generator panics when it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Bcache::command(), "bcache", &mut script);
    std::io::Write::write_all(out, &script)?;
    Ok(ExitCode::SUCCESS)
}
