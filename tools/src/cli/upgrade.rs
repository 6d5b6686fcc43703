//! `bcache upgrade`: another engine in the place of the one that serves a set.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use serde_json::Value;
use uuid::Uuid;

use super::{Out, Outcome};
use crate::control::client::{Client, ask, one_set, status};
use crate::control::{Request, paths};
use crate::process::{self, Successor};

/// How long the new engine has until it serves everything.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const STEP: Duration = Duration::from_millis(10);

/// Replace a set's engine by the one that is installed now, while its devices are in use
///
/// The new program first shows that it runs and can read every device of the set; if not, the engine that runs goes on
/// and this says why. Then requests wait while the old process ends in order and the new one starts.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache upgrade")]
pub struct Args {
    /// The set's UUID; not needed where only one is served
    #[arg(value_name = "SET")]
    set: Option<Uuid>,
}

/// Replaces.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let set = one_set(args.set)?;
    // The work is not this command's, but its report is: a terminal that closes changes neither.
    let signals = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGPIPE];
    signals.into_iter().collect::<SigSet>().thread_block()?;
    let _one = paths::lock_registration(set)?;
    let before = ask(set, &Request::Status)?;
    // The root file system may be on the set: nothing that is needed from here on may have to be read from it.
    process::read_ahead(set);
    process::check_program(set).context("not upgraded, the engine that runs goes on")?;
    let start = Instant::now();
    let pid = before["pid"].as_u64().unwrap_or_default();
    let mut successor = None;
    if process::is_systemds(set) {
        // systemd starts the next process when it sees how this one ended.
        if ask(set, &Request::Restart).is_err_and(|error| error.to_string().contains("not a request")) {
            hand_over(set)?;
        }
    } else if process::systemd_starts() {
        hand_over(set)?;
    } else {
        successor = Some(Successor::start(set, pid)?);
    }
    wait(set, &before, successor)?;
    writeln!(out, "upgraded {set}; requests waited for {} ms at most", start.elapsed().as_millis())?;
    Ok(ExitCode::SUCCESS)
}

/// As programs before this one did it.
fn hand_over(set: Uuid) -> Result<()> {
    let Some(mut engine) = Client::connect(set)? else { return process::start_engine(set) };
    engine.ask(&Request::HandOver)?;
    engine.wait_for_end();
    process::start_engine(set)
}

/// Waits until a process that is not the one before serves as many devices.
fn wait(set: Uuid, before: &Value, mut successor: Option<Successor>) -> Result<()> {
    let count = |status: &Value| status["devices"].as_array().map_or(0, Vec::len);
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let now = status(set)?;
        if now["pid"].is_u64() && now["pid"] != before["pid"] && count(&now) >= count(before) {
            return Ok(());
        }
        if let Some(successor) = &mut successor {
            successor.look()?;
        }
        std::thread::sleep(STEP);
    }
    bail!("the new engine of set {set} does not serve all devices; bcache status says why")
}
