//! `bcache-engine`: the process that serves a set. Started by `bcache-register` or systemd.

use std::process::ExitCode;

use clap::Parser;
use uuid::Uuid;

use super::{Out, Outcome};
use crate::daemon::{self, Settings};
use crate::raw;

/// Serve one cache set, until it is stopped; bcache-register starts this
#[derive(Debug, Parser)]
#[command(name = "bcache-engine", version)]
pub struct Program {
    /// The set's UUID
    #[arg(long, value_name = "UUID")]
    set: Uuid,
    /// Give up privileges as ever, then make a system call that is not allowed, which must end the process
    #[arg(long, hide = true)]
    try_forbidden: bool,
    /// Requests under way in each device at most
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    queue_depth: u16,
}

/// Serves.
pub fn run(program: Program, _out: &mut Out) -> Outcome {
    // Whoever called bcache-register may have left more open than it knew: a device, a lock, the end of a pipe.
    let closed = raw::close_inherited();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .init();
    if let Err(error) = closed {
        tracing::warn!(%error, "what was inherited stays open");
    }
    // Started by hand or by bcache-register, the process must not end with its terminal. It fails for the leader of a
    // process group, which needs nothing.
    let _ = nix::unistd::setsid();
    if program.try_forbidden {
        daemon::try_forbidden()?;
    }
    daemon::run(&Settings { set: program.set, queue_depth: program.queue_depth })?;
    Ok(ExitCode::SUCCESS)
}
