//! Sets in memory: names that can be asked and changed, and errors that are too many.

use super::*;
use crate::dev::{BlockDev, Buf, DevError, DevOp, Geometry, Io, Ram, Shared};
use crate::env::Runtime;
use crate::request::DeviceVolume;
use crate::volume::Volume;
use bcache_format::Sectors;
use bcache_format::superblock::{
    BackingFields, CacheFields, CacheMode, Replacement, Role, SB_BYTES, SB_OFFSET, Superblock, Version,
};
use bcache_format::uuid_entry::UuidEntry;
use bcache_format::{Sector, Span};
use uuid::Uuid;

/// A device whose requests fail while they are told to.
struct Failing {
    inner: Ram,
    fails: Rc<Cell<bool>>,
}

impl Failing {
    fn new(name: &str, bytes: u64) -> (Rc<Self>, Rc<Cell<bool>>) {
        let fails = Rc::new(Cell::new(false));
        (Rc::new(Self { inner: Ram::new(name, bytes), fails: Rc::clone(&fails) }), fails)
    }
    fn or_fail<T>(&self, op: DevOp, at: u64, io: Io<T>) -> Io<T> {
        // Superblocks and metadata at the start stay readable: it is data that fails.
        if self.fails.get() && at >= 1 << 20 {
            return Io::ready(Err(DevError::new(self.name(), op, at, 0, libc::EIO)));
        }
        io
    }
}

impl BlockDev for Failing {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn read(&self, at: u64, buf: Buf) -> Io<Buf> {
        self.or_fail(DevOp::Read, at, self.inner.read(at, buf))
    }
    fn write(&self, at: u64, data: Shared, fua: bool) -> Io<()> {
        self.or_fail(DevOp::Write, at, self.inner.write(at, data, fua))
    }
    fn flush(&self) -> Io<()> {
        self.inner.flush()
    }
    fn discard(&self, at: u64, len: u64) -> Io<()> {
        self.inner.discard(at, len)
    }
    fn write_zeroes(&self, at: u64, len: u64) -> Io<()> {
        self.inner.write_zeroes(at, len)
    }
}

const BUCKET: u64 = 128;
const BUCKETS: u64 = 1024;
const CACHE_BYTES: u64 = BUCKETS * BUCKET * 512;
const BACKING_BYTES: u64 = 32 << 20;

async fn format(dev: &dyn BlockDev, version: Version, uuid: u128, role: Role) {
    let superblock = Superblock::new(version, Uuid::from_u128(uuid), Uuid::from_u128(0xca5e), 8, role);
    let mut block = vec![0; SB_BYTES];
    superblock.write_to(&mut block).unwrap();
    dev.write(SB_OFFSET, Buf::copied(&block).freeze(), true).await.unwrap();
}

async fn format_both(cache: &dyn BlockDev, backing: &dyn BlockDev) {
    let fields = CacheFields {
        nbuckets: BUCKETS,
        bucket_sectors: BUCKET as u32,
        nr_in_set: 1,
        nr_this_dev: 0,
        first_bucket: 1,
        njournal_buckets: 0,
    };
    format(cache, Version::Cache, 1, Role::Cache(fields)).await;
    let fields = BackingFields { data_offset: Sectors(16), bucket_sectors: BUCKET as u16 };
    format(backing, Version::Backing, 2, Role::Backing(fields)).await;
}

/// A set whose devices can be made to fail.
struct World {
    env: Env,
    cache: Rc<Failing>,
    backing: Rc<Failing>,
    cache_fails: Rc<Cell<bool>>,
    backing_fails: Rc<Cell<bool>>,
    set: Rc<CacheSet>,
    device: Rc<Device>,
    volume: DeviceVolume,
}

fn in_a_set<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    let runtime = Runtime::new().unwrap();
    let env = runtime.env();
    runtime.block_on(async {
        let (cache, cache_fails) = Failing::new("cache", CACHE_BYTES);
        let (backing, backing_fails) = Failing::new("backing", BACKING_BYTES);
        format_both(&*cache, &*backing).await;
        let dev: Rc<dyn BlockDev> = Rc::clone(&cache) as _;
        let set = CacheSet::start(env.clone(), dev, SetSettings::default()).await.unwrap();
        let dev: Rc<dyn BlockDev> = Rc::clone(&backing) as _;
        let device = set.attach(dev).await.unwrap();
        let volume = DeviceVolume::new(Rc::clone(&set), Rc::clone(&device), "test".to_owned());
        test(World { env, cache, backing, cache_fails, backing_fails, set, device, volume }).await;
    });
}

