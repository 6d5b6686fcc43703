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
use bcache_engine::request::DeviceVolume;
use bcache_engine::set::{CacheSet, Device, read_superblock};
use bcache_engine::settings::SetSettings;
use bcache_engine::volume::Volume;

use crate::in_use::{PATIENCE, PAUSE, loop_of};
use settings::Assignment;

/// What a set is started from.
pub struct Request<'a> {
    /// Cache and backing devices, in any order.
    pub devices: &'a [PathBuf],
    /// Settings to change before anything is served.
    pub settings: &'a [Assignment],
    /// Added to each read and write of the backing devices.
    pub backing_delay: Option<Duration>,
}

/// One device of the set, and the name it is served under.
pub struct Export {
    /// The name.
    pub name: String,
    /// The device.
    pub device: Rc<Device>,
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
        let Opened { cache, backings, counts } = Opened::new(env, &request).await?;
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

    async fn attach(&mut self, backings: Vec<Rc<dyn BlockDev>>, assignments: &[Assignment]) -> Result<()> {
        for backing in backings {
            let path = backing.name().to_owned();
            let device = self.set.attach(backing).await.map_err(told)?;
            let label = device.label.get().to_text();
            let file = Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned());
            self.export(if label.is_empty() { file.unwrap_or(path) } else { label }, device, assignments)?;
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
        self.exports.push(Export { name, device, volume: Rc::new(volume) });
        Ok(())
    }
}

/// Devices told apart.
struct Opened {
    cache: Rc<dyn BlockDev>,
    backings: Vec<Rc<dyn BlockDev>>,
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
                if cache.replace(device).is_some() {
                    bail!("{name}: a second cache device; a set has one");
                }
                continue;
            }
            backings.push(match request.backing_delay {
                // One head: what a disk with an arm does to two requests at once.
                Some(delay) => Rc::new(Delay::new(env, device, delay, 1)),
                None => device,
            });
        }
        let cache = cache.context("none of the devices named is a cache device")?;
        Ok(Opened { cache, backings, counts })
    }
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
