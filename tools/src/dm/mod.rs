//! Device-mapper devices: the names under which users find cached devices.
//!
//! Facts are from the kernel's `include/uapi/linux/dm-ioctl.h` and from what libdevmapper does with udev. Every call
//! blocks, and some wait for I/O on the device or for udev: the engine makes them on helper threads.

mod cookie;
mod ioctl;
mod nodes;

use std::io;

pub use ioctl::{Device, Target};

use cookie::Cookie;
use ioctl::{Call, Command};

/// Begins the UUID of every device of ours; the backing device's UUID follows.
pub const UUID_PREFIX: &str = "BCACHE-";

/// What a device is known by for certain.
#[must_use]
pub fn uuid_of(backing: uuid::Uuid) -> String {
    format!("{UUID_PREFIX}{backing}")
}

/// Whether the kernel has device-mapper.
///
/// # Errors
/// It has not, or speaks another version.
pub fn available() -> io::Result<()> {
    Call::new(Command::Version).send().map(drop)
}

/// All devices: names and numbers.
///
/// # Errors
/// The kernel refuses.
pub fn list() -> io::Result<Vec<Device>> {
    ioctl::list()
}

/// The device with a UUID, if there is one.
///
/// # Errors
/// The kernel refuses.
pub fn find(uuid: &str) -> io::Result<Option<Device>> {
    match Call::new(Command::Status).uuid(uuid).send() {
        Ok(answer) => Ok(Some(answer.device())),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the kernel says of the device called `name`, if there is one.
///
/// # Errors
/// The kernel refuses.
pub fn describe(name: &str) -> io::Result<Option<Device>> {
    match Call::new(Command::Status).name(name).send() {
        Ok(answer) => Ok(Some(answer.device())),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What kpartx made of the partitions on the device with a UUID.
///
/// # Errors
/// The kernel refuses.
pub fn partitions(uuid: &str) -> io::Result<Vec<Device>> {
    let mut found = Vec::new();
    for device in list()? {
        // One that goes while we look is no error.
        found.extend(describe(&device.name)?.filter(|device| is_partition_of(&device.uuid, uuid)));
    }
    Ok(found)
}

/// Takes away what kpartx made of the partitions on the device with a UUID; `EBUSY` while somebody has one open.
///
/// # Errors
/// The kernel refuses.
pub fn remove_partitions(uuid: &str) -> io::Result<()> {
    for partition in partitions(uuid)? {
        let name = &partition.name;
        remove(name).map_err(|error| io::Error::new(error.kind(), format!("/dev/mapper/{name}: {error}")))?;
    }
    Ok(())
}

fn is_partition_of(uuid: &str, disk: &str) -> bool {
    let parts = uuid.strip_prefix("part").and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(number, of)| of == disk && number.parse::<u32>().is_ok())
}

/// Whether somebody has a device or a partition on it open; partitions that nobody has open do not count.
///
/// # Errors
/// The kernel refuses.
pub fn is_in_use(device: &Device) -> io::Result<bool> {
    if device.open_count == 0 {
        return Ok(false);
    }
    let partitions = partitions(&device.uuid)?;
    let unused = partitions.iter().filter(|partition| partition.open_count == 0).count();
    Ok(device.open_count as usize > unused)
}

/// Targets of a device's active table.
///
/// # Errors
/// The kernel refuses.
pub fn table(name: &str) -> io::Result<Vec<Target>> {
    Ok(Call::new(Command::TableStatus).name(name).table_lines().send()?.targets())
}

/// Makes a device with a table and lets it run if `check` agrees, which is asked when the kernel has claimed what the table
/// is made of. Its node and links are there on return. None if name or UUID are taken.
///
/// # Errors
/// The kernel refuses the table, or what the check says; then there is no device.
pub fn create(
    name: &str,
    uuid: &str,
    targets: &[Target],
    check: impl FnOnce() -> io::Result<()>,
) -> io::Result<Option<Device>> {
    match Call::new(Command::Create).name(name).uuid(uuid).send() {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(None),
        other => other?,
    };
    let made = load(name, targets).and_then(|()| check()).and_then(|()| resume(name));
    match made {
        Ok(()) => Ok(Some(Call::new(Command::Status).name(name).send()?.device())),
        Err(error) => {
            if let Err(second) = remove(name) {
                tracing::warn!(name, error = %second, "a half-made device is left behind");
            }
            Err(error)
        }
    }
}

/// Loads the table that [`resume`] makes the active one.
///
/// # Errors
/// The kernel refuses the table.
pub fn load(name: &str, targets: &[Target]) -> io::Result<()> {
    Call::new(Command::Load).name(name).targets(targets).send().map(drop)
}

/// Forgets a table that was loaded and is not active.
///
/// # Errors
/// The kernel refuses.
pub fn clear(name: &str) -> io::Result<()> {
    Call::new(Command::Clear).name(name).send().map(drop)
}

/// Holds requests back, once those under way have ended. A file system on it is not frozen: it notices nothing.
///
/// # Errors
/// The kernel refuses.
pub fn suspend(name: &str) -> io::Result<()> {
    Call::new(Command::Suspend).name(name).suspend().without_freezing().send().map(drop)
}

/// Lets a device run, with the table loaded last.
///
/// # Errors
/// The kernel refuses.
pub fn resume(name: &str) -> io::Result<()> {
    let cookie = Cookie::begin();
    let sent = Call::new(Command::Suspend).name(name).without_freezing().cookie(cookie.number()).send();
    let number = match &sent {
        Ok(answer) => {
            cookie.end(answer.uevent());
            answer.device().minor
        }
        Err(_) => {
            cookie.end(false);
            return sent.map(drop);
        }
    };
    nodes::ensure(name, number);
    Ok(())
}

/// Gives a device another name; its links follow. False if that is taken.
///
/// # Errors
/// The kernel refuses.
pub fn rename(name: &str, to: &str) -> io::Result<bool> {
    let cookie = Cookie::begin();
    let sent = Call::new(Command::Rename).name(name).text(to).cookie(cookie.number()).send();
    cookie.end(sent.as_ref().is_ok_and(|answer| answer.uevent()));
    match sent {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(false),
        other => other.map(drop)?,
    }
    if let Some(device) = describe(to)? {
        nodes::forget_old(name, device.minor);
        nodes::ensure(to, device.minor);
    }
    Ok(true)
}

/// Removes a device; `EBUSY` while somebody has it open. One that is gone already was removed by somebody else, as
/// systemd does when the machine shuts down.
///
/// # Errors
/// The kernel refuses.
pub fn remove(name: &str) -> io::Result<()> {
    let cookie = Cookie::begin();
    let sent = Call::new(Command::Remove).name(name).cookie(cookie.number()).send();
    cookie.end(sent.as_ref().is_ok_and(|answer| answer.uevent()));
    match sent {
        Err(error) if error.raw_os_error() != Some(libc::ENXIO) => return Err(error),
        _ => {}
    }
    nodes::forget(name);
    Ok(())
}

/// The name that a label makes, if it makes one: what would need escaping below `/dev/mapper` makes none.
#[must_use]
pub fn name_from_label(label: &str) -> Option<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-.:=@_".contains(c);
    let usable = !label.is_empty() && label.len() < 100 && label.chars().all(plain);
    (usable && !label.starts_with(['.', '-']) && label != "control").then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_told_by_their_uuid() {
        let disk = uuid_of(uuid::Uuid::nil());
        assert!(is_partition_of(&format!("part12-{disk}"), &disk));
        for other in [
            disk.clone(),
            format!("part-{disk}"),
            format!("part1-{disk}0"),
            format!("partx-{disk}"),
            String::new(),
        ] {
            assert!(!is_partition_of(&other, &disk), "{other}");
        }
    }

    #[test]
    fn labels_make_names_only_where_they_need_no_escaping() {
        for (label, name) in [
            ("data", Some("data")),
            ("my-disk.1", Some("my-disk.1")),
            ("", None),
            ("control", None),
            ("../x", None),
            ("with space", None),
            ("-x", None),
        ] {
            assert_eq!(name_from_label(label), name, "{label:?}");
        }
    }
}
