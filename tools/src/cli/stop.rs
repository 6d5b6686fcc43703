//! `bcache stop` and `bcache unregister`: end the service of sets.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use uuid::Uuid;

use super::{Out, Outcome};
use crate::control::client::{Client, one_set, statuses};
use crate::control::{Request, paths};
use crate::dm;

/// Stop a set: its devices vanish, everything is durable, its process ends
///
/// Refused while a device is in use. Dirty data stays in the cache. A device that runs without cache can be named, too.
/// The set stays stopped until one of its devices is registered by hand, or appears anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bcache stop --all\n  bcache stop bcache1")]
pub struct Args {
    /// All sets that are served, and all devices without cache
    #[arg(long, conflicts_with = "what")]
    all: bool,
    /// The set's UUID, or a device that runs without cache; not needed where only one set is served
    #[arg(value_name = "SET|DEVICE")]
    what: Option<String>,
}

/// Stop a set for good: everything dirty is written back, its devices go on without cache, its process ends
///
/// Devices may be in use. Flash-only volumes may not, and vanish; they are there again when the cache is registered.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache unregister")]
pub struct UnregisterArgs {
    /// The set's UUID; not needed where only one is served
    #[arg(value_name = "SET")]
    set: Option<Uuid>,
}

/// Stops.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    if args.all {
        for (set, _) in statuses()? {
            end(set, &Request::Stop)?;
            writeln!(out, "stopped {set}")?;
        }
        for name in alone()? {
            dm::remove(&name).with_context(|| format!("/dev/mapper/{name}"))?;
            writeln!(out, "stopped {name}")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let what = args.what.as_deref();
    if let Some(name) = what.filter(|what| what.parse::<Uuid>().is_err()) {
        let name = name.strip_prefix("/dev/mapper/").unwrap_or(name);
        if !alone()?.iter().any(|known| known == name) {
            bail!("{name}: no device without cache is called so; name the set of a cached one");
        }
        dm::remove(name).with_context(|| format!("/dev/mapper/{name}"))?;
        writeln!(out, "stopped {name}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let set = one_set(what.and_then(|what| what.parse().ok()))?;
    end(set, &Request::Stop)?;
    writeln!(out, "stopped {set}")?;
    Ok(ExitCode::SUCCESS)
}

/// Stops for good.
pub fn run_unregister(args: UnregisterArgs, out: &mut Out) -> Outcome {
    let set = one_set(args.set)?;
    end(set, &Request::Unregister)?;
    writeln!(out, "unregistered {set}")?;
    Ok(ExitCode::SUCCESS)
}

/// Asks an engine to end, and waits until it has. Its list of parts goes with it: who wants the set again registers it.
fn end(set: Uuid, request: &Request) -> Result<()> {
    let Some(mut engine) = Client::connect(set)? else { bail!("no engine serves set {set}") };
    engine.ask(request)?;
    engine.wait_for_end();
    let _one = paths::lock_registration(set)?;
    // Somebody may have registered it again since.
    if paths::is_stopped(set) {
        paths::write_parts(set, &[]).context("the list of parts")?;
    }
    Ok(())
}

/// Devices of ours that no engine serves, because they have no cache.
fn alone() -> Result<Vec<String>> {
    if dm::available().is_err() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for device in dm::list()? {
        let ours = dm::describe(&device.name)?.is_some_and(|device| device.uuid.starts_with(dm::UUID_PREFIX));
        if ours && !crate::expose::leads_to_front_end(&device.name)? {
            names.push(device.name);
        }
    }
    Ok(names)
}
