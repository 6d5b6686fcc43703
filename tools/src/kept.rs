//! The file that keeps a set's keys from when they are acknowledged until the journal has them, whatever becomes of the
//! engine's process: see `bcache_engine::journal`, where what is in it is described. It is in memory, as `/run` is.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bcache_engine::fsck::view::journal::Journal;
use bcache_engine::fsck::view::{Cache, Device, Devices, FileDevice};
use bcache_engine::journal::{EntryId, Left, TAIL_BYTES_MAX, TAIL_SLOTS, TailFault, TailPlace, TailStore};
use bcache_format::jset::{HEADER_BYTES, JsetHeader};
use uuid::Uuid;

use crate::control::paths;
use crate::raw::Pinned;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where an engine keeps the keys of a set.
///
/// # Errors
/// The kernel does not tell which boot this is.
pub fn place(set: Uuid) -> io::Result<TailPlace> {
    let store = Rc::new(Keys { path: paths::keys(set), file: RefCell::default() });
    Ok(TailPlace { store, boot: boot()?, slots: TAIL_SLOTS })
}

fn boot() -> io::Result<Uuid> {
    let text = std::fs::read_to_string(BOOT_ID)?;
    text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

struct Keys {
    path: PathBuf,
    file: RefCell<Option<Kept>>,
}

/// The file, open. If the system swapped it out, to a device that is served here, a write of a key would wait for itself: it
/// is mapped, and what this process maps is locked.
struct Kept {
    file: File,
    _pinned: Pinned,
}

impl Kept {
    fn new(file: File, len: usize) -> io::Result<Self> {
        let pinned = Pinned::new(&file, len)?;
        Ok(Self { file, _pinned: pinned })
    }
}

impl Keys {
    fn beside(&self, extension: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(extension);
        name.into()
    }
}

/// All of the file, as far as there can be something in it; nothing where there is none.
fn read(path: &Path, options: &OpenOptions) -> io::Result<Option<(File, Vec<u8>)>> {
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    (&file).take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(Some((file, bytes)))
}

impl TailStore for Keys {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let found = match read(&self.path, OpenOptions::new().read(true).write(true)) {
            // Where it cannot be written, what is in it counts all the same.
            Err(_) => read(&self.path, OpenOptions::new().read(true))?.map(|(_, bytes)| (None, bytes)),
            Ok(found) => found.map(|(file, bytes)| (Some(file), bytes)),
        };
        let Some((file, bytes)) = found else { return Ok(None) };
        *self.file.borrow_mut() = match file.filter(|_| !bytes.is_empty()) {
            Some(file) => Some(Kept::new(file, bytes.len())?),
            None => None,
        };
        Ok(Some(bytes))
    }
    fn create(&self, bytes: &[u8]) -> io::Result<()> {
        let fresh = self.beside(".new");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        // All of it is written, zeros too: what a file in memory has is kept for it.
        let made = file.write_all_at(bytes, 0).and_then(|()| std::fs::rename(&fresh, &self.path));
        if made.is_err() {
            let _ = std::fs::remove_file(&fresh);
        }
        made?;
        *self.file.borrow_mut() = Some(Kept::new(file, bytes.len())?);
        Ok(())
    }
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.file.borrow();
        let file = file.as_ref().ok_or(io::ErrorKind::ReadOnlyFilesystem)?;
        file.file.write_all_at(bytes, at)
    }
    fn remove(&self) -> io::Result<()> {
        self.file.take();
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
    fn set_aside(&self) -> io::Result<()> {
        self.file.take();
        std::fs::rename(&self.path, self.beside(".bad"))
    }
}

/// What the engine of a set that has none any more left in memory; nothing where it left nothing of this boot.
///
/// # Errors
/// There is something that cannot be read.
fn left(set: Uuid) -> Result<Option<Left>> {
    left_in(&paths::keys(set), set)
}

