//! A process that begins in an initramfs, and outlives it.
//!
//! When the machine leaves its initramfs, `/dev`, `/proc`, `/sys` and `/run` move to the new root and everything else is
//! deleted, with what anybody has mounted there. So a process makes a root of its own, in a mount namespace of its own, and
//! takes them along: the same file systems, with all that appears in them later.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::unistd::{chdir, chroot};

/// What is taken along, with all below it.
const KEPT: [&str; 4] = ["/dev", "/proc", "/sys", "/run"];
/// Where the new root is made; nobody else sees it.
const ROOT: &str = "/bcache-engine.root";
/// From the kernel's `include/uapi/linux/magic.h`.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// How long a missing cache is waited for in an initramfs at most: whoever waits for the root file system there gives up
/// after 30 s (initramfs-tools).
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Whether this is an initramfs.
pub(super) fn is_one() -> bool {
    let marked = ["/init", "/etc/initrd-release"].iter().any(|path| Path::new(path).exists());
    marked && statfs("/").is_ok_and(|root| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&root.filesystem_type()))
}

/// Leaves the initramfs, if this is one. To be called before there is a second thread, and when no program is needed any
/// more.
///
/// # Errors
/// The kernel refuses.
pub(super) fn leave() -> Result<()> {
    if !is_one() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("private mounts")?;
    let points = mount_points()?;
    // Anything else would stay mounted for as long as the process lives.
    let is_kept = |point: &str| KEPT.iter().any(|kept| Path::new(point).starts_with(kept));
    for point in points.iter().rev().filter(|point| *point != "/" && !is_kept(point)) {
        umount2(point.as_str(), MntFlags::MNT_DETACH).with_context(|| point.clone())?;
    }
    fs::create_dir_all(ROOT).context(ROOT)?;
    mount(Some("tmpfs"), ROOT, Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=64k")).context(ROOT)?;
    for kept in KEPT.iter().filter(|kept| points.iter().any(|point| point == *kept)) {
        let place = format!("{ROOT}{kept}");
        fs::create_dir(&place).context(*kept)?;
        mount(Some(*kept), place.as_str(), none, MsFlags::MS_MOVE, none).context(*kept)?;
    }
    chdir(ROOT).context(ROOT)?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).context("the new root")?;
    chroot(".").context("the new root")?;
    chdir("/").context("the new root")
}

fn mount_points() -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    Ok(mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect())
}
