//! The block device below a name: ublk where the kernel has it, its NBD client otherwise.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use bcache_engine::env::{Backend, Env};
use bcache_engine::ublk::UblkState;
use bcache_engine::volume::Volume;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::frontend::{Driver, mark, nbd_device, ublk};

/// The better of the drivers that are there.
///
/// # Errors
/// There is none; both reasons.
pub(super) fn choose(backend: Backend) -> Result<Driver> {
    let Err(ublk) = ublk::available(backend) else { return Ok(Driver::Ublk) };
    match nbd_device::available() {
        Ok(()) => {
            tracing::info!("through NBD, because ublk is not there: {ublk}");
            Ok(Driver::Nbd)
        }
        Err(nbd) => bail!("the kernel has neither ublk ({ublk}) nor an NBD client ({nbd})"),
    }
}

/// A block device that a volume answers.
pub(super) enum Front {
    /// ublk.
    Ublk(ublk::Device),
    /// NBD.
    Nbd(Rc<nbd_device::Device>),
}

impl Front {
    /// Makes a device, of which there is no other; `optimal` is the size in bytes of the requests that the disk below likes
    /// best.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) async fn create(
        env: &Env,
        driver: Driver,
        volume: Rc<dyn Volume>,
        uuid: Uuid,
        depth: u16,
        optimal: u64,
    ) -> Result<Front> {
        env.offload(move || clean_up(uuid)).await?;
        Front::another(env, driver, volume, uuid, depth, optimal).await
    }

    /// Makes a device that takes the place of one that is in use.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) async fn another(
        env: &Env,
        driver: Driver,
        volume: Rc<dyn Volume>,
        uuid: Uuid,
        depth: u16,
        optimal: u64,
    ) -> Result<Front> {
        Ok(match driver {
            Driver::Ublk => {
                let device = ublk::Device::create(env, volume, depth, optimal, mark(uuid)).await;
                Front::Ublk(device.context("ublk")?)
            }
            Driver::Nbd => Front::nbd(nbd_device::Device::create(env, volume, uuid).await?),
        })
    }

    /// Takes over a device whose server died.
    ///
    /// # Errors
    /// There is none, or it has a server.
    pub(super) async fn recover(
        env: &Env,
        (driver, id): (Driver, u32),
        volume: Rc<dyn Volume>,
        uuid: Uuid,
    ) -> Result<Front> {
        Ok(match driver {
            Driver::Ublk => Front::Ublk(ublk::Device::recover(env, volume, id).await?),
            Driver::Nbd => Front::nbd(nbd_device::Device::recover(env, volume, uuid, id).await?),
        })
    }

    fn nbd(device: nbd_device::Device) -> Front {
        let device = Rc::new(device);
        device.keep_connected();
        Front::Nbd(device)
    }

    /// What sysfs calls it.
    #[must_use]
    pub(super) fn kernel_name(&self) -> String {
        match self {
            Front::Ublk(device) => format!("ublkb{}", device.id()),
            Front::Nbd(device) => format!("nbd{}", device.index()),
        }
    }

    /// Answers no more requests, and waits until none is under way; the others wait for another process.
    pub(super) async fn freeze(&self) {
        match self {
            Front::Ublk(device) => device.freeze().await,
            Front::Nbd(device) => device.freeze().await,
        }
    }

    /// Removes it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) async fn remove(self) -> Result<()> {
        match self {
            Front::Ublk(device) => Ok(device.remove().await?),
            Front::Nbd(device) => device.remove().await,
        }
    }

    /// What was asked of it.
    #[must_use]
    pub(super) fn stats(&self) -> Value {
        match self {
            Front::Ublk(device) => {
                json!({"requests": device.stats().requests.get(), "errors": device.stats().errors.get()})
            }
            Front::Nbd(device) => {
                let stats = device.stats();
                let requests =
                    stats.reads.get() + stats.writes.get() + stats.flushes.get() + stats.trims.get();
                json!({"requests": requests, "errors": stats.errors.get()})
            }
        }
    }
}

/// Deletes devices of this volume that nothing leads to: left by a process that was killed before it had made the name,
/// or after it had removed it.
fn clean_up(uuid: Uuid) -> Result<()> {
    let mark = mark(uuid);
    let ublk = if Path::new("/dev/ublk-control").exists() { ublk::devices()? } else { Vec::new() };
    for info in ublk.into_iter().filter(|info| info.mark == mark) {
        match info.state {
            UblkState::Live if Path::new(&format!("/proc/{}", info.pid)).exists() => {
                bail!("process {} serves this device as /dev/ublkb{}", info.pid, info.id);
            }
            _ => {
                tracing::info!(id = info.id, "a ublk device that was left behind is deleted");
                ublk::delete(info.id).with_context(|| format!("ublk device {}", info.id))?;
            }
        }
    }
    for index in nbd_device::devices(uuid)? {
        tracing::info!(index, "an NBD device that was left behind is removed");
        nbd_device::delete(index).with_context(|| format!("NBD device {index}"))?;
    }
    Ok(())
}
