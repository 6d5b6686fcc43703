//! A device of the set as users see it: a name in `/dev/mapper`, below it a block device of ublk or NBD, below that the engine.

use bcache_format::SECTOR_SIZE;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bcache_engine::env::Env;
use bcache_engine::request::AloneVolume;
use bcache_engine::set::Device;
use bcache_engine::volume::Volume;
use uuid::Uuid;

use super::front::Front;
use super::switch::{Shape, Switch};
use crate::dm::{self, Target};
use crate::expose::{self, Claim};
use crate::frontend::Driver;
use crate::hold;

/// Between two tries to let requests go on that a process held back.
const AGAIN: Duration = Duration::from_secs(5);

/// A device in service.
pub(super) struct Export {
    /// Name below `/dev/mapper`.
    pub name: String,
    /// The device of the set.
    pub device: Rc<Device>,
    /// What serves it.
    pub front: Front,
    /// What the front end serves.
    pub switch: Rc<Switch>,
    /// Keeps others away from the backing device.
    pub claim: Option<Claim>,
}

/// A device that a process left behind, taken over before anything is known of its parts.
pub(super) struct Kept {
    /// Name below `/dev/mapper`.
    pub name: String,
    /// What serves it.
    pub front: Front,
    /// What the front end serves: nothing yet, or `alone`.
    pub switch: Rc<Switch>,
    /// Keeps others away from the backing device, once it answers.
    pub claim: Option<Claim>,
    /// The backing device, if it answers without its cache.
    pub alone: Option<Alone>,
    /// Somebody sees to it that the name leads straight to the backing device.
    pub leaves: bool,
    /// Why it does not yet.
    pub why: String,
}

/// A backing device that answers requests which reach a front end.
pub(super) struct Alone {
    /// It.
    pub volume: Rc<AloneVolume>,
    /// The number of its block device.
    pub number: (u64, u64),
}

/// Takes over the block device below the name of `uuid`, if there is one that a process left behind, and lets requests go
/// on that a process held back. Those that arrive wait for `patience`, and then fail.
///
/// # Errors
/// The kernel refuses.
pub(super) async fn take_over(env: &Env, uuid: Uuid, patience: Duration) -> Result<Option<Kept>> {
    let found = env.offload(move || look(uuid)).await.context("device-mapper")?;
    let kept = match found {
        FrontFound::Waiting { name, device, shape } => {
            let switch = Switch::waiting(env, uuid, shape, patience);
            let volume = Rc::clone(&switch) as Rc<dyn Volume>;
            let front = Front::recover(env, device, volume, uuid).await;
            let front = front.with_context(|| format!("taking over what is below {name}"))?;
            tracing::info!(name, "taken over from a process that ended");
            Some(Kept { name, front, switch, claim: None, alone: None, leaves: false, why: String::new() })
        }
        FrontFound::Nothing | FrontFound::Elsewhere { .. } => None,
    };
    // What is taken over is kept whatever comes of this.
    if let Err(error) = env.offload(move || tidy(uuid)).await {
        tracing::error!(device = %uuid, "what its process left behind: {error}; tried again");
        let again = env.clone();
        env.spawn(async move {
            while again.offload(move || tidy(uuid)).await.is_err() {
                again.sleep(AGAIN).await;
            }
        })
        .detach();
    }
    Ok(kept)
}

/// Takes back what a process that died had begun and not ended. Whether the device is there.
///
/// # Errors
/// The kernel refuses.
pub(super) fn tidy(uuid: Uuid) -> io::Result<bool> {
    let Some(device) = dm::find(&dm::uuid_of(uuid))? else { return Ok(false) };
    if hold::settle(&device, uuid)? {
        tracing::warn!(name = device.name, "suspended by somebody else; dmsetup resume lets it go on");
    }
    Ok(true)
}

/// What is there already under a device's UUID.
enum FrontFound {
    /// Nothing.
    Nothing,
    /// A device whose server died; it waits for us.
    Waiting { name: String, device: (Driver, u32), shape: Shape },
    /// A device that leads elsewhere: straight to the backing device.
    Elsewhere { name: String },
}

fn look(uuid: Uuid) -> Result<FrontFound> {
    let Some(device) = dm::find(&dm::uuid_of(uuid))? else { return Ok(FrontFound::Nothing) };
    let name = device.name;
    let table = dm::table(&name).with_context(|| name.clone())?;
    if let Some((driver, id, offset)) = expose::front_end(&name, uuid)? {
        let bytes = table.first().map_or(0, |target| target.sectors) * SECTOR_SIZE;
        let shape = Shape { bytes, block: expose::block_size(driver, id)?, lead: offset * SECTOR_SIZE };
        return Ok(FrontFound::Waiting { name, device: (driver, id), shape });
    }
    // A creation that was cut off left a device without a table.
    if table.is_empty() {
        dm::remove(&name)?;
        return Ok(FrontFound::Nothing);
    }
    Ok(FrontFound::Elsewhere { name })
}

