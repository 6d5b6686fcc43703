//! Sets of any shape on simulated disks, with several backing devices: for scenes that the rig is too small for.

use super::crash::DATA_OFFSET as DATA;
use crate::dev::Buf;
use crate::env::Env;
use crate::request::DeviceVolume;
use crate::set::{CacheSet, Device};
use crate::settings::SetSettings;
use crate::sim::{Config, Disk, Image, Power, Runtime};
use crate::volume::Volume;
use bcache_format::magic::SetMagic;
use bcache_format::prio::PrioSet;
use bcache_format::superblock::{
    BackingFields, CacheFields, CacheMode, Role, SB_BYTES, SB_OFFSET, Superblock, Version,
};
use bcache_format::{BucketNr, Geometry, Sectors};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// The superblock, in bytes of a device.
pub(super) const SB: std::ops::Range<u64> = 4096..8192;

/// A set of any shape, with some backing devices.
pub(super) struct World {
    pub runtime: Runtime,
    pub cache: Disk,
    pub backings: Vec<Disk>,
}

#[derive(Clone, Copy)]
pub(super) struct Geo {
    pub seed: u64,
    pub nbuckets: u64,
    pub bucket_sectors: u32,
    pub block_sectors: u16,
    pub cache_block: u32,
    pub backing_block: u32,
    pub backing_sectors: u64,
    pub count: usize,
    pub mode: CacheMode,
}

pub(super) const GEO: Geo = Geo {
    seed: 1,
    nbuckets: 513,
    bucket_sectors: 8,
    block_sectors: 1,
    cache_block: 512,
    backing_block: 512,
    backing_sectors: 16 * 1024,
    count: 1,
    mode: CacheMode::Writeback,
};

fn superblock(geo: &Geo, version: Version, uuid: u128, role: Role) -> Image {
    let (uuid, set_uuid) = (Uuid::from_u128(uuid), Uuid::from_u128(0xca5e));
    let mut superblock = Superblock::new(version, uuid, set_uuid, geo.block_sectors, role);
    if version == Version::Backing {
        superblock.set_cache_mode(geo.mode);
    }
    let mut block = vec![0; SB_BYTES];
    superblock.write_to(&mut block).expect("the superblock is right");
    let mut image = Image::new();
    image.write(SB_OFFSET, &block);
    image
}

pub(super) fn parse(image: &Image) -> Superblock {
    let mut block = vec![0; SB_BYTES];
    image.read(SB_OFFSET, &mut block);
    Superblock::parse(&block).expect("a superblock")
}

impl World {
    pub(super) fn new(geo: Geo) -> World {
        let fields = CacheFields {
            nbuckets: geo.nbuckets,
            bucket_sectors: geo.bucket_sectors,
            nr_in_set: 1,
            nr_this_dev: 0,
            first_bucket: (23 / geo.bucket_sectors + 1) as u16,
            njournal_buckets: 0,
        };
        let cache = superblock(&geo, Version::Cache, 1, Role::Cache(fields));
        let backing = |i: usize| {
            let fields = BackingFields { data_offset: Sectors(DATA), bucket_sectors: 1024 };
            superblock(&geo, Version::Backing, 2 + i as u128, Role::Backing(fields))
        };
        let images = std::iter::once(cache).chain((0..geo.count).map(backing)).collect();
        World::with(geo, images)
    }
    pub(super) fn with(geo: Geo, images: Vec<Image>) -> World {
        let runtime = Runtime::new(geo.seed);
        let power = Power::new();
        let mut images = images.into_iter();
        let mut config = Config::new("cache", geo.nbuckets * u64::from(geo.bucket_sectors) * 512);
        config.geometry.logical_block = geo.cache_block;
        let cache = Disk::with_image(&runtime, &power, config, images.next().expect("the cache's"));
        let backings = images
            .enumerate()
            .map(|(i, image)| {
                let mut config = Config::new(&format!("backing{i}"), (DATA + geo.backing_sectors) * 512);
                config.geometry.logical_block = geo.backing_block;
                Disk::with_image(&runtime, &power, config, image)
            })
            .collect();
        World { runtime, cache, backings }
    }
    pub(super) async fn start(&self) -> Result<Rc<CacheSet>, String> {
        let started = CacheSet::start(self.runtime.env(), self.cache.dev(), SetSettings::default()).await;
        started.map_err(|error| error.to_string())
    }
    pub(super) async fn attach(
        &self,
        set: &Rc<CacheSet>,
        i: usize,
    ) -> Result<(Rc<Device>, Rc<DeviceVolume>), String> {
        let device = set.attach(self.backings[i].dev()).await.map_err(|error| error.to_string())?;
        device.settings.writeback_running.set(false);
        device.settings.sequential_cutoff.set(0);
        Ok((Rc::clone(&device), volume(set, &device)))
    }
    pub(super) fn images(&self) -> Vec<Image> {
        std::iter::once(self.cache.durable()).chain(self.backings.iter().map(Disk::durable)).collect()
    }
}

pub(super) fn volume(set: &Rc<CacheSet>, device: &Rc<Device>) -> Rc<DeviceVolume> {
    Rc::new(DeviceVolume::new(Rc::clone(set), Rc::clone(device), "volume".to_owned()))
}

pub(super) async fn put(volume: &dyn Volume, sector: u64, sectors: u64, byte: u8) -> Result<(), String> {
    let mut data = Buf::zeroed((sectors * 512) as usize);
    data.fill(byte);
    volume.write(sector * 512, data.freeze(), false).await.map_err(|error| error.to_string())
}

pub(super) async fn get(volume: &dyn Volume, sector: u64, sectors: u64) -> Result<Vec<u8>, String> {
    let pieces =
        volume.read(sector * 512, (sectors * 512) as u32).await.map_err(|error| error.to_string())?;
    Ok(pieces.iter().flat_map(|piece| piece.iter().copied()).collect())
}

pub(super) fn writes_back(device: &Device) {
    device.settings.writeback_percent.set(0);
    device.settings.writeback_delay.set(0);
    device.settings.writeback_running.set(true);
    device.writeback.wake();
}

pub(super) const LONG: Duration = Duration::from_secs(600);

pub(super) async fn ends<T>(env: &Env, future: impl Future<Output = T>) -> Option<T> {
    env.timeout(LONG, future).await.ok()
}

/// Raises the generation of `bucket` in the prio set that begins at bucket `head`, as if the bucket had been given to others
/// since.
pub(super) fn move_on(cache: &mut Image, dev: &CacheShape, bucket: u64) {
    let mut bytes = vec![0; dev.geometry.meta_bucket_bytes() as usize];
    let at = dev.geometry.bucket_start_byte(dev.head);
    cache.read(at, &mut bytes);
    let mut prios = PrioSet::parse(&bytes, dev.magic).expect("a prio set");
    // A pointer raises the generation by one; two more make it stale.
    prios.entries[bucket as usize].generation += 3;
    cache.write(at, &prios.write(dev.magic, dev.geometry.meta_bucket_bytes()));
}

/// What must be known of a cache to find its prio set.
pub(super) struct CacheShape {
    head: BucketNr,
    magic: SetMagic,
    geometry: Geometry,
}

impl CacheShape {
    pub(super) fn of(set: &CacheSet) -> Self {
        Self { head: set.alloc.prio_head.get(), magic: set.cache.magic, geometry: set.cache.geometry }
    }
}
