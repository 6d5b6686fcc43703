//! A cache set in service: opening its devices, its exports, its end.

pub mod read_only;
pub mod report;
pub mod settings;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bcache_engine::dev::{BlockDev, Counting, Counts, Delay, OpenMode, open};
use bcache_engine::env::Env;
use bcache_engine::request::{AloneVolume, DeviceVolume};
use bcache_engine::set::{CacheSet, Device, read_superblock};
use bcache_engine::settings::SetSettings;
use bcache_engine::volume::Volume;
use bcache_format::superblock::Superblock;
use uuid::Uuid;

use crate::in_use::{PATIENCE, PAUSE, loop_of};
use crate::kept::refuse_path_if_ahead;
use settings::Assignment;

/// What a set is started from.
pub struct Request<'a> {
    /// Cache and backing devices, in any order.
    pub devices: &'a [PathBuf],
    /// Whether backing devices that belong to no set, or to another, are attached.
    pub attach: bool,
    /// Settings to change before anything is served.
    pub settings: &'a [Assignment],
    /// Added to each read and write of the backing devices.
    pub backing_delay: Option<Duration>,
}

/// One device of the set, and the name it is served under.
pub struct Export {
    /// The name.
    pub name: String,
    /// The device; nothing if it is served without cache.
    pub device: Option<Rc<Device>>,
    /// The device as front ends see it.
    pub volume: Rc<dyn Volume>,
}

/// A running set and what it serves.
pub struct Service {
    /// The set.
    pub set: Rc<CacheSet>,
    /// Its devices and volumes.
    pub exports: Vec<Export>,
    /// What reached each block device, by the device's name.
    pub counts: Vec<(String, Rc<Cell<Counts>>)>,
}

impl Service {
    /// Opens the devices, starts the set, recovering what is left of an earlier run, and attaches the backing devices.
    ///
    /// # Errors
    /// A device is in use or is none of bcache's, there is not exactly one cache device, or the set cannot be
    /// trusted.
    pub async fn start(env: &Env, request: Request<'_>) -> Result<Service> {
        let Opened { cache, set, backings, counts } = Opened::new(env, &request).await?;
        let backings = sort_out(set, backings, request.attach)?;
        let settings = SetSettings::default();
        settings::apply_to_set(request.settings, &settings)?;
        let set = CacheSet::start(env.clone(), cache, settings).await.map_err(told)?;
        // The superblock had its say at the start; the command line has it last.
        settings::apply_to_set(request.settings, &set.settings)?;
        let mut service = Service { set, exports: Vec::new(), counts };
        match service.attach(backings, request.settings).await {
            Ok(()) => Ok(service),
            Err(error) => match service.set.stop().await {
                Ok(()) => Err(error),
                Err(stop) => Err(error.context(format!("and the set did not stop cleanly: {stop}"))),
            },
        }
    }

    async fn attach(&mut self, backings: Vec<Named>, assignments: &[Assignment]) -> Result<()> {
        for Named { device: backing, name, stranger } in backings {
            if stranger {
                let volume = AloneVolume::open(backing, false).await.map_err(told)?;
                let volume = Rc::new(volume.named(name.clone()));
                self.exports.push(Export { name, device: None, volume });
                continue;
            }
            let device = self.set.attach(backing).await.map_err(told)?;
            self.export(name, device, assignments)?;
        }
        for (number, device) in self.set.adopt_volumes().into_iter().enumerate() {
            self.export(format!("volume:{number}"), device, assignments)?;
        }
        if self.exports.is_empty() {
            bail!("no backing device was named, and the cache has no volume");
        }
        Ok(())
    }

    fn export(&mut self, name: String, device: Rc<Device>, assignments: &[Assignment]) -> Result<()> {
        settings::apply_to_device(assignments, &device.settings)?;
        let volume = DeviceVolume::new(Rc::clone(&self.set), Rc::clone(&device), name.clone());
        self.exports.push(Export { name, device: Some(device), volume: Rc::new(volume) });
        Ok(())
    }
}

