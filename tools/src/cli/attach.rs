//! `bcache attach`, `detach`, `volume` and `upgrade`: change what a running set serves.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::Value;
use uuid::Uuid;

use super::{Out, Outcome};
use crate::control::client::{Client, ask, find_device, one_set, status};
use crate::control::{Request, paths};
use crate::register;

/// Attach a backing device to a running set; it may be mounted
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache attach /dev/sdb")]
pub struct AttachArgs {
    /// The set's UUID; not needed where only one is served
    #[arg(long, value_name = "SET")]
    set: Option<Uuid>,
    /// The backing device
    #[arg(value_name = "DEV")]
    device: PathBuf,
}

/// Attaches.
pub fn run_attach(args: AttachArgs, out: &mut Out) -> Outcome {
    let set = one_set(args.set)?;
    let device = std::fs::canonicalize(&args.device).with_context(|| args.device.display().to_string())?;
    let before = crate::identify::identify(&device)?;
    ask(set, &Request::Attach { device: device.clone() })?;
    if before.set != set {
        let _one = paths::lock_registration(before.set)?;
        paths::remove_part(before.set, &device)?;
    }
    let _one = paths::lock_registration(set)?;
    paths::add_part(set, &device)?;
    writeln!(out, "attached {} to set {set}", device.display())?;
    Ok(ExitCode::SUCCESS)
}

/// Write everything dirty of a device back and let it run without cache; it may be mounted
///
/// Returns when it is done, which takes as long as writing back does. Afterwards no program of ours is involved in
/// using the device.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache detach bcache0")]
pub struct DetachArgs {
    /// Name, label or UUID of the device, or its backing device
    #[arg(value_name = "DEVICE")]
    device: String,
}

/// Detaches.
pub fn run_detach(args: DetachArgs, out: &mut Out) -> Outcome {
    let (set, device) = find_device(&args.device)?;
    let uuid = device.get("uuid").and_then(Value::as_str).unwrap_or(&args.device).to_owned();
    let path = ask(set, &Request::Detach { device: uuid })?;
    let path = PathBuf::from(path.as_str().unwrap_or_default());
    let _one = paths::lock_registration(set)?;
    paths::remove_part(set, &path)?;
    let name = device.get("name").and_then(Value::as_str).unwrap_or_default();
    writeln!(out, "detached {name}; it is {} alone now", path.display())?;
    Ok(ExitCode::SUCCESS)
}

/// Make and remove flash-only volumes: devices that are in the cache alone
#[derive(Debug, clap::Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create {
        /// The set's UUID; not needed where only one is served
        #[arg(long, value_name = "SET")]
        set: Option<Uuid>,
        /// Label, which is its name, too
        #[arg(short, long, default_value = "")]
        label: String,
        /// Size, such as 10G
        #[arg(value_parser = size)]
        size: u64,
    },
    /// Remove a volume and everything in it
    Remove {
        /// Needed, because the data is gone afterwards
        #[arg(long)]
        yes: bool,
        /// Name, label or UUID
        #[arg(value_name = "VOLUME")]
        volume: String,
    },
}

fn size(text: &str) -> Result<u64, String> {
    parse_size::Config::new().with_binary().parse_size(text).map_err(|error| error.to_string())
}

/// Makes or removes.
pub fn run_volume(command: VolumeCommand, out: &mut Out) -> Outcome {
    match command {
        VolumeCommand::Create { set, label, size } => {
            let name = ask(one_set(set)?, &Request::VolumeCreate { bytes: size, label })?;
            writeln!(out, "/dev/mapper/{}", name.as_str().unwrap_or_default())?;
        }
        VolumeCommand::Remove { yes, volume } => {
            let (set, device) = find_device(&volume)?;
            if !yes {
                bail!("{volume}: everything in it would be gone; say --yes if that is meant");
            }
            let uuid = device.get("uuid").and_then(Value::as_str).unwrap_or(&volume).to_owned();
            ask(set, &Request::VolumeRemove { device: uuid })?;
            writeln!(out, "removed {volume}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Replace a set's engine by the one that is installed now, while its devices are in use
///
/// Requests wait while the old process ends in order and the new one starts.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache upgrade")]
pub struct UpgradeArgs {
    /// The set's UUID; not needed where only one is served
    #[arg(value_name = "SET")]
    set: Option<Uuid>,
}

/// Replaces.
pub fn run_upgrade(args: UpgradeArgs, out: &mut Out) -> Outcome {
    let set = one_set(args.set)?;
    let _one = paths::lock_registration(set)?;
    let Some(mut engine) = Client::connect(set)? else { bail!("no engine serves set {set}") };
    let before = engine.ask(&Request::Status)?;
    // The root file system may be on the set: nothing that is needed from here on may have to be read from it.
    register::read_ahead(set);
    let start = Instant::now();
    engine.ask(&Request::HandOver)?;
    engine.wait_for_end();
    register::start_engine(set)?;
    let wanted = before.get("devices").and_then(Value::as_array).map_or(0, Vec::len);
    // The new process has the devices once it says so.
    let deadline = std::time::Duration::from_secs(120);
    while start.elapsed() < deadline {
        let status = status(set)?;
        if status.get("devices").and_then(Value::as_array).is_some_and(|devices| devices.len() >= wanted) {
            let millis = start.elapsed().as_millis();
            writeln!(out, "upgraded {set}; requests waited for {millis} ms")?;
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    bail!("the new engine of set {set} does not serve all devices; bcache status says why")
}
