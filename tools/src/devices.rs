//! Opening the devices a command line names: for reading, or for writing where that is asked for.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result, bail};
use bcache_engine::dev::lock;
use bcache_engine::fsck::image::{Image, MAGIC, MARK, MARK_AT, MARKED};
use bcache_engine::fsck::repair::WriteAt;
use bcache_engine::fsck::view::{Device, Devices, FileDevice, ReadAt};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};
use nix::unistd::{Whence, lseek};

use crate::in_use::{loop_of, patiently};
use crate::kept::{refuse_if_ahead, refuse_unless_laid};
use crate::queue::Queue;

/// Metadata that an image may unpack to: more than the largest cache has, less than what stops a machine.
const UNPACKED_MAX: u64 = 4 << 30;

/// What was named cannot be what is meant, or cannot be had: exit code 8, as fsck(8) has it for what did not work.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// Whether a device that somebody uses is opened all the same: a block device that a mount, device-mapper, bcache or
/// an engine has, an image file that another of these programs has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// What is read may change while it is read; good enough to look at.
    Allow,
    /// Refused: the content would be of no single moment. So is a cache whose set has acknowledged more than is on it.
    Refuse,
    /// Refused, but of what the set has acknowledged and the cache does not have is only told: who looks at a set that
    /// cannot be started, or rescues what it has, must be able to.
    Tell,
    /// Refused, but of what the set has acknowledged and the cache does not have only what cannot be had: the rest is laid over
    /// what the cache has.
    Lay,
    /// The same, where what cannot be had is only told.
    LayOrTell,
}

/// What a device is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing; nobody else may use it.
    Write,
}

/// A device that may be written.
pub struct Writable {
    name: String,
    file: File,
    /// The same past the page cache, where that can be had.
    direct: Option<File>,
    /// Held by writes past the page cache together, by one through it alone: of a page that it has only a part of, the
    /// page cache would write back what was there before.
    cached: RwLock<()>,
}

impl Writable {
    /// A file that is open for writing.
    #[must_use]
    pub fn new(name: String, file: File) -> Self {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(OFlag::O_DIRECT.bits());
        let direct = options.open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
        Self { name, file, direct, cached: RwLock::default() }
    }
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl WriteAt for Writable {
    fn write_at(&self, byte: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, byte)
    }
    fn write_data(&self, byte: u64, bytes: &[u8]) -> io::Result<()> {
        let Some(direct) = &self.direct else { return self.write_at(byte, bytes) };
        {
            let _others = self.cached.read().unwrap_or_else(PoisonError::into_inner);
            match direct.write_all_at(bytes, byte) {
                // Not in units that can go past the page cache.
                Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {}
                result => return result,
            }
        }
        let _alone = self.cached.write().unwrap_or_else(PoisonError::into_inner);
        self.write_at(byte, bytes)?;
        self.file.sync_data()
    }
    fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// A file or block device that knows its holes.
struct Sparse {
    device: FileDevice,
    holes: File,
    /// It says that it was made of a metadata image.
    marked: bool,
}

impl ReadAt for Sparse {
    fn name(&self) -> &str {
        self.device.name()
    }
    fn size(&self) -> u64 {
        self.device.size()
    }
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        self.device.read_at(byte, buf)
    }
    fn will_read(&self, byte: u64, len: u64) {
        self.device.will_read(byte, len);
    }
    fn is_metadata_only(&self) -> bool {
        self.marked
    }
    fn next_data(&self, byte: u64) -> u64 {
        let Ok(offset) = i64::try_from(byte) else { return byte };
        match lseek(&self.holes, offset, Whence::SeekData) {
            Ok(data) => u64::try_from(data).unwrap_or(byte).max(byte),
            Err(Errno::ENXIO) => self.size().max(byte),
            // Block devices and some file systems cannot tell: everything may be data.
            Err(_) => byte,
        }
    }
}

/// Opens one device, or a metadata image, for reading.
pub fn open(path: &Path, in_use: InUse) -> Result<Device> {
    Ok(open_for(path, in_use, Access::Read)?.0)
}

