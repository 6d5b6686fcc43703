//! One life of a set.

use super::model::{Model, Value};
use bcache_engine::btree::Piece;
use bcache_engine::dev::{Buf, Shared};
use bcache_engine::env::Env;
use bcache_engine::request::DeviceVolume;
use bcache_engine::set::{CacheSet, Device};
use bcache_engine::settings::SetSettings;
use bcache_engine::sim::{Config, Disk, Image, Outcome, Power, Rng, Runtime, Survival};
use bcache_engine::volume::Volume;
use bcache_format::feature::Features;
use bcache_format::superblock::{
    BackingFields, CacheFields, CacheMode, Label, Replacement, Role, SB_BYTES, SB_OFFSET, Superblock, Version,
};
use bcache_format::{SECTOR_SIZE, Sectors};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// What a sector holds that nobody wrote: only a discard may leave that.
const GARBAGE: Value = Value::MAX;

/// Sectors of the largest request.
const REQUEST_MAX: u64 = 64;

/// The shape of a life: everything that follows from its seed before it begins.
#[derive(Clone, Debug)]
pub struct Life {
    /// The seed.
    pub seed: u64,
    bucket_sectors: u32,
    block_sectors: u16,
    nbuckets: u64,
    backing_sectors: u64,
    /// Sectors that requests fall into: fewer make them meet more often.
    span: u64,
    modes: Vec<CacheMode>,
    replacement: Replacement,
    discard: bool,
    copy_gc: bool,
    workers: u64,
    ops: u64,
    phases: u64,
}

/// How a life went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Power cuts.
    pub crashes: u64,
    /// Of those, during recovery.
    pub in_recovery: u64,
    /// Clean stops.
    pub stops: u64,
    /// Hash of everything that happened.
    pub trace: u64,
}

struct World {
    cache: Image,
    backing: Vec<Image>,
    models: Vec<Rc<RefCell<Model>>>,
    next_value: Rc<Cell<Value>>,
    report: Report,
}

impl Life {
    /// The life of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let block_sectors = if rng.chance(1, 4) { 8 } else { 1 };
        let bucket_sectors = 1 << rng.between(3, 6);
        let pick = |rng: &mut Rng| CacheMode::ALL[[0, 1, 1, 1, 2, 3][rng.below(6) as usize]];
        let devices = rng.between(1, 2);
        let modes = (0..devices).map(|_| pick(&mut rng)).collect();
        Self {
            seed,
            bucket_sectors,
            block_sectors,
            nbuckets: rng.between(513, 800),
            backing_sectors: 16 + 8 * 2048,
            span: rng.between(1, 16) * 256,
            modes,
            replacement: Replacement::ALL[rng.below(3) as usize],
            discard: rng.chance(1, 4),
            copy_gc: rng.chance(1, 4),
            workers: rng.between(1, 6),
            ops: rng.between(20, 300),
            phases: rng.between(2, 4),
        }
    }

    fn cache_superblock(&self) -> Superblock {
        let mut sb = self.superblock(
            Version::Cache,
            1,
            Role::Cache(CacheFields {
                nbuckets: self.nbuckets,
                bucket_sectors: self.bucket_sectors,
                nr_in_set: 1,
                nr_this_dev: 0,
                first_bucket: (23 / self.bucket_sectors + 1) as u16,
                njournal_buckets: 0,
            }),
        );
        sb.set_discard(self.discard);
        sb.set_replacement(self.replacement);
        sb
    }

    fn superblock(&self, version: Version, uuid: u128, role: Role) -> Superblock {
        Superblock {
            version,
            uuid: Uuid::from_u128(uuid),
            set_uuid: Uuid::from_u128(0x1234_5678_9abc_def0),
            label: Label::default(),
            flags: 0,
            seq: 0,
            features: Features::default(),
            block_sectors: self.block_sectors,
            last_mount: 0,
            role,
        }
    }

    fn images(&self) -> (Image, Vec<Image>) {
        let image = |sb: Superblock| {
            let mut block = vec![0; SB_BYTES];
            sb.write_to(&mut block).expect("a superblock of ours is right");
            let mut image = Image::new();
            image.write(SB_OFFSET, &block);
            image
        };
        let backing = |(i, mode): (usize, &CacheMode)| {
            let fields = BackingFields { data_offset: Sectors(16), bucket_sectors: 1024 };
            let mut sb = self.superblock(Version::Backing, 0x100 + i as u128, Role::Backing(fields));
            sb.set_cache_mode(*mode);
            image(sb)
        };
        (image(self.cache_superblock()), self.modes.iter().enumerate().map(backing).collect())
    }
}

