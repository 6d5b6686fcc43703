//! `bcache attach`, `detach` and `volume`: change what a running set serves.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bcache_engine::fsck::repair::{self, Enlargement, Refused, WriteAt, apply};
use bcache_engine::fsck::view::Devices;
use bcache_format::superblock::Label;
use serde_json::Value;
use uuid::Uuid;

use super::{Out, Outcome};
use crate::control::client::{ask, find_device, one_set};
use crate::control::{Request, paths};
use crate::devices::{Access, InUse, must_have_data, open_for};
use crate::identify::{Part, Role, identify};
use crate::serve::settings::Assignment;
use crate::{dm, expose};

/// Attach a backing device to a running set; it may be mounted
///
/// Not where its blocks would change their size under whoever uses it: make-bcache -w 4k on a disk with blocks of 512 bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bcache attach /dev/sdb\n  bcache attach /dev/nvme0n1p2 /dev/sdb")]
pub struct AttachArgs {
    /// The set's UUID; not needed where only one is served
    #[arg(long, value_name = "SET", conflicts_with = "second")]
    set: Option<Uuid>,
    /// The backing device; or, before it, the set by its UUID or its cache device
    #[arg(value_name = "[CSET] DEV")]
    first: PathBuf,
    #[arg(hide = true)]
    second: Option<PathBuf>,
}

/// The set of a UUID, or of a cache device.
fn set_of(what: &Path) -> Result<Uuid> {
    if let Some(set) = what.to_str().and_then(|text| text.parse().ok()) {
        return Ok(set);
    }
    let part = identify(what)?;
    if part.role != Role::Cache {
        bail!("{}: a backing device, not a cache device", what.display());
    }
    Ok(part.set)
}

/// What a path leads to, if the kernel's bcache has it.
fn with_kernel(device: &Path) -> Option<Part> {
    identify(device).ok().filter(Part::is_kernels)
}

/// Has the kernel do something with a device of its.
fn tell_kernel(part: &Part, name: &str, value: &str) -> Result<()> {
    let file = part.kernels_file(name);
    std::fs::write(&file, value).with_context(|| file)
}

