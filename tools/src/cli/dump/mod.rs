//! `bcache dump`: what stands on a device, structure by structure.
//!
//! Nothing is refused because something else is damaged: what can be read is printed where it comes, what cannot is
//! named there (`!` in text, `"kind": "fault"` in JSON), and the exit code is 1.

mod btree;
mod extents;
mod journal;
mod prios;
mod superblock;
mod uuids;

use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bcache_engine::fsck::view::journal::Journal;
use bcache_engine::fsck::view::{Cache, Device, Devices, Fault};
use bcache_format::superblock::{RawSuperblock, SB_BYTES, SB_OFFSET};
use bcache_format::{Bkey, Superblock};
use serde_json::{Value, json};

use super::{Out, Outcome};
use crate::devices::{InUse, open};

/// Faults remembered so that none is printed twice.
const FAULTS_REMEMBERED: usize = 10_000;

/// Print a structure of a device as it stands there, also on damaged devices
///
/// Nothing is changed. What cannot be read is named in its place, and the exit code is then 1. With --json every line
/// is an object; its "kind" says what it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bcache dump super /dev/nvme0n1\n  \
    bcache dump extents --json cache.img | jq 'select(.dirty)'")]
pub struct Args {
    /// What to print
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// The superblock of a cache or backing device
    #[command(after_help = "Example:\n  bcache dump super /dev/sdb")]
    Super(Of),
    /// Journal buckets and their entries, with sequence numbers
    #[command(after_help = "Example:\n  bcache dump journal --keys /dev/nvme0n1")]
    Journal(OfJournal),
    /// Btree nodes with their ranges and bsets, parents before children
    #[command(after_help = "Example:\n  bcache dump btree --json /dev/nvme0n1 | jq 'select(.level == 0)'")]
    Btree(OfBtree),
    /// Extents as a reader sees them: journal replayed, newest wins
    #[command(after_help = "Example:\n  bcache dump extents --json cache.bcimg | jq 'select(.dirty)'")]
    Extents(Of),
    /// The table of backing devices and flash-only volumes
    #[command(after_help = "Example:\n  bcache dump uuids /dev/nvme0n1")]
    Uuids(Of),
    /// Priority and generation of buckets
    #[command(after_help = "Example:\n  bcache dump prios /dev/nvme0n1 | less")]
    Prios(Of),
}

#[derive(Debug, clap::Args)]
struct Of {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// The device
    #[arg(value_name = "DEV")]
    device: PathBuf,
}

#[derive(Debug, clap::Args)]
struct OfJournal {
    #[command(flatten)]
    of: Of,
    /// Print the keys of each entry as well
    #[arg(short, long)]
    keys: bool,
}

#[derive(Debug, clap::Args)]
struct OfBtree {
    #[command(flatten)]
    of: Of,
    /// Print the keys of each node as well
    #[arg(short, long)]
    keys: bool,
}