/// What a device holds at this moment.
async fn copy(dev: &dyn BlockDev, name: &str) -> Rc<dyn BlockDev> {
    let bytes = dev.geometry().bytes;
    let copy = Ram::new(name, bytes);
    for at in (0..bytes).step_by(1 << 20) {
        let chunk = dev.read(at, Buf::zeroed(1 << 20)).await.unwrap();
        copy.write(at, chunk.freeze(), false).await.unwrap();
    }
    Rc::new(copy)
}

#[test]
fn what_is_acknowledged_outlives_the_process_where_its_clients_do() {
    in_a_set(|world| async move {
        world.set.outlive();
        world.set.settings.journal_delay_ms.set(3_600_000);
        world.device.settings.sequential_cutoff.set(0);
        let mut put = 0;
        for mode in
            [CacheMode::Writeback, CacheMode::Writearound, CacheMode::Writethrough, CacheMode::Writeback]
        {
            put += 1;
            world.device.settings.cache_mode.set(mode);
            world.volume.write(0, block(put), false).await.unwrap();
            let cache = copy(&*world.cache, "copy of the cache").await;
            let backing = copy(&*world.backing, "copy of the backing device").await;
            let set = CacheSet::start(world.env.clone(), cache, SetSettings::default()).await.unwrap();
            let device = set.attach(backing).await.unwrap();
            let volume = DeviceVolume::new(Rc::clone(&set), device, "successor".to_owned());
            let data = volume.read(0, 4096).await.unwrap();
            assert_eq!(data[0][0], put, "after a write in mode {mode:?}");
            set.stop().await.unwrap();
        }
        world.set.stop().await.unwrap();
    });
}

fn block(byte: u8) -> Shared {
    Buf::copied(&[byte; 4096]).freeze()
}

/// Every name of the kernel's `bcache.rst` and of Linux 6.12's `sysfs.c`: sets and cache devices, then backing devices.
const SET_NAMES: &[&str] = &[
    "average_key_size",
    "bdev<0..n>",
    "block_size",
    "btree_cache_size",
    "bucket_size",
    "cache<0..n>",
    "cache_available_percent",
    "clear_stats",
    "dirty_data",
    "flash_vol_create",
    "io_error_halflife",
    "io_error_limit",
    "journal_delay_ms",
    "root_usage_percent",
    "stop",
    "tree_depth",
    "unregister",
    "internal/active_journal_entries",
    "internal/btree_nodes",
    "internal/btree_used_percent",
    "bset_tree_stats",
    "btree_cache_max_chain",
    "internal/cache_read_races",
    "trigger_gc",
    "internal/btree_gc_average_duration_ms",
    "internal/btree_read_max_duration_us",
    "internal/btree_split_average_frequency_sec",
    "btree sort times",
    "btree_written",
    "cache_replacement_policy",
    "discard",
    "freelist_percent",
    "io_errors",
    "metadata_written",
    "nbuckets",
    "priority_stats",
    "written",
    "stats_total/bypassed",
    "stats_five_minute/cache_hits",
    "stats_hour/cache_hit_ratio",
    "stats_day/cache_miss_collisions",
    "btree_shrinker_disabled",
    "bucket_size",
    "congested",
    "congested_read_threshold_us",
    "congested_write_threshold_us",
    "copy_gc_enabled",
    "cutoff_writeback",
    "cutoff_writeback_sync",
    "errors",
    "expensive_debug_checks",
    "internal/feature_compat",
    "internal/feature_incompat",
    "internal/feature_ro_compat",
    "flush_write",
    "gc_after_writeback",
    "gc_always_rewrite",
    "idle_max_writeback_rate",
    "io_disable",
    "key_merging_disabled",
    "prune_cache",
    "reclaim",
    "reclaimed_journal_buckets",
    "synchronous",
    "verify",
    "writeback_keys_done",
    "writeback_keys_failed",
];
const DEVICE_NAMES: &[&str] = &[
    "attach",
    "cache_mode",
    "clear_stats",
    "detach",
    "dirty_data",
    "label",
    "readahead",
    "running",
    "sequential_cutoff",
    "sequential_merge",
    "state",
    "stop",
    "writeback_delay",
    "writeback_percent",
    "writeback_rate",
    "writeback_running",
    "stats_total/bypassed",
    "stats_five_minute/cache_hits",
    "stats_hour/cache_misses",
    "stats_day/cache_bypass_hits",
    "stats_total/cache_bypass_misses",
    "backing_dev_name",
    "backing_dev_uuid",
    "bypass_torture_test",
    "data_csum",
    "io_disable",
    "io_error_limit",
    "io_errors",
    "partial_stripes_expensive",
    "readahead_cache_policy",
    "size",
    "stop_when_cache_set_failed",
    "stripe_size",
    "verify",
    "writeback_consider_fragment",
    "writeback_metadata",
    "writeback_rate_debug",
    "writeback_rate_fp_term_high",
    "writeback_rate_fp_term_low",
    "writeback_rate_fp_term_mid",
    "writeback_rate_i_term_inverse",
    "writeback_rate_minimum",
    "writeback_rate_p_term_inverse",
    "writeback_rate_update_seconds",
];

