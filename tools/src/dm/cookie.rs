//! Waiting for udev to have made a device's links.
//!
//! A cookie is a System V semaphore. Its number goes with the request, from there into the kernel's event, and from
//! there into a udev rule that device-mapper brings along, which ends the wait (`dmsetup udevcomplete`).

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::raw::Semaphore;

/// Upper half of a cookie's key.
const MAGIC: u32 = 0x0d4d;
/// `DM_UDEV_PRIMARY_SOURCE_FLAG`, in the upper half of the number: the event is about a change that we made, so rules
/// have to look at the device anew.
const PRIMARY_SOURCE: u32 = 0x0040 << 16;
/// udev has this long. Then the nodes are made here.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where the rule that ends waiting may be.
const RULES: [&str; 4] =
    ["/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d"];

/// A wait for udev, or none where nobody would end it.
pub(super) struct Cookie(Option<(u32, Semaphore)>);

/// Whether a udev daemon runs that knows how to end a wait.
fn udev_listens() -> bool {
    let rule = |dir: &str| Path::new(dir).join("95-dm-notify.rules").exists();
    Path::new("/run/udev/control").exists() && RULES.iter().any(|dir| rule(dir))
}

impl Cookie {
    /// A cookie for one request.
    pub(super) fn begin() -> Cookie {
        if !udev_listens() {
            return Cookie(None);
        }
        match make() {
            Ok(made) => Cookie(Some(made)),
            Err(error) => {
                tracing::warn!(%error, "no semaphore to wait for udev with");
                Cookie(None)
            }
        }
    }

    /// What the request carries.
    pub(super) fn number(&self) -> u32 {
        self.0.as_ref().map_or(0, |(base, _)| base | PRIMARY_SOURCE)
    }

    /// Waits until udev is done, if the kernel told it.
    pub(super) fn end(self, told: bool) {
        let Some((_, semaphore)) = self.0 else { return };
        // The count is two: one for the event, one for us.
        let waited =
            if told { semaphore.take().and_then(|()| semaphore.wait_zero(PATIENCE)) } else { Ok(()) };
        if let Err(error) = waited {
            tracing::warn!(%error, "udev did not answer");
        }
        semaphore.remove();
    }
}

fn make() -> io::Result<(u32, Semaphore)> {
    for _ in 0..100 {
        // Zero means that there is no cookie.
        let base = u32::from(uuid::Uuid::new_v4().as_u128() as u16).max(1);
        match Semaphore::create(MAGIC << 16 | base) {
            Ok(semaphore) => {
                semaphore.add(1).inspect_err(|_| semaphore.remove())?;
                return Ok((base, semaphore));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
