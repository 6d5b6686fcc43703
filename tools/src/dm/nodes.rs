//! Nodes below `/dev/mapper` where no udev makes them.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// Where the nodes are.
const DIR: &str = "/dev/mapper";

fn path_of(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Sees to it that `/dev/mapper/NAME` is there. udev may have been faster.
pub(super) fn ensure(name: &str, minor: u64) {
    let path = path_of(name);
    if path.exists() {
        return;
    }
    if let Err(error) = make(&path, minor) {
        tracing::warn!(path = %path.display(), %error, "cannot make the device's node");
    }
}

fn make(path: &Path, minor: u64) -> io::Result<()> {
    // What is left here is a link to nowhere.
    let _ = std::fs::remove_file(path);
    let target = PathBuf::from(format!("/dev/dm-{minor}"));
    if target.exists() {
        return std::os::unix::fs::symlink(format!("../dm-{minor}"), path);
    }
    let major = major()?;
    Ok(mknod(path, SFlag::S_IFBLK, Mode::from_bits_truncate(0o660), makedev(major, minor))?)
}

/// Device-mapper's major number.
fn major() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/devices")?;
    let blocks = text.split_once("Block devices:").map_or("", |(_, rest)| rest);
    let line = blocks.lines().find_map(|line| line.trim().strip_suffix(" device-mapper"));
    line.and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "device-mapper has no number"))
}

/// Takes `/dev/mapper/NAME` away if it leads nowhere now.
pub(super) fn forget(name: &str) {
    let path = path_of(name);
    // A link follows its target; a node of our own is left alone by nobody else.
    if std::fs::symlink_metadata(&path).is_ok() && !path.exists()
        || std::fs::metadata(&path).is_ok_and(|meta| !sysfs_knows(&meta))
    {
        let _ = std::fs::remove_file(&path);
    }
}

/// Takes `/dev/mapper/NAME` away if it still leads to the device, which is called otherwise now.
pub(super) fn forget_old(name: &str, minor: u64) {
    use std::os::unix::fs::MetadataExt;
    let path = path_of(name);
    let same = std::fs::metadata(&path).is_ok_and(|meta| nix::sys::stat::minor(meta.rdev()) == minor);
    if same || std::fs::symlink_metadata(&path).is_ok() && !path.exists() {
        let _ = std::fs::remove_file(&path);
    }
}

fn sysfs_knows(meta: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = meta.rdev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    Path::new(&format!("/sys/dev/block/{major}:{minor}")).exists()
}