#[test]
fn every_name_of_the_kernel_is_there_or_left_out_with_a_reason() {
    in_a_set(|world| async move {
        let left_out = |name: &&str| LEFT_OUT.iter().any(|(other, _)| other == name);
        let actions = |name: &&str| CacheSet::actions().contains(name);
        let set = world.set.attributes();
        for name in SET_NAMES.iter().filter(|name| !left_out(name) && !actions(name)) {
            assert!(set.iter().any(|attribute| attribute.name == **name), "{name}");
        }
        let device = world.set.device_attributes(&world.device);
        for name in DEVICE_NAMES.iter().filter(|name| !left_out(name) && !actions(name)) {
            assert!(device.iter().any(|attribute| attribute.name == **name), "{name}");
        }
        world.set.stop().await.unwrap();
    });
}

#[test]
fn what_the_kernel_keeps_is_kept() {
    in_a_set(|world| async move {
        let World { set, device, cache, backing, .. } = &world;
        set.set_device_attribute(device, "cache_mode", "writeback").await.unwrap();
        set.set_device_attribute(device, "label", "data").await.unwrap();
        set.set_device_attribute(device, "sequential_cutoff", "1M").await.unwrap();
        set.set_attribute("cache_replacement_policy", "fifo").await.unwrap();
        set.set_attribute("discard", "1").await.unwrap();
        assert!(set.set_attribute("journal_delay_ms", "soon").await.is_err());
        assert!(set.set_device_attribute(device, "colour", "red").await.is_err());
        assert!(set.set_device_attribute(device, "label", &"x".repeat(33)).await.is_err());
        set.stop().await.unwrap();
        let dev: Rc<dyn BlockDev> = Rc::clone(cache) as _;
        let again = CacheSet::start(world.env.clone(), dev, SetSettings::default()).await.unwrap();
        assert_eq!(again.settings.cache_replacement_policy.get(), Replacement::Fifo);
        assert!(again.settings.discard.get());
        let label = again.uuids.borrow().entries[0].label.to_text();
        assert_eq!(label, "data");
        let dev: Rc<dyn BlockDev> = Rc::clone(backing) as _;
        let device = again.attach(dev).await.unwrap();
        assert_eq!(device.settings.cache_mode.get(), CacheMode::Writeback);
        assert_eq!(device.label.get().to_text(), "data");
        assert_eq!(device.settings.sequential_cutoff.get(), 4 << 20, "the kernel does not keep this one");
        again.stop().await.unwrap();
    });
}

#[test]
fn a_volume_that_was_removed_is_one_for_nobody() {
    in_a_set(|world| async move {
        let entry = UuidEntry { sectors: Sectors(1024), ..UuidEntry::EMPTY };
        let volume = world.set.create_volume(Uuid::from_u128(7), entry).await.unwrap();
        let slot = volume.inode.get().unwrap() as usize;
        world.set.remove_volume(&volume).await.unwrap();
        world.set.stop().await.unwrap();
        let dev: Rc<dyn BlockDev> = Rc::clone(&world.cache) as _;
        let again = CacheSet::start(world.env.clone(), dev, SetSettings::default()).await.unwrap();
        let entry = again.uuids.borrow().entries[slot];
        // Linux goes by the flag alone.
        assert!(entry.is_detached() && !entry.is_flash_only(), "{entry:?}");
        again.stop().await.unwrap();
    });
}

#[test]
fn volumes_that_cannot_be_kept_whole_are_counted() {
    in_a_set(|world| async move {
        let room = world.set.cache.geometry.nbuckets * u64::from(world.set.cache.geometry.bucket_sectors);
        let volume = |sectors| UuidEntry { sectors: Sectors(sectors), ..UuidEntry::EMPTY };
        world.set.create_volume(Uuid::from_u128(7), volume(room / 2)).await.unwrap();
        assert_eq!(world.set.overcommitted_sectors(), 0);
        world.set.create_volume(Uuid::from_u128(8), volume(room)).await.unwrap();
        assert!(world.set.overcommitted_sectors() >= room / 2);
    });
}

