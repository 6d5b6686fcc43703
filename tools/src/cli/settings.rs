//! `bcache set` and `bcache get`: settings of what runs, by the kernel's sysfs names.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::bail;
use bcache_engine::set::CacheSet;
use serde_json::Value;
use uuid::Uuid;

use super::{Out, Outcome, escaped};
use crate::control::Request;
use crate::control::client::{ask, find_device, is_called, one_set};
use crate::serve::settings::Assignment;

/// Change a setting of a running set or of its devices, at once
///
/// cache_mode and label are remembered in the backing device, cache_replacement_policy and discard in the cache; the
/// others last until the set is stopped. size is that of a volume, which may be in use if it becomes larger. trigger_gc, prune_cache and clear_stats are done once, whatever the value.
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
    }
    let (set, device) = match &args.device {
        Some(wanted) => {
            let (set, device) = find_device(wanted)?;
            (set, device.get("uuid").and_then(Value::as_str).map(str::to_owned))
        }
        None => (one_set(args.set)?, None),
    };
    for assignment in args.assignments {
        let clamped = ask(set, &Request::Set { device: device.clone(), assignment })?;
        if let Some(clamped) = clamped.as_str() {
            super::note("bcache", clamped);
        }
    }
    Ok(ExitCode::SUCCESS)
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
