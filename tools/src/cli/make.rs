//! `bcache make` and `make-bcache`: formats caches and backing devices.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use bcache_format::superblock::{Label, Replacement, Role, Superblock};
use bcache_format::units::Sectors;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, value_parser};
use uuid::Uuid;

use super::{Out, Outcome};
use crate::describe::Description;
use crate::make::{self, Plan, Request};

/// Format a cache device, backing devices, or both at once
///
/// Whatever is wrong is found before anything is written: then nothing is, and the exit code is 1.
#[derive(Debug, clap::Args)]
#[command(infer_long_args = true, args_override_self = true, after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    devices: Devices,
    /// Bucket size; the erase block of an SSD or a multiple. Sizes take k, M, G, T in powers of 1024
    #[arg(short, long, value_name = "SIZE", default_value = "512k", value_parser = size)]
    bucket: u64,
    /// Block size; the default is the largest logical block of the devices
    #[arg(short = 'w', long, value_name = "SIZE", value_parser = size)]
    block: Option<u64>,
    /// Where the data of backing devices starts, in sectors of 512 bytes; the default is 16, or the first stripe of a disk
    /// that tells its optimal I/O size
    #[arg(short = 'o', long, alias = "data_offset", value_name = "SECTORS")]
    data_offset: Option<u64>,
    /// UUID of the cache set, to make backing devices for a set that exists
    #[arg(long, alias = "cset_uuid", value_name = "UUID", value_parser = set_uuid)]
    cset_uuid: Option<Uuid>,
    /// Start backing devices in writeback mode instead of writethrough
    #[arg(long)]
    writeback: bool,
    /// Discard buckets on the cache device before they are reused
    #[arg(long)]
    discard: bool,
    /// How the cache chooses buckets for reuse: lru, fifo or random
    #[arg(long, alias = "cache_replacement_policy", value_name = "POLICY", default_value = "lru", value_parser = policy)]
    cache_replacement_policy: Replacement,
    /// Label of the backing device, at most 32 bytes; its name in /dev/mapper where it makes one
    #[arg(short, long, default_value = "", hide_default_value = true, value_parser = label)]
    label: Label,
    /// Overwrite a bcache superblock
    #[arg(long, alias = "wipe_bcache")]
    wipe_bcache: bool,
    /// Overwrite whatever is on the devices
    #[arg(long)]
    force: bool,
    /// Decide everything and print it, but write nothing
    #[arg(long, alias = "dry_run")]
    dry_run: bool,
    /// Print one JSON object a line for each device, as `bcache show --json` does
    #[arg(long)]
    json: bool,
}

/// Format a cache device, backing devices, or both at once
///
/// Whatever is wrong is found before anything is written: then nothing is, and the exit code is 1.
#[derive(Debug, clap::Parser)]
#[command(name = "make-bcache", version)]
pub struct Program {
    #[command(flatten)]
    args: Args,
}

/// The program `make-bcache`.
pub fn run_program(program: Program, out: &mut Out) -> Outcome {
    run(program.args, out)
}

const EXAMPLES: &str = "\
Examples:
  make-bcache -C /dev/nvme0n1p2 -B /dev/sdb /dev/sdc    a cache for two disks
  make-bcache -B --writeback --cset-uuid UUID /dev/sdd  one more disk for the set UUID
  make-bcache -C -b 2M --discard /dev/nvme0n1p2         a cache with buckets of 2 MiB";

/// The devices with their roles. `-C` and `-B` apply to all devices that follow them, up to the next of them, so the
/// order of the command line counts.
#[derive(Debug, Default)]
struct Devices {
    caches: Vec<PathBuf>,
    backing: Vec<PathBuf>,
}

