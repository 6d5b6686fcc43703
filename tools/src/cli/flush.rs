//! `bcache flush`: writes all dirty data to the backing devices, without the kernel.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bcache_engine::fsck::flush::{Flush, FlushError, Left};
use bcache_engine::fsck::repair::{WriteAt, apply};
use bcache_engine::fsck::{Kind, Options};
use bcache_format::Sectors;
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};

use super::{BadInput, Out, Outcome, memory};
use crate::devices::{Access, InUse, each_has_data, each_once, open_for};
use crate::kept;

/// Write all dirty data to the backing devices, which are clean and complete afterwards
///
/// For a rescue system, or before a cache is taken away. The set must be in order (`bcache fsck`) and not in use. A
/// crash in the middle loses nothing: run it again. Sectors that cannot be read or written are gone around, listed, and
/// stay dirty. Data of flash-only volumes stays, it is nowhere else. Exit code 1 when something else stays dirty.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache flush /dev/sdb /dev/nvme0n1")]
pub struct Args {
    /// Say what would be written and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Cache and backing devices of one set, in any order
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// Flushes.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    each_once(&args.devices)?;
    let (mut devices, mut writable) = (Vec::new(), Vec::new());
    for path in &args.devices {
        let access = if args.dry_run { Access::Read } else { Access::Write };
        let (device, write) = open_for(path, InUse::Lay, access)?;
        devices.push(device);
        writable.extend(write);
    }
    each_has_data(&devices)?;
    let flush = Flush::with(&devices, Options { kept: Some(&kept::left_of), ..Options::default() }).map_err(
        |error| match &error {
            FlushError::NoCache => BadInput(error.to_string()).into(),
            FlushError::Findings(kind, _) if Kind::from_id(kind).is_some_and(Kind::is_choice) => {
                BadInput(error.to_string()).into()
            }
            _ => anyhow::Error::new(error),
        },
    )?;
    let mut total = 0;
    for target in flush.targets() {
        let size = ByteSize::b(Sectors(target.dirty).bytes()).display().iec();
        writeln!(out, "{}: {size} dirty", target.name)?;
        total += Sectors(target.dirty).bytes();
    }
    let left_out = flush.left_out();
    for left in &left_out {
        writeln!(
            out,
            "not named, or not attached by its superblock; its dirty data stays in the cache: {} \"{}\"",
            left.uuid,
            super::escaped(&left.label.to_text())
        )?;
    }
    let ends = |complete: bool| if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.dry_run {
        return Ok(ends(left_out.is_empty()));
    }
    memory::suffices(flush.memory())?;
    let targets: Vec<_> = writable.iter().map(|device| (device.name(), device as &dyn WriteAt)).collect();
    let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let bar = ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let copied = flush.copy(&targets, &|bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let plan = flush.finish(&devices, &copied, &mut || uuid::Uuid::new_v4().as_u64_pair().0)?;
    apply(&plan, &targets)?;
    if let Some(set) = flush.kept() {
        kept::set_aside(set)?;
    }
    let mut sectors = 0;
    for Left { backing, from, to, device, byte, message } in copied.left() {
        writeln!(
            out,
            "not copied, stays dirty: sectors {from}..{to} of {backing}: {device} at byte {byte}: {message}"
        )?;
        sectors += to - from;
    }
    if sectors > 0 {
        let size = ByteSize::b(Sectors(sectors).bytes()).display().iec();
        writeln!(out, "all but {size} was written; once the devices can do it, run this again")?;
    } else if left_out.is_empty() {
        writeln!(out, "clean: the backing devices have everything")?;
    } else {
        writeln!(
            out,
            "the backing devices that were named have everything; others were not named, see above"
        )?;
    }
    Ok(ends(sectors == 0 && left_out.is_empty()))
}