/// Lives the life of `seed`.
///
/// # Errors
/// What went wrong, in words.
pub fn live(seed: u64) -> Result<Report, String> {
    let life = Life::new(seed);
    let (cache, backing) = life.images();
    let models = life.modes.iter().map(|_| Rc::default()).collect();
    let mut world =
        World { cache, backing, models, next_value: Rc::new(Cell::new(1)), report: Report::default() };
    let mut rng = Rng::new(seed ^ 0x5eed);
    for phase in 0..life.phases {
        let last = phase + 1 == life.phases;
        phase_of(&life, &mut world, &mut rng, phase, last)
            .map_err(|wrong| format!("phase {phase}: {wrong}"))?;
    }
    Ok(world.report)
}

/// One phase. The last ends with a clean stop, so that the end is always looked at.
fn phase_of(life: &Life, world: &mut World, rng: &mut Rng, phase: u64, last: bool) -> Result<(), String> {
    let mut recovered = false;
    // A cut may fall into the recovery; then it is tried again, later ones living longer.
    for attempt in 0..4u64 {
        let mut runtime = Runtime::new(rng.bits());
        runtime.set_max_steps(3_000_000);
        let power = Power::new();
        let cut = !last && attempt < 3;
        if cut {
            let reach = [rng.between(1, 60), rng.between(1, 400), rng.between(1, 4000)];
            power.cut_at(reach[rng.below(3) as usize]);
        }
        let disks = plug(life, world, &runtime, &power);
        let ready = Rc::new(Cell::new(false));
        let outcome = runtime.run(
            &power,
            run(
                life.clone(),
                disks.clone(),
                world.models.clone(),
                Rc::clone(&world.next_value),
                runtime.env(),
                rng.fork(),
                Rc::clone(&ready),
            ),
        );
        world.report.trace ^= runtime.trace_hash();
        recovered |= ready.get();
        let (cache, backing) = &disks;
        let refused = cache.stats().refused + backing.iter().map(|disk| disk.stats().refused).sum::<u64>();
        if refused > 0 {
            return Err(format!("{refused} operations broke the devices' contract"));
        }
        match outcome {
            Outcome::Done(result) => {
                result?;
                world.report.stops += 1;
                world.cache = cache.snapshot();
                world.backing = backing.iter().map(Disk::snapshot).collect();
                return Ok(());
            }
            Outcome::Cut => {
                world.report.crashes += 1;
                world.report.in_recovery += u64::from(!ready.get());
                let how = |rng: &mut Rng| {
                    [Survival::Seeded, Survival::Seeded, Survival::None, Survival::Completed, Survival::All]
                        [rng.below(5) as usize]
                };
                world.cache = cache.crash(how(rng));
                world.backing = backing.iter().map(|disk| disk.crash(how(rng))).collect();
                if ready.get() {
                    return Ok(());
                }
            }
            Outcome::Stalled => return Err(format!("attempt {attempt}: stalled, every task waits")),
            Outcome::Endless => return Err(format!("attempt {attempt}: does not come to an end")),
        }
    }
    if recovered { Ok(()) } else { Err(format!("phase {phase} never recovered")) }
}

fn plug(life: &Life, world: &World, runtime: &Runtime, power: &Power) -> (Disk, Vec<Disk>) {
    let bytes = life.nbuckets * u64::from(life.bucket_sectors) * SECTOR_SIZE;
    let config = Config::new("cache", bytes);
    let cache = Disk::with_image(runtime, power, config, world.cache.clone());
    let backing = world.backing.iter().enumerate().map(|(i, image)| {
        let mut config = Config::new(&format!("backing{i}"), life.backing_sectors * SECTOR_SIZE);
        config.read_ns = 200_000..=8_000_000;
        config.write_ns = 200_000..=8_000_000;
        Disk::with_image(runtime, power, config, image.clone())
    });
    (cache, backing.collect())
}

