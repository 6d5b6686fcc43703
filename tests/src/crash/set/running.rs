//! A set that runs.

use bcache_format::{SECTOR_SIZE, Span};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bcache_engine::Error;
use bcache_engine::btree::Piece;
use bcache_engine::env::{Env, Rng};
use bcache_engine::journal::TailPlace;
use bcache_engine::request::{AloneVolume, DeviceVolume};
use bcache_engine::set::{CacheSet, Device};
use bcache_engine::sim::Disk;
use bcache_engine::volume::Volume;
use bcache_format::Sectors;
use bcache_format::superblock::CacheMode;
use bcache_format::uuid_entry::UuidEntry;
use uuid::Uuid;

use super::super::kept::Kept;
use super::super::load::{NO_SPACE, ends, trace};
use super::super::run::{Running, Volumes};
use super::switch::Switch;
use super::{CachedSet, VOLUME_UUID};

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
    wild: bool,
    /// In wild runs, what volumes are behind, in their order.
    switches: RefCell<Vec<Option<Rc<Switch>>>>,
    /// Devices come or go just now: one at a time, as in the daemon.
    changing: Cell<bool>,
    stopping: Cell<bool>,
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
        kept: &Rc<Kept>,
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
            wild: shape.focus.wild,
            switches: RefCell::new(vec![None; count]),
            changing: Cell::new(false),
            stopping: Cell::new(false),
        };
        if running.moves.get() > 0 && rng.chance(1, 4) && kept.is_empty() {
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
        let (cache, settings) = (disks[0].dev(), shape.settings());
        let set = if shape.keeps() {
            let place = TailPlace { store: Rc::clone(kept) as _, boot: kept.boot(), slots: kept.slots() };
            CacheSet::start_outliving(env.clone(), cache, settings, place).await
        } else {
            CacheSet::start(env.clone(), cache, settings).await
        };
        let set = set.map_err(text)?;
        running.set = Some(Rc::clone(&set));
        if shape.outlive {
            set.outlive();
        }
        for index in 1..disks.len() {
            running.attach(index - 1, shape.focus.full, rng).await?;
        }
        if let Some(sectors) = shape.volume {
            let ours = VOLUME_UUID;
            let device = match set.adopt_volumes().into_iter().find(|device| device.uuid == ours) {
                Some(device) => device,
                None => {
                    let entry = UuidEntry { sectors: Sectors(sectors), ..UuidEntry::EMPTY };
                    set.create_volume(VOLUME_UUID, entry).await.map_err(text)?
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
        let mut volume = Rc::new(volume) as Rc<dyn Volume>;
        if self.wild {
            let switch = Rc::new(Switch::new(volume));
            self.switches.borrow_mut()[index] = Some(Rc::clone(&switch));
            volume = switch;
        }
        self.volumes.borrow_mut()[index] = Some(volume);
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
            let pieces = set.pieces(Span::new(inode, first, device.end_sector())).await.map_err(text)?;
            let (cache, below) = (self.disks[0].snapshot(), disk.snapshot());
            let (mut ours, mut theirs) = ([0; 512], [0; 512]);
            for piece in pieces {
                let Piece::Cached(extent) = piece else { continue };
                for i in (0..extent.size().0).filter(|_| !extent.dirty()) {
                    cache.read(extent.place() + i * SECTOR_SIZE, &mut ours);
                    below.read(extent.start().byte() + i * SECTOR_SIZE, &mut theirs);
                    if ours != theirs {
                        let sector = (extent.start() - first).0 + i;
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

/// How a change of a device is refused that was attached again meanwhile.
const ATTACHED_AGAIN: &str = "it was attached again meanwhile";

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
    /// An error is excused where disks are spoilt.
    fn excuse<T>(&self, what: &str, result: Result<T, Error>) -> Result<(), String> {
        match result {
            Ok(_) => Ok(()),
            Err(_) if self.spoilt || self.stopping.get() => Ok(()),
            // Who has the device now is to be asked.
            Err(error) if error.to_string().contains(ATTACHED_AGAIN) => Ok(()),
            Err(error) => Err(format!("{what}: {error}")),
        }
    }

    async fn disturb_wildly(&self, set: &Rc<CacheSet>, env: &Env, rng: &mut Rng) -> Result<(), String> {
        let what = rng.below(28);
        trace(|| {
            format!(
                "-- disturbance {what}: free {}, in use {}, prio blocks {}, gc {}, journal {}..{}, failed {}",
                set.alloc.free_count(),
                set.alloc.in_use_percent(),
                set.alloc.prio_blocks(),
                set.collects_garbage(),
                set.journal.last_seq(),
                set.journal.durable_seq(),
                set.failure().is_some(),
            )
        });
        match what {
            0 if set.failure().is_none() && !self.stopping.get() => match Self::audit(set).await {
                Err(_) if self.stopping.get() => {}
                // A node that cannot be read just now.
                Err(what) if self.spoilt && !what.starts_with("audit:") => {}
                Err(_) if set.failure().is_some() && self.spoilt => {}
                result => result?,
            },
            1 => set.trigger_gc(),
            2 => {
                let pass = set.set_attribute("trigger_gc", "1");
                let ended = ends(env, "a pass of GC", pass).await?;
                self.excuse("trigger_gc", ended)?;
            }
            3 => set.settings.copy_gc_enabled.set(rng.chance(1, 2)),
            4 => set.settings.gc_always_rewrite.set(rng.chance(1, 4)),
            5 | 6 => {
                if let Some(device) = self.any_device(rng) {
                    settle(&device, false, rng);
                    device.settings.bypass_torture_test.set(rng.chance(1, 3));
                    device.settings.writeback_rate_minimum.set([1, 8, 100_000][rng.below(3) as usize]);
                }
            }
            7 | 8 if !self.fixed_mode => {
                if let Some(device) = self.any_device(rng) {
                    let mode = CacheMode::ALL[rng.below(4) as usize];
                    if rng.chance(1, 2) {
                        device.settings.cache_mode.set(mode);
                    } else {
                        let set_mode = set.set_device_attribute(&device, "cache_mode", mode.name()).await;
                        self.excuse("cache_mode", set_mode)?;
                    }
                }
            }
            9 | 10 => {
                self.excuse("prune_cache", set.set_attribute("prune_cache", "1").await)?;
            }
            11 => {
                let bytes = ["1", "16k", "64k", "1G"][rng.below(4) as usize];
                self.excuse("btree_cache_bytes", set.set_attribute("btree_cache_bytes", bytes).await)?;
            }
            12 => {
                if let Some(device) = self.any_device(rng) {
                    let label = format!("label{}", rng.below(100));
                    self.excuse("label", set.set_device_attribute(&device, "label", &label).await)?;
                }
            }
            13 => {
                let policy = ["lru", "fifo", "random"][rng.below(3) as usize];
                set.settings.assign("cache_replacement_policy", policy).map_err(|error| error.to_string())?;
            }
            14 => set.settings.discard.set(rng.chance(1, 2)),
            15 => set.settings.cutoff_writeback_sync.set([0, 5, 20, 70, 90][rng.below(5) as usize]),
            16 => {
                let micros = [0, 100, 2000][rng.below(3) as usize];
                set.settings.congested_read_threshold_us.set(micros);
                set.settings.congested_write_threshold_us.set(micros * 10);
            }
            17 if self.moves.get() > 0 => self.detach_wildly(set, rng).await?,
            18..=20 => self.attach_wildly(set, rng).await?,
            21 if self.moves.get() > 0 => self.volume_wildly(set, rng).await?,
            22 | 23 if self.spoilt => {
                set.settings.io_error_limit.set([1, 2, 8][rng.below(3) as usize]);
                self.spoil_wildly(rng);
            }
            24 if self.spoilt => {
                let disk = &self.disks[rng.below(self.disks.len() as u64) as usize];
                disk.heal();
                let _ = set.set_attribute("clear_stats", "1").await;
                for device in set.devices() {
                    let _ = set.set_device_attribute(&device, "clear_stats", "1").await;
                }
            }
            // Long enough for leaves and rates that have their own pace.
            25 => env.sleep(Duration::from_secs(rng.below(40))).await,
            _ => {}
        }
        Ok(())
    }

    /// Errors at this moment, on any disk.
    fn spoil_wildly(&self, rng: &mut Rng) {
        use bcache_engine::sim::{Fault, FaultOn};
        let disk = &self.disks[rng.below(self.disks.len() as u64) as usize];
        let on = [FaultOn::Read, FaultOn::Write, FaultOn::Flush, FaultOn::Any][rng.below(4) as usize];
        let fault = match rng.below(4) {
            // Superblocks.
            0 => Fault::eio(FaultOn::Write, 4096..8192),
            1 => Fault::slow(on, 0..u64::MAX, Duration::from_millis(rng.below(500))),
            _ => Fault::eio(on, 0..u64::MAX),
        };
        let fault = fault.times(rng.between(1, 2) as u32);
        trace(|| format!("-- {}: {fault:?}", disk.dev().name()));
        disk.inject(fault);
    }

    async fn detach_wildly(&self, set: &Rc<CacheSet>, rng: &mut Rng) -> Result<(), String> {
        if self.changing.replace(true) {
            return Ok(());
        }
        let index = rng.below(self.disks.len() as u64 - 1) as usize;
        let device = self.devices.borrow()[index].clone().filter(|device| device.inode.get().is_some());
        let switch = self.switches.borrow()[index].clone();
        if let (Some(device), Some(switch)) = (device, switch) {
            self.moves.set(self.moves.get() - 1);
            // As the daemon does it, or with requests under way to the end.
            let quiet = rng.chance(1, 2);
            let mut result = Ok(());
            if quiet {
                result = set.drain(&device).await;
                switch.suspend().await;
            }
            let result = match result {
                Ok(()) => set.detach(&device).await,
                error => error,
            };
            if result.is_err() {
                set.resume_caching(&device);
            }
            trace(|| {
                format!(
                    "-- detach of {index}, quiet {quiet}: {:?}",
                    result.as_ref().err().map(ToString::to_string)
                )
            });
            switch.resume(None);
            self.changing.set(false);
            return self.excuse("detach", result);
        }
        self.changing.set(false);
        Ok(())
    }

    async fn attach_wildly(&self, set: &Rc<CacheSet>, rng: &mut Rng) -> Result<(), String> {
        if self.changing.replace(true) {
            return Ok(());
        }
        let index = rng.below(self.disks.len() as u64 - 1) as usize;
        // A flush that failed, and that no client has heard of, is forgotten with what counts them.
        let forgets =
            |device: &Rc<Device>| device.backing().is_some_and(|backing| backing.dev.failures() > 0);
        let detached = self.devices.borrow()[index]
            .clone()
            .is_some_and(|device| device.inode.get().is_none() && !forgets(&device));
        let switch = self.switches.borrow()[index].clone();
        let mut result = Ok(());
        if let (true, Some(switch)) = (detached, switch) {
            // A flush of ours that fails would be told to no client.
            self.disks[index + 1].heal();
            // Requests go straight to the backing device until the table is changed.
            match set.attach(self.disks[index + 1].dev()).await {
                Ok(device) => {
                    settle(&device, false, rng);
                    switch.suspend().await;
                    let volume =
                        DeviceVolume::new(Rc::clone(set), Rc::clone(&device), format!("volume{index}"));
                    trace(|| format!("-- attached {index} as {:?}", device.inode.get()));
                    let old = self.devices.borrow_mut()[index].replace(device);
                    if old.is_some_and(|old| forgets(&old)) {
                        switch.doom();
                    }
                    switch.resume(Some(Rc::new(volume)));
                }
                Err(error) => result = Err(error),
            }
        }
        self.changing.set(false);
        self.excuse("attach", result)
    }

    /// A volume that comes, is written and goes.
    async fn volume_wildly(&self, set: &Rc<CacheSet>, rng: &mut Rng) -> Result<(), String> {
        if self.changing.replace(true) {
            return Ok(());
        }
        self.moves.set(self.moves.get() - 1);
        let entry = UuidEntry { sectors: Sectors(64), ..UuidEntry::EMPTY };
        let uuid = Uuid::from_u128(u128::from(rng.bits()) | 1);
        let result = async {
            let device = set.create_volume(uuid, entry).await?;
            let volume = DeviceVolume::new(Rc::clone(set), Rc::clone(&device), "passing".to_owned());
            for i in 0..rng.below(8) {
                let data = bcache_engine::dev::Buf::zeroed(4096).freeze();
                match volume.write(i * 4096, data, false).await.map_err(|error| error.to_string()) {
                    // Other volumes may have taken it all.
                    Err(error) if error.contains(NO_SPACE) => break,
                    result => result.map_err(Error::refused)?,
                }
            }
            set.remove_volume(&device).await
        }
        .await;
        self.changing.set(false);
        self.excuse("volume", result)
    }

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
            Err(what) if self.spoilt && self.wild && what.contains("errno") | what.contains("os error") => {
                Ok(())
            }
            result => result,
        }
    }

    async fn tell(&self) {
        let Some(set) = &self.set else { return };
        let devices = self.devices.borrow().clone();
        for (index, device) in devices.iter().enumerate() {
            let Some(device) = device else { continue };
            let Some(inode) = device.inode.get() else {
                trace(|| format!("device {index}: detached"));
                continue;
            };
            let first = device.first_sector();
            let pieces = set.pieces(Span::new(inode, first, device.end_sector())).await;
            trace(|| {
                format!(
                    "device {index}, inode {inode}, first sector {first}: {:?} {:?}",
                    device.settings.cache_mode.get(),
                    set.failure()
                )
            });
            for piece in pieces.into_iter().flatten() {
                trace(|| format!("  {piece:?}"));
            }
        }
    }

    async fn disturb(&self, env: &Env, rng: &mut Rng) -> Result<(), String> {
        if let Some(set) = self.set.as_ref().filter(|_| self.wild) {
            self.disturb_wildly(set, env, rng).await?;
        } else if let Some(set) = &self.set {
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
            let forgets =
                |device: &Rc<Device>| device.backing().is_some_and(|backing| backing.dev.failures() > 0);
            let detached =
                device.is_some_and(|device| device.inode.get().is_none() && !(self.wild && forgets(&device)));
            if self.wild && detached {
                self.disks[index + 1].heal();
            }
            if detached && rng.chance(2, 3) {
                self.attach(index, false, rng).await?;
            }
        }
        Ok(())
    }

    async fn settle(&self) -> Result<(), String> {
        let attached = |index: usize| {
            self.devices.borrow()[index].as_ref().is_some_and(|device| device.inode.get().is_some())
        };
        for (index, volume) in self.volumes().iter().enumerate() {
            if let Some(volume) = volume.as_ref().filter(|_| !attached(index)) {
                volume.flush().await.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    fn left_behind(&self) -> Vec<String> {
        self.set.as_ref().map(|set| set.left_behind()).unwrap_or_default()
    }

    async fn stop(&self) -> Result<bool, String> {
        self.stopping.set(true);
        if let Some(set) = self.set.as_ref().filter(|_| self.wild) {
            // As in the daemon, nobody comes or goes meanwhile.
            while self.changing.replace(true) {
                set.env.sleep(Duration::from_millis(1)).await;
            }
        }
        // What is not attached is nobody's to flush but its client's.
        let attached = |index: usize| {
            self.devices.borrow()[index].as_ref().is_some_and(|device| device.inode.get().is_some())
        };
        let volumes = self.volumes();
        let alone = volumes.iter().enumerate().filter(|(index, _)| !attached(*index));
        let mut flushed = Ok(());
        for (index, volume) in alone.filter_map(|(index, volume)| Some((index, volume.as_ref()?))) {
            let told = volume.flush().await.map_err(|error| error.to_string());
            // This is no client, and its clients go on: they are to hear of a failure too.
            if let (Err(_), Some(switch)) = (&told, &self.switches.borrow()[index]) {
                switch.doom();
            }
            flushed = flushed.and(told);
        }
        let Some(set) = &self.set else { return flushed.map(|()| false) };
        let failed = set.failure().is_some();
        let writes = || self.disks[0].stats().writes;
        let before = writes();
        let stopped = set.stop().await.map_err(text);
        if failed && writes() != before && !self.wild {
            // Not to be taken for one of the failures that spoilt disks excuse.
            panic!("a set that has failed wrote to its cache when it was stopped");
        }
        flushed.and(stopped)?;
        Self::audit(set).await.map(|()| true)
    }
}