impl clap::Args for Devices {
    fn augment_args(command: Command) -> Command {
        let role = |id: &'static str| {
            Arg::new(id).long(id).action(ArgAction::Append).num_args(0).default_missing_value("")
        };
        command
            .arg(role("cache").short('C').help("Format the devices that follow as caches"))
            .arg(role("bdev").short('B').help("Format the devices that follow as backing devices"))
            .arg(
                Arg::new("devices")
                    .value_name("DEVICE")
                    .action(ArgAction::Append)
                    .value_parser(value_parser!(PathBuf))
                    .help("Block devices or files"),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Devices {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Devices, clap::Error> {
        let indices = |id| matches.indices_of(id).into_iter().flatten();
        let last_before = |id, at| indices(id).filter(|&index| index < at).max();
        let mut devices = Devices::default();
        for (path, at) in matches.get_many::<PathBuf>("devices").into_iter().flatten().zip(indices("devices"))
        {
            let (cache, bdev) = (last_before("cache", at), last_before("bdev", at));
            if cache.is_none() && bdev.is_none() {
                let kind = clap::error::ErrorKind::MissingRequiredArgument;
                return Err(clap::Error::raw(kind, "Please specify -C or -B\n"));
            }
            if cache > bdev { &mut devices.caches } else { &mut devices.backing }.push(path.clone());
        }
        Ok(devices)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Devices::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A size in bytes: digits and k, M, G or T for powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return Err("a size is a number and k, M, G or T".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "a size is a number and k, M, G or T")?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".into())
}

/// The written form with hyphens only, as libuuid takes it.
fn set_uuid(text: &str) -> Result<Uuid, String> {
    let bad = || "Bad uuid".to_owned();
    if text.len() != 36 {
        return Err(bad());
    }
    Uuid::parse_str(text).ok().filter(|uuid| !uuid.is_nil()).ok_or_else(bad)
}

fn policy(text: &str) -> Result<Replacement, String> {
    let known = Replacement::ALL.iter().find(|policy| policy.name() == text);
    known.copied().ok_or_else(|| "one of lru, fifo, random".to_owned())
}

fn label(text: &str) -> Result<Label, String> {
    Label::new(text).ok_or_else(|| "a label has at most 32 bytes".to_owned())
}

/// Plans, prints what is planned, and writes it.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let request = Request {
        caches: args.devices.caches,
        backing: args.devices.backing,
        bucket: args.bucket,
        block: args.block,
        data_offset: args.data_offset.map(Sectors),
        writeback: args.writeback,
        discard: args.discard,
        replacement: args.cache_replacement_policy,
        set_uuid: args.cset_uuid.unwrap_or_else(Uuid::new_v4),
        label: args.label,
        wipe_bcache: args.wipe_bcache,
        force: args.force,
    };
    let plan = make::plan(&request).map_err(|refusal| anyhow!("{refusal}"))?;
    for note in plan.notes() {
        super::note("make-bcache", note);
    }
    if !args.dry_run {
        plan.write().map_err(|error| anyhow!("{error}; not everything was written"))?;
    }
    print(&plan, args.json, out)?;
    Ok(ExitCode::SUCCESS)
}

fn print(plan: &Plan, json: bool, out: &mut Out) -> std::io::Result<()> {
    for part in plan.parts() {
        if json {
            let described = Description::new(&part.target().path().display().to_string(), part.raw());
            writeln!(out, "{}", serde_json::to_string(&described)?)?;
        } else {
            print_text(part.superblock(), out)?;
        }
    }
    Ok(())
}

/// The lines of bcache-tools 1.0.8.
fn print_text(superblock: &Superblock, out: &mut Out) -> std::io::Result<()> {
    writeln!(out, "UUID:\t\t\t{}", superblock.uuid)?;
    writeln!(out, "Set UUID:\t\t{}", superblock.set_uuid)?;
    writeln!(out, "version:\t\t{}", superblock.version.number())?;
    match &superblock.role {
        Role::Cache(cache) => {
            writeln!(out, "nbuckets:\t\t{}", cache.nbuckets)?;
            writeln!(out, "block_size:\t\t{}", superblock.block_sectors)?;
            writeln!(out, "bucket_size:\t\t{}", cache.bucket_sectors)?;
            writeln!(out, "nr_in_set:\t\t{}", cache.nr_in_set)?;
            writeln!(out, "nr_this_dev:\t\t{}", cache.nr_this_dev)?;
            writeln!(out, "first_bucket:\t\t{}", cache.first_bucket)
        }
        Role::Backing(backing) => {
            writeln!(out, "block_size:\t\t{}", superblock.block_sectors)?;
            writeln!(out, "data_offset:\t\t{}", backing.data_offset)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("512k"), Ok(512 << 10));
        assert_eq!(size("2M"), Ok(2 << 20));
        assert_eq!(size("1g"), Ok(1 << 30));
        assert_eq!(size("1T"), Ok(1 << 40));
        for wrong in ["", "k", "-1", "1.5M", "1kk", "4 k", "99999999T", "0x10"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_set_uuid_has_hyphens_and_is_not_zero() {
        assert!(set_uuid("a03ef8ed-3ee1-b878-c850-fc5ecb16cd99").is_ok());
        for wrong in ["a03ef8ed3ee1b878c850fc5ecb16cd99", "00000000-0000-0000-0000-000000000000", "x"] {
            assert!(set_uuid(wrong).is_err(), "{wrong}");
        }
    }
}
