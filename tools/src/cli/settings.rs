//! `bcache set` and `bcache get`: settings of what runs, by the kernel's sysfs names.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use bcache_engine::set::CacheSet;
use serde_json::Value;
use uuid::Uuid;

use super::{Out, Outcome, escaped};
use crate::config::{self, Config, Kind};
use crate::control::Request;
use crate::control::client::{ask, find_device, is_called, one_set, statuses};
use crate::serve::settings::Assignment;

/// Change a setting of a running set or of its devices, at once
///
/// cache_mode and label are remembered in the backing device, cache_replacement_policy and discard in the cache; the
/// others last until the set is stopped, unless --persistent writes them into /etc/bcache/bcache.conf. size is that of a
/// volume, which may be in use if it becomes larger. trigger_gc, prune_cache and clear_stats are done once, whatever the value.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bcache set cache_mode=writeback\n  bcache set --device bcache0 sequential_cutoff=8M"
)]
pub struct SetArgs {
    /// The set's UUID; not needed where only one is served
    #[arg(long, value_name = "SET")]
    set: Option<Uuid>,
    /// One device, by name, label, UUID or backing device; otherwise all of the set
    #[arg(long, value_name = "DEVICE", conflicts_with = "set")]
    device: Option<String>,
    /// Also from the next start on: written into /etc/bcache/bcache.conf
    #[arg(long)]
    persistent: bool,
    /// A setting and its new value
    #[arg(required = true, value_name = "NAME=VALUE")]
    assignments: Vec<String>,
}

/// Changes.
pub fn run_set(args: SetArgs, _out: &mut Out) -> Outcome {
    for assignment in &args.assignments {
        let name = assignment.split('=').next().unwrap_or_default();
        let more = ["label", "size"].contains(&name) || CacheSet::actions().contains(&name);
        if let Err(error) = assignment.parse::<Assignment>()
            && !more
        {
            bail!("{assignment}: {error}");
        }
        if args.persistent && more {
            bail!("{name}: nothing that a configuration file has; label is always remembered");
        }
    }
    let (set, device) = match &args.device {
        Some(wanted) => {
            let (set, device) = find_device(wanted)?;
            (set, device.get("uuid").and_then(Value::as_str).map(str::to_owned))
        }
        None => (one_set(args.set)?, None),
    };
    // What cannot be kept is not changed either.
    if args.persistent {
        refuse_faults(&config::read(Path::new(config::PATH)))?;
    }
    for assignment in &args.assignments {
        let request = Request::Set { device: device.clone(), assignment: assignment.clone() };
        let clamped = ask(set, &request)?;
        if let Some(clamped) = clamped.as_str() {
            super::note("bcache", clamped);
        }
    }
    if args.persistent {
        for assignment in &args.assignments {
            keep(set, device.as_deref(), assignment)?;
        }
        // Devices that come later have it, too.
        ask(set, &Request::Configure { config: config::read(Path::new(config::PATH)) })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a setting into the configuration file: of the set, of one device, or of all devices that the set has now.
fn keep(set: Uuid, device: Option<&str>, assignment: &str) -> anyhow::Result<()> {
    let (name, value) = assignment.split_once('=').context("must be NAME=VALUE")?;
    let path = Path::new(config::PATH);
    let (name, value) = (name.trim(), value.trim());
    if device.is_none() && Kind::Set.has(name) {
        return config::keep(path, Kind::Set, &set.to_string(), name, value);
    }
    let status = ask(set, &Request::Status)?;
    let all = status.get("devices").and_then(Value::as_array).into_iter().flatten();
    let uuids = all.filter_map(|device| device.get("uuid").and_then(Value::as_str));
    for uuid in uuids.filter(|uuid| device.is_none_or(|wanted| wanted == *uuid)) {
        config::keep(path, Kind::Device, uuid, name, value)?;
    }
    Ok(())
}

fn refuse_faults(config: &Config) -> anyhow::Result<()> {
    match config.faults.first() {
        Some(fault) => bail!("{}: {fault}", config::PATH),
        None => Ok(()),
    }
}

/// Apply what /etc/bcache/bcache.conf says to all sets that are served
///
/// What is wrong in the file is told with line and column, and the exit code is 1; all else in it is applied. A set has what
/// the file says from its start on; settings that are in it no more change at the next start. See bcache.conf(5).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bcache reload\n  bcache reload --check my.conf")]
pub struct ReloadArgs {
    /// Only say what is wrong in a file
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

/// Applies, or checks.
pub fn run_reload(args: ReloadArgs, _out: &mut Out) -> Outcome {
    let path = args.check.as_deref().unwrap_or(Path::new(config::PATH));
    if args.check.is_some() {
        // One that is not there is as good as an empty one, but not what was meant.
        std::fs::metadata(path).with_context(|| path.display().to_string())?;
    }
    let config = config::read(path);
    let mut code = ExitCode::SUCCESS;
    for fault in &config.faults {
        super::note("bcache", &format!("{}: {fault}", path.display()));
        code = ExitCode::FAILURE;
    }
    if args.check.is_none() {
        for (set, _) in statuses()? {
            ask(set, &Request::Configure { config: config.clone() })?;
        }
    }
    Ok(code)
}

/// Print settings of a running set and its devices, and what can be read of them by the kernel's sysfs names
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bcache get\n  bcache get --device bcache0 cache_mode label")]
pub struct GetArgs {
    /// The set's UUID; not needed where only one is served
    #[arg(long, value_name = "SET")]
    set: Option<Uuid>,
    /// One device only, by name, label, UUID or backing device
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// These settings only: the value without its name where there is only one
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Prints.
pub fn run_get(args: GetArgs, out: &mut Out) -> Outcome {
    let set = match &args.device {
        Some(wanted) => find_device(wanted)?.0,
        None => one_set(args.set)?,
    };
    let status = ask(set, &Request::Status)?;
    let mut found: Vec<(String, String, String)> = Vec::new();
    let mut add = |whose: &str, settings: Option<&Value>| {
        let settings = settings.and_then(Value::as_object).into_iter().flatten();
        for (name, value) in settings {
            if args.names.is_empty() || args.names.contains(name) {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                found.push((whose.to_owned(), name.clone(), value));
            }
        }
    };
    if args.device.is_none() {
        add("set", status.get("attributes"));
    }
    for device in status.get("devices").and_then(Value::as_array).into_iter().flatten() {
        if args.device.as_ref().is_none_or(|wanted| is_called(device, wanted)) {
            let name = device.get("name").and_then(Value::as_str).unwrap_or_default();
            add(name, device.get("attributes"));
        }
    }
    let is_there = |wanted: &&String| found.iter().any(|(_, name, _)| name == *wanted);
    if let Some(name) = args.names.iter().find(|name| !is_there(name)) {
        bail!("there is no setting {name:?}");
    }
    match (&found[..], args.names.len()) {
        ([(_, _, value)], 1) => writeln!(out, "{}", escaped(value))?,
        (all, _) => {
            for (whose, name, value) in all {
                writeln!(out, "{whose} {name}={}", escaped(value))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
