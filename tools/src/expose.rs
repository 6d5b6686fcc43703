//! Names under `/dev/mapper`: which one a device gets, and backing devices that are there without a cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use uuid::Uuid;

use crate::dm::{self, Target};
use crate::identify::{Part, identify};

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
    let numbered = (0..MOST).map(|number| format!("bcache{number}")).filter(free);
    for name in dm::name_from_label(label).map(str::to_owned).into_iter().chain(numbered) {
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
    bail!("{MOST} devices have all the names")
}

/// The table of a backing device without its cache.
#[must_use]
pub fn direct_table(part: &Part) -> Vec<Target> {
    vec![Target::linear(part.data_sectors, part.device, part.data_offset)]
}

/// Whether a backing device still needs no cache: asked while nobody can attach it, for that takes a claim of it.
fn still_whole(part: &Part) -> io::Result<()> {
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
        // A process that died in the last step of detaching left it leading to what nobody serves any more.
        if leads_to_front_end(&device.name)? {
            dm::replace(&device.name, &direct_table(part), || still_whole(part))
                .with_context(|| format!("/dev/mapper/{}", device.name))?;
        }
        return Ok(device.name);
    }
    let created = create(&part.label, part.uuid, &direct_table(part), || still_whole(part));
    match created {
        Ok(device) => Ok(device.name),
        // Somebody was faster with the same.
        Err(error) => match dm::find(&dm::uuid_of(part.uuid))? {
            Some(device) => Ok(device.name),
            None => Err(error),
        },
    }
}

/// Whether an engine's block device is below the device called `name`.
///
/// # Errors
/// The kernel refuses.
pub fn leads_to_front_end(name: &str) -> io::Result<bool> {
    let below = dm::table(name)?.first().and_then(Target::below).and_then(|(below, _)| kernel_name(below));
    Ok(below.is_some_and(|below| below.starts_with("ublkb") || below.starts_with("nbd")))
}

/// The name in sysfs of the block device `major:minor`, such as `ublkb0`.
#[must_use]
pub fn kernel_name((major, minor): (u64, u64)) -> Option<String> {
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
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
