//! `bcache backup` and `bcache restore`: superblocks kept in a file, and brought back.

use crate::devices::unpack;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use bcache_engine::fsck::backup;
use bcache_engine::fsck::image::MAGIC as IMAGE;
use bcache_engine::fsck::repair::{WriteAt, apply};

use super::output::{Output, Readers};
use super::{BadInput, Out, Outcome};
use crate::devices::{Access, InUse, each_once, open, open_for};

/// Keep the superblocks of devices in a file, for `bcache restore`
///
/// A superblock hardly changes: a backup of when the set was made is good for as long as its devices are. Devices may be in
/// use. What else a cache has changes all the time; `bcache fsck` finds that again without help.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache backup set.bcbackup /dev/sdb /dev/nvme0n1")]
pub struct BackupArgs {
    /// The file to write; `-` is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The devices
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// Bring a lost superblock back from a file that `bcache backup` made, or all metadata from one of `bcache image`
///
/// The device is known by its size, or by --uuid. Nothing is written when it has a sound superblock, when the file has none
/// for it, or when what is on it is not what the superblock leads to: then it was used for something else since. From a
/// metadata image everything comes back that a check reads; nothing is written when the set is in order, or was used since
/// the image was made.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bcache restore set.bcbackup /dev/nvme0n1\n  \
    bcache restore cache.bcimg /dev/nvme0n1 /dev/sdb")]
pub struct RestoreArgs {
    /// The backup, or a metadata image of the device
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Which superblock of the backup, when several devices have the same size
    #[arg(long, value_name = "UUID")]
    uuid: Option<uuid::Uuid>,
    /// Even if the device carries the signature of something else, as another disk of the same size would
    #[arg(long)]
    force: bool,
    /// The device that lost its superblock, or other metadata
    #[arg(value_name = "DEV")]
    device: PathBuf,
    /// The other devices of the set, which are only looked at
    #[arg(value_name = "OTHER")]
    others: Vec<PathBuf>,
}

/// Keeps.
pub fn backup(args: BackupArgs, out: &mut Out) -> Outcome {
    each_once(&args.devices)?;
    let mut devices = Vec::new();
    for path in &args.devices {
        devices.push(open(path, InUse::Allow)?);
    }
    let bytes = backup::save(&devices)?;
    let name = || args.file.display().to_string();
    Output::create(&args.file, &args.devices, Readers::Owner, out)?.write_whole(&bytes).with_context(name)?;
    if args.file != Path::new("-") {
        writeln!(out, "{} superblocks kept in {}", devices.len(), name())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Brings back.
pub fn restore(args: RestoreArgs, out: &mut Out) -> Outcome {
    let name = || args.file.display().to_string();
    let bad = |what: String| BadInput(format!("{}: {what}", name()));
    let bytes = std::fs::read(&args.file).map_err(|error| bad(error.to_string()))?;
    let image = bytes.starts_with(IMAGE);
    let kept =
        if image { Vec::new() } else { backup::load(&bytes).map_err(|error| bad(error.to_string()))? };
    if image && args.uuid.is_some() {
        return Err(BadInput("--uuid is for a backup: a metadata image is of one device".to_owned()).into());
    }
    each_once(std::iter::once(&args.device).chain(&args.others))?;
    let mut found = crate::signature::find(&args.device)?;
    found.retain(|one| one.kind != "bcache");
    if let Some(one) = found.first().filter(|_| !args.force) {
        return Err(BadInput(format!(
            "{}: it carries the signature of {}: another disk, perhaps; --force writes to it all the same",
            args.device.display(),
            one.kind
        ))
        .into());
    }
    let (device, writable) = open_for(&args.device, InUse::Refuse, Access::Write)?;
    let Some(writable) = writable else { bail!("{}: cannot be written", args.device.display()) };
    let mut others = Vec::new();
    for path in &args.others {
        others.push(open(path, InUse::Refuse)?);
    }
    let plan = match unpack(&args.file)?.filter(|_| image) {
        Some(image) => backup::restore_image(image, &device, &others),
        None => backup::restore(&kept, &device, args.uuid, &others),
    };
    let plan = plan.map_err(|refused| BadInput(refused.to_string()))?;
    apply(&plan, &[(writable.name(), &writable as &dyn WriteAt)])?;
    let what = if image { "metadata" } else { "superblock" };
    writeln!(out, "{}: its {what} is as it was when it was kept", args.device.display())?;
    writeln!(out, "next: bcache fsck -n with all devices of the set")?;
    Ok(ExitCode::SUCCESS)
}
