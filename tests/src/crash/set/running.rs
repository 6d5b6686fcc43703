//! A set that runs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bcache_engine::Error;
use bcache_engine::btree::Piece;
use bcache_engine::env::{Env, Rng};
use bcache_engine::request::{AloneVolume, DeviceVolume};
use bcache_engine::set::{CacheSet, Device};
use bcache_engine::sim::Disk;
use bcache_engine::volume::Volume;
use bcache_format::Sectors;
use bcache_format::superblock::CacheMode;
use bcache_format::uuid_entry::UuidEntry;
use uuid::Uuid;

use super::super::run::{Running, Volumes};
use super::CachedSet;

/// Slots of the uuid table are never used again, so devices do not come and go without end.
const MOVES: u32 = 3;

/// A started set, or one backing device of it alone.
pub struct RunningSet {
    set: Option<Rc<CacheSet>>,
    disks: Vec<Disk>,
    /// The devices, in the order of their disks, then the volume.
    devices: RefCell<Vec<Option<Rc<Device>>>>,
    volumes: RefCell<Volumes>,
    /// Modes do not change.
    fixed_mode: bool,
    moves: Cell<u32>,
    spoilt: bool,
}

fn text(error: Error) -> String {
    error.to_string()
}

fn settle(device: &Device, full: bool, rng: &mut Rng) {
    let settings = &device.settings;
    settings.writeback_delay.set([0, 0, 30][rng.below(3) as usize]);
    settings.writeback_percent.set([0, 10, 40][rng.below(3) as usize]);
    settings.sequential_cutoff.set(if full { 0 } else { [0, 4 << 20, 16 << 10][rng.below(3) as usize] });
    settings.writeback_running.set(rng.chance(7, 8));
}

impl RunningSet {
    pub(super) async fn start(
        shape: &CachedSet,
        env: &Env,
        disks: &[Disk],
        rng: &mut Rng,
    ) -> Result<RunningSet, String> {
        let count = disks.len() - 1 + usize::from(shape.volume.is_some());
        let mut running = RunningSet {
            set: None,
            disks: disks.to_vec(),
            devices: RefCell::new(vec![None; count]),
            volumes: RefCell::new(vec![None; count]),
            fixed_mode: shape.focus.mode.is_some(),
            moves: Cell::new(if shape.focus.moving || rng.chance(1, 6) { MOVES } else { 0 }),
            spoilt: shape.spoilt.get(),
        };
        if running.moves.get() > 0 && rng.chance(1, 4) {
            match AloneVolume::open(disks[1].dev(), false).await {
                Ok(volume) => {
                    running.volumes.borrow_mut()[0] = Some(Rc::new(volume));
                    return Ok(running);
                }
                // What is dirty is in the cache only.
                Err(Error::Refused(_)) => {}
                Err(error) => return Err(text(error)),
            }
        }
        let set = CacheSet::start(env.clone(), disks[0].dev(), shape.settings()).await.map_err(text)?;
        running.set = Some(Rc::clone(&set));
        for index in 1..disks.len() {
            running.attach(index - 1, shape.focus.full, rng).await?;
        }
        if let Some(sectors) = shape.volume {
            let device = match set.adopt_volumes().pop() {
                Some(device) => device,
                None => {
                    let entry = UuidEntry { sectors: Sectors(sectors), ..UuidEntry::EMPTY };
                    set.create_volume(Uuid::from_u128(0xf1a5), entry).await.map_err(text)?
                }
            };
            running.put(count - 1, &device);
        }
        Ok(running)
    }

    async fn attach(&self, index: usize, full: bool, rng: &mut Rng) -> Result<(), String> {
        let Some(set) = &self.set else { return Ok(()) };
        let device = set.attach(self.disks[index + 1].dev()).await.map_err(text)?;
        settle(&device, full, rng);
        self.put(index, &device);
        Ok(())
    }

    fn put(&self, index: usize, device: &Rc<Device>) {
        let Some(set) = &self.set else { return };
        let volume = DeviceVolume::new(Rc::clone(set), Rc::clone(device), format!("volume{index}"));
        self.volumes.borrow_mut()[index] = Some(Rc::new(volume) as Rc<dyn Volume>);
        self.devices.borrow_mut()[index] = Some(Rc::clone(device));
    }

    fn any_device(&self, rng: &mut Rng) -> Option<Rc<Device>> {
        let devices = self.devices.borrow();
        devices[rng.below(devices.len() as u64) as usize].clone()
    }

