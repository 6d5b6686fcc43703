//! Ways for clients to reach the engine's volumes.
//!
//! # Pieces, and who meets whom
//!
//! A *volume* ([`bcache_engine::volume::Volume`]) is all that a front end knows of what it serves. Whoever serves makes the
//! volume and gives it to a front end; a front end takes requests from its clients, checks them, and asks the volume.
//!
//! - [`nbd`] is a server for clients on sockets: `serve` gives it volumes under their names, [`nbd_device`] one of its own.
//! - [`ublk`] puts one volume before the kernel as a block device, over the driver's queue on the runtime's ring.
//! - [`nbd_device`] does the same with the kernel's NBD client, joined to our server by a pair of sockets.
//! - [`Driver`] is which of these two; [`mark`] leads from a device in the kernel back to the volume it was made for.
//! - [`ram`] is a volume for trying them out. Nothing here knows sets, parts, or names in `/dev/mapper`.

pub mod nbd;
pub mod nbd_device;
pub mod ram;
pub mod ublk;

use std::io;
use std::path::Path;

use bcache_engine::ublk::Mark;
use uuid::Uuid;

/// What puts a volume before the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// ublk with all that is needed.
    Ublk,
    /// The NBD client.
    Nbd,
}

/// A number that leads from a ublk device back to the volume it was made for.
#[must_use]
pub fn mark(uuid: Uuid) -> Mark {
    Mark(uuid.as_u64_pair().0)
}

/// Which device of a driver of ours sysfs calls `name`, if it was made for the volume `uuid`. Others have devices that
/// are called so, too, and backing devices may be among them: what counts is the mark that ours have in the kernel.
///
/// # Errors
/// The driver does not answer.
pub fn made_for(name: &str, uuid: Uuid) -> io::Result<Option<(Driver, u32)>> {
    let id = |prefix| name.strip_prefix(prefix).and_then(|id: &str| id.parse::<u32>().ok());
    if let Some(id) = id("ublkb") {
        if !Path::new("/dev/ublk-control").exists() {
            return Ok(None);
        }
        return Ok((ublk::mark_of(id)? == Some(mark(uuid))).then_some((Driver::Ublk, id)));
    }
    let Some(index) = id("nbd") else { return Ok(None) };
    Ok(nbd_device::is_made_for(index, uuid).then_some((Driver::Nbd, index)))
}

/// Whether a process answers the requests of a device.
///
/// # Errors
/// The driver does not answer.
pub fn is_served(driver: Driver, id: u32) -> io::Result<bool> {
    match driver {
        Driver::Ublk => ublk::is_served(id),
        // The process that connected it is noted; a device that waits for the next one has the number of one that ended.
        Driver::Nbd => {
            let pid = std::fs::read_to_string(format!("/sys/block/nbd{id}/pid")).unwrap_or_default();
            let pid = pid.trim();
            Ok(!pid.is_empty() && Path::new("/proc").join(pid).exists())
        }
    }
}