fn left_in(path: &Path, set: Uuid) -> Result<Option<Left>> {
    let bytes = match read(path, OpenOptions::new().read(true)) {
        Ok(None) => return Ok(None),
        Ok(Some((_, bytes))) => bytes,
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    // What is kept by one that is alive is of the disk that it serves; what is looked at is a copy.
    if paths::has_engine(set) {
        return Ok(None);
    }
    let boot = boot().context(BOOT_ID)?;
    Ok(Left::parse(&bytes, boot, set).ok())
}

/// The same for who has asked [`refuse_unless_laid`] before.
#[must_use]
pub fn left_of(set: Uuid) -> Option<Left> {
    left(set).ok().flatten()
}

/// What a set's memory has that its journal lacks.
enum Ahead {
    /// Keys of so many writes, of which nothing is known that speaks against them.
    Keys(u64),
    /// Keys of so many, whose data may be lost.
    Doubtful(u64),
}

fn ahead(device: &Device) -> Result<Option<(Uuid, Ahead)>> {
    let Ok(devices) = Devices::open([Arc::clone(device)]) else { return Ok(None) };
    let Some(cache) = devices.caches.first() else { return Ok(None) };
    let set = cache.sb.set_uuid;
    let left = match left(set) {
        Ok(left) => left,
        // No engine has a file of somebody who is not root.
        Err(error) if is_denied(&error) && !is_block_device(device.name()) => return Ok(None),
        Err(error) => {
            let why = "whether writes are acknowledged that are not on the disk yet cannot be told";
            bail!("{}: {why}: {error:#}", device.name());
        }
    };
    Ok(left.and_then(|left| of_cache(&left, cache)).map(|found| (set, found)))
}

/// Nothing where the cache's journal has it all, or is not the one that it continues: it is of another copy of this set, or of
/// one that others have used since.
fn of_cache(left: &Left, cache: &Cache) -> Option<Ahead> {
    let newest = Journal::read(cache).newest()?.clone();
    let mut header = [0; HEADER_BYTES];
    cache.device.read_at(newest.byte, &mut header).ok()?;
    let found = match left.behind(EntryId::of(&JsetHeader::read(&header)?)) {
        Ok(behind) => Ahead::Keys(behind.keys.len() as u64 + behind.damaged),
        Err(TailFault::Doubtful { keys }) => Ahead::Doubtful(keys),
        Err(_) => return None,
    };
    (!matches!(found, Ahead::Keys(0))).then_some(found)
}

fn is_denied(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// An error if `device` is the cache of a set some of whose acknowledged keys are in that file only: whoever takes what is
/// on the disk for all there is would lose them.
///
/// # Errors
/// So it is.
pub fn refuse_if_ahead(device: &Device) -> Result<()> {
    let Some((set, Ahead::Keys(keys) | Ahead::Doubtful(keys))) = ahead(device)? else { return Ok(()) };
    bail!(
        "{}: {keys} writes that were acknowledged are not in the journal yet, but in {}, which the set's engine left when it \
         died; `bcache register {0}` starts it again, and `bcache fsck -y` makes them part of the set. Moving that file away \
         gives them up",
        device.name(),
        paths::keys(set).display()
    )
}

/// The same for who lays those keys over what is on the disk: an error only where they cannot be had, or may name what is
/// lost.
///
/// # Errors
/// So it is.
pub fn refuse_unless_laid(device: &Device) -> Result<()> {
    let Some((set, Ahead::Doubtful(keys))) = ahead(device)? else { return Ok(()) };
    bail!(
        "{}: {}; they are in {}. Moving that file away gives them up",
        device.name(),
        TailFault::Doubtful { keys },
        paths::keys(set).display()
    )
}

/// A repair has made the keys of a set part of it. What memory has of them is kept beside, for an undo.
///
/// # Errors
/// It cannot be. No start takes them anew all the same: they do not continue the journal that it finds.
pub fn set_aside(set: Uuid) -> Result<()> {
    let path = paths::keys(set);
    let moved = std::fs::rename(&path, laid(&path));
    moved.with_context(|| path.display().to_string())
}

/// Brings that back, if the journal is the one again that it continues.
///
/// # Errors
/// It cannot be.
pub fn bring_back(devices: &[Device]) -> Result<()> {
    for cache in Devices::open(devices.iter().cloned()).into_iter().flat_map(|devices| devices.caches) {
        let set = cache.sb.set_uuid;
        let path = paths::keys(set);
        let beside = laid(&path);
        let continues = || {
            left_in(&beside, set).is_ok_and(|left| left.is_some_and(|left| of_cache(&left, &cache).is_some()))
        };
        if !path.exists() && continues() {
            std::fs::rename(&beside, &path).with_context(|| beside.display().to_string())?;
        }
    }
    Ok(())
}

fn laid(path: &Path) -> PathBuf {
    path.with_extension("keys.laid")
}

fn is_block_device(path: &str) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

/// The same of a device that is not open yet.
///
/// # Errors
/// As there.
pub fn refuse_path_if_ahead(path: &Path) -> Result<()> {
    let Ok(file) = File::open(path) else { return Ok(()) };
    let Ok(device) = FileDevice::new(file, path.display().to_string()) else { return Ok(()) };
    refuse_if_ahead(&(Arc::new(device) as Device))
}