    /// Every clean copy is what the backing device has.
    async fn compare(&self, set: &Rc<CacheSet>) -> Result<(), String> {
        let devices = self.devices.borrow().clone();
        for (device, disk) in devices.iter().zip(&self.disks[1..]) {
            let Some(device) = device.as_ref().filter(|device| device.backing().is_some()) else { continue };
            let Some(inode) = device.inode.get() else { continue };
            let first = device.first_sector();
            let pieces = set.pieces(inode, first, first + device.bytes() / 512).await.map_err(text)?;
            let (cache, below) = (self.disks[0].snapshot(), disk.snapshot());
            let (mut ours, mut theirs) = ([0; 512], [0; 512]);
            for piece in pieces {
                let Piece::Cached(extent) = piece else { continue };
                for i in (0..extent.size()).filter(|_| !extent.dirty()) {
                    cache.read((extent.ptr().offset() + i) * 512, &mut ours);
                    below.read((extent.start() + i) * 512, &mut theirs);
                    if ours != theirs {
                        let sector = extent.start() + i - first;
                        return Err(format!(
                            "sector {sector} of {} is clean in the cache, but below is something else: \
                             {} for {}; {extent:?}",
                            disk.dev().name(),
                            told(&ours),
                            told(&theirs)
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Which write a sector's content is of.
fn told(sector: &[u8; 512]) -> String {
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| sector[at + i]));
    if sector.iter().all(|byte| *byte == 0) {
        "zeroes".to_owned()
    } else {
        format!("write {} of sector {}", number(16), number(8))
    }
}

impl RunningSet {
    async fn audit(set: &Rc<CacheSet>) -> Result<(), String> {
        let wrong = set.audit().await.map_err(text)?;
        if wrong.is_empty() { Ok(()) } else { Err(format!("audit: {}", wrong.join("; "))) }
    }
}

impl Running for RunningSet {
    fn volumes(&self) -> Volumes {
        self.volumes.borrow().clone()
    }

    async fn check(&self) -> Result<(), String> {
        let Some(set) = &self.set else { return Ok(()) };
        match set.failure() {
            Some(_) if self.spoilt => return Ok(()),
            Some(failure) => return Err(format!("the set failed: {failure}")),
            None => {}
        }
        match Self::audit(set).await.and(self.compare(set).await) {
            // A node that cannot be read ends the set.
            Err(_) if self.spoilt && set.failure().is_some() => Ok(()),
            result => result,
        }
    }

    async fn disturb(&self, env: &Env, rng: &mut Rng) -> Result<(), String> {
        if let Some(set) = &self.set {
            match rng.below(16) {
                0 if set.failure().is_none() => match Self::audit(set).await {
                    Err(_) if set.failure().is_some() && self.spoilt => {}
                    result => result?,
                },
                1 | 2 => set.trigger_gc(),
                3 => set.settings.copy_gc_enabled.set(rng.chance(1, 2)),
                4 => set.settings.gc_always_rewrite.set(rng.chance(1, 4)),
                5 => {
                    if let Some(device) = self.any_device(rng) {
                        settle(&device, false, rng);
                    }
                }
                6 if !self.fixed_mode => {
                    if let Some(device) = self.any_device(rng) {
                        device.settings.cache_mode.set(CacheMode::ALL[rng.below(4) as usize]);
                    }
                }
                7 if self.moves.get() > 0 => {
                    let device = self.any_device(rng).filter(|device| device.backing().is_some());
                    if let Some(device) = device.filter(|device| device.inode.get().is_some()) {
                        self.moves.set(self.moves.get() - 1);
                        match set.detach(&device).await {
                            Err(_) if self.spoilt => {}
                            result => result.map_err(|error| format!("detach: {error}"))?,
                        }
                    }
                }
                // Long enough for leaves and rates that have their own pace.
                8 => env.sleep(Duration::from_secs(rng.below(40))).await,
                _ => {}
            }
        }
        env.sleep(Duration::from_nanos(1 << rng.between(10, 26))).await;
        Ok(())
    }

    async fn between(&self, rng: &mut Rng) -> Result<(), String> {
        for index in 0..self.disks.len() - 1 {
            let device = self.devices.borrow()[index].clone();
            let detached = device.is_some_and(|device| device.inode.get().is_none());
            if detached && rng.chance(2, 3) {
                self.attach(index, false, rng).await?;
            }
        }
        Ok(())
    }

    async fn stop(&self) -> Result<bool, String> {
        // What is not attached is nobody's to flush but its client's.
        let attached = |index: usize| {
            self.devices.borrow()[index].as_ref().is_some_and(|device| device.inode.get().is_some())
        };
        let volumes = self.volumes();
        let alone = volumes.iter().enumerate().filter(|(index, _)| !attached(*index));
        for volume in alone.filter_map(|(_, volume)| volume.as_ref()) {
            volume.flush().await.map_err(|error| error.to_string())?;
        }
        let Some(set) = &self.set else { return Ok(false) };
        let failed = set.failure().is_some();
        let writes = || self.disks[0].stats().writes;
        let before = writes();
        let stopped = set.stop().await.map_err(text);
        if failed && writes() != before {
            // Not to be taken for one of the failures that spoilt disks excuse.
            panic!("a set that has failed wrote to its cache when it was stopped");
        }
        stopped?;
        Self::audit(set).await.map(|()| true)
    }
}
