//! Command lines: what all programs share, and one module for each program or subcommand.
//!
//! A module has its arguments as a struct `Args` and a function `run(Args, &mut Out) -> Outcome`. Everything a
//! program answers goes through [`Out`], never through `println!`, which panics when the reader has gone.

use std::io::{self, BufWriter, StdoutLock, Write};
use std::process::ExitCode;

use clap::Parser;

pub use crate::devices::BadInput;
pub use crate::text::{escaped, note};

pub mod attach;
pub mod backup;
pub mod bcache;
mod canceled;
pub mod choose;
pub mod completions;
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
pub mod metrics;
mod output;
pub mod overview;
mod partial;
pub mod register;
pub mod salvage;
pub mod serve;
pub mod settings;
pub mod show;
pub mod status;
pub mod stop;
pub mod undo;
pub mod upgrade;

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

/// Standard output, whose reader may go away (`| head`): what is written then goes nowhere, and the program does what it
/// was to do, and ends as it would have.
///
/// What comes from disks, labels and names above all, may be anything, and terminals take some of it for commands: what no
/// text has is escaped on the way, unless what is written is data.
pub struct Stdout<'a> {
    to: StdoutLock<'a>,
    gone: bool,
    data: bool,
}

impl Stdout<'_> {
    /// Whether nobody reads it any more.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        self.gone
    }
    /// Whether it was closed when the program began: what is written goes nowhere.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        !crate::raw::stdout_was_open()
    }
    /// Whether it is a terminal.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        io::IsTerminal::is_terminal(&self.to)
    }
    /// Whether what is written from here on is data, and goes as it is.
    pub const fn takes_data(&mut self, data: bool) {
        self.data = data;
    }
    fn unless_gone<T>(&mut self, nothing: T, result: io::Result<T>) -> io::Result<T> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.gone = true;
                Ok(nothing)
            }
            other => other,
        }
    }
}

impl Write for Stdout<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.gone {
            return Ok(bytes.len());
        }
        let written = match tamed(bytes) {
            Some(tamed) if !self.data => self.to.write_all(&tamed).map(|()| bytes.len()),
            _ => self.to.write(bytes),
        };
        self.unless_gone(bytes.len(), written)
    }
    fn flush(&mut self) -> io::Result<()> {
        let flushed = if self.gone { Ok(()) } else { self.to.flush() };
        self.unless_gone((), flushed)
    }
}

/// A text with its control characters escaped as JSON, too, has them, but for ends of lines and tabs; nothing if it has none.
fn tamed(bytes: &[u8]) -> Option<Vec<u8>> {
    let commands = |byte: &u8| matches!(byte, 0..=8 | 11..=31 | 0x7f);
    // U+0080 to U+009F, which some terminals take for commands as well.
    let more = |pair: &[u8]| matches!(pair, [0xc2, 0x80..=0x9f]);
    if !bytes.iter().any(commands) && !bytes.windows(2).any(more) {
        return None;
    }
    let mut tamed = Vec::with_capacity(bytes.len() + 16);
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match bytes.get(at..at + 2).filter(|pair| more(pair)) {
            Some(pair) => {
                tamed.extend(format!("\\u{:04x}", pair[1]).bytes());
                at += 1;
            }
            None if commands(byte) => tamed.extend(format!("\\u{byte:04x}").bytes()),
            None => tamed.push(*byte),
        }
        at += 1;
    }
    Some(tamed)
}

/// Standard output, buffered.
pub type Out<'a> = BufWriter<Stdout<'a>>;

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
    let mut out = BufWriter::new(Stdout { to: io::stdout().lock(), gone: false, data: false });
    let outcome = run(parsed, &mut out);
    let outcome = out.flush().map_err(anyhow::Error::from).and(outcome);
    match outcome {
        Ok(code) => code,
        Err(error) => {
            note(&program, &format!("{error:#}"));
            let operation = is_fsck(&program) || error.downcast_ref::<BadInput>().is_some();
            if operation { ExitCode::from(fsck::OPERATION) } else { ExitCode::FAILURE }
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
    note(program, &format!("{said}; see {program} --help"));
    if is_fsck(program) { ExitCode::from(fsck::USAGE) } else { ExitCode::FAILURE }
}

/// Whether the exit codes are those of fsck(8), which scripts and boot rely on.
fn is_fsck(program: &str) -> bool {
    program == "bcache-fsck" || std::env::args_os().nth(1).is_some_and(|word| word == "fsck")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_comes_from_a_disk_commands_a_terminal() {
        assert_eq!(tamed("plain\ttext, \u{e9}\n".as_bytes()), None);
        let wild = "\u{1b}[31m red\u{9b}2J\u{7f}\r\n";
        assert_eq!(tamed(wild.as_bytes()).unwrap(), b"\\u001b[31m red\\u009b2J\\u007f\\u000d\n");
    }
}