/// Recovers, looks at every sector, lets the users do what they do, and stops.
async fn run(
    life: Life,
    (cache, backing): (Disk, Vec<Disk>),
    models: Vec<Rc<RefCell<Model>>>,
    next_value: Rc<Cell<Value>>,
    env: Env,
    mut rng: Rng,
    ready: Rc<Cell<bool>>,
) -> Result<(), String> {
    let text = |error: bcache_engine::Error| error.to_string();
    let settings = SetSettings::default();
    settings.copy_gc_enabled.set(life.copy_gc);
    settings.btree_cache_bytes.set(64 << 10);
    let set = CacheSet::start(env.clone(), cache.dev(), settings).await.map_err(text)?;
    let mut devices = Vec::new();
    for disk in &backing {
        devices.push(set.attach(disk.dev()).await.map_err(text)?);
    }
    audit(&set).await?;
    for ((device, model), disk) in devices.iter().zip(&models).zip(&backing) {
        device.settings.writeback_delay.set(0);
        device.settings.writeback_percent.set(rng.below(2) * 10);
        device.settings.sequential_cutoff.set(rng.below(3) * (64 << 10));
        look_at_all(&set, device, model, disk, &life).await?;
    }
    ready.set(true);
    let wrong: Rc<RefCell<Option<String>>> = Rc::default();
    let mut workers = Vec::new();
    for _ in 0..life.workers {
        let which = rng.below(devices.len() as u64) as usize;
        let user = User {
            volume: DeviceVolume::new(Rc::clone(&set), Rc::clone(&devices[which]), "x".to_owned()),
            model: Rc::clone(&models[which]),
            next_value: Rc::clone(&next_value),
            life: life.clone(),
            env: env.clone(),
            rng: RefCell::new(rng.fork()),
        };
        let wrong = Rc::clone(&wrong);
        workers.push(env.spawn(async move {
            if let Err(error) = user.work().await {
                wrong.borrow_mut().get_or_insert(error);
            }
        }));
    }
    for worker in workers {
        worker.await;
    }
    if let Some(wrong) = wrong.borrow_mut().take() {
        return Err(wrong);
    }
    set.stop().await.map_err(text)?;
    audit(&set).await?;
    for model in &models {
        let mark = model.borrow().flush_mark();
        model.borrow_mut().end_flush(mark);
    }
    Ok(())
}

async fn audit(set: &Rc<CacheSet>) -> Result<(), String> {
    let wrong = set.audit().await.map_err(|error| error.to_string())?;
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

/// Reads every sector: it must hold what may have survived, and holds that from now on. Clean extents whose content is
/// certain must be what the backing device has.
async fn look_at_all(
    set: &Rc<CacheSet>,
    device: &Rc<Device>,
    model: &Rc<RefCell<Model>>,
    disk: &Disk,
    life: &Life,
) -> Result<(), String> {
    let volume = DeviceVolume::new(Rc::clone(set), Rc::clone(device), "x".to_owned());
    let end = life.span + REQUEST_MAX;
    let certain: Vec<u64> = (0..end).filter(|at| model.borrow().is_settled(*at)).collect();
    // Where the data is now, before the reads below bring it into the cache.
    let inode = device.inode.get().unwrap_or_default();
    let pieces = set.pieces(inode, 16, 16 + end).await.map_err(|error| error.to_string())?;
    let below = disk.snapshot();
    let mut at = 0;
    while at < end {
        let now = (end - at).min(REQUEST_MAX);
        let data = volume.read(at * SECTOR_SIZE, (now * SECTOR_SIZE) as u32).await.map_err(|e| e.detail)?;
        for (i, sector) in sectors(&data).enumerate() {
            let sector_nr = at + i as u64;
            let value = value_of(&sector, sector_nr)?;
            if !model.borrow().may_survive(sector_nr, value) {
                let allowed = model.borrow().describe(sector_nr);
                return Err(format!("sector {sector_nr} holds {value} after recovery, may be {allowed}"));
            }
            model.borrow_mut().settle(sector_nr, value);
        }
        at += now;
    }
    for piece in pieces {
        let Piece::Cached(extent) = piece else { continue };
        if extent.dirty() {
            continue;
        }
        for sector in (extent.start()..extent.end()).filter(|at| certain.contains(&(at - 16))) {
            let mut bytes = [0; 512];
            below.read(sector * SECTOR_SIZE, &mut bytes);
            let value = value_of(&bytes, sector - 16)?;
            if !model.borrow().may_read(sector - 16, value) {
                return Err(format!("sector {} is clean in the cache, but below is {value}", sector - 16));
            }
        }
    }
    Ok(())
}

/// Sectors of an answer.
fn sectors(data: &[Shared]) -> impl Iterator<Item = [u8; 512]> + '_ {
    data.iter().flat_map(|part| part.as_chunks::<512>().0.iter().copied())
}

