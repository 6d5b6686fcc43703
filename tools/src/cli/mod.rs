//! Command lines: what all programs share, and one module for each program or subcommand.
//!
//! A module has its arguments as a struct `Args` and a function `run(Args, &mut Out) -> Outcome`. Everything a
//! program answers goes through [`Out`], never through `println!`, which panics when the reader has gone.

use std::io::{self, BufWriter, StdoutLock, Write};
use std::process::ExitCode;

use clap::Parser;

pub mod attach;
pub mod bcache;
mod canceled;
pub mod choose;
pub mod completions;
pub mod devices;
pub mod doctor;
pub mod dump;
pub mod engine;
pub mod export;
pub mod flush;
pub mod fsck;
pub mod image;
pub mod make;
pub mod map;
mod memory;
pub mod register;
pub mod salvage;
pub mod serve;
pub mod settings;
pub mod show;
pub mod status;
pub mod stop;
pub mod undo;

/// The command line of every program, for manual pages.
#[must_use]
pub fn programs() -> Vec<clap::Command> {
    use clap::CommandFactory;
    // `bcache-fsck` has the page of `bcache fsck`, of which it is another name.
    vec![
        bcache::Bcache::command(),
        engine::Program::command(),
        make::Program::command(),
        show::Program::command(),
    ]
}

/// The command line of every program that people type, for what shells complete.
#[must_use]
pub fn typed_programs() -> Vec<clap::Command> {
    use clap::CommandFactory;
    vec![
        bcache::Bcache::command(),
        fsck::Program::command(),
        make::Program::command(),
        register::Program::command(),
        show::Program::command(),
    ]
}

/// Standard output.
pub type Out<'a> = BufWriter<StdoutLock<'a>>;

/// How a program ends: with an exit code, or with an error that is printed as one line before exit code 1.
pub type Outcome = anyhow::Result<ExitCode>;

/// The whole of a program: parses the command line, runs, prints the error if there is one.
///
/// A command line that cannot be understood ends with exit code 1 and one line, as these programs have always done,
/// and not with clap's 2. A reader of the output that goes away (`| head`) is not an error.
pub fn main<P: Parser>(run: fn(P, &mut Out) -> Outcome) -> ExitCode {
    let program = P::command().get_name().to_owned();
    let parsed = match P::try_parse() {
        Ok(parsed) => parsed,
        Err(error) => return refuse(&program, &error),
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let outcome = run(parsed, &mut out);
    let outcome = out.flush().map_err(anyhow::Error::from).and(outcome);
    match outcome {
        Ok(code) => code,
        Err(error) if reader_went_away(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be gone too; there is nowhere left to say so.
            let _ = writeln!(io::stderr(), "{program}: {error:#}");
            if is_fsck(&program) { ExitCode::from(fsck::OPERATION) } else { ExitCode::FAILURE }
        }
    }
}

/// Help and version go to standard output and are a success; everything else becomes one line.
fn refuse(program: &str, error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::FAILURE;
    }
    let rendered = error.render().to_string();
    let said: Vec<&str> = rendered.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let said = said.join(" ");
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    let _ = writeln!(io::stderr(), "{program}: {said}; see {program} --help");
    if is_fsck(program) { ExitCode::from(fsck::USAGE) } else { ExitCode::FAILURE }
}

/// Whether the exit codes are those of fsck(8), which scripts and boot rely on.
fn is_fsck(program: &str) -> bool {
    program == "bcache-fsck" || std::env::args_os().nth(1).is_some_and(|word| word == "fsck")
}

fn reader_went_away(error: &anyhow::Error) -> bool {
    let broken = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken))
}
