//! `bcache-engine`: the process that serves a set. Started by `bcache-register` or systemd.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use uuid::Uuid;

use super::{Out, Outcome};
use crate::daemon::{self, End, Settings};
use crate::{log, raw};

/// What makes systemd start the process again: as in `udev/bcache@.service`.
const RESTART: u8 = 75;

/// Serve one cache set, until it is stopped; bcache-register starts this
#[derive(Debug, Parser)]
#[command(
    name = "bcache-engine",
    version,
    after_help = "Examples:\n  bcache-engine --set 8b4a3f0c-5f0e-4c39-9d7e-0d1f4f2b6a11\n  \
    systemctl status bcache@8b4a3f0c-5f0e-4c39-9d7e-0d1f4f2b6a11"
)]
pub struct Program {
    /// The set's UUID
    #[arg(long, value_name = "UUID")]
    set: Uuid,
    /// Give up privileges as ever, then make a system call that is not allowed, which must end the process
    #[arg(long, hide = true)]
    try_forbidden: bool,
    /// Only say whether this program could serve the set that another process serves
    #[arg(long, hide = true)]
    check: bool,
    /// Take the place of the process that serves the set
    #[arg(long, hide = true)]
    succeed: bool,
    /// Requests under way in each device at most
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    queue_depth: u16,
    /// Requests whose cache or backing device is not there, or does not work, fail after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    answer_within: u64,
    /// A backing device with nothing dirty goes on without its cache when that is missing for so many seconds (in an initramfs
    /// 20 at most); 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    missing_cache_timeout: u64,
}

/// Serves.
pub fn run(program: Program, _out: &mut Out) -> Outcome {
    // Whoever called bcache-register may have left more open than it knew: a device, a lock, the end of a pipe.
    let closed = raw::close_inherited();
    tracing_subscriber::fmt()
        .with_writer(log::queue())
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
    if program.check {
        daemon::check(program.set)?;
        return Ok(ExitCode::SUCCESS);
    }
    let missing = Some(program.missing_cache_timeout).filter(|seconds| *seconds > 0);
    let settings = Settings {
        set: program.set,
        queue_depth: program.queue_depth,
        patience: Duration::from_secs(program.answer_within),
        missing_cache: missing.map(Duration::from_secs),
    };
    let ended = daemon::run(&settings, program.succeed);
    // Said like everything else: whoever does not read it must not keep the process, and with it the set's lock.
    let code = match ended {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Restart) => ExitCode::from(RESTART),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    };
    log::finish();
    Ok(code)
}