/// The number of the write that a sector's content is of.
fn value_of(sector: &[u8; 512], at: u64) -> Result<Value, String> {
    let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|j| sector[i * 8 + j]));
    let (place, value, tail) = (word(0), word(1), word(63));
    if value == 0 && place == 0 && tail == 0 {
        return Ok(0);
    }
    Ok(if place == at + 1 && tail == value { value } else { GARBAGE })
}

struct User {
    volume: DeviceVolume,
    model: Rc<RefCell<Model>>,
    next_value: Rc<Cell<Value>>,
    life: Life,
    env: Env,
    rng: RefCell<Rng>,
}

impl User {
    fn below(&self, bound: u64) -> u64 {
        self.rng.borrow_mut().below(bound)
    }

    async fn work(&self) -> Result<(), String> {
        let block = u64::from(self.life.block_sectors);
        for _ in 0..self.life.ops {
            let len = (self.below(REQUEST_MAX / block) + 1) * block;
            let len = if self.below(2) == 0 { len.min(8) } else { len };
            let at = self.below(self.life.span / block) * block;
            match self.below(100) {
                0..45 => self.write(at, len, self.below(10) == 0).await?,
                45..85 => self.read(at, len).await?,
                85..92 => self.flush().await?,
                92..95 => self.discard(at, len).await?,
                95..97 => self.zero(at, len).await?,
                _ => self.env.sleep(Duration::from_millis(self.below(300))).await,
            }
        }
        Ok(())
    }

    async fn write(&self, at: u64, len: u64, fua: bool) -> Result<(), String> {
        let value = self.next_value.get();
        if !self.model.borrow_mut().begin_write(at..at + len, |_| value) {
            return Ok(());
        }
        self.next_value.set(value + 1);
        let mut buf = Buf::zeroed((len * SECTOR_SIZE) as usize);
        for (i, sector) in buf.as_chunks_mut::<512>().0.iter_mut().enumerate() {
            sector[..8].copy_from_slice(&(at + i as u64 + 1).to_le_bytes());
            sector[8..16].copy_from_slice(&value.to_le_bytes());
            sector[504..].copy_from_slice(&value.to_le_bytes());
        }
        let mark = self.model.borrow().flush_mark();
        self.volume.write(at * SECTOR_SIZE, buf.freeze(), fua).await.map_err(|e| e.detail)?;
        self.model.borrow_mut().end_write(at..at + len);
        if fua {
            // All that was acknowledged before it began, and the write itself.
            self.model.borrow_mut().end_flush(mark);
        }
        Ok(())
    }

    async fn read(&self, at: u64, len: u64) -> Result<(), String> {
        let before = self.model.borrow().clone();
        let data =
            self.volume.read(at * SECTOR_SIZE, (len * SECTOR_SIZE) as u32).await.map_err(|e| e.detail)?;
        let now = self.model.borrow();
        for (i, sector) in sectors(&data).enumerate() {
            let sector_nr = at + i as u64;
            let value = value_of(&sector, sector_nr)?;
            let fine = before.may_read(sector_nr, value) || now.came_since(&before, sector_nr, value);
            if !fine {
                return Err(format!(
                    "read of sector {sector_nr} gives {value}, may be {}",
                    now.describe(sector_nr)
                ));
            }
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), String> {
        let mark = self.model.borrow().flush_mark();
        self.volume.flush().await.map_err(|e| e.detail)?;
        self.model.borrow_mut().end_flush(mark);
        Ok(())
    }

    async fn discard(&self, at: u64, len: u64) -> Result<(), String> {
        if !self.model.borrow_mut().begin_discard(at..at + len) {
            return Ok(());
        }
        self.volume.discard(at * SECTOR_SIZE, len * SECTOR_SIZE).await.map_err(|e| e.detail)?;
        self.model.borrow_mut().end_write(at..at + len);
        Ok(())
    }

    async fn zero(&self, at: u64, len: u64) -> Result<(), String> {
        if !self.model.borrow_mut().begin_write(at..at + len, |_| 0) {
            return Ok(());
        }
        self.volume
            .write_zeroes(at * SECTOR_SIZE, len * SECTOR_SIZE, false, true)
            .await
            .map_err(|e| e.detail)?;
        self.model.borrow_mut().end_write(at..at + len);
        Ok(())
    }
}
