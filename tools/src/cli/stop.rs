//! `bcache stop`: ends the service of sets.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Result, bail};
use uuid::Uuid;

use super::{Out, Outcome};
use crate::control::client::Client;
use crate::control::{Request, paths};

/// Stop a set: its devices vanish, everything is durable, its process ends
///
/// Refused while a device is in use. Dirty data stays in the cache.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache stop --all")]
pub struct Args {
    /// All sets that are served
    #[arg(long, conflicts_with = "set")]
    all: bool,
    /// The set's UUID; not needed where only one is served
    #[arg(value_name = "SET")]
    set: Option<Uuid>,
}

/// Stops.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let sets = if args.all { paths::sets()? } else { vec![one_set(args.set)?] };
    for set in sets {
        let Some(mut engine) = Client::connect(set)? else {
            if args.all {
                continue;
            }
            bail!("no engine serves set {set}");
        };
        engine.ask(&Request::Stop)?;
        engine.wait_for_end();
        writeln!(out, "stopped {set}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The set that was named, or the only one.
///
/// # Errors
/// None is served, or several and none was named.
pub fn one_set(named: Option<Uuid>) -> Result<Uuid> {
    if let Some(set) = named {
        return Ok(set);
    }
    match *paths::sets()? {
        [] => bail!("no set is served"),
        [set] => Ok(set),
        [..] => bail!("several sets are served: name one (bcache status lists them)"),
    }
}
