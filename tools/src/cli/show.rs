//! `bcache show` and `bcache-super-show`: the superblock, line for line as bcache-tools 1.0.8 prints it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bcache_format::superblock::{
    CacheMode, DATA_OFFSET_DEFAULT, Label, RawSuperblock, Replacement, SB_BYTES, SB_OFFSET, SB_SECTOR,
    Version,
};

use super::{Out, Outcome, overview};
use crate::describe::Description;

/// Exit code for a device that cannot be read or holds no superblock to trust.
const BAD: u8 = 2;
/// Exit code for a backing device of an experimental format that never was released.
const EXPERIMENTAL: u8 = 3;
/// Bytes of the superblock that all versions have: bcache-tools ask for no more.
const CLASSIC_BYTES: usize = 0x8d0;

/// Print the superblock of cache and backing devices
///
/// The text is that of bcache-tools 1.0.8. With several devices, each one's text follows a line with its name.
/// Exit code: 0; 1 for a command line that makes no sense; 2 if a device cannot be read or its superblock's magic,
/// place or checksum is wrong; 3 for an experimental format. With several devices the highest.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = LONG)]
pub struct Superblocks {
    /// Print what the superblock says even if its checksum is wrong
    #[arg(short = 'f', long)]
    force: bool,
    /// Print one JSON object a line for each device instead
    #[arg(long)]
    json: bool,
    /// Block devices or image files
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,
}

/// List the devices of bcache on this machine, or print superblocks
///
/// Without a device: a table of all caches and backing devices, in the lines of bcache-tools 1.1. With devices: the
/// superblock of each, in the lines of bcache-tools 1.0.8, after a line with its name where there are several.
/// Exit code: 0; 1 for a command line that makes no sense; 2 if a device cannot be read or its superblock's magic,
/// place or checksum is wrong; 3 for an experimental format. With several devices the highest.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = LONG)]
pub struct Args {
    /// Print what the superblock says even if its checksum is wrong
    #[arg(short = 'f', long, requires = "devices")]
    force: bool,
    /// Print one JSON object a line for each device instead
    #[arg(long, requires = "devices")]
    json: bool,
    /// With UUIDs and sets in the table
    #[arg(short, long, conflicts_with_all = ["devices", "device"])]
    more: bool,
    /// Print the superblock of one device in the lines of bcache-tools 1.1
    #[arg(short, long, value_name = "DEVICE", conflicts_with = "devices")]
    device: Option<PathBuf>,
    /// Block devices or image files
    #[arg(value_name = "DEVICE")]
    devices: Vec<PathBuf>,
}

/// Print the superblock of cache and backing devices
///
/// The text is that of bcache-tools 1.0.8. With several devices, each one's text follows a line with its name.
/// Exit code: 0; 1 for a command line that makes no sense; 2 if a device cannot be read or its superblock's magic,
/// place or checksum is wrong; 3 for an experimental format. With several devices the highest.
#[derive(Debug, clap::Parser)]
#[command(name = "bcache-super-show", version)]
pub struct Program {
    #[command(flatten)]
    args: Superblocks,
}

/// The program `bcache-super-show`.
pub fn run_program(program: Program, out: &mut Out) -> Outcome {
    superblocks(&program.args, out)
}

const EXAMPLES: &str =
    "Examples:\n  bcache show\n  bcache-super-show /dev/sdb1\n  bcache show --json /dev/sdb1 | jq .label";
const LONG: &str = "\
Examples:
  bcache show
  bcache-super-show /dev/sdb1
  bcache show --json /dev/sdb1 | jq .label

JSON: {device, role, version, csum, csum_expected, refused, uuid, set_uuid, label, seq, block_sectors,
bucket_sectors, last_mount, cache, backing}. `cache` is {nbuckets, first_bucket, njournal_buckets, nr_in_set,
nr_this_dev, sync, discard, replacement, features}; `backing` is {data_offset_sectors, cache_mode, state}. `refused`
is there when a kernel would refuse the superblock, and says why. A device without a superblock to show gives
{device, error}. Fields are only ever added.";

/// Prints a table, or superblocks.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let Args { force, json, more, device, devices } = args;
    match device {
        Some(device) => Ok(ExitCode::from(text(&device, Lines { force: false, matches: false }, out)?)),
        None if devices.is_empty() => overview::show(more, out),
        None => superblocks(&Superblocks { force, json, devices }, out),
    }
}

