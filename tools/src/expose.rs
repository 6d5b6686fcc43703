//! Names under `/dev/mapper`: which one a device gets, and backing devices that are there without a cache.

use bcache_format::SECTOR_SIZE;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use uuid::Uuid;

use crate::dm::{self, Target};
use crate::frontend::{self, Driver};
use crate::hold;
use crate::identify::{Part, identify};
use crate::queue::Queue;

/// Bytes of a front end's blocks at most.
const LARGEST_BLOCK: u32 = 4096;

/// How often is looked whether somebody uses a device, and for how long in between.
const LOOKS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// Most devices that are numbered.
const MOST: u32 = 4096;

/// What keeps others away from a device: mounts, the kernel's bcache and every program that asks.
#[derive(Debug)]
pub struct Claim {
    /// Closing it gives the claim up.
    _file: File,
}

impl Claim {
    /// Claims a device; `EBUSY` if somebody has.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn take(path: &Path) -> io::Result<Claim> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path)?;
        Ok(Claim { _file: file })
    }
}

/// Names of devices whose label makes none, or one that is taken.
pub fn numbered() -> impl Iterator<Item = String> {
    (0..MOST).map(|number| format!("bcache{number}"))
}

/// Makes a device for `uuid`, named after `label` if that makes a name that is free, else `bcacheN`. `check` as for
/// [`dm::create`].
///
/// # Errors
/// The kernel refuses, the check does, or there is one for `uuid` already.
pub fn create(
    label: &str,
    uuid: Uuid,
    targets: &[Target],
    check: impl Fn() -> io::Result<()>,
) -> Result<dm::Device> {
    let uuid = dm::uuid_of(uuid);
    // The kernel's own devices are called so, too.
    let free = |name: &String| !Path::new("/sys/block").join(name).exists();
    for name in dm::name_from_label(label).map(str::to_owned).into_iter().chain(numbered().filter(free)) {
        let made =
            dm::create(&name, &uuid, targets, &check).with_context(|| format!("/dev/mapper/{name}"))?;
        if let Some(device) = made {
            return Ok(device);
        }
        // The name may be free and the UUID be taken.
        if let Some(device) = dm::find(&uuid)? {
            bail!("/dev/mapper/{} has the UUID {uuid} already", device.name);
        }
    }
    bail!("all {MOST} names are in use: bcache0 and so on")
}

/// Gives a device that nobody uses another name, with no partitions under the old one. Whether it has it.
///
/// # Errors
/// The kernel refuses.
pub fn rename(name: &str, to: &str) -> io::Result<bool> {
    let Some(device) = dm::describe(name)?.filter(|_| name != to) else { return Ok(false) };
    if device.suspended || dm::is_in_use(&device)? {
        return Ok(false);
    }
    // udev has them made anew.
    for partition in dm::partitions(&device.uuid)? {
        dm::remove(&partition.name)?;
    }
    dm::rename(name, to)
}

/// The table of a backing device without its cache.
#[must_use]
pub fn direct_table(part: &Part) -> Vec<Target> {
    // As many whole blocks as it has with a cache.
    let block = (u64::from(part.block) / SECTOR_SIZE).max(1);
    vec![Target::linear(part.data_sectors / block * block, part.device, part.data_offset)]
}

/// Whether a backing device still needs no cache: asked while nobody can attach it, for that takes a claim of it.
///
/// # Errors
/// It needs one, or cannot be read.
pub fn still_whole(part: &Part) -> io::Result<()> {
    // What it says may have been written by a process that died, or failed, before it was durable.
    File::open(&part.path)?.sync_all()?;
    let now = identify(&part.path).map_err(|error| io::Error::other(format!("{error:#}")))?;
    if now.is_whole_alone() && (now.uuid, now.device) == (part.uuid, part.device) {
        return Ok(());
    }
    Err(io::Error::other(format!("{}: attached to a cache meanwhile", part.path.display())))
}

