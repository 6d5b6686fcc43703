//! A device of the set as users see it: a name in `/dev/mapper`, below it a block device of ublk or NBD, below that the engine.

use std::io;
use std::rc::Rc;

use anyhow::{Context, Result};
use bcache_engine::env::Env;
use bcache_engine::set::Device;
use bcache_engine::volume::Volume;
use uuid::Uuid;

use super::front::{self, Driver, Front};
use crate::dm::{self, Target};
use crate::expose::{self, Claim};

/// A device in service.
pub struct Exposed {
    /// Name below `/dev/mapper`.
    pub name: String,
    /// The device of the set.
    pub device: Rc<Device>,
    /// What serves it.
    pub front: Front,
    /// Keeps others away from the backing device.
    pub claim: Option<Claim>,
}

/// Takes back what a process that died had begun and not ended: a table that was loaded and is not in force, which keeps
/// its devices claimed, and requests that are held back.
///
/// # Errors
/// The kernel refuses.
pub fn tidy(uuid: Uuid) -> io::Result<bool> {
    let Some(device) = dm::find(&dm::uuid_of(uuid))? else { return Ok(false) };
    dm::clear(&device.name)?;
    if device.suspended && !dm::table(&device.name)?.is_empty() {
        dm::resume(&device.name)?;
    }
    Ok(true)
}

/// What is there already under a device's UUID.
enum Found {
    /// Nothing.
    Nothing,
    /// A device whose server died; it waits for us.
    Waiting { name: String, device: (Driver, u32) },
    /// A device that leads elsewhere: straight to the backing device.
    Elsewhere { name: String },
}

fn look(uuid: Uuid) -> Result<Found> {
    let Some(device) = dm::find(&dm::uuid_of(uuid))? else { return Ok(Found::Nothing) };
    let name = device.name;
    let table = dm::table(&name).with_context(|| name.clone())?;
    let below = table.first().and_then(Target::below).and_then(|(below, _)| expose::kernel_name(below));
    Ok(match below.as_deref().and_then(front::parse_name) {
        Some(device) => Found::Waiting { name, device },
        // A creation that was cut off left a device without a table.
        None if table.is_empty() => {
            dm::remove(&name)?;
            Found::Nothing
        }
        None => Found::Elsewhere { name },
    })
}

impl Exposed {
    /// Serves `volume`: under the name that it had if it was there before, else under a new one.
    ///
    /// # Errors
    /// The kernel refuses; nothing is left behind.
    pub async fn new(
        env: &Env,
        device: Rc<Device>,
        volume: Rc<dyn Volume>,
        (driver, depth): (Driver, u16),
        claim: Option<Claim>,
    ) -> Result<Exposed> {
        let uuid = device.uuid;
        let found = env.offload(move || look(uuid)).await?;
        let (name, front) = match found {
            Found::Waiting { name, device } => {
                let front = Front::recover(env, device, volume, uuid).await;
                let front = front.with_context(|| format!("taking over what is below {name}"))?;
                tracing::info!(name, "taken over from a process that ended");
                (name, front)
            }
            Found::Nothing => {
                let (front, table) = Exposed::front(env, driver, volume, uuid, depth).await?;
                let label = device.label.get().to_text();
                match env.offload(move || expose::create(&label, uuid, &table, || Ok(()))).await {
                    Ok(made) => (made.name, front),
                    Err(error) => return Err(undone(front, error).await),
                }
            }
            Found::Elsewhere { name } => {
                let (front, table) = Exposed::front(env, driver, volume, uuid, depth).await?;
                let (known, swapped) = (name.clone(), name.clone());
                match env.offload(move || dm::replace(&swapped, &table, || Ok(()))).await {
                    Ok(()) => (known, front),
                    Err(error) => return Err(undone(front, error.into()).await),
                }
            }
        };
        Ok(Exposed { name, device, front, claim })
    }

    async fn front(
        env: &Env,
        driver: Driver,
        volume: Rc<dyn Volume>,
        uuid: Uuid,
        depth: u16,
    ) -> Result<(Front, Vec<Target>)> {
        let sectors = volume.size_bytes() / 512;
        let front = Front::create(env, driver, volume, uuid, depth).await?;
        let name = front.kernel_name();
        match env.offload(move || expose::device_number(&name)).await {
            Ok(number) => Ok((front, vec![Target::linear(sectors, number, 0)])),
            Err(error) => Err(undone(front, error.into()).await),
        }
    }

    /// Takes name and device away.
    ///
    /// # Errors
    /// Somebody has it open (`EBUSY`): it stays as it is, and is given back.
    pub async fn remove(self, env: &Env) -> Result<(), (Box<Exposed>, io::Error)> {
        let name = self.name.clone();
        if let Err(error) = env.offload(move || dm::remove(&name)).await {
            return Err((Box::new(self), error));
        }
        if let Err(error) = self.front.remove().await {
            tracing::warn!(name = self.name, %error, "the block device below is left behind");
        }
        Ok(())
    }
}

async fn undone(front: Front, error: anyhow::Error) -> anyhow::Error {
    if let Err(second) = front.remove().await {
        tracing::warn!(error = %second, "a block device is left behind");
    }
    error
}
