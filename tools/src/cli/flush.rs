//! `bcache flush`: writes all dirty data to the backing devices, without the kernel.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bcache_engine::fsck::flush::Flush;
use bcache_engine::fsck::repair::{WriteAt, apply};
use bcache_format::Sectors;
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};

use super::devices::{Access, InUse, each_has_data, open_for};
use super::{Out, Outcome, memory};

/// Write all dirty data to the backing devices, which are clean and complete afterwards
///
/// For a rescue system, or before a cache is taken away. The set must be in order (`bcache fsck`) and not in use. A
/// crash in the middle loses nothing: run it again. Data of flash-only volumes stays, it is nowhere else.
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
    let (mut devices, mut writable) = (Vec::new(), Vec::new());
    for path in &args.devices {
        let access = if args.dry_run { Access::Read } else { Access::Write };
        let (device, write) = open_for(path, InUse::Refuse, access)?;
        devices.push(device);
        writable.extend(write);
    }
    each_has_data(&devices)?;
    let flush = Flush::new(&devices)?;
    let mut total = 0;
    for target in flush.targets() {
        let size = ByteSize::b(Sectors(target.dirty).bytes()).display().iec();
        writeln!(out, "{}: {size} dirty", target.name)?;
        total += Sectors(target.dirty).bytes();
    }
    for left in flush.left_out() {
        writeln!(
            out,
            "not named, its dirty data stays in the cache: {} \"{}\"",
            left.uuid,
            left.label.to_text()
        )?;
    }
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    memory::suffices(flush.memory())?;
    let targets: Vec<_> = writable.iter().map(|device| (device.name(), device as &dyn WriteAt)).collect();
    let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let bar = ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    flush.copy(&targets, &|bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let plan = flush.finish(&devices, &mut || uuid::Uuid::new_v4().as_u64_pair().0)?;
    apply(&plan, &targets)?;
    if flush.left_out().is_empty() {
        writeln!(out, "clean: the backing devices have everything")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "the backing devices that were named have everything; others were not named, see above")?;
    Ok(ExitCode::FAILURE)
}