/// Opens one device, and tells how to write to it when that is asked for.
pub fn open_for(path: &Path, in_use: InUse, access: Access) -> Result<(Device, Option<Writable>)> {
    let name = path.display().to_string();
    let meta = std::fs::metadata(path).map_err(|error| bad(format!("{name}: {error}")))?;
    let kind = meta.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(bad(format!("{name}: neither a block device nor a file")));
    }
    if kind.is_file()
        && let Some(image) = unpack(path)?
    {
        if access == Access::Write {
            return Err(bad(format!(
                "{name}: a metadata image cannot be written; `bcache image --restore` makes a device of it"
            )));
        }
        return Ok((Arc::new(image), None));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::Write);
    if kind.is_block_device() && in_use != InUse::Allow {
        options.custom_flags(OFlag::O_EXCL.bits());
    }
    if in_use != InUse::Allow
        && let Some(device) = loop_of(&meta)
    {
        return Err(bad(format!("{name}: in use, {} shows it", device.display())));
    }
    let take = || {
        let file = options.open(path)?;
        if in_use != InUse::Allow {
            // The engine locks what it works on, too. The lock goes with the last copy of the descriptor.
            lock(&file, access == Access::Write)?;
        }
        Ok(file)
    };
    let file = patiently(take).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => {
            bad(format!("{name}: in use; stop the cache set or unmount the device first"))
        }
        _ => bad(format!("{name}: {error}")),
    })?;
    // The kernel opens a block device that is read-only for writing all the same.
    if access == Access::Write
        && kind.is_block_device()
        && Queue::of((major(meta.rdev()), minor(meta.rdev()))).is_read_only()
    {
        return Err(bad(format!("{name}: read-only")));
    }
    let holes = file.try_clone()?;
    let writable = match access {
        Access::Read => None,
        Access::Write => Some(Writable::new(name.clone(), file.try_clone()?)),
    };
    let device = FileDevice::new(file, name.clone()).with_context(|| name.clone())?;
    let mut mark = [0; MARK.len()];
    let marked = device.read_at(MARK_AT, &mut mark).is_ok() && mark == MARK;
    let device: Device = Arc::new(Sparse { device, holes, marked });
    let told = |error: &anyhow::Error| drop(writeln!(io::stderr(), "warning: {error}"));
    match in_use {
        InUse::Allow => {}
        InUse::Refuse => refuse_if_ahead(&device).map_err(|error| bad(error.to_string()))?,
        InUse::Tell => refuse_if_ahead(&device).err().iter().for_each(told),
        InUse::Lay => refuse_unless_laid(&device).map_err(|error| bad(error.to_string()))?,
        InUse::LayOrTell => refuse_unless_laid(&device).err().iter().for_each(told),
    }
    Ok((device, writable))
}

/// Refuses devices that have no data: zeros would be taken for it.
pub fn must_have_data(devices: &Devices) -> Result<()> {
    let caches = devices.caches.iter().map(|cache| &cache.device);
    let backings = devices.backings.iter().map(|backing| &backing.device);
    each_has_data(caches.chain(backings))
}

/// The same of devices that are not told apart yet.
pub fn each_has_data<'d>(devices: impl IntoIterator<Item = &'d Device>) -> Result<()> {
    match devices.into_iter().find(|device| device.is_metadata_only()) {
        None => Ok(()),
        Some(device) => bail!("{}: {MARKED}", device.name()),
    }
}

fn bad(what: String) -> anyhow::Error {
    BadInput(what).into()
}

/// Refuses one device under two names, also a file beside the loop device that shows it.
pub fn each_once<'p>(paths: impl IntoIterator<Item = &'p PathBuf>) -> Result<()> {
    let mut seen: Vec<(Vec<(u64, u64)>, &PathBuf)> = Vec::new();
    let meta =
        |path: &PathBuf| std::fs::metadata(path).map_err(|error| bad(format!("{}: {error}", path.display())));
    let metas: Vec<_> = paths.into_iter().map(|path| Ok((path, meta(path)?))).collect::<Result<_>>()?;
    let any_device = metas.iter().any(|(_, meta)| meta.file_type().is_block_device());
    for (path, meta) in metas {
        let identity = |meta: &Metadata| match meta.file_type().is_block_device() {
            true => (u64::MAX, meta.rdev()),
            false => (meta.dev(), meta.ino()),
        };
        let shown = if any_device { loop_of(&meta) } else { None };
        let shown = shown.and_then(|device| std::fs::metadata(device).ok());
        let here: Vec<_> = std::iter::once(&meta).chain(&shown).map(identity).collect();
        if let Some((_, other)) = seen.iter().find(|(there, _)| there.iter().any(|one| here.contains(one))) {
            return Err(bad(format!("{} and {} are the same device", other.display(), path.display())));
        }
        seen.push((here, path));
    }
    Ok(())
}

/// Opens devices in any order and tells them apart by their superblocks.
pub fn open_all(paths: &[PathBuf], in_use: InUse) -> Result<Devices> {
    each_once(paths)?;
    let mut devices = Devices::default();
    for path in paths {
        devices.push(open(path, in_use)?).map_err(|fault| bad(fault.to_string()))?;
    }
    Ok(devices)
}

/// The metadata image in a file; nothing when the file is something else.
pub fn unpack(path: &Path) -> Result<Option<Image>> {
    let name = path.display().to_string();
    let mut file = std::fs::File::open(path).with_context(|| name.clone())?;
    let mut magic = [0; MAGIC.len()];
    if file.read_exact(&mut magic).is_err() || magic != MAGIC {
        return Ok(None);
    }
    let damaged = || format!("{name}: not a whole metadata image");
    let stream = std::io::BufReader::new(file);
    let decoder = ruzstd::decoding::StreamingDecoder::new(stream).with_context(damaged)?;
    let mut bytes = Vec::new();
    decoder.take(UNPACKED_MAX).read_to_end(&mut bytes).with_context(damaged)?;
    Ok(Some(Image::parse(&bytes, &name).with_context(damaged)?))
}
