//! Opening the devices a command line names: for reading, or for writing where that is asked for.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result, anyhow, bail};
use bcache_engine::dev::lock;
use bcache_engine::fsck::image::{MARK, MARK_AT};
use bcache_engine::fsck::repair::WriteAt;
use bcache_engine::fsck::view::{Device, Devices, FileDevice, ReadAt};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek};

/// Whether a device that somebody uses is opened all the same: a block device that a mount, device-mapper, bcache or
/// an engine has, an image file that another of these programs has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// What is read may change while it is read; good enough to look at.
    Allow,
    /// Refused: the content would be of no single moment.
    Refuse,
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
    let kind = std::fs::metadata(path).with_context(|| name.clone())?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        bail!("{name}: neither a block device nor a file");
    }
    if kind.is_file()
        && let Some(image) = super::image::unpack(path)?
    {
        if access == Access::Write {
            bail!(
                "{name}: a metadata image cannot be written; `bcache image --restore` makes a device of it"
            );
        }
        return Ok((Arc::new(image), None));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::Write);
    if kind.is_block_device() && in_use == InUse::Refuse {
        options.custom_flags(OFlag::O_EXCL.bits());
    }
    let told = |error: io::Error| match error.kind() {
        io::ErrorKind::ResourceBusy => {
            anyhow!("{name}: in use; stop the cache set or unmount the device first")
        }
        _ => anyhow::Error::new(error).context(name.clone()),
    };
    let file = options.open(path).map_err(told)?;
    if in_use == InUse::Refuse {
        // The engine locks what it works on, too. The lock goes with the last copy of the descriptor.
        lock(&file, access == Access::Write).map_err(told)?;
    }
    let holes = file.try_clone()?;
    let writable = match access {
        Access::Read => None,
        Access::Write => Some(Writable::new(name.clone(), file.try_clone()?)),
    };
    let device = FileDevice::new(file, name.clone()).with_context(|| name.clone())?;
    let mut mark = [0; MARK.len()];
    let marked = device.read_at(MARK_AT, &mut mark).is_ok() && mark == MARK;
    Ok((Arc::new(Sparse { device, holes, marked }), writable))
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
        Some(device) => bail!("{}: a metadata image, or made of one: it has none of the data", device.name()),
    }
}

/// Opens devices in any order and tells them apart by their superblocks.
pub fn open_all(paths: &[PathBuf], in_use: InUse) -> Result<Devices> {
    let mut devices = Devices::default();
    for path in paths {
        devices.push(open(path, in_use)?)?;
    }
    Ok(devices)
}
