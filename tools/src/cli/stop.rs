//! `bcache stop` and `bcache unregister`: end the service of sets.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use uuid::Uuid;

use super::{Out, Outcome};
use crate::control::client::{Client, ask, find_device, one_set, statuses};
use crate::control::{Request, paths};
use crate::dm;
use crate::identify::{Role, identify};

/// Stop a set: remove its devices, make all data durable, end its process
///
/// Refused while a device is in use: then it goes on as before. With --all every other set is stopped all the same, and
/// the exit code is 1. Dirty data stays in the cache. A device that runs without cache can be named, too.
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
/// Refused while the newest data of a device that is not there is in the cache. Devices may be in use. Flash-only volumes may not, and vanish; they are there again when the cache is registered.
///
/// Of a backing device: it vanishes and stays attached, as with bcache-tools; only where its set has no other device.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache unregister")]
pub struct UnregisterArgs {
    /// The set's UUID or its cache device, not needed where only one is served; or a backing device, which is stopped
    #[arg(value_name = "SET|DEV")]
    what: Option<String>,
    /// Even if the newest data of a device that is not there is in the cache: it stays there, and nobody waits for it
    #[arg(long)]
    lose_dirty_data: bool,
}

/// Stops.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    if args.all {
        return stop_all(out);
    }
    let what = args.what.as_deref();
    if let Some(name) = what.filter(|what| what.parse::<Uuid>().is_err()) {
        let name = name.strip_prefix("/dev/mapper/").unwrap_or(name);
        if !alone()?.iter().any(|known| known == name) {
            bail!("{name}: no device without cache is called so; name the set of a cached one");
        }
        remove(name)?;
        writeln!(out, "stopped {name}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let set = one_set(what.and_then(|what| what.parse().ok()))?;
    end(set, &Request::Stop)?;
    writeln!(out, "stopped {set}")?;
    Ok(ExitCode::SUCCESS)
}

/// Stops everything that can be stopped; what cannot stays as it is, and is told.
fn stop_all(out: &mut Out) -> Outcome {
    let mut code = ExitCode::SUCCESS;
    let mut told = |out: &mut Out, what: &str, done: Result<()>| -> Result<()> {
        match done {
            Ok(()) => writeln!(out, "stopped {what}")?,
            Err(error) => {
                out.flush()?;
                writeln!(std::io::stderr(), "bcache: {what}: {error:#}")?;
                code = ExitCode::FAILURE;
            }
        }
        Ok(())
    };
    for (set, _) in statuses()? {
        told(out, &set.to_string(), end(set, &Request::Stop))?;
    }
    for name in alone()? {
        told(out, &name, remove(&name))?;
    }
    Ok(code)
}

/// Removes the name of a device without cache.
fn remove(name: &str) -> Result<()> {
    let device = dm::describe(name)?.with_context(|| format!("/dev/mapper/{name}: gone"))?;
    if device.suspended {
        bail!("/dev/mapper/{name} is suspended; dmsetup resume lets it go on");
    }
    if !dm::is_in_use(&device)? {
        dm::remove_partitions(&device.uuid)?;
    }
    dm::remove(name).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => anyhow::anyhow!("/dev/mapper/{name} is in use; unmount it first"),
        _ => anyhow::Error::new(error).context(format!("/dev/mapper/{name}")),
    })
}

/// Stops for good.
pub fn run_unregister(args: UnregisterArgs, out: &mut Out) -> Outcome {
    let set = match args.what.as_deref() {
        Some(what) => match what.parse() {
            Ok(set) => set,
            Err(_) => match unregister_device(what, out)? {
                Some(set) => set,
                None => return Ok(ExitCode::SUCCESS),
            },
        },
        None => one_set(None)?,
    };
    end(set, &Request::Unregister { lose_dirty_data: args.lose_dirty_data })?;
    writeln!(out, "unregistered {set}")?;
    Ok(ExitCode::SUCCESS)
}

/// Lets a backing device go, as bcache-tools do: it vanishes, and what is dirty of it stays in the cache. Of a cache device,
/// the set, which is left to do.
fn unregister_device(what: &str, out: &mut Out) -> Result<Option<Uuid>> {
    let part = identify(Path::new(what))?;
    if part.is_kernels() {
        let file = if part.role == Role::Cache { "unregister" } else { "stop" };
        let file = part.kernels_file(file);
        std::fs::write(&file, "1").with_context(|| file)?;
        writeln!(out, "the kernel lets {what} go")?;
        return Ok(None);
    }
    if part.role == Role::Cache {
        return Ok(Some(part.set));
    }
    let uuid = part.uuid.to_string();
    if let Some((device, _)) = crate::expose::alone()?.into_iter().find(|(_, alone)| *alone == part.uuid) {
        remove(&device.name)?;
        writeln!(out, "stopped {}", device.name)?;
        return Ok(None);
    }
    let (set, _) = find_device(&uuid).with_context(|| what.to_owned())?;
    let status = ask(set, &Request::Status)?;
    let served = status.get("devices").and_then(Value::as_array).map_or(0, Vec::len);
    if served > 1 {
        bail!(
            "{what}: its set {set} serves {} devices more; bcache detach takes this one out of it, bcache stop {set} \
             stops them all",
            served - 1
        );
    }
    end(set, &Request::Stop)?;
    writeln!(out, "stopped {set}")?;
    Ok(None)
}

/// Let a set forget a backing device that will never come back
///
/// What the cache has of it is given up, and the device starts anew if it ever comes. Refused while the device is there
/// (bcache detach is for those), and while its newest data is in the cache.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache forget 8b4a3f0c-5f0e-4c39-9d7e-0d1f4f2b6a11")]
pub struct ForgetArgs {
    /// The set's UUID; not needed where only one is served
    #[arg(long, value_name = "SET")]
    set: Option<Uuid>,
    /// Even if its newest data is in the cache, which is lost for good
    #[arg(long)]
    lose_dirty_data: bool,
    /// The UUID of the device, as bcache status lists it
    #[arg(value_name = "UUID")]
    device: Uuid,
}

/// Forgets.
pub fn run_forget(args: ForgetArgs, out: &mut Out) -> Outcome {
    let ForgetArgs { set, lose_dirty_data, device } = args;
    ask(one_set(set)?, &Request::Forget { device, lose_dirty_data })?;
    writeln!(out, "forgot {device}")?;
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
    Ok(crate::expose::alone()?.into_iter().map(|(device, _)| device.name).collect())
}
