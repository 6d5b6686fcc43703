//! `bcache salvage`: dirty data of a cache whose journal or btree root is gone.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bcache_engine::fsck::repair::WriteAt;
use bcache_engine::fsck::salvage::{Belief, Salvage, data_byte};
use bcache_engine::fsck::view::{Backing, Content, Devices, set};
use bcache_format::{Bkey, SECTOR_SIZE, Sectors};
use serde_json::json;

use super::devices::{Access, InUse, Writable, open_for};
use super::export::{Sparse, copy, progress};
use super::{Out, Outcome};

/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;

/// Save the dirty data of a cache whose journal or btree root is gone
///
/// Scans the whole cache for btree nodes, finds out which were in use last, and lays their dirty data over the backing
/// device, in an image or, with --to, on the device itself. Sure is what one node in use says and no other denies: with
/// the journal gone it is the state of when that node was last written, and newer writes that only the journal knew are
/// gone. What two nodes disagree about is doubtful and left out unless asked for. The cache is not changed.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("target").required(true).args(["output", "to"])))]
#[command(after_help = "Example:\n  bcache salvage -o disk.img /dev/sdb /dev/nvme0n1")]
pub struct Args {
    /// Write an image: the backing device's content with the dirty data on top
    #[arg(short, long, value_name = "IMAGE")]
    output: Option<PathBuf>,
    /// Write the dirty data to this backing device itself
    #[arg(long, value_name = "BACKING")]
    to: Option<PathBuf>,
    /// Take the extents of this slot, when the uuid table is gone too and several could be meant
    #[arg(long, value_name = "N")]
    slot: Option<u32>,
    /// Write doubtful data as well
    #[arg(long)]
    doubtful: bool,
    /// Report one JSON object a line
    #[arg(long)]
    json: bool,
    /// The cache, and the backing device unless --to names it
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// Salvages.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let mut devices = Devices::default();
    for path in &args.devices {
        devices.push(open_for(path, InUse::Refuse, Access::Read)?.0)?;
    }
    let mut writable = None;
    if let Some(path) = &args.to {
        let (device, writes) = open_for(path, InUse::Refuse, Access::Write)?;
        devices.push(device)?;
        writable = writes;
    }
    let Some(cache) = set::single_cache(&devices)? else { bail!("no cache was named") };
    let [backing] = devices.backings.as_slice() else {
        bail!("name one backing device, {} were named", devices.backings.len());
    };
    let bar = progress(&cache.name, cache.geometry.nbuckets);
    let found = Salvage::scan(cache, &|done, of| {
        bar.set_length(of);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    if found.slots.is_empty() {
        bail!("{}: no dirty data was found", cache.name);
    }
    let slot = args.slot.or_else(|| found.slot_of(backing));
    let Some(keys) = slot.and_then(|slot| found.slots.get(&slot)) else {
        let slots: Vec<_> = found.slots.keys().map(u32::to_string).collect();
        bail!("which slot is {}'s is not known; say --slot with one of {}", backing.name, slots.join(", "));
    };
    let wanted = |belief: Belief| belief == Belief::Sure || args.doubtful;
    let keys_to_write: Vec<Bkey> =
        keys.iter().filter(|(_, belief)| wanted(*belief)).map(|(key, _)| *key).collect();
    let lost = match (&args.output, &writable) {
        (Some(output), _) => image(output, &args.devices, &found, backing, &keys_to_write)?,
        (None, Some(device)) => lay(&found, &keys_to_write, Sectors(0), backing, device)?,
        (None, None) => bail!("nowhere to write to"),
    };
    report(&args, &found, backing, keys, &lost, out)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the image under a name of its own and moves it into place when it is whole. Tells what could not be read.
fn image(
    output: &Path,
    devices: &[PathBuf],
    found: &Salvage,
    backing: &Backing,
    keys: &[Bkey],
) -> Result<Vec<Bkey>> {
    let name = || output.display().to_string();
    if devices.iter().any(|device| std::fs::canonicalize(device).ok() == std::fs::canonicalize(output).ok()) {
        bail!("{} is one of the devices to read", name());
    }
    let mut partial = output.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let file = OpenOptions::new().write(true).create_new(true).open(&partial).with_context(name)?;
    let written = (|| {
        let content = Content::backing_alone(backing);
        file.set_len(content.bytes)?;
        let bar = progress(&backing.name, content.bytes);
        copy(&content, &mut Sparse(&file), &bar)?;
        bar.finish_and_clear();
        let target = Writable::new(name(), file.try_clone()?);
        let lost = lay(found, keys, backing.fields.data_offset, backing, &target)?;
        std::fs::rename(&partial, output).with_context(name)?;
        Ok(lost)
    })();
    if written.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&partial);
    }
    written
}

/// Copies the extents' data to where it belongs, `offset` before its place on the backing device. Tells which could
/// not be read, or are outside the device.
fn lay(
    found: &Salvage,
    keys: &[Bkey],
    offset: Sectors,
    backing: &Backing,
    target: &Writable,
) -> Result<Vec<Bkey>> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut lost = Vec::new();
    let start = backing.fields.data_offset.0;
    let end = Sectors::from_bytes(backing.device.size()).0;
    'keys: for key in keys {
        if key.start() < start || key.offset() > end {
            lost.push(*key);
            continue;
        }
        let (from, to) = (data_byte(key), Sectors(key.start() - offset.0).bytes());
        let bytes = Sectors(key.size()).bytes();
        let mut done = 0;
        while done < bytes {
            let part = &mut buffer[..CHUNK.min(bytes - done) as usize];
            if found.cache.device.read_at(from + done, part).is_err() {
                lost.push(*key);
                continue 'keys;
            }
            target.write_at(to + done, part)?;
            done += part.len() as u64;
        }
    }
    target.flush()?;
    Ok(lost)
}

fn report(
    args: &Args,
    found: &Salvage,
    backing: &Backing,
    keys: &[(Bkey, Belief)],
    lost: &[Bkey],
    out: &mut Out,
) -> Result<()> {
    let offset = backing.fields.data_offset.0;
    let mut sums = [0u64; 3];
    for (key, belief) in keys {
        let (index, word) = match belief {
            _ if lost.contains(key) => (2, "lost"),
            Belief::Sure => (0, "sure"),
            Belief::Doubtful => (1, "doubtful"),
        };
        sums[index] += key.size();
        let (from, to) = (key.start().saturating_sub(offset), key.offset().saturating_sub(offset));
        if args.json {
            let value =
                json!({"kind": "range", "belief": word, "of": &*backing.name, "from": from, "to": to});
            writeln!(out, "{value}")?;
        } else if word != "sure" {
            writeln!(out, "{word}: sectors {from}..{to} of {}", backing.name)?;
        }
    }
    let [sure, doubtful, lost] = sums;
    let (leaves, used) = found.leaves;
    if args.json {
        let value = json!({"kind": "summary", "sure": sure, "doubtful": doubtful, "lost": lost,
                           "leaves": leaves, "in_use": used, "prios": found.prios,
                           "journal_entries": found.entries});
        writeln!(out, "{value}")?;
        return Ok(());
    }
    writeln!(out, "{leaves} leaves found, {used} of them in use; {} journal entries", found.entries)?;
    if found.entries == 0 {
        writeln!(
            out,
            "the journal is gone, and with it the newest writes: sure data may be older than they were"
        )?;
    }
    let size = |sectors: u64| bytesize::ByteSize::b(sectors * SECTOR_SIZE).display().iec().to_string();
    writeln!(out, "dirty data: {} sure, {} doubtful, {} lost", size(sure), size(doubtful), size(lost))?;
    Ok(())
}
