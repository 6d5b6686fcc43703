//! `bcache completions`: what a shell needs to complete the command line.

use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

use super::{Out, Outcome};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache completions bash > /etc/bash_completion.d/bcache")]
pub struct Args {
    /// The shell to complete in
    shell: Shell,
}

/// Prints the script for `program` and all its subcommands.
pub fn run(args: Args, program: Command, out: &mut Out) -> Outcome {
    std::io::Write::write_all(out, &script(program, args.shell))?;
    Ok(ExitCode::SUCCESS)
}

/// The script that completes a program's command line.
#[must_use]
pub fn script(mut program: Command, shell: Shell) -> Vec<u8> {
    let name = program.get_name().to_owned();
    // The generator panics when it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, name, &mut script);
    script
}
