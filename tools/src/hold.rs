//! Holding requests of a device back while its table changes: who does it, and that it ends.
//!
//! A process may die between the two halves. Its mark in `/run/bcache` says then that the requests are held back by us,
//! and whoever comes next lets them go. A device that somebody else suspended (`dmsetup suspend`) has no mark, and stays
//! as it is: letting it go could thaw a file system whose thawing waits for us.

use std::io;

use uuid::Uuid;

use crate::control::paths;
use crate::dm::{self, Device, Target};

fn refuse_if_suspended(name: &str) -> io::Result<()> {
    let suspended = dm::describe(name)?.is_some_and(|device| device.suspended);
    if suspended {
        let why = "suspended by somebody else; dmsetup resume lets it go on";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
    }
    Ok(())
}

/// Holds requests back, once those under way have ended.
///
/// # Errors
/// Somebody else does so already, the mark cannot be made, or the kernel refuses.
pub fn begin(name: &str, uuid: Uuid) -> io::Result<()> {
    refuse_if_suspended(name)?;
    paths::mark_held(uuid)?;
    dm::suspend(name).inspect_err(|_| {
        // The kernel may have begun. What goes on is the old table: a resume would put in force what was loaded.
        if dm::clear(name).is_ok() {
            let _ = end(name, uuid);
        }
    })
}

/// Lets them go, with the table that was loaded last, or with the old one where the kernel refuses that.
///
/// # Errors
/// The kernel refuses the new table.
pub fn end(name: &str, uuid: Uuid) -> io::Result<()> {
    let resumed = dm::resume(name);
    if resumed.is_err() {
        // A table that is refused is dropped by the kernel, but what it was to take the place of stays suspended. If it
        // does all the same, the mark stays for a successor.
        dm::resume(name)?;
    }
    // Nobody is to be let go for nothing later; if this fails, that is all that happens.
    let _ = paths::clear_held(uuid);
    resumed
}

/// Takes back what a process that died had begun and not ended: a table that was loaded and is not in force, which keeps
/// its devices claimed, and requests that are held back. Whether they still are, by somebody else.
///
/// # Errors
/// The kernel refuses.
pub fn settle(device: &Device, uuid: Uuid) -> io::Result<bool> {
    dm::clear(&device.name)?;
    if !device.suspended || dm::table(&device.name)?.is_empty() {
        let _ = paths::clear_held(uuid);
        return Ok(false);
    }
    if !paths::is_held(uuid) {
        return Ok(true);
    }
    end(&device.name, uuid)?;
    Ok(false)
}

/// Gives a device another table, if `check` agrees, which is asked when the kernel has claimed what the new one is made
/// of: requests are held back while it changes, and the file system on it is not disturbed.
///
/// # Errors
/// The kernel refuses, somebody else has suspended the device, or what the check says; the old table stays.
pub fn swap(
    name: &str,
    uuid: Uuid,
    targets: &[Target],
    check: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    refuse_if_suspended(name)?;
    dm::load(name, targets)?;
    let begun = check().and_then(|()| begin(name, uuid));
    if let Err(error) = begun {
        dm::clear(name)?;
        return Err(error);
    }
    end(name, uuid)
}
