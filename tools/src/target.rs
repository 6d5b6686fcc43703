//! A device that is about to be formatted: opened so that nobody else has it, and measured.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bcache_engine::dev::lock;
use bcache_format::units::SECTOR_SIZE;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{major, minor};
use thiserror::Error as ThisError;

use crate::in_use::{loop_of, patiently};

/// Why a device cannot be formatted.
#[derive(Debug, ThisError)]
pub enum Error {
    /// It cannot be opened for writing.
    #[error("Can't open dev {0}: {1}")]
    Open(PathBuf, #[source] io::Error),
    /// It is neither a block device nor a file.
    #[error("{0} is neither a block device nor a file")]
    Kind(PathBuf),
    /// Something mounts it, maps it or serves it.
    #[error("{0} is in use{1}")]
    InUse(PathBuf, String),
    /// It cannot be measured, read or written.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// A device or file, held exclusively as long as this lives.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    file: Flock<File>,
    bytes: u64,
    logical_block: u32,
    default_block: u32,
}

/// What a path leads to, however it is spelled: the device or inode.
///
/// # Errors
/// There is nothing at the path.
pub fn identity(path: &Path) -> Result<(u64, u64), Error> {
    let meta = fs::metadata(path).map_err(|error| Error::Open(path.to_path_buf(), error))?;
    let block = meta.file_type().is_block_device();
    Ok(if block { (u64::MAX, meta.rdev()) } else { (meta.dev(), meta.ino()) })
}

impl Target {
    /// Opens and measures it, changing nothing.
    ///
    /// # Errors
    /// It is no device or file, cannot be opened for writing, or is in use: a block device that is mounted, held by
    /// another driver or opened exclusively; a file that another of these programs has locked.
    pub fn open(path: &Path) -> Result<Target, Error> {
        let io = |error| Error::Io(path.to_path_buf(), error);
        let open = |error| Error::Open(path.to_path_buf(), error);
        let meta = fs::metadata(path).map_err(open)?;
        let block = meta.file_type().is_block_device();
        if !block && !meta.is_file() {
            return Err(Error::Kind(path.to_path_buf()));
        }
        let sysfs = block.then(|| sysfs_of(meta.rdev()));
        if let Some(holder) = sysfs.as_deref().and_then(holder) {
            return Err(Error::InUse(path.to_path_buf(), format!(" by {holder}")));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if block {
            // Of a block device this asks for what a mount would also ask for.
            options.custom_flags(OFlag::O_EXCL.bits());
        }
        if let Some(device) = loop_of(&meta) {
            return Err(Error::InUse(path.to_path_buf(), format!(" by {}", device.display())));
        }
        let take = || {
            let file = options.open(path)?;
            if block {
                lock(&file, true)?;
            }
            let busy = |_| io::Error::from(io::ErrorKind::ResourceBusy);
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(busy)
        };
        let mut file = patiently(take).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => Error::InUse(path.to_path_buf(), String::new()),
            _ => open(error),
        })?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(io)?;
        let logical_block = sysfs.as_deref().map_or(Ok(512), logical_block).map_err(io)?;
        // Of a file the original takes the file system's block; what is beyond a page no kernel would take.
        let default_block = if block { logical_block } else { (meta.blksize() as u32).clamp(512, 4096) };
        Ok(Target { path: path.to_path_buf(), file, bytes, logical_block, default_block })
    }

    /// Its path, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in whole sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.bytes / SECTOR_SIZE
    }

    /// Its size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of its logical block: it cannot read or write less. 512 for a file.
    #[must_use]
    pub fn logical_block(&self) -> u32 {
        self.logical_block
    }

    /// Bytes of the block size to format it with when nobody asks for another: a device's logical block, or the
    /// preferred one of the file system that a file is on.
    #[must_use]
    pub fn default_block(&self) -> u32 {
        self.default_block
    }

    /// Reads exactly `buffer.len()` bytes at `at`.
    ///
    /// # Errors
    /// The device's, or that it ends before.
    pub fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), Error> {
        self.file.read_exact_at(buffer, at).map_err(|error| Error::Io(self.path.clone(), error))
    }

    /// Writes all of `data` at `at`.
    ///
    /// # Errors
    /// The device's.
    pub fn write(&self, data: &[u8], at: u64) -> Result<(), Error> {
        self.file.write_all_at(data, at).map_err(|error| Error::Io(self.path.clone(), error))
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// The device's: then nothing is certain about what was written.
    pub fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(|error| Error::Io(self.path.clone(), error))
    }
}

fn sysfs_of(rdev: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev)))
}

/// The first driver that holds a block device: device mapper, md, bcache.
fn holder(sysfs: &Path) -> Option<String> {
    let entry = fs::read_dir(sysfs.join("holders")).ok()?.flatten().next()?;
    Some(entry.file_name().to_string_lossy().into_owned())
}

/// A partition has no queue of its own: its disk's is one level up.
fn logical_block(sysfs: &Path) -> io::Result<u32> {
    let own = sysfs.join("queue/logical_block_size");
    let text = fs::read_to_string(own).or_else(|_| {
        let partition = fs::canonicalize(sysfs)?;
        fs::read_to_string(partition.join("../queue/logical_block_size"))
    })?;
    text.trim().parse().map_err(|_| io::Error::other("its logical block size cannot be read"))
}