/// Sees to it that a backing device that needs no cache is there, straight from the device. No program is involved
/// after that. Its name.
///
/// # Errors
/// Somebody else uses the device, or the kernel refuses.
pub fn direct(part: &Part) -> Result<String> {
    if let Some(device) = dm::find(&dm::uuid_of(part.uuid))? {
        hold::settle(&device, part.uuid).with_context(|| format!("/dev/mapper/{}", device.name))?;
        lead_to_new_disk(&device.name, part).with_context(|| format!("/dev/mapper/{}", device.name))?;
        // A process that died in the last step of detaching left it leading to what nobody serves any more.
        if let Some((driver, id, _)) = front_end(&device.name, part.uuid)? {
            if frontend::is_served(driver, id)? {
                bail!(
                    "{}: an engine serves /dev/mapper/{}, which has its UUID, {}",
                    part.path.display(),
                    device.name,
                    part.uuid
                );
            }
            hold::swap(&device.name, part.uuid, &direct_table(part), || still_whole(part))
                .with_context(|| format!("/dev/mapper/{}", device.name))?;
        }
        refuse_other(&device.name, part)?;
        grow(&device.name, part)?;
        return Ok(device.name);
    }
    let created = create(&part.label, part.uuid, &direct_table(part), || still_whole(part));
    match created {
        Ok(device) => Ok(device.name),
        // Somebody was faster with the same.
        Err(error) => match dm::find(&dm::uuid_of(part.uuid))? {
            Some(device) => refuse_other(&device.name, part).map(|()| device.name),
            None => Err(error),
        },
    }
}

/// A disk that was unplugged and is there again, under another number: its name leads to one that does not exist any more.
fn lead_to_new_disk(name: &str, part: &Part) -> io::Result<()> {
    let table = dm::table(name)?;
    let fits = table.first().is_some_and(|target| target.sectors <= part.data_sectors);
    match table.first().and_then(Target::below) {
        Some((below, _)) if below != part.device && kernel_name(below).is_none() && fits => {
            tracing::info!(name, "leads to a disk that is gone; this one takes its place");
            hold::swap(name, part.uuid, &direct_table(part), || still_whole(part))
        }
        _ => Ok(()),
    }
}

/// Lets a name that leads straight to its backing device be as long as that is now.
fn grow(name: &str, part: &Part) -> Result<()> {
    let sectors = |table: &[Target]| table.first().map_or(0, |target| target.sectors);
    let (now, wanted) = (dm::table(name)?, direct_table(part));
    if sectors(&wanted) < sectors(&now) {
        bail!(
            "{}: too short for /dev/mapper/{name}, which has {} sectors; unmount that and stop it, or make the device as long again",
            part.path.display(),
            sectors(&now)
        );
    }
    if sectors(&wanted) > sectors(&now) {
        hold::swap(name, part.uuid, &wanted, || still_whole(part))
            .with_context(|| format!("/dev/mapper/{name}"))?;
    }
    Ok(())
}

/// A copy of a disk has its UUID; what is in service must not be taken for it.
fn refuse_other(name: &str, part: &Part) -> Result<()> {
    match dm::table(name)?.first().and_then(Target::below) {
        Some((below, _)) if below != part.device => bail!(
            "{}: /dev/mapper/{name} has its UUID, {}, and is on /dev/{}; one of the two is a copy",
            part.path.display(),
            part.uuid,
            kernel_name(below).unwrap_or_default()
        ),
        _ => Ok(()),
    }
}

/// Refuses a backing device of which the name, and with it whoever uses it, leads straight to another disk.
///
/// # Errors
/// It does; one of the two is a copy. Or the kernel refuses.
pub fn refuse_copy(part: &Part) -> Result<()> {
    let Some(device) = dm::find(&dm::uuid_of(part.uuid))? else { return Ok(()) };
    let below = dm::table(&device.name)?.first().and_then(Target::below);
    let gone = below.is_some_and(|(below, _)| kernel_name(below).is_none());
    let replaced = gone || front_end(&device.name, part.uuid)?.is_some();
    if replaced { Ok(()) } else { refuse_other(&device.name, part) }
}