impl Export {
    /// Serves `volume`: under the name that it had if it was there before, else under a new one.
    ///
    /// # Errors
    /// The kernel refuses; nothing is left behind.
    pub(super) async fn new(
        env: &Env,
        device: Rc<Device>,
        volume: Rc<dyn Volume>,
        (driver, depth): (Driver, u16),
        claim: Option<Claim>,
    ) -> Result<Export> {
        let uuid = device.uuid;
        // One that could not be taken over at the start of this process may be able to now.
        let found = env.offload(move || look(uuid)).await?;
        let block = volume.block_size();
        let switch = Switch::of(env, volume);
        let below = Rc::clone(&switch) as Rc<dyn Volume>;
        let optimal = Export::optimal(env, &device).await;
        let front = Front::create(env, driver, below, uuid, depth, optimal).await?;
        let (front, table) = Export::table(env, front, switch.shape()).await?;
        let label = device.label.get().to_text();
        let named = env.offload(move || match found {
            FrontFound::Elsewhere { name } => {
                let mut unused = None;
                let check = || {
                    unused = expose::keep_unused(uuid, block)?;
                    Ok(())
                };
                hold::swap(&name, uuid, &table, check).with_context(|| format!("/dev/mapper/{name}"))?;
                drop(unused);
                Ok(name)
            }
            FrontFound::Nothing => Ok(expose::create(&label, uuid, &table, || Ok(()))?.name),
            FrontFound::Waiting { name, .. } => bail!("/dev/mapper/{name}: made by somebody else meanwhile"),
        });
        match named.await {
            Ok(name) => Ok(Export { name, device, front, switch, claim }),
            Err(error) => Err(undone(front, error).await),
        }
    }

    /// Lets `volume` answer what a process left behind.
    pub(super) fn of(kept: Kept, device: Rc<Device>, volume: Rc<dyn Volume>, claim: Option<Claim>) -> Export {
        let Kept { name, front, switch, .. } = kept;
        switch.put(volume);
        Export { name, device, front, switch, claim }
    }

    /// A front end that can take the place of the one that a name leads to, and the table that leads to it.
    ///
    /// # Errors
    /// The kernel refuses; nothing is left behind.
    pub(super) async fn another_front(
        env: &Env,
        (driver, depth): (Driver, u16),
        switch: &Rc<Switch>,
        device: &Device,
    ) -> Result<(Front, Vec<Target>)> {
        let below = Rc::clone(switch) as Rc<dyn Volume>;
        let optimal = Export::optimal(env, device).await;
        let front = Front::another(env, driver, below, device.uuid, depth, optimal).await?;
        Export::table(env, front, switch.shape()).await
    }

    /// Bytes of the requests that the disk below likes best.
    async fn optimal(env: &Env, device: &Device) -> u64 {
        let below = device.backing().map(|backing| backing.dev.dev.name().to_owned());
        match below {
            Some(path) => env.offload(move || expose::optimal_io(Path::new(&path))).await,
            None => 0,
        }
    }

    /// The table that leads to a front end.
    async fn table(env: &Env, front: Front, shape: Shape) -> Result<(Front, Vec<Target>)> {
        let Shape { bytes, lead, .. } = shape;
        let name = front.kernel_name();
        match env.offload(move || expose::device_number(&name)).await {
            Ok(number) => Ok((front, vec![Target::linear(bytes / SECTOR_SIZE, number, lead / SECTOR_SIZE)])),
            Err(error) => Err(undone(front, error.into()).await),
        }
    }

    /// Takes name and device away.
    ///
    /// # Errors
    /// Somebody has it open (`EBUSY`): it stays as it is, and is given back.
    pub(super) async fn remove(self, env: &Env) -> Result<(), (Box<Export>, io::Error)> {
        let (name, uuid) = (self.name.clone(), self.device.uuid);
        let removed = env.offload(move || {
            if let Some(device) = dm::find(&dm::uuid_of(uuid))? {
                if dm::is_in_use(&device)? {
                    return Err(io::Error::from_raw_os_error(libc::EBUSY));
                }
                dm::remove_partitions(&device.uuid)?;
            }
            dm::remove(&name)
        });
        if let Err(error) = removed.await {
            return Err((Box::new(self), error));
        }
        if let Err(error) = self.front.remove().await {
            tracing::warn!(name = self.name, %error, "the block device below is left behind");
        }
        Ok(())
    }
}

pub(super) async fn undone(front: Front, error: anyhow::Error) -> anyhow::Error {
    if let Err(second) = front.remove().await {
        tracing::warn!(error = %second, "a block device is left behind");
    }
    error
}
