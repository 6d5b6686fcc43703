//! All block devices of the machine that have a superblock of bcache.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bcache_format::superblock::{SB_BYTES, SB_OFFSET, SB_SECTOR, Superblock};

/// Where the kernel lists all of them, partitions included.
const ALL: &str = "/sys/class/block";

/// A device with a superblock that makes sense.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its node.
    pub path: PathBuf,
    /// What its superblock says.
    pub superblock: Superblock,
}

/// Looks at all block devices, in the order of their names. One that cannot be read has nothing on it.
#[must_use]
pub fn all() -> Vec<Found> {
    let mut names: Vec<String> = fs::read_dir(ALL)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_worth_a_look(name))
        .collect();
    names.sort();
    names.iter().filter_map(|name| look(&Path::new("/dev").join(name.replace('!', "/")))).collect()
}

/// What superblock a device has.
#[must_use]
pub fn look(path: &Path) -> Option<Found> {
    let file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let mut block = vec![0; SB_BYTES];
    file.read_exact_at(&mut block, SB_OFFSET).ok()?;
    let superblock = Superblock::parse(&block).ok()?;
    Some(Found { path: path.to_owned(), superblock })
}

/// Not what is served by a process or by bcache itself, which may wait for whoever looks; nor what is suspended.
fn is_worth_a_look(name: &str) -> bool {
    let text = |file: &str| fs::read_to_string(Path::new(ALL).join(name).join(file)).unwrap_or_default();
    let served = ["ublkb", "nbd", "bcache", "sr", "fd"].iter().any(|kind| {
        name.strip_prefix(kind).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    let known = text("size").trim().parse::<u64>().is_ok_and(|sectors| sectors > SB_SECTOR);
    known
        && !served
        && text("dm/suspended").trim() != "1"
        && !text("dm/uuid").starts_with(crate::dm::UUID_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_superblock_is_not_found() {
        assert!(look(Path::new("/dev/null")).is_none());
        assert!(look(Path::new("/nowhere")).is_none());
        assert!(!is_worth_a_look("nothing-of-that-name") && !is_worth_a_look("ublkb0"));
    }
}