#[test]
fn garbage_collection_and_pruning_can_be_asked_for() {
    in_a_set(|world| async move {
        world.device.settings.sequential_cutoff.set(0);
        world.set.settings.congested_read_threshold_us.set(0);
        world.set.settings.congested_write_threshold_us.set(0);
        for i in 0..64 {
            world.volume.write(i * 8192, block(1), false).await.unwrap();
        }
        let cached = world.set.pieces(Span::new(0, Sector(16), Sector(1024))).await.unwrap().len();
        let before = world.set.stats.gc_passes.get();
        world.set.set_attribute("trigger_gc", "1").await.unwrap();
        assert!(world.set.stats.gc_passes.get() > before);
        let kept = world.set.pieces(Span::new(0, Sector(16), Sector(1024))).await.unwrap().len();
        assert_eq!(kept, cached, "there are empty buckets to reuse, also while GC counts");
        world.set.set_attribute("prune_cache", "1").await.unwrap();
        assert_eq!(world.set.tree.len(), 1, "the root stays");
        world.volume.read(0, 4096).await.unwrap();
        world.set.set_attribute("clear_stats", "1").await.unwrap();
        let total = |name: &str| {
            let all = world.set.device_attributes(&world.device);
            all.into_iter().find(|attribute| attribute.name == name).unwrap().value
        };
        assert_eq!(total("stats_total/cache_hits"), "0");
        world.volume.read(0, 4096).await.unwrap();
        assert_eq!(total("stats_total/cache_hits"), "1");
        world.set.stop().await.unwrap();
    });
}

#[test]
fn a_cache_with_too_many_errors_is_retired_and_written_back() {
    in_a_set(|world| async move {
        let World { set, device, volume, .. } = &world;
        device.settings.cache_mode.set(CacheMode::Writeback);
        device.settings.writeback_running.set(false);
        set.settings.io_error_limit.set(3);
        volume.write(0, block(7), false).await.unwrap();
        assert!(set.dirty_sectors(0) > 0);
        world.cache_fails.set(true);
        for _ in 0..3 {
            let error = volume.read(0, 4096).await.unwrap_err();
            assert_eq!(error.errno, libc::EIO, "dirty data is not replaced by old");
        }
        assert!(set.io_errors.is_retired());
        world.cache_fails.set(false);
        // Asked for or not, what is dirty goes back now, and nothing new comes in.
        while set.dirty_sectors(0) > 0 {
            world.env.sleep(std::time::Duration::from_millis(5)).await;
        }
        let hits = device.stats.cache_misses.get();
        volume.write(8192, block(8), false).await.unwrap();
        assert_eq!((device.stats.cache_misses.get(), set.dirty_sectors(0)), (hits, 0));
        assert_eq!(volume.read(0, 4096).await.unwrap()[0][0], 7);
        set.set_attribute("clear_stats", "1").await.unwrap();
        assert!(!set.io_errors.is_retired());
        set.stop().await.unwrap();
    });
}

#[test]
fn a_backing_device_with_too_many_errors_is_given_up_until_they_are_cleared() {
    in_a_set(|world| async move {
        let World { set, device, volume, .. } = &world;
        device.settings.io_error_limit.set(2);
        world.backing_fails.set(true);
        for _ in 0..2 {
            assert!(volume.read(2 << 20, 4096).await.is_err());
        }
        world.backing_fails.set(false);
        let error = volume.read(2 << 20, 4096).await.unwrap_err();
        assert!(error.detail.contains("2 errors, the limit"), "{}", error.detail);
        set.set_device_attribute(device, "clear_stats", "1").await.unwrap();
        volume.read(2 << 20, 4096).await.unwrap();
        set.stop().await.unwrap();
    });
}

#[test]
fn writing_back_is_as_fast_as_can_be_while_nobody_asks() {
    in_a_set(|world| async move {
        let World { set, device, volume, .. } = &world;
        assert!(!(0..5).any(|_| set.is_idle()));
        assert!(set.is_idle(), "the sixth round without a request");
        device.settings.writeback_rate.set(i32::MAX as u64);
        volume.read(0, 4096).await.unwrap();
        assert_eq!(device.settings.writeback_rate.get(), 8);
        assert!(!set.is_idle());
        set.stop().await.unwrap();
    });
}
