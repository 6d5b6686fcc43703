//! What sysfs says of a block device: whether it takes writes, its zones, and in which sizes it likes requests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A block device in sysfs.
#[derive(Clone, Debug)]
pub struct Queue {
    device: PathBuf,
}

impl Queue {
    /// That of a device's number.
    #[must_use]
    pub fn of((major, minor): (u64, u64)) -> Queue {
        Queue::at(Path::new("/sys/dev/block").join(format!("{major}:{minor}")))
    }

    /// The device whose directory this is.
    #[must_use]
    pub fn at(device: impl Into<PathBuf>) -> Queue {
        Queue { device: device.into() }
    }

    /// Bytes of its logical block: the least that it reads or writes.
    ///
    /// # Errors
    /// sysfs cannot be read.
    pub fn logical_block(&self) -> io::Result<u32> {
        let bad = |text: &str| format!("{}: blocks of {text:?}", self.device.display());
        let text = self.text("logical_block_size")?;
        text.parse().map_err(|_| io::Error::other(bad(&text)))
    }

    /// Bytes of the requests that it likes best: a stripe of a RAID; 0 if it does not say.
    #[must_use]
    pub fn optimal_io(&self) -> u64 {
        self.number("optimal_io_size")
    }

    /// A number of its queue, 0 where that is not there.
    fn number(&self, name: &str) -> u64 {
        self.text(name).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// The driver or the administrator refuses writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        fs::read_to_string(self.device.join("ro")).is_ok_and(|text| text.trim() == "1")
    }

    /// It has zones that can only be written from front to back.
    #[must_use]
    pub fn is_host_managed(&self) -> bool {
        self.text("zoned").is_ok_and(|zoned| zoned == "host-managed")
    }

    /// The first driver that holds it: device mapper, md, bcache.
    #[must_use]
    pub fn holder(&self) -> Option<String> {
        let entry = fs::read_dir(self.device.join("holders")).ok()?.flatten().next()?;
        Some(entry.file_name().to_string_lossy().into_owned())
    }

    /// A partition has no queue of its own: its disk's is one level up.
    fn text(&self, name: &str) -> io::Result<String> {
        let own = fs::read_to_string(self.device.join("queue").join(name));
        let text = own.or_else(|_| {
            let partition = fs::canonicalize(&self.device)?;
            fs::read_to_string(partition.join("../queue").join(name))
        })?;
        Ok(text.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_has_the_queue_of_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("sda");
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::create_dir_all(disk.join("sda1/holders/dm-0")).unwrap();
        for (name, text) in [
            ("queue/logical_block_size", "4096\n"),
            ("queue/optimal_io_size", "1048576\n"),
            ("queue/zoned", "host-managed\n"),
            ("ro", "0\n"),
            ("sda1/ro", "1\n"),
        ] {
            fs::write(disk.join(name), text).unwrap();
        }
        let (disk, partition) = (Queue::at(&disk), Queue::at(disk.join("sda1")));
        for queue in [&disk, &partition] {
            assert_eq!((queue.logical_block().unwrap(), queue.optimal_io()), (4096, 1 << 20));
            assert!(queue.is_host_managed());
        }
        assert!(partition.is_read_only() && !disk.is_read_only());
        assert_eq!((partition.holder().as_deref(), disk.holder()), (Some("dm-0"), None));
        let nothing = Queue::at(dir.path().join("nothing"));
        assert!(nothing.logical_block().is_err() && !nothing.is_read_only() && nothing.optimal_io() == 0);
    }
}
