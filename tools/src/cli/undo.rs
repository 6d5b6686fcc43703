//! `bcache undo`: puts back what a repair overwrote.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bcache_engine::fsck::repair::{WriteAt, apply, undo};

use super::devices::{Access, InUse, open_for};
use super::{Out, Outcome};

/// Put back, byte for byte, what a repair overwrote
///
/// The devices must not have been used since: if they have, nothing is written.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache undo /var/log/bcache-undo-1795352324")]
pub struct Args {
    /// The file that the repair wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The devices, if they go by other names now: in the order of the names in the file
    #[arg(value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// Puts back.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let name = || args.file.display().to_string();
    let mut saved = undo::load(&std::fs::read(&args.file).with_context(name)?).with_context(name)?;
    let mut names: Vec<String> = Vec::new();
    for one in &saved {
        if !names.iter().any(|name| **name == *one.device) {
            names.push(one.device.to_string());
        }
    }
    for one in &mut saved {
        let index = names.iter().position(|name| **name == *one.device).unwrap_or(0);
        if let Some(path) = args.devices.get(index) {
            one.device = path.display().to_string().into();
        }
    }
    let (mut devices, mut writable) = (Vec::new(), Vec::new());
    for (index, name) in names.iter().enumerate() {
        let path = args.devices.get(index).cloned().unwrap_or_else(|| PathBuf::from(name));
        let (device, writes) = open_for(&path, InUse::Refuse, Access::Write)?;
        devices.push(device);
        writable.extend(writes);
    }
    let plan = undo::plan(&saved, &devices)?;
    let targets: Vec<_> = writable.iter().map(|device| (device.name(), device as &dyn WriteAt)).collect();
    apply(&plan, &targets)?;
    writeln!(out, "{} places put back as they were", saved.len())?;
    Ok(ExitCode::SUCCESS)
}