/// Prints.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let of = match &args.what {
        What::Super(of) | What::Extents(of) | What::Uuids(of) | What::Prios(of) => of,
        What::Journal(with) => &with.of,
        What::Btree(with) => &with.of,
    };
    let device = open(&of.device, InUse::Allow)?;
    let mut to = Printer { out, json: of.json, faults: 0, seen: HashSet::new() };
    match &args.what {
        What::Super(_) => superblock::print(&device, &mut to)?,
        What::Journal(with) => journal::print(&cache(device, &mut to)?, with.keys, &mut to)?,
        What::Btree(with) => btree::print(&cache(device, &mut to)?, with.keys, &mut to)?,
        What::Extents(_) => extents::print(cache(device, &mut to)?, &mut to)?,
        What::Uuids(_) => uuids::print(&cache(device, &mut to)?, &mut to)?,
        What::Prios(_) => prios::print(&cache(device, &mut to)?, &mut to)?,
    }
    Ok(if to.faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where lines go.
struct Printer<'a, 'o> {
    out: &'a mut Out<'o>,
    json: bool,
    faults: u64,
    seen: HashSet<String>,
}

impl Printer<'_, '_> {
    /// One line: `text`, or `json` when that is asked for.
    fn line(&mut self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) -> Result<()> {
        if self.json {
            writeln!(self.out, "{}", json())?;
        } else {
            let text = text();
            if !text.is_empty() {
                writeln!(self.out, "{text}")?;
            }
        }
        Ok(())
    }
    /// Something that cannot be read, unless it was named before.
    fn fault(&mut self, fault: &Fault) -> Result<()> {
        let said = fault.to_string();
        if self.seen.contains(&said) {
            return Ok(());
        }
        self.faults += 1;
        let value = || {
            json!({"kind": "fault", "device": &*fault.device, "structure": fault.structure,
                   "byte": fault.byte, "what": fault.what.to_string()})
        };
        self.line(|| format!("! {said}"), value)?;
        if self.seen.len() < FAULTS_REMEMBERED {
            self.seen.insert(said);
        }
        Ok(())
    }
}

/// The cache on a device. A superblock with a wrong checksum or one that claims more than there is will do.
fn cache(device: Device, to: &mut Printer<'_, '_>) -> Result<Cache> {
    let mut devices = Devices::default();
    if let Err(fault) = devices.push(Arc::clone(&device)) {
        to.fault(&fault)?;
        let (_, sb) = decode(&device)?;
        devices
            .push_with(device, sb.map_err(|_| anyhow::anyhow!("no superblock that says where things are"))?);
    }
    match devices.caches.pop() {
        Some(cache) => Ok(cache),
        None => bail!("a backing device: only its superblock can be dumped"),
    }
}

/// A superblock whatever its checksum is.
fn decode(device: &Device) -> Result<(RawSuperblock, Result<Superblock, bcache_format::Error>)> {
    let name = || device.name().to_owned();
    let mut bytes = vec![0; SB_BYTES];
    device.read_at(SB_OFFSET, &mut bytes).with_context(name)?;
    let raw = RawSuperblock::read(&bytes).with_context(name)?;
    Ok((raw, Superblock::decode(&raw)))
}

/// The journal, with what is wrong with it named.
fn journal(cache: &Cache, to: &mut Printer<'_, '_>) -> Result<Journal> {
    let journal = Journal::read(cache);
    if cache.njournal_buckets() == 0 {
        to.line(|| "the cache was never used: no set on it yet".to_owned(), || json!({"kind": "unused"}))?;
        return Ok(journal);
    }
    if let Err(fault) = journal.replayable(cache) {
        to.fault(&fault)?;
    }
    Ok(journal)
}

/// A key as an object.
fn key_json(key: &Bkey) -> Value {
    let ptr =
        |ptr: &bcache_format::Ptr| json!({"dev": ptr.dev(), "sector": ptr.offset(), "gen": ptr.generation()});
    json!({"inode": key.inode(), "start": key.start(), "end": key.offset(), "size": key.size(),
           "dirty": key.dirty(), "ptrs": key.ptrs().iter().map(ptr).collect::<Vec<_>>()})
}

/// A position, short where it is the largest.
fn pos(pos: bcache_format::Pos) -> String {
    if pos == bcache_format::Pos::MAX { "end".to_owned() } else { pos.to_string() }
}

/// Seconds since 1970 as a date and time, UTC.
fn date(seconds: u32) -> String {
    if seconds == 0 {
        return "-".to_owned();
    }
    let (days, rest) = (i64::from(seconds / 86400), seconds % 86400);
    // Civil date of a day number: eras of 400 years that start in March.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates() {
        assert_eq!(date(0), "-");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(date(1_763_855_999), "2025-11-22 23:59:59");
        assert_eq!(date(u32::MAX), "2106-02-07 06:28:15");
    }
}