/// How a superblock is printed.
#[derive(Clone, Copy, Debug)]
struct Lines {
    /// Even if its checksum is wrong.
    force: bool,
    /// Sums and places are followed by `[match]`, as in 1.0.8, not in 1.1.
    matches: bool,
}

/// Prints every device and gives the worst exit code.
fn superblocks(args: &Superblocks, out: &mut Out) -> Outcome {
    let mut worst = 0;
    for (index, device) in args.devices.iter().enumerate() {
        if args.json {
            worst = worst.max(json(device, args.force, out)?);
            continue;
        }
        if args.devices.len() > 1 {
            let gap = if index == 0 { "" } else { "\n" };
            writeln!(out, "{gap}{}:", device.display())?;
        }
        worst = worst.max(text(device, Lines { force: args.force, matches: true }, out)?);
    }
    Ok(ExitCode::from(worst))
}

/// Reads the superblock's sectors. A device may end before the fields that only version 5 has.
fn read(device: &Path) -> io::Result<Option<RawSuperblock>> {
    let file = File::open(device)?;
    let mut bytes = [0; SB_BYTES];
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], SB_OFFSET + have as u64) {
            Ok(0) | Err(_) => break,
            Ok(n) => have += n,
        }
    }
    Ok(RawSuperblock::read(&bytes).filter(|_| have >= CLASSIC_BYTES))
}

/// What the C library says of an error, without the number that Rust adds.
fn reason(error: &io::Error) -> String {
    let number = error.raw_os_error();
    number.map_or_else(|| error.to_string(), |n| nix::errno::Errno::from_raw(n).desc().to_owned())
}

fn json(device: &Path, force: bool, out: &mut Out) -> anyhow::Result<u8> {
    let name = device.display().to_string();
    let error = match read(device) {
        Err(error) => reason(&error),
        Ok(None) => "cannot be read".to_owned(),
        Ok(Some(raw)) if !raw.has_magic() => "bad magic: no bcache superblock".to_owned(),
        Ok(Some(raw)) if raw.offset.get() != SB_SECTOR => {
            format!("superblock says it stands at sector {}", raw.offset)
        }
        Ok(Some(raw)) => {
            let described = Description::new(&name, &raw);
            writeln!(out, "{}", serde_json::to_string(&described)?)?;
            let trusted = force || raw.csum.get() == raw.expected_csum();
            return Ok(if trusted { 0 } else { BAD });
        }
    };
    writeln!(out, "{}", serde_json::json!({ "device": name, "error": error }))?;
    Ok(BAD)
}

/// Complains on standard error, after what was printed so far.
fn complain(out: &mut Out, text: &str) -> io::Result<()> {
    out.flush()?;
    let _ = writeln!(io::stderr(), "{text}");
    Ok(())
}

fn text(device: &Path, lines: Lines, out: &mut Out) -> io::Result<u8> {
    let raw = match read(device) {
        Err(error) => {
            writeln!(out, "Can't open dev {}: {}", device.display(), reason(&error))?;
            return Ok(BAD);
        }
        Ok(None) => {
            complain(out, "Couldn't read")?;
            return Ok(BAD);
        }
        Ok(Some(raw)) => raw,
    };
    let magic = if raw.has_magic() { "ok" } else { "bad magic" };
    writeln!(out, "sb.magic\t\t{magic}")?;
    if !raw.has_magic() {
        complain(out, "Invalid superblock (bad magic)")?;
        return Ok(BAD);
    }
    write!(out, "sb.first_sector\t\t{}", raw.offset)?;
    if raw.offset.get() != SB_SECTOR {
        writeln!(out, " [expected {SB_SECTOR}s]")?; // the original says "8s"
        complain(out, "Invalid superblock (bad sector)")?;
        return Ok(BAD);
    }
    let matches = if lines.matches { " [match]" } else { "" };
    writeln!(out, "{matches}")?;
    write!(out, "sb.csum\t\t\t{:X}", raw.csum.get())?;
    let expected = raw.expected_csum();
    if raw.csum.get() == expected {
        writeln!(out, "{matches}")?;
    } else {
        writeln!(out, " [expected {expected:X}]")?;
        if !lines.force {
            complain(out, "Corrupt superblock (bad csum)")?;
            return Ok(BAD);
        }
    }
    write!(out, "sb.version\t\t{}", raw.version)?;
    let Some(version) = Version::from_number(raw.version.get()) else {
        writeln!(out, " [unknown]")?;
        return Ok(0);
    };
    writeln!(out, " [{} device]\n", if version.is_backing() { "backing" } else { "cache" })?;
    details(&raw, version, out)
}