/// Whether the name of `uuid` leads to a front end that a process left behind. One that was killed takes a moment to let go
/// of it.
///
/// # Errors
/// The kernel refuses.
pub fn is_left_behind(uuid: Uuid) -> io::Result<bool> {
    let Some(device) = dm::find(&dm::uuid_of(uuid))? else { return Ok(false) };
    let Some((driver, id, _)) = front_end(&device.name, uuid)? else { return Ok(false) };
    for _ in 0..LOOKS {
        if !frontend::is_served(driver, id)? {
            return Ok(true);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(false)
}

/// The block device of an engine below the device of `uuid` that is called `name`, if there is one, and the sector of it
/// where the device begins.
///
/// # Errors
/// The kernel refuses.
pub fn front_end(name: &str, uuid: Uuid) -> io::Result<Option<(Driver, u32, u64)>> {
    let Some((below, offset)) = dm::table(name)?.first().and_then(Target::below) else { return Ok(None) };
    let Some(below) = kernel_name(below) else { return Ok(None) };
    Ok(frontend::made_for(&below, uuid)?.map(|(driver, id)| (driver, id, offset)))
}

/// Devices of ours that lead straight to their backing device, with its UUID: no engine has a part in them.
///
/// # Errors
/// The kernel refuses.
pub fn alone() -> io::Result<Vec<(dm::Device, Uuid)>> {
    let mut found = Vec::new();
    for device in dm::list()? {
        // One that goes while we look is no error.
        let Some(device) = dm::describe(&device.name)? else { continue };
        let uuid = device.uuid.strip_prefix(dm::UUID_PREFIX).and_then(|uuid| uuid.parse::<Uuid>().ok());
        let Some(uuid) = uuid else { continue };
        if front_end(&device.name, uuid)?.is_none() {
            found.push((device, uuid));
        }
    }
    Ok(found)
}

/// Refuses to give the device of `uuid` other blocks under whoever has it open: a file system that writes pieces which are
/// no whole block any more stops working. That is to be asked before much is done for it, and again by [`keep_unused`].
///
/// # Errors
/// Somebody has it open, and `block`, in bytes, is another size than it has; or the kernel refuses.
pub fn refuse_other_blocks(uuid: Uuid, block: u32) -> io::Result<()> {
    match other_blocks(uuid, block)? {
        Some((device, now)) if dm::is_in_use(&device)? => Err(in_use(&device, now, block)),
        _ => Ok(()),
    }
}

/// The same at the moment of the change. As long as there is what it gives, if the blocks change, nobody can mount the
/// device or make another of it. Partitions on it that nobody has open are taken away, for theirs do not change with it;
/// udev has them made again.
///
/// # Errors
/// As of [`refuse_other_blocks`].
pub fn keep_unused(uuid: Uuid, block: u32) -> io::Result<Option<Claim>> {
    let Some((device, now)) = other_blocks(uuid, block)? else { return Ok(None) };
    let busy = |error: io::Error| match error.kind() {
        io::ErrorKind::ResourceBusy => in_use(&device, now, block),
        _ => error,
    };
    dm::remove_partitions(&device.uuid).map_err(busy)?;
    let claim = Claim::take(&Path::new("/dev/mapper").join(&device.name)).map_err(busy)?;
    // Whoever probes devices has them open for a moment.
    for _ in 0..LOOKS {
        match dm::describe(&device.name)? {
            Some(found) if found.open_count > 1 => std::thread::sleep(PAUSE),
            _ => return Ok(Some(claim)),
        }
    }
    Err(in_use(&device, now, block))
}

/// The device of `uuid`, and the size of its blocks, if that is not `block`.
fn other_blocks(uuid: Uuid, block: u32) -> io::Result<Option<(dm::Device, u32)>> {
    let Some(device) = dm::find(&dm::uuid_of(uuid))? else { return Ok(None) };
    let now = Queue::at(format!("/sys/block/dm-{}", device.minor)).logical_block()?;
    Ok((now != block.min(LARGEST_BLOCK)).then_some((device, now)))
}

fn in_use(device: &dm::Device, now: u32, block: u32) -> io::Error {
    let name = &device.name;
    let why = format!(
        "/dev/mapper/{name} is in use with blocks of {now} bytes, and would have {block}: unmount it first"
    );
    io::Error::new(io::ErrorKind::ResourceBusy, why)
}

/// Bytes of the requests that a disk likes best; 0 if it does not say, or is none.
#[must_use]
pub fn optimal_io(disk: &Path) -> u64 {
    number_of(disk).map_or(0, |number| Queue::of(number).optimal_io())
}

/// The block size that a backing device has without its cache: its disk's.
///
/// # Errors
/// sysfs cannot be read.
pub fn direct_block(part: &Part) -> io::Result<u32> {
    Queue::of(part.device).logical_block()
}

/// The name in sysfs of the block device `major:minor`, such as `ublkb0`.
#[must_use]
pub fn kernel_name((major, minor): (u64, u64)) -> Option<String> {
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

/// The smallest unit of a front end's block device, in bytes.
///
/// # Errors
/// There is no such device.
pub fn block_size(driver: Driver, id: u32) -> io::Result<u32> {
    let name = match driver {
        Driver::Ublk => format!("ublkb{id}"),
        Driver::Nbd => format!("nbd{id}"),
    };
    Queue::at(Path::new("/sys/block").join(name)).logical_block()
}

/// The number of the block device at `path`.
///
/// # Errors
/// As `stat(2)`.
pub fn number_of(path: &Path) -> io::Result<(u64, u64)> {
    let number = std::os::unix::fs::MetadataExt::rdev(&std::fs::metadata(path)?);
    Ok((nix::sys::stat::major(number), nix::sys::stat::minor(number)))
}

/// The number of the block device that sysfs calls `name`.
///
/// # Errors
/// There is none.
pub fn device_number(name: &str) -> io::Result<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/sys/block/{name}/dev"))?;
    let number = text.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{name}: {text:?} is no number")))
}
