//! What a device is to bcache, told by its superblock. Nothing is written.

use bcache_format::SECTOR_SIZE;
use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bcache_engine::fsck::image::{MARK, MARK_AT, MARKED};
use bcache_format::superblock::{BackingState, SB_BYTES, SB_OFFSET, Superblock};
use nix::sys::stat::{major, minor};
use uuid::Uuid;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The cache of a set.
    Cache,
    /// A backing device.
    Backing(BackingState),
}

/// A device of bcache.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its path as it was given.
    pub path: PathBuf,
    /// Its number.
    pub device: (u64, u64),
    /// What it is.
    pub role: Role,
    /// Its set; of a backing device that was never attached one that may not exist.
    pub set: Uuid,
    /// Its own UUID.
    pub uuid: Uuid,
    /// Its label.
    pub label: String,
    /// Where the data of a backing device begins, in sectors.
    pub data_offset: u64,
    /// Sectors of data of a backing device.
    pub data_sectors: u64,
    /// Bytes of a block, as its superblock says.
    pub block: u32,
}

/// The number of a block device.
fn number(path: &Path) -> Result<(u64, u64)> {
    let meta = std::fs::metadata(path).with_context(|| path.display().to_string())?;
    if !meta.file_type().is_block_device() {
        bail!("{}: not a block device (for files: bcache serve, or losetup)", path.display());
    }
    Ok((major(meta.rdev()), minor(meta.rdev())))
}

/// Looks at a device.
///
/// # Errors
/// It cannot be read, is no block device, or not one of bcache's.
pub fn identify(path: &Path) -> Result<Part> {
    let name = || path.display().to_string();
    number(path)?;
    let file = File::open(path).with_context(name)?;
    let mut block = vec![0; SB_BYTES];
    file.read_exact_at(&mut block, SB_OFFSET).with_context(name)?;
    let sb = Superblock::parse(&block).map_err(|error| {
        anyhow::anyhow!("{}: not a usable bcache device: {}", path.display(), error.at(SB_OFFSET))
    })?;
    let mut mark = [0; MARK.len()];
    file.read_exact_at(&mut mark, MARK_AT).with_context(name)?;
    if mark == MARK {
        bail!("{}: {MARKED}", path.display());
    }
    Part::of(path, &sb)
}

/// Size of a device in sectors of 512 bytes.
fn sectors((major, minor): (u64, u64)) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size"))?;
    Ok(text.trim().parse()?)
}

impl Part {
    /// The device whose superblock was read.
    ///
    /// # Errors
    /// It is no block device.
    pub fn of(path: &Path, sb: &Superblock) -> Result<Part> {
        let device = number(path)?;
        let sectors = sectors(device).with_context(|| path.display().to_string())?;
        let (role, data_offset) = match sb.backing() {
            Some(backing) => (Role::Backing(sb.state()), backing.data_offset.0),
            None => (Role::Cache, 0),
        };
        Ok(Part {
            path: path.to_owned(),
            device,
            role,
            set: sb.set_uuid,
            uuid: sb.uuid,
            label: sb.label.to_text(),
            data_offset,
            data_sectors: sectors.saturating_sub(data_offset),
            block: u32::from(sb.block_sectors) * SECTOR_SIZE as u32,
        })
    }

    /// Whether the kernel's own bcache has it.
    #[must_use]
    pub fn is_kernels(&self) -> bool {
        let (major, minor) = self.device;
        Path::new(&format!("/sys/dev/block/{major}:{minor}/bcache")).exists()
    }

    /// Where the kernel's bcache is told to let it go: a cache goes with its set.
    #[must_use]
    pub fn kernels_stop(&self) -> String {
        self.kernels_file("stop")
    }

    /// The kernel's file `name` of the device, or of the set whose cache it is.
    #[must_use]
    pub fn kernels_file(&self, name: &str) -> String {
        if self.role == Role::Cache {
            return format!("/sys/fs/bcache/{}/{name}", self.set);
        }
        let (major, minor) = self.device;
        let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).unwrap_or_default();
        // A partition is inside its disk.
        let link = link.to_string_lossy();
        let disk = link
            .rsplit_once("/block/")
            .map_or_else(|| format!("{major}:{minor}"), |(_, disk)| disk.to_owned());
        format!("/sys/block/{disk}/bcache/{name}")
    }

    /// Whether its data is whole without a cache.
    #[must_use]
    pub fn is_whole_alone(&self) -> bool {
        matches!(self.role, Role::Backing(state) if state.is_whole())
    }
}
