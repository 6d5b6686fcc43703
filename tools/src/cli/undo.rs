//! `bcache undo`: puts back what a repair overwrote.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use bcache_engine::fsck::repair::undo::{self, Undo};
use bcache_engine::fsck::repair::{WriteAt, apply};

use super::{BadInput, Out, Outcome};
use crate::devices::{Access, InUse, each_once, open_for};
use crate::kept::bring_back;

/// Put back, byte for byte, what a repair overwrote
///
/// The set must not have been used since: if any of its superblocks or journal buckets, or a sector that the repair
/// wrote, is not as the repair left it, nothing is written. An undo that was cut off is done again. Devices are known
/// by the UUIDs in their superblocks. Exit code 8 when nothing is written.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache undo /var/log/bcache-undo-1795352324")]
pub struct Args {
    /// The file that the repair wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The devices, if they go by other names now, in any order
    #[arg(value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// Puts back.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let name = || args.file.display().to_string();
    let undo = load(&args.file).map_err(|error| BadInput(format!("{}: {error:#}", name())))?;
    let named = undo.devices.iter().map(|device| PathBuf::from(&*device.name));
    let paths: Vec<PathBuf> = if args.devices.is_empty() { named.collect() } else { args.devices };
    each_once(&paths)?;
    let (mut devices, mut writable) = (Vec::new(), Vec::new());
    for path in &paths {
        let (device, writes) = open_for(path, InUse::Refuse, Access::Write)?;
        devices.push(device);
        writable.extend(writes);
    }
    let plan = undo::plan(&undo, &devices).map_err(|refused| BadInput(refused.to_string()))?;
    let targets: Vec<_> = writable.iter().map(|device| (device.name(), device as &dyn WriteAt)).collect();
    apply(&plan, &targets)?;
    bring_back(&devices)?;
    for write in plan.writes() {
        writeln!(out, "{} byte {}, {} bytes", write.device, write.byte, write.bytes.len())?;
    }
    writeln!(out, "{} places put back as they were", plan.writes().count())?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the file, no further than its first bytes when those are not an undo file's.
fn load(path: &Path) -> Result<Undo> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(undo::MAGIC.len() as u64).read_to_end(&mut bytes)?;
    if bytes != undo::MAGIC {
        bail!("not an undo file");
    }
    file.read_to_end(&mut bytes)?;
    Ok(undo::load(&bytes)?)
}
