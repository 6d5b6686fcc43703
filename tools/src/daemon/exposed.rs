//! A device of the set as users see it: a name in `/dev/mapper`, below it a ublk device, below that the engine.

use std::io;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use bcache_engine::env::Env;
use bcache_engine::set::Device;
use bcache_engine::ublk::State;
use bcache_engine::volume::Volume;
use uuid::Uuid;

use crate::dm::{self, Target};
use crate::expose::{self, Claim};
use crate::frontend::ublk;

/// A device in service.
pub struct Exposed {
    /// Name below `/dev/mapper`.
    pub name: String,
    /// The device of the set.
    pub device: Rc<Device>,
    /// What serves it.
    pub front: ublk::Device,
    /// Keeps others away from the backing device.
    pub claim: Option<Claim>,
}

/// What is there already under a device's UUID.
enum Found {
    /// Nothing.
    Nothing,
    /// A device whose server died; it waits for us.
    Waiting { name: String, ublk: u32 },
    /// A device that leads elsewhere: straight to the backing device.
    Elsewhere { name: String },
}

/// A number that leads from a ublk device back to the volume it was made for.
fn mark(uuid: Uuid) -> u64 {
    uuid.as_u64_pair().0
}

fn look(uuid: Uuid) -> Result<Found> {
    let Some(device) = dm::find(&dm::uuid_of(uuid))? else { return Ok(Found::Nothing) };
    let name = device.name;
    let table = dm::table(&name).with_context(|| name.clone())?;
    let below = table.first().and_then(Target::below).and_then(|(below, _)| expose::kernel_name(below));
    let ublk = below.as_deref().and_then(|below| below.strip_prefix("ublkb")).and_then(|id| id.parse().ok());
    Ok(match ublk {
        Some(ublk) => Found::Waiting { name, ublk },
        // A creation that was cut off left a device without a table.
        None if table.is_empty() => {
            dm::remove(&name)?;
            Found::Nothing
        }
        None => Found::Elsewhere { name },
    })
}

/// Deletes ublk devices of this volume that nothing leads to: left by a process that was killed before it had made the
/// name, or after it had removed it.
fn clean_up(mark: u64) -> Result<()> {
    for info in ublk::devices()? {
        if info.mark != mark {
            continue;
        }
        match info.state {
            State::Live if Path::new(&format!("/proc/{}", info.pid)).exists() => {
                bail!("process {} serves this device as /dev/ublkb{}", info.pid, info.id);
            }
            _ => {
                tracing::info!(id = info.id, "a ublk device that was left behind is deleted");
                ublk::delete(info.id).with_context(|| format!("ublk device {}", info.id))?;
            }
        }
    }
    Ok(())
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
        depth: u16,
        claim: Option<Claim>,
    ) -> Result<Exposed> {
        let uuid = device.uuid;
        let found = env.offload(move || look(uuid)).await?;
        let (name, front) = match found {
            Found::Waiting { name, ublk } => {
                let front = ublk::Device::recover(env, volume, ublk).await;
                let front = front.with_context(|| format!("taking over /dev/ublkb{ublk} below {name}"))?;
                tracing::info!(name, "taken over from a process that ended");
                (name, front)
            }
            Found::Nothing => {
                env.offload(move || clean_up(mark(uuid))).await?;
                let (front, table) = Exposed::front(env, volume, uuid, depth).await?;
                let label = device.label.to_text();
                match env.offload(move || expose::create(&label, uuid, &table)).await {
                    Ok(made) => (made.name, front),
                    Err(error) => return Err(undone(front, error).await),
                }
            }
            Found::Elsewhere { name } => {
                env.offload(move || clean_up(mark(uuid))).await?;
                let (front, table) = Exposed::front(env, volume, uuid, depth).await?;
                let (known, swapped) = (name.clone(), name.clone());
                match env.offload(move || dm::replace(&swapped, &table)).await {
                    Ok(()) => (known, front),
                    Err(error) => return Err(undone(front, error.into()).await),
                }
            }
        };
        Ok(Exposed { name, device, front, claim })
    }

    async fn front(
        env: &Env,
        volume: Rc<dyn Volume>,
        uuid: Uuid,
        depth: u16,
    ) -> Result<(ublk::Device, Vec<Target>)> {
        let sectors = volume.size_bytes() / 512;
        let front = ublk::Device::create(env, volume, depth, mark(uuid)).await.context("ublk")?;
        let id = front.id();
        match env.offload(move || expose::device_number(&format!("ublkb{id}"))).await {
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
            tracing::warn!(name = self.name, %error, "the ublk device is left behind");
        }
        Ok(())
    }
}

async fn undone(front: ublk::Device, error: anyhow::Error) -> anyhow::Error {
    if let Err(second) = front.remove().await {
        tracing::warn!(error = %second, "a ublk device is left behind");
    }
    error
}
