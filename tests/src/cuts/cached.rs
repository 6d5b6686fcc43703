//! The engine as a subject: a cache set with one backing device, its shape and settings drawn from the run's seed.

use std::rc::Rc;

use bcache_engine::dev::{BlockDev, Buf};
use bcache_engine::env::{Env, Rng};
use bcache_engine::request::DeviceVolume;
use bcache_engine::set::CacheSet;
use bcache_engine::settings::{DeviceSettings, SetSettings};
use bcache_engine::sim::Config;
use bcache_engine::volume::Volume;
use bcache_format::Sectors;
use bcache_format::feature::Features;
use bcache_format::superblock::{
    BackingFields, CacheFields, CacheMode, Label, Replacement, Role, SB_BYTES, SB_OFFSET, Superblock, Version,
};
use uuid::Uuid;

use super::run::{Running, Subject};

/// Sectors of the backing device before its data.
const DATA_OFFSET: u64 = 16;

/// A cache set and what is changed in its settings.
pub struct Cached {
    block_sectors: u16,
    bucket_sectors: u32,
    nbuckets: u64,
    data_sectors: u64,
    mode: CacheMode,
    replacement: Replacement,
    discard: bool,
    copy_gc: bool,
    journal_delay_ms: u64,
    writeback_delay: u64,
    sequential_cutoff: u64,
}

impl Cached {
    fn superblock(&self, version: Version, uuid: u128, role: Role) -> Superblock {
        Superblock {
            version,
            uuid: Uuid::from_u128(uuid),
            set_uuid: Uuid::from_u128(0xca5e),
            label: Label::default(),
            flags: 0,
            seq: 0,
            features: Features::default(),
            block_sectors: self.block_sectors,
            last_mount: 0,
            role,
        }
    }

    fn cache_superblock(&self) -> Superblock {
        let fields = CacheFields {
            nbuckets: self.nbuckets,
            bucket_sectors: self.bucket_sectors,
            nr_in_set: 1,
            nr_this_dev: 0,
            first_bucket: (23 / self.bucket_sectors + 1) as u16,
            njournal_buckets: 0,
        };
        let mut superblock = self.superblock(Version::Cache, 1, Role::Cache(fields));
        superblock.set_discard(self.discard);
        superblock.set_replacement(self.replacement);
        superblock
    }

    fn backing_superblock(&self) -> Superblock {
        let fields = BackingFields { data_offset: Sectors(DATA_OFFSET), bucket_sectors: 1024 };
        let mut superblock = self.superblock(Version::Backing, 2, Role::Backing(fields));
        superblock.set_cache_mode(self.mode);
        superblock
    }

    fn apply(&self, settings: &DeviceSettings) {
        settings.writeback_delay.set(self.writeback_delay);
        settings.sequential_cutoff.set(self.sequential_cutoff);
    }
}

async fn put(disk: &Rc<dyn BlockDev>, superblock: &Superblock) -> Result<(), String> {
    let mut block = Buf::zeroed(SB_BYTES);
    superblock.write_to(&mut block).map_err(|error| error.to_string())?;
    disk.write(SB_OFFSET, block.freeze(), true).await.map_err(|error| error.to_string())
}

impl Subject for Cached {
    type Running = RunningSet;

    fn draw(rng: &mut Rng) -> Self {
        let modes =
            [CacheMode::Writeback, CacheMode::Writeback, CacheMode::Writethrough, CacheMode::Writearound];
        Cached {
            block_sectors: if rng.chance(1, 4) { 8 } else { 1 },
            bucket_sectors: 1 << rng.between(3, 6),
            nbuckets: rng.between(513, 700),
            data_sectors: 4096,
            mode: modes[rng.below(4) as usize],
            replacement: Replacement::ALL[rng.below(3) as usize],
            discard: rng.chance(1, 4),
            copy_gc: rng.chance(1, 4),
            journal_delay_ms: [1, 10, 100][rng.below(3) as usize],
            writeback_delay: [0, 0, 30][rng.below(3) as usize],
            sequential_cutoff: [0, 4 << 20, 16 << 10][rng.below(3) as usize],
        }
    }

    fn disks(&self) -> Vec<Config> {
        let block = u32::from(self.block_sectors) * 512;
        let disk = |name: &str, sectors: u64| {
            let mut config = Config::new(name, sectors * 512);
            config.geometry.logical_block = block;
            config
        };
        let cache = self.nbuckets * u64::from(self.bucket_sectors);
        vec![disk("cache", cache), disk("backing", DATA_OFFSET + self.data_sectors)]
    }

    fn align(&self) -> u64 {
        self.block_sectors.into()
    }

    async fn format(&self, _env: &Env, disks: &[Rc<dyn BlockDev>]) -> Result<(), String> {
        put(&disks[0], &self.cache_superblock()).await?;
        put(&disks[1], &self.backing_superblock()).await
    }

    async fn start(&self, env: &Env, disks: &[Rc<dyn BlockDev>]) -> Result<RunningSet, String> {
        let settings = SetSettings::default();
        settings.journal_delay_ms.set(self.journal_delay_ms);
        settings.copy_gc_enabled.set(self.copy_gc);
        let started = CacheSet::start(env.clone(), Rc::clone(&disks[0]), settings).await;
        let set = started.map_err(|error| error.to_string())?;
        let device = set.attach(Rc::clone(&disks[1])).await.map_err(|error| error.to_string())?;
        self.apply(&device.settings);
        let volume = DeviceVolume::new(Rc::clone(&set), device, "cached".to_owned());
        Ok(RunningSet { set, volume: Rc::new(volume) })
    }
}

/// A started set.
pub struct RunningSet {
    set: Rc<CacheSet>,
    volume: Rc<dyn Volume>,
}

impl Running for RunningSet {
    fn volume(&self) -> Rc<dyn Volume> {
        Rc::clone(&self.volume)
    }

    async fn check(&self) -> Result<(), String> {
        if let Some(failure) = self.set.failure() {
            return Err(format!("the set failed: {failure}"));
        }
        // The audit of the btree wants a set at rest; here GC and writeback go on.
        Ok(())
    }

    async fn stop(self) -> Result<(), String> {
        self.set.stop().await.map_err(|error| error.to_string())
    }
}