/// Attaches.
pub fn run_attach(args: AttachArgs, out: &mut Out) -> Outcome {
    let (cset, device) = match args.second {
        Some(device) => (Some(set_of(&args.first)?), device),
        None => (args.set, args.first),
    };
    let device = std::fs::canonicalize(&device).with_context(|| device.display().to_string())?;
    let before = identify(&device)?;
    if let Some(set) = cset.filter(|_| before.is_kernels()) {
        tell_kernel(&before, "attach", &set.to_string())?;
        writeln!(out, "attached {} to set {set}", device.display())?;
        return Ok(ExitCode::SUCCESS);
    }
    let set = one_set(cset)?;
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
    if let Some(part) = with_kernel(Path::new(&args.device)) {
        tell_kernel(&part, "detach", "1")?;
        writeln!(out, "the kernel detaches {} once its dirty data is written back", args.device)?;
        return Ok(ExitCode::SUCCESS);
    }
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

/// Change how a backing device is cached, as bcache set cache_mode=MODE does
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache set-cachemode /dev/sdb writeback")]
pub struct SetCachemodeArgs {
    /// The backing device, or the name, label or UUID of the cached one
    #[arg(value_name = "DEVICE")]
    device: String,
    /// writethrough, writeback, writearound or none
    #[arg(value_name = "MODE")]
    mode: String,
}

/// Changes.
pub fn run_set_cachemode(args: SetCachemodeArgs, _out: &mut Out) -> Outcome {
    let assignment = format!("cache_mode={}", args.mode);
    if let Err(error) = assignment.parse::<Assignment>() {
        bail!("{error}");
    }
    change(&args.device, "cache_mode", &args.mode)
}

/// Change the label of a cached device, which is its name in /dev/mapper as soon as nobody uses it, if it makes one
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache set-label /dev/sdb films")]
pub struct SetLabelArgs {
    /// The backing device, or the name, label or UUID of the cached one
    #[arg(value_name = "DEVICE")]
    device: String,
    /// At most 32 bytes
    #[arg(value_name = "LABEL")]
    label: String,
}

/// Changes.
pub fn run_set_label(args: SetLabelArgs, _out: &mut Out) -> Outcome {
    if Label::new(&args.label).is_none() {
        bail!("{:?}: a label has at most 32 bytes", args.label);
    }
    change(&args.device, "label", &args.label)
}

/// Changes a setting of one device that is served, by whoever does.
fn change(device: &str, name: &str, value: &str) -> Outcome {
    if let Some(part) = with_kernel(Path::new(device)) {
        tell_kernel(&part, name, value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (set, found) = find_device(device)?;
    let device = found.get("uuid").and_then(Value::as_str).map(str::to_owned);
    ask(set, &Request::Set { device, assignment: format!("{name}={value}") })?;
    Ok(ExitCode::SUCCESS)
}

/// Let a cached device be as long as its backing device is now; it may be mounted
///
/// udev does so by itself when a disk, a partition or a logical volume has grown. The file system on it is grown afterwards, by
/// its own program. A cache grows while its set is stopped, with --offline; what is in it stays.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  lvextend -L +10G vg/disk && bcache resize /dev/vg/disk && resize2fs /dev/mapper/data\n  \
    bcache stop && lvextend -L +5G vg/ssd && bcache resize --offline /dev/vg/ssd"
)]
pub struct ResizeArgs {
    /// Give the cache device of a set that is stopped all the buckets that it has room for now
    #[arg(long)]
    offline: bool,
    /// Name, label or UUID of the device, or its backing device
    #[arg(value_name = "DEVICE")]
    device: String,
}

/// Grows.
pub fn run_resize(args: ResizeArgs, out: &mut Out) -> Outcome {
    let wanted = &args.device;
    if args.offline {
        return enlarge(Path::new(wanted), out);
    }
    if with_kernel(Path::new(wanted)).is_some() {
        bail!("{wanted}: the kernel's bcache has it, and shows its new length when it is registered anew");
    }
    let called = wanted.strip_prefix("/dev/mapper/").unwrap_or(wanted);
    let part = identify(Path::new(wanted)).ok();
    let is_it = |device: &dm::Device, uuid: Uuid| {
        device.name == called
            || uuid.to_string() == *wanted
            || part.as_ref().is_some_and(|part| part.uuid == uuid)
    };
    // Without device-mapper there is none.
    let alone = dm::available().map_or_else(|_| Ok(Vec::new()), |()| expose::alone())?;
    if let Some((device, uuid)) = alone.into_iter().find(|(device, uuid)| is_it(device, *uuid)) {
        let below = dm::table(&device.name)?.first().and_then(dm::Target::below);
        let below = below.and_then(|(below, _)| expose::kernel_name(below)).context(device.name.clone())?;
        let part = identify(&Path::new("/dev").join(below))?;
        if part.uuid != uuid {
            bail!("{}: is another device by now", part.path.display());
        }
        expose::direct(&part)?;
        let sectors = dm::table(&device.name)?.first().map_or(0, |target| target.sectors);
        writeln!(out, "{} has {} bytes", device.name, sectors * 512)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (set, device) = find_device(wanted)?;
    let uuid = device.get("uuid").and_then(Value::as_str).unwrap_or(wanted).to_owned();
    let bytes = ask(set, &Request::Resize { device: uuid })?;
    let name = device.get("name").and_then(Value::as_str).unwrap_or_default();
    writeln!(out, "{name} has {bytes} bytes")?;
    Ok(ExitCode::SUCCESS)
}

/// Gives a cache the buckets that its device has room for.
fn enlarge(path: &Path, out: &mut Out) -> Outcome {
    let (device, writable) = open_for(path, InUse::Refuse, Access::Write)?;
    let name = path.display();
    let devices = [device];
    must_have_data(&Devices::open(devices.iter().cloned())?)?;
    let larger = repair::enlarge(&devices).map_err(|refused| match refused {
        Refused::Fatal(kind, detail) => anyhow::anyhow!("{name}: {kind}: {detail}; bcache fsck comes first"),
        other => anyhow::anyhow!("{other}"),
    })?;
    let Some(Enlargement { plan, before, after }) = larger else {
        bail!("{name}: no cache device that has become longer than its buckets");
    };
    let targets: Vec<_> = writable.iter().map(|device| (device.name(), device as &dyn WriteAt)).collect();
    apply(&plan, &targets)?;
    writeln!(out, "{name} has {after} buckets, and had {before}")?;
    Ok(ExitCode::SUCCESS)
}

/// Make and remove flash-only volumes: devices that are in the cache alone
#[derive(Debug, clap::Subcommand)]
#[command(
    after_help = "Examples:\n  bcache volume create --label scratch 10G\n  bcache volume remove --yes scratch"
)]
pub enum VolumeCommand {
    /// Make a volume
    #[command(
        after_help = "Example:\n  bcache volume create --label scratch 10G && mkfs.ext4 /dev/mapper/scratch"
    )]
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
    #[command(after_help = "Example:\n  bcache volume remove --yes scratch")]
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
                super::note("bcache", note);
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