/// Devices told apart.
struct Opened {
    cache: Rc<dyn BlockDev>,
    /// The cache's set.
    set: Uuid,
    /// Backing devices, with their superblocks.
    backings: Vec<(Rc<dyn BlockDev>, Superblock)>,
    counts: Vec<(String, Rc<Cell<Counts>>)>,
}

impl Opened {
    async fn new(env: &Env, request: &Request<'_>) -> Result<Opened> {
        let (mut cache, mut backings, mut counts) = (None, Vec::new(), Vec::new());
        for path in request.devices {
            let device = open_alone(env, path).await?;
            let (superblock, _) = read_superblock(&device).await.map_err(told)?;
            let counting = Counting::new(device);
            let name = path.display().to_string();
            counts.push((name.clone(), counting.counts()));
            let device: Rc<dyn BlockDev> = Rc::new(counting);
            if superblock.cache().is_some() {
                refuse_path_if_ahead(path)?;
                if cache.replace((device, superblock.set_uuid)).is_some() {
                    bail!("{name}: a second cache device; a set has one");
                }
                continue;
            }
            let device = match request.backing_delay {
                // One head: what a disk with an arm does to two requests at once.
                Some(delay) => Rc::new(Delay::new(env, device, delay, 1)),
                None => device,
            };
            backings.push((device, superblock));
        }
        let (cache, set) = cache.context("none of the devices named is a cache device")?;
        Ok(Opened { cache, set, backings, counts })
    }
}

/// What to say of a device whose backing device is too short for the dirty data that its cache has; nothing of any other.
#[must_use]
pub fn too_short(set: &CacheSet, device: &Device) -> Option<String> {
    shorter_by(set.missing_sectors(device), device.backing()?.dev.dev.name())
}

/// The same of a device that lacks so many sectors.
fn shorter_by(missing: u64, name: &str) -> Option<String> {
    (missing > 0).then(|| {
        format!(
            "{name}: {missing} sectors too short for its dirty data, which stays in the cache and cannot be read until the \
             device is as long again"
        )
    })
}

/// A backing device to serve.
struct Named {
    device: Rc<dyn BlockDev>,
    /// Its label, or the name of its file.
    name: String,
    /// It belongs to no set, or to another and is whole without it.
    stranger: bool,
}

/// Attaching writes to a device, and from then on it may need the cache: nothing for one of another set, or of none, that was
/// named by mistake. It is served without cache, unless `attach` says that it is meant.
fn sort_out(set: Uuid, backings: Vec<(Rc<dyn BlockDev>, Superblock)>, attach: bool) -> Result<Vec<Named>> {
    let mut named = Vec::new();
    for (device, superblock) in backings {
        let path = device.name().to_owned();
        let whole = superblock.state().is_whole();
        if superblock.set_uuid != set && !whole {
            bail!("{path}: attached to set {}, not to {set}", superblock.set_uuid);
        }
        let stranger = superblock.set_uuid != set && !attach;
        let label = superblock.label.to_text();
        let file = Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned());
        let name = if label.is_empty() { file.unwrap_or(path) } else { label };
        named.push(Named { device, name, stranger });
    }
    Ok(named)
}

/// The engine's errors stay on their thread; their words need not.
pub(crate) fn told(error: bcache_engine::Error) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

async fn open_alone(env: &Env, path: &Path) -> Result<Rc<dyn BlockDev>> {
    if let Some(device) = std::fs::metadata(path).ok().as_ref().and_then(loop_of) {
        bail!("{}: in use, {} shows it", path.display(), device.display());
    }
    let mut opened = open(env, path, OpenMode::READ_WRITE);
    let start = Instant::now();
    while matches!(&opened, Err(error) if error.errno == libc::EBUSY) && start.elapsed() < PATIENCE {
        env.sleep(PAUSE).await;
        opened = open(env, path, OpenMode::READ_WRITE);
    }
    opened.map_err(|error| match error.errno {
        libc::EBUSY => anyhow::anyhow!(
            "{}: in use; the kernel or another server may have it, or a file system on it is mounted",
            path.display()
        ),
        libc::ENOTBLK => anyhow::anyhow!("{}: neither a block device nor a file", path.display()),
        errno => {
            anyhow::Error::new(std::io::Error::from_raw_os_error(errno)).context(path.display().to_string())
        }
    })
}
