//! Where things of a running set are.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use uuid::Uuid;

/// The directory of all of them, for root alone.
pub const DIR: &str = "/run/bcache";

fn path(set: Uuid, extension: &str) -> PathBuf {
    Path::new(DIR).join(format!("{set}.{extension}"))
}

/// The control socket.
#[must_use]
pub fn socket(set: Uuid) -> PathBuf {
    path(set, "sock")
}

/// What an engine says when nobody else listens.
#[must_use]
pub fn log(set: Uuid) -> PathBuf {
    path(set, "log")
}

/// Keys that are acknowledged and not journaled yet: see [`crate::kept`].
#[must_use]
pub fn keys(set: Uuid) -> PathBuf {
    path(set, "keys")
}

/// There while the set is stopped because somebody wanted that.
fn stopped(set: Uuid) -> PathBuf {
    path(set, "stopped")
}

/// Says that the set was stopped on purpose.
///
/// # Errors
/// The file cannot be made.
pub fn mark_stopped(set: Uuid) -> io::Result<()> {
    std::fs::write(stopped(set), "")
}

/// Whether somebody stopped the set, and nobody wanted it since.
#[must_use]
pub fn is_stopped(set: Uuid) -> bool {
    stopped(set).exists()
}

/// Somebody wants the set.
///
/// # Errors
/// The file cannot be removed.
pub fn clear_stopped(set: Uuid) -> io::Result<()> {
    match std::fs::remove_file(stopped(set)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// There while requests of a device are held back by us, because its table changes.
fn held(device: Uuid) -> PathBuf {
    path(device, "held")
}

/// Says that a device's requests are about to be held back by us.
///
/// # Errors
/// The file cannot be made.
pub fn mark_held(device: Uuid) -> io::Result<()> {
    std::fs::write(held(device), "")
}

/// Whether a device that is suspended was suspended by us.
#[must_use]
pub fn is_held(device: Uuid) -> bool {
    held(device).exists()
}

/// Says that a device's requests are not held back any more.
///
/// # Errors
/// The file cannot be removed.
pub fn clear_held(device: Uuid) -> io::Result<()> {
    match std::fs::remove_file(held(device)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Devices that are said to be held back, by whoever may have died since.
#[must_use]
pub fn all_held() -> Vec<Uuid> {
    uuids_with("held").unwrap_or_default()
}

/// Held by whoever changes a device's table, in whatever process, until requests go on: what is held back while nobody has
/// this was left so by a process that died. None if somebody else has it.
///
/// # Errors
/// The file cannot be made.
pub fn lock_change(device: Uuid) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(lock_file(&path(device, "change"))?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// The UUIDs of devices that the set's engine has in service: what a successor takes over before it looks at anything
/// else. Nothing where the list is missing or cannot be read: then they are taken over as their parts come.
#[must_use]
pub fn devices(set: Uuid) -> Vec<Uuid> {
    let text = std::fs::read_to_string(path(set, "devices")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Replaces that list in one step.
///
/// # Errors
/// It cannot be written.
pub fn write_devices(set: Uuid, devices: &[Uuid]) -> io::Result<()> {
    let text: String = devices.iter().map(|uuid| format!("{uuid}\n")).collect();
    replace(&path(set, "devices"), &path(set, "devices.new"), &text)
}

/// Sets that have such a list.
///
/// # Errors
/// The directory cannot be read.
pub fn sets_with_devices() -> io::Result<Vec<Uuid>> {
    uuids_with("devices")
}

/// The UUIDs before `.extension` in the names of files in the directory.
fn uuids_with(extension: &str) -> io::Result<Vec<Uuid>> {
    let entries = match std::fs::read_dir(DIR) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut uuids = Vec::new();
    for entry in entries {
        let name = PathBuf::from(entry?.file_name());
        let stem = name.file_stem().filter(|_| name.extension().is_some_and(|found| found == extension));
        uuids.extend(stem.and_then(|stem| stem.to_str()?.parse::<Uuid>().ok()));
    }
    uuids.sort();
    Ok(uuids)
}

fn replace(path: &Path, fresh: &Path, text: &str) -> io::Result<()> {
    std::fs::write(fresh, text)?;
    std::fs::rename(fresh, path)
}

/// Makes the directory. One that others could write to is refused.
///
/// # Errors
/// It cannot be made, or is not root's own.
pub fn prepare() -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(DIR) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(DIR)?;
    if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{DIR} is not a directory that only its owner can use"),
        ));
    }
    Ok(())
}

fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Makes registrations of one set follow each other. Held until dropped.
///
/// # Errors
/// The file cannot be made.
pub fn lock_registration(set: Uuid) -> io::Result<Flock<File>> {
    let file = lock_file(&path(set, "lock"))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// Held by the set's engine for as long as it lives; none if there is one already.
///
/// # Errors
/// The file cannot be made.
pub fn lock_engine(set: Uuid) -> io::Result<Option<Flock<File>>> {
    let path = path(set, "pid");
    loop {
        let mut lock = match Flock::lock(lock_file(&path)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno.into()),
        };
        // One that was removed between the two is nobody's lock any more.
        let (held, named) = (lock.metadata()?, std::fs::metadata(&path));
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())) {
            lock.set_len(0)?;
            writeln!(lock, "{}", std::process::id())?;
            return Ok(Some(lock));
        }
    }
}

/// Whether an engine of the set is alive. Its lock is not tried: one that begins would be kept out.
#[must_use]
pub fn has_engine(set: Uuid) -> bool {
    let pid = std::fs::read_to_string(path(set, "pid")).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let Some(pid) = pid else { return false };
    let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
    // One that has ended, and whom nobody has waited for yet, has no command line.
    read("comm").trim_end() == "bcache-engine" && !read("cmdline").is_empty()
}

/// Removes what an engine leaves behind that was stopped; it still has its lock.
pub fn clear_engine(set: Uuid) {
    for extension in ["devices", "pid"] {
        // What stays says nothing wrong.
        let _ = std::fs::remove_file(path(set, extension));
    }
}

/// The parts of a set that were registered since the machine started, one a line. What an engine that starts anew has
/// to open.
///
/// # Errors
/// The list cannot be read.
pub fn parts(set: Uuid) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_to_string(path(set, "parts")) {
        Ok(text) => Ok(text.lines().filter(|line| !line.is_empty()).map(PathBuf::from).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Replaces the list in one step. The caller holds the registration's lock.
///
/// # Errors
/// It cannot be written.
pub fn write_parts(set: Uuid, parts: &[PathBuf]) -> io::Result<()> {
    let (path, fresh) = (path(set, "parts"), path(set, "parts.new"));
    let mut text = String::new();
    for part in parts {
        let name = part.to_str().filter(|name| !name.contains('\n'));
        let name =
            name.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a path that is no line"))?;
        text.push_str(name);
        text.push('\n');
    }
    replace(&path, &fresh, &text)
}

/// Adds a device to the list.
///
/// # Errors
/// It cannot be read or written.
pub fn add_part(set: Uuid, device: &Path) -> io::Result<()> {
    let mut all = parts(set)?;
    if all.iter().any(|known| known == device) {
        return Ok(());
    }
    all.push(device.to_owned());
    write_parts(set, &all)
}

/// Takes a device off the list.
///
/// # Errors
/// It cannot be read or written.
pub fn remove_part(set: Uuid, device: &Path) -> io::Result<()> {
    let mut all = parts(set)?;
    all.retain(|known| known != device);
    write_parts(set, &all)
}

/// Sets that have a socket, whether anybody listens or not.
///
/// # Errors
/// The directory cannot be read.
pub fn sets() -> io::Result<Vec<Uuid>> {
    uuids_with("sock")
}
