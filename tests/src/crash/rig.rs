//! A small set with one backing device on simulated disks, for tests that arrange one thing.

use bcache_format::{Sector, Span};
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bcache_engine::btree::Piece;
use bcache_engine::dev::Buf;
use bcache_engine::request::DeviceVolume;
use bcache_engine::set::{CacheSet, Device};
use bcache_engine::settings::SetSettings;
use bcache_engine::sim::{Config, Disk, Image, Power, Runtime};
use bcache_engine::volume::Volume;
use bcache_format::Sectors;
use bcache_format::superblock::{
    BackingFields, CacheFields, CacheMode, Role, SB_BYTES, SB_OFFSET, Superblock, Version,
};
use uuid::Uuid;

use super::set::DATA_OFFSET;

/// How a set is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Mode of the backing device.
    pub mode: CacheMode,
    /// Block of the set.
    pub block_sectors: u16,
    /// Of both disks, in bytes.
    pub logical_block: u32,
    /// Size of the cached device.
    pub backing_sectors: u64,
}

/// Writeback, blocks of a sector, 2 MiB.
pub const USUAL: Shape =
    Shape { mode: CacheMode::Writeback, block_sectors: 1, logical_block: 512, backing_sectors: 4096 };

/// A set of 513 buckets of 4 KiB with one backing device.
pub struct Rig {
    /// Runs it.
    pub runtime: Runtime,
    /// The cache device.
    pub cache: Disk,
    /// The backing device.
    pub backing: Disk,
}

fn superblock(shape: &Shape, version: Version, uuid: u128, role: Role) -> Image {
    let (uuid, set_uuid) = (Uuid::from_u128(uuid), Uuid::from_u128(0xca5e));
    let mut superblock = Superblock::new(version, uuid, set_uuid, shape.block_sectors, role);
    if version == Version::Backing {
        superblock.set_cache_mode(shape.mode);
    }
    let mut block = vec![0; SB_BYTES];
    superblock.write_to(&mut block).expect("the superblock is right");
    let mut image = Image::new();
    image.write(SB_OFFSET, &block);
    image
}

impl Rig {
    /// Formatted, and never used.
    pub fn new(shape: &Shape) -> Rig {
        let fields = CacheFields {
            nbuckets: 513,
            bucket_sectors: 8,
            nr_in_set: 1,
            nr_this_dev: 0,
            first_bucket: 3,
            njournal_buckets: 0,
        };
        let cache = superblock(shape, Version::Cache, 1, Role::Cache(fields));
        let fields = BackingFields { data_offset: Sectors(DATA_OFFSET), bucket_sectors: 1024 };
        let backing = superblock(shape, Version::Backing, 2, Role::Backing(fields));
        Rig::with(shape, [cache, backing])
    }

    /// With what the disks of another had on them.
    pub fn with(shape: &Shape, [cache, backing]: [Image; 2]) -> Rig {
        let runtime = Runtime::new(1);
        let power = Power::new();
        let config = |name, sectors: u64| {
            let mut config = Config::new(name, sectors * 512);
            config.geometry.logical_block = shape.logical_block;
            config
        };
        Rig {
            cache: Disk::with_image(&runtime, &power, config("cache", 513 * 8), cache),
            backing: Disk::with_image(
                &runtime,
                &power,
                config("backing", DATA_OFFSET + shape.backing_sectors),
                backing,
            ),
            runtime,
        }
    }

    /// Runs `test` on the started set.
    ///
    /// # Panics
    /// The set does not start.
    pub fn run<F: Future>(&self, test: impl FnOnce(Started) -> F) -> F::Output {
        self.try_run(test).expect("the set starts")
    }

    /// Runs `test` on the set if that starts. Nothing is written back, and everything is cached, while nobody says
    /// otherwise.
    ///
    /// # Errors
    /// It does not start, or its backing device cannot be attached.
    pub fn try_run<F: Future>(&self, test: impl FnOnce(Started) -> F) -> Result<F::Output, String> {
        self.runtime.block_on(async {
            let env = self.runtime.env();
            let set = CacheSet::start(env, self.cache.dev(), SetSettings::default()).await;
            let set = set.map_err(|error| error.to_string())?;
            let device = set.attach(self.backing.dev()).await.map_err(|error| error.to_string())?;
            device.settings.writeback_running.set(false);
            device.settings.sequential_cutoff.set(0);
            let volume = Rc::new(DeviceVolume::new(Rc::clone(&set), Rc::clone(&device), "volume".to_owned()));
            let (cache, backing) = (self.cache.clone(), self.backing.clone());
            Ok(test(Started { cache, backing, set, device, volume }).await)
        })
    }

    /// What is certain to survive a power cut now.
    pub fn images(&self) -> [Image; 2] {
        [self.cache.durable(), self.backing.durable()]
    }
}

/// A set that runs, and its disks. Clones are handles to the same.
#[derive(Clone)]
pub struct Started {
    /// The cache device.
    pub cache: Disk,
    /// The backing device.
    pub backing: Disk,
    /// The set.
    pub set: Rc<CacheSet>,
    /// The cached device, as the set knows it.
    pub device: Rc<Device>,
    /// The cached device, as clients see it.
    pub volume: Rc<DeviceVolume>,
}

impl Started {
    /// Writes `byte` all over the sectors, without FUA.
    ///
    /// # Panics
    /// It fails.
    pub async fn write(&self, sector: u64, sectors: u64, byte: u8) {
        self.try_write(sector, sectors, byte).await.expect("the write succeeds");
    }

    /// As [`write`](Self::write).
    ///
    /// # Errors
    /// The error number of the failed write.
    pub async fn try_write(&self, sector: u64, sectors: u64, byte: u8) -> Result<(), i32> {
        let mut data = Buf::zeroed((sectors * 512) as usize);
        data.fill(byte);
        self.volume.write(sector * 512, data.freeze(), false).await.map_err(|error| error.errno)
    }

    /// What the sectors hold.
    ///
    /// # Errors
    /// The error number of the failed read.
    pub async fn read(&self, sector: u64, sectors: u64) -> Result<Vec<u8>, i32> {
        let pieces = self.volume.read(sector * 512, (sectors * 512) as u32).await;
        Ok(pieces.map_err(|error| error.errno)?.iter().flat_map(|piece| piece.iter().copied()).collect())
    }

    /// Every byte of the sectors is `byte`.
    ///
    /// # Panics
    /// It is not so.
    pub async fn holds(&self, sector: u64, sectors: u64, byte: u8) {
        let data = self.read(sector, sectors).await.expect("the read succeeds");
        assert!(data.iter().all(|b| *b == byte), "sectors {sector}+{sectors} hold {} for {byte}", data[0]);
    }

    /// Lets background work go on.
    pub async fn wait(&self, seconds: u64) {
        self.set.env.sleep(Duration::from_secs(seconds)).await;
    }

    /// Bytes of the cache that hold what the cached device has at `sector`.
    ///
    /// # Panics
    /// The sectors from there on are not in the cache.
    pub async fn cached_at(&self, sector: u64) -> Range<u64> {
        let inode = self.device.inode.get().expect("it is attached");
        let start = Sector(DATA_OFFSET + sector);
        let pieces = self
            .set
            .pieces(Span::new(inode, start, Sector(DATA_OFFSET + sector + 1)))
            .await
            .expect("the btree is read");
        let Some(Piece::Cached(extent)) = pieces.first() else { panic!("sector {sector} is not cached") };
        extent.place()..extent.place() + extent.size().bytes()
    }
}
