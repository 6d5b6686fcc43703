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
use crate::queue::Queue;

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
    /// It takes no writes.
    #[error("{0} is read-only")]
    ReadOnly(PathBuf),
    /// It has zones that can only be written from front to back, which neither Linux nor we can use.
    #[error("{0} is a host-managed zoned device: it takes no writes but from front to back")]
    Zoned(PathBuf),
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
    optimal_io: u64,
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
    /// another driver or opened exclusively; a file that another of these programs has locked. Or it takes no writes, at
    /// all or where a cache would make them.
    pub fn open(path: &Path) -> Result<Target, Error> {
        let io = |error| Error::Io(path.to_path_buf(), error);
        let open = |error| Error::Open(path.to_path_buf(), error);
        let meta = fs::metadata(path).map_err(open)?;
        let block = meta.file_type().is_block_device();
        if !block && !meta.is_file() {
            return Err(Error::Kind(path.to_path_buf()));
        }
        let queue = block.then(|| Queue::of((major(meta.rdev()), minor(meta.rdev()))));
        if let Some(queue) = &queue {
            check(path, queue)?;
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
        let logical_block = queue.as_ref().map_or(Ok(512), Queue::logical_block).map_err(io)?;
        // Of a file the original takes the file system's block; what is beyond a page no kernel would take.
        let default_block = if block { logical_block } else { (meta.blksize() as u32).clamp(512, 4096) };
        let optimal_io = queue.as_ref().map_or(0, Queue::optimal_io);
        Ok(Target { path: path.to_path_buf(), file, bytes, logical_block, default_block, optimal_io })
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

    /// Bytes of the requests that the device likes best, which tell the stripes of a RAID; 0 if it does not say.
    #[must_use]
    pub fn optimal_io(&self) -> u64 {
        self.optimal_io
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

/// What keeps a block device from being formatted, whoever asks. Opening one for writing that takes no writes succeeds, and
/// so do the writes, on some devices, until they reach the disk.
fn check(path: &Path, queue: &Queue) -> Result<(), Error> {
    if let Some(holder) = queue.holder() {
        return Err(Error::InUse(path.to_path_buf(), format!(" by {holder}")));
    }
    if queue.is_read_only() {
        return Err(Error::ReadOnly(path.to_path_buf()));
    }
    if queue.is_host_managed() {
        return Err(Error::Zoned(path.to_path_buf()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_cannot_be_used_are_told_before_they_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("sda");
        fs::create_dir_all(disk.join("queue")).unwrap();
        let said = || check(Path::new("/dev/sda"), &Queue::at(&disk)).err().map(|error| error.to_string());
        fs::write(disk.join("ro"), "0\n").unwrap();
        fs::write(disk.join("queue/zoned"), "host-aware\n").unwrap();
        assert_eq!(said(), None);
        fs::write(disk.join("queue/zoned"), "host-managed\n").unwrap();
        assert!(said().unwrap().starts_with("/dev/sda is a host-managed zoned device"));
        fs::write(disk.join("ro"), "1\n").unwrap();
        assert_eq!(said().unwrap(), "/dev/sda is read-only");
        fs::create_dir_all(disk.join("holders/md0")).unwrap();
        assert_eq!(said().unwrap(), "/dev/sda is in use by md0");
    }
}
