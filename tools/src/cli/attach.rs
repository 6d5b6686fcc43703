//! `bcache attach`, `detach` and `volume`: change what a running set serves.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::Value;
use uuid::Uuid;

use super::{Out, Outcome};
use crate::control::client::{ask, find_device, one_set};
use crate::control::{Request, paths};

/// Attach a backing device to a running set; it may be mounted
///
/// Not where its blocks would change their size under whoever uses it: make-bcache -w 4k on a disk with blocks of 512 bytes.
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
    number(text).ok_or_else(|| format!("{text:?} is no size"))
}

/// A number as people write sizes: digits, and perhaps a unit in powers of 1024, which may have a fraction before it.
/// Nothing else is one: neither an exponent nor a separator, and no part of a byte.
fn number(text: &str) -> Option<u64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let digits = text.strip_suffix(unit)?;
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let whole = match digits.split_once('.') {
        Some((whole, fraction)) => {
            plain(whole) && plain(fraction) && !unit.trim_matches(['b', 'B']).is_empty()
        }
        None => plain(digits),
    };
    let unit = unit.bytes().all(|byte| byte.is_ascii_alphabetic());
    if whole && unit { parse_size::Config::new().with_binary().parse_size(text).ok() } else { None }
}

/// Makes or removes.
pub fn run_volume(command: VolumeCommand, out: &mut Out) -> Outcome {
    match command {
        VolumeCommand::Create { set, label, size } => {
            let made = ask(one_set(set)?, &Request::VolumeCreate { bytes: size, label })?;
            let told = |name: &str| made.get(name).and_then(Value::as_str);
            writeln!(out, "/dev/mapper/{}", told("name").unwrap_or_default())?;
            if let Some(note) = told("note") {
                eprintln!("bcache: {note}");
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers() {
        for (text, value) in
            [("0", 0), ("10", 10), ("4k", 4096), ("1.5M", 3 << 19), ("2GiB", 2 << 30), ("3kB", 3072)]
        {
            assert_eq!(number(text), Some(value), "{text}");
        }
        for text in
            ["", "1 2", "1_0", "1e2", "0.4", "1.", ".5k", "1.5B", "-1", "+1", "0x10", "1k2", "k", "1.2.3k"]
        {
            assert_eq!(number(text), None, "{text:?}");
        }
    }
}
