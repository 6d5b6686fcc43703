//! Running programs and looking at what they said.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::paths;

/// What a program said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs one of the project's programs to its end.
pub fn ours<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Result<Said> {
    run(Command::new(paths::program(program)?).args(args))
}

/// Runs any program to its end, in an English locale and without input.
pub fn run(command: &mut Command) -> Result<Said> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output().context(program)?;
    Ok(Said {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs any program like [`run`], and gives what it printed. One that does not end with success is an error that tells all
/// that was said.
pub fn done(command: &mut Command) -> Result<String> {
    let said = run(command)?;
    if said.code != 0 {
        bail!("{command:?} ended with {}\n{}{}", said.code, said.stdout, said.stderr);
    }
    Ok(said.stdout)
}