fn details(raw: &RawSuperblock, version: Version, out: &mut Out) -> io::Result<u8> {
    writeln!(out, "dev.label\t\t{}", encode(Label(raw.label).as_bytes()))?;
    writeln!(out, "dev.uuid\t\t{}", uuid::Uuid::from_bytes(raw.uuid))?;
    writeln!(out, "dev.sectors_per_block\t{}", raw.block_size)?;
    // On a backing device the number is printed as it stands; it means nothing there.
    let bucket = raw.bucket_sectors().unwrap_or(0);
    writeln!(out, "dev.sectors_per_bucket\t{bucket}")?;
    if version.is_backing() {
        if version != Version::Backing && (raw.keys.get() == 1 || raw.d[0].get() != 0) {
            complain(out, "Possible experimental format detected, bailing")?;
            return Ok(EXPERIMENTAL);
        }
        backing(raw, version, out)?;
    } else {
        cache(raw, bucket.into(), out)?;
    }
    writeln!(out, "\ncset.uuid\t\t{}", uuid::Uuid::from_bytes(raw.set_uuid))?;
    Ok(0)
}

fn cache(raw: &RawSuperblock, bucket: u64, out: &mut Out) -> io::Result<()> {
    let (first, buckets) = (u64::from(raw.first_bucket.get()), raw.nbuckets_or_data_offset.get());
    let flags = raw.flags.get();
    let yes = |bit: u64| if flags & bit != 0 { "yes" } else { "no" };
    writeln!(out, "dev.cache.first_sector\t{}", bucket * first)?;
    // A nonsensical bucket count wraps around here as it does in the original.
    writeln!(out, "dev.cache.cache_sectors\t{}", bucket.wrapping_mul(buckets.wrapping_sub(first)))?;
    writeln!(out, "dev.cache.total_sectors\t{}", bucket.wrapping_mul(buckets))?;
    writeln!(out, "dev.cache.ordered\t{}", yes(1))?;
    writeln!(out, "dev.cache.discard\t{}", yes(2))?;
    writeln!(out, "dev.cache.pos\t\t{}", raw.nr_this_dev)?;
    let policy = flags >> 2 & 7;
    let name = Replacement::ALL.get(policy as usize).map(|policy| policy.name());
    writeln!(out, "dev.cache.replacement\t{policy}{}", bracketed(name))
}

fn backing(raw: &RawSuperblock, version: Version, out: &mut Out) -> io::Result<()> {
    let first = match version {
        Version::Backing => DATA_OFFSET_DEFAULT.0,
        _ => raw.nbuckets_or_data_offset.get(),
    };
    let (mode, state) = (raw.flags.get() & 15, raw.flags.get() >> 61 & 3);
    let mode_name = CacheMode::ALL.get(mode as usize).map(|mode| match mode {
        CacheMode::None => "no caching",
        mode => mode.name(),
    });
    let state_name = match state {
        0 => "detached",
        1 => "clean",
        2 => "dirty",
        _ => "inconsistent",
    };
    writeln!(out, "dev.data.first_sector\t{first}")?;
    writeln!(out, "dev.data.cache_mode\t{mode}{}", bracketed(mode_name))?;
    writeln!(out, "dev.data.cache_state\t{state} [{state_name}]")
}

fn bracketed(name: Option<&str>) -> String {
    name.map(|name| format!(" [{name}]")).unwrap_or_default()
}

/// Characters other than letters, digits, `.`, `-` and `_` as a percent sign and hex digits; of a byte above 127 the
/// original prints the sign-extended number, and so do we.
fn encode(label: &[u8]) -> String {
    if label.is_empty() {
        return "(empty)".to_owned();
    }
    let mut text = String::new();
    for &byte in label {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'.' | b'-' | b'_' => text.push(byte.into()),
            _ => text.push_str(&format!("%{:x}", i32::from(byte as i8))),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_encoded_as_the_original_does() {
        assert_eq!(encode(b""), "(empty)");
        assert_eq!(encode(b"a.B-_9"), "a.B-_9");
        assert_eq!(encode(b"a b\n"), "a%20b%a");
        assert_eq!(encode("\u{e9}".as_bytes()), "%ffffffc3%ffffffa9");
    }
}
