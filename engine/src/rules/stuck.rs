//! Scenes in which something waited for ever, or leaked: each ends, and does not with its mistake switched on.

use super::crash::{DATA_OFFSET as DATA, Rig, Shape, USUAL};
use super::scenes;
use super::tree::{LARGE, grow, leave_on_disk};
use super::world::{GEO, Geo, World, ends, get, put, volume};
use crate::alloc::{Mark, Reserve};
use crate::btree::children_of;
use crate::request::DeviceVolume;
use crate::set::CacheSet;
use crate::sim::{Fault, FaultOn};
use crate::volume::Volume;
use bcache_format::Sectors;
use bcache_format::superblock::CacheMode;
use bcache_format::uuid_entry::UuidEntry;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

scenes! {
    the_prio_sets_take_no_bucket_that_the_journal_names: PriosOverRoots;
    a_future_that_is_dropped_does_no_harm: NobodyFinishes;
    a_failed_read_leaves_no_placeholder: MissLeftBehind;
    a_dropped_read_is_harmless: ReadLeftBehind;
    given_back_buckets_are_available: GivenBackNotAvailable;
    a_stop_ends_while_a_write_waits_for_a_bucket: StopWaitsForBuckets;
    a_full_volume_says_so_and_can_be_emptied: WaitsForEver;
    a_cached_device_does_not_wait_for_room_in_the_cache: WaitsForEver;
    a_lookup_ends_however_little_memory_there_is: PathNotHeld;
    a_read_across_two_interior_nodes_ends: PathNotHeld;
    a_large_least_rate_is_no_end_of_the_process: RateClampPanics;
    small_reads_do_not_retire_a_cache_with_large_blocks: PartsOfBlocks;
    a_small_write_does_not_spoil_a_volume_with_large_blocks;
    a_small_write_leaves_the_rest_of_its_block_readable: PartsOfBlocks;
    a_device_is_attached_once: AttachTwice;
    a_volume_that_finds_no_room_is_not_in_the_table: UuidsBeforeDurable;
    a_discard_has_its_turn: RangesUnfair;
    moving_gc_and_the_allocator_do_not_wait_for_each_other: MovingInThePass;
    a_full_cache_with_several_prio_buckets_can_be_emptied;
    the_prio_sets_never_want_for_buckets: PriosFromTheGeneralList;
    the_order_of_eviction_is_no_longer_than_there_are_nodes: ClockGrows;
    a_drain_ends_when_the_set_stops;
    a_stop_waits_for_what_began_before_a_detach: FormerRequestsLeft;
}

/// A read of which one part fails leaves the other's placeholder behind.
fn a_failed_read_leaves_no_placeholder() {
    let rig = Rig::new(&crate::rules::crash::Shape { mode: CacheMode::Writethrough, ..USUAL });
    rig.run(|it| async move {
        // missing, cached, missing
        it.write(8, 8, 1).await;
        assert_eq!(it.set.misses.sectors().0, 0);
        let at = (16) * 512;
        it.backing.inject(Fault::eio(FaultOn::Read, at..at + 4096).times(1));
        assert!(it.read(0, 24).await.is_err());
        it.wait(10).await;
        assert_eq!(it.set.misses.sectors().0, 0, "placeholders are left");
    });
}

/// A read that is dropped while it reads a node: the trait says that is harmless.
fn a_dropped_read_is_harmless() {
    let rig = Rig::new(&LARGE);
    rig.run(|it| async move {
        grow(&it).await;
        leave_on_disk(&it).await;
        let children = children_of(&it.set.tree.root());
        let at = children[0].ptr.offset() * 512;
        it.cache.inject(Fault::slow(FaultOn::Read, at..at + 4096, Duration::from_secs(10)).times(1));
        let env = it.set.env.clone();
        assert!(env.timeout(Duration::from_secs(1), it.volume.read(0, 4096)).await.is_err());
        it.wait(100).await;
        let again = env.timeout(Duration::from_secs(1000), it.volume.read(0, 4096)).await;
        assert!(again.is_ok(), "a later read of the same leaf waits for ever");
    });
}

/// Buckets that a split took and gave back are available again.
fn given_back_buckets_are_available() {
    let rig = Rig::new(&LARGE);
    rig.run(|it| async move {
        let before = it.set.alloc.in_use_percent();
        for _ in 0..60 {
            let buckets = it.set.alloc.take_nodes(6, 0).await.expect("there are some");
            drop(buckets);
        }
        let after = it.set.alloc.in_use_percent();
        assert_eq!(before, after);
    });
}

/// Grows a tree of three levels, all of it on disk.
async fn deep_tree(world: &World) -> (Rc<CacheSet>, Rc<DeviceVolume>) {
    let set = world.start().await.expect("starts");
    let (_device, volume) = world.attach(&set, 0).await.expect("attached");
    set.settings.congested_write_threshold_us.set(0);
    let mut n = 0u64;
    while set.tree.root().level < 2 && n < 30_000 {
        put(&*volume, n * 2, 1, 1 + (n % 200) as u8).await.expect("a write");
        n += 1;
    }
    assert_eq!(set.tree.root().level, 2);
    volume.flush().await.expect("a flush");
    set.checkpoint().await.expect("all nodes are written");
    (set, volume)
}

/// Nodes of a path put each other out of memory, for ever: one reader, nobody else, a tree of three levels.
fn a_lookup_ends_however_little_memory_there_is() {
    let world = World::new(Geo { nbuckets: 4096, backing_sectors: 64 * 1024, ..GEO });
    world.runtime.block_on(async {
        let (set, volume) = deep_tree(&world).await;
        set.set_attribute("btree_cache_bytes", "4096").await.expect("it is set");
        set.set_attribute("prune_cache", "1").await.expect("pruned");
        let env = set.env.clone();
        let read = env.timeout(Duration::from_secs(60), get(&*volume, 0, 1)).await;
        assert!(read.is_ok(), "a read of one sector takes more than a minute");
    });
}

/// The same with a request across the boundary of two interior nodes, and memory for one of them.
fn a_read_across_two_interior_nodes_ends() {
    let world = World::new(Geo { nbuckets: 4096, backing_sectors: 64 * 1024, ..GEO });
    world.runtime.block_on(async {
        let (set, volume) = deep_tree(&world).await;
        let children = crate::btree::children_of(&set.tree.root());
        let boundary = children[0].max.offset - DATA;
        set.set_attribute("btree_cache_bytes", "8k").await.expect("it is set");
        set.set_attribute("prune_cache", "1").await.expect("pruned");
        let env = set.env.clone();
        let read = env.timeout(Duration::from_secs(60), get(&*volume, boundary - 8, 16)).await;
        assert!(read.is_ok(), "a read of 16 sectors takes more than a minute");
    });
}
/// A value that the kernel takes, too, ends the process.
fn a_large_least_rate_is_no_end_of_the_process() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        it.set.set_device_attribute(&it.device, "writeback_rate_minimum", "2G").await.expect("it is taken");
        it.write(0, 8, 1).await;
        it.wait(20).await;
    });
}

/// On devices with blocks of 4 KiB requests of 512 bytes, which the volume takes.
fn small_reads_do_not_retire_a_cache_with_large_blocks() {
    let world = World::new(Geo { block_sectors: 8, cache_block: 4096, backing_block: 4096, ..GEO });
    world.runtime.block_on(async {
        let set = world.start().await.expect("starts");
        let (device, volume) = world.attach(&set, 0).await.expect("attached");
        put(&*volume, 0, 8, 7).await.expect("a write");
        for _ in 0..10 {
            let _ = get(&*volume, 1, 1).await;
        }
        assert!(!set.io_errors.is_retired(), "the cache was retired");
        let _ = device;
    });
}

fn a_small_write_does_not_spoil_a_volume_with_large_blocks() {
    let world = World::new(Geo {
        block_sectors: 8,
        cache_block: 4096,
        backing_block: 4096,
        bucket_sectors: 64,
        ..GEO
    });
    world.runtime.block_on(async {
        let set = world.start().await.expect("starts");
        let entry = UuidEntry { sectors: Sectors(8192), ..UuidEntry::EMPTY };
        let device = set.create_volume(Uuid::from_u128(7), entry).await.expect("a volume");
        let volume = volume(&set, &device);
        put(&*volume, 0, 8, 7).await.expect("a write");
        let mut failed = 0;
        for i in 4..40 {
            failed += u32::from(put(&*volume, i * 8, 8, 9).await.is_err());
        }
        assert_eq!(failed, 0, "whole blocks failed after it; retired: {}", set.io_errors.is_retired());
    });
}

fn a_small_write_leaves_the_rest_of_its_block_readable() {
    let world = World::new(Geo { block_sectors: 8, cache_block: 4096, backing_block: 512, ..GEO });
    world.runtime.block_on(async {
        let set = world.start().await.expect("starts");
        let (_device, volume) = world.attach(&set, 0).await.expect("attached");
        put(&*volume, 0, 8, 7).await.expect("a write");
        volume.flush().await.expect("a flush");
        assert_eq!(get(&*volume, 0, 8).await.map(|data| data[0]), Ok(7));
        let _ = put(&*volume, 3, 1, 8).await;
        let read = get(&*volume, 0, 8).await;
        assert!(read.is_ok(), "what was acknowledged and flushed cannot be read: {read:?}");
    });
}

/// Two attaches of one device at once.
fn a_device_is_attached_once() {
    let world = World::new(GEO);
    world.runtime.block_on(async {
        let set = world.start().await.expect("starts");
        let attach = || {
            let (set, dev) = (Rc::clone(&set), world.backings[0].dev());
            set.env.clone().spawn(async move { set.attach(dev).await.map(|device| device.inode.get()) })
        };
        let (one, two) = (attach(), attach());
        let (one, two) = (one.await, two.await);
        assert!(one.is_ok() != two.is_ok(), "both were attached: {} devices", set.devices().len());
    });
}

/// A large discard among small writes.
fn a_discard_has_its_turn() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        let env = it.set.env.clone();
        for k in 0..8u64 {
            let one = it.clone();
            env.spawn(async move {
                let mut i = k;
                loop {
                    one.write((i * 8) % 512, 8, 1).await;
                    i += 3;
                }
            })
            .detach();
        }
        it.wait(1).await;
        let discard = env.timeout(Duration::from_secs(30), it.volume.discard(0, 512 * 512)).await;
        assert!(discard.is_ok(), "half a minute was not enough");
    });
}

/// Moving GC needs buckets for nodes; who makes buckets free waits for the pass that the moving is a part of. Found by the
/// harness (seed 7415 of hunt_spoilt); here arranged: all that is free was taken, what can be freed is known only to the next
/// pass (its data was dirty and was overwritten), and the leaf of what is to be moved is full.
fn moving_gc_and_the_allocator_do_not_wait_for_each_other() {
    use crate::alloc::{Mark, Reserve};
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        let set = &it.set;
        set.settings.copy_gc_enabled.set(true);
        // A bucket, half of which is out of date.
        it.write(0, 8, 1).await;
        it.write(0, 4, 2).await;
        // The leaf has no room for another bset.
        let leaf = set.tree.root();
        for i in 2.. {
            set.node_write(&leaf).await.expect("the node is written");
            if !leaf.has_room(9, &set.cache.geometry) {
                break;
            }
            it.write(i * 16, 8, 1).await;
        }
        // Splits and writes took what there was.
        while set.alloc.try_take(Reserve::None).map(|taken| taken.used().leave()).is_some() {}
        while set.alloc.try_take(Reserve::Btree).map(|taken| taken.used().leave()).is_some() {}
        {
            let mut buckets = set.alloc.buckets.borrow_mut();
            let geometry = set.cache.geometry;
            for nr in geometry.first_bucket..geometry.nbuckets {
                let bucket = buckets.get_mut(bcache_format::BucketNr(nr));
                if bucket.pin == 0 && matches!(bucket.mark, Mark::Free | Mark::Reclaimable) {
                    bucket.mark = Mark::Dirty;
                }
            }
        }
        it.wait(60).await;
        let env = set.env.clone();
        // Where the leaf need not be touched for long, and where it is.
        let written = env.timeout(Duration::from_secs(600), it.write(2000, 8, 3)).await;
        assert!(
            written.is_ok(),
            "a write waits for ever, with {}% of the cache in use",
            set.alloc.in_use_percent()
        );
    });
}

/// Few buckets can be freed, just when the general list is empty; then many can.
fn the_prio_sets_never_want_for_buckets() {
    use crate::alloc::{Mark, Reserve};
    let world = World::new(Geo { nbuckets: 4096, ..GEO });
    world.runtime.block_on(async {
        let set = world.start().await.expect("starts");
        let (_device, volume) = world.attach(&set, 0).await.expect("attached");
        // Writes took what was free; of what is dirty or was, all but one bucket has to wait for the next pass of GC.
        while set.alloc.free_lists()[3] > 0 {
            set.alloc.try_take(Reserve::None).map(|taken| taken.used().leave());
        }
        let mut left = 1;
        {
            let mut buckets = set.alloc.buckets.borrow_mut();
            let geometry = set.cache.geometry;
            for nr in geometry.first_bucket..geometry.nbuckets {
                let bucket = buckets.get_mut(bcache_format::BucketNr(nr));
                if bucket.pin == 0 && matches!(bucket.mark, Mark::Free | Mark::Reclaimable) {
                    if left > 0 {
                        left -= 1;
                    } else {
                        bucket.mark = Mark::Dirty;
                    }
                }
            }
        }
        set.env.sleep(Duration::from_secs(10)).await;
        for _ in 0..3 {
            set.trigger_gc();
            set.env.sleep(Duration::from_secs(10)).await;
        }
        let env = set.env.clone();
        let written = env.timeout(Duration::from_secs(600), put(&*volume, 0, 8, 1)).await;
        assert!(
            written.is_ok(),
            "a write waits for ever, with {}% of the cache in use",
            set.alloc.in_use_percent()
        );
    });
}

/// What eviction goes by grows with every node that is ever written anew, while there is memory enough that nothing is evicted.
fn the_order_of_eviction_is_no_longer_than_there_are_nodes() {
    let rig = Rig::new(&Shape { backing_sectors: 16 * 1024, ..USUAL });
    rig.run(|it| async move {
        for i in 0..400 {
            it.write(i * 16, 8, 1).await;
        }
        it.set.settings.gc_always_rewrite.set(true);
        for _ in 0..200 {
            it.set.collect_garbage().await;
        }
        let (nodes, entries) = (it.set.tree.len(), it.set.tree.clock_len());
        assert!(entries < nodes * 10, "{entries} entries for {nodes} nodes");
    });
}

/// The set is stopped while a device is drained that cannot be.
fn a_drain_ends_when_the_set_stops() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        it.write(0, 8, 1).await;
        it.backing.inject(Fault::slow(
            FaultOn::Write,
            (DATA) * 512..(DATA + 8) * 512,
            Duration::from_secs(5),
        ));
        it.backing.inject(Fault::eio(FaultOn::Write, (DATA) * 512..(DATA + 8) * 512));
        let (set, device) = (Rc::clone(&it.set), Rc::clone(&it.device));
        let drain = it.set.env.spawn(async move { set.drain(&device).await });
        it.wait(1).await;
        it.set.stop().await.expect("it stops");
        it.wait(600).await;
        assert!(drain.is_finished(), "it waits for ever");
    });
}

/// Takes all that can be had, and lets nothing be free: all that is in the cache is to be dirty.
fn fill_up(world: &crate::set::CacheSet) {
    for reserve in [Reserve::None, Reserve::Btree] {
        while world.alloc.try_take(reserve).map(|taken| taken.used().leave()).is_some() {}
    }
    let mut buckets = world.alloc.buckets.borrow_mut();
    let geometry = world.cache.geometry;
    for nr in geometry.first_bucket..geometry.nbuckets {
        let bucket = buckets.get_mut(bcache_format::BucketNr(nr));
        if bucket.mark != Mark::Metadata {
            // As whatever is on its way into the tree has: GC does not look there.
            (bucket.mark, bucket.pin) = (Mark::Dirty, bucket.pin + 1);
        }
    }
}

/// A stop while a write waits for a free bucket that only writing back could make.
fn a_stop_ends_while_a_write_waits_for_a_bucket() {
    Rig::new(&USUAL).run(|it| async move {
        it.write(0, 8, 1).await;
        it.volume.flush().await.expect("a flush");
        fill_up(&it.set);
        // A pass of GC takes long, because it writes leaves, and until two have ended there is hope.
        it.cache.inject(Fault::slow(FaultOn::Write, 7 * 4096..u64::MAX, Duration::from_secs(10_000)));
        let (env, one) = (it.set.env.clone(), it.clone());
        let write = env.spawn(async move { one.try_write(800, 8, 1).await });
        it.wait(100).await;
        assert!(!write.is_finished());
        let stopping = Rc::clone(&it.set);
        env.spawn(async move { stopping.stop().await }).detach();
        it.wait(100).await;
        assert!(write.is_finished(), "the stop waits for a write that nobody can do");
        assert!(write.await.is_err());
    });
}

/// A volume larger than the cache is written until it is full: that is said within a short while, and what is discarded can be
/// written again. One sector in each extent, so that there are many keys.
fn a_full_volume_says_so_and_can_be_emptied() {
    Rig::new(&USUAL).run(|it| async move {
        let env = it.set.env.clone();
        let entry = UuidEntry { sectors: Sectors(8192), ..UuidEntry::EMPTY };
        let device = it.set.create_volume(Uuid::from_u128(7), entry).await.expect("a volume");
        let volume = volume(&it.set, &device);
        let mut full = None;
        for i in 0..4000u64 {
            let Some(wrote) = ends(&env, put(&*volume, i * 2, 1, 1)).await else {
                panic!("write {i} never ends; {}", it.set.stuck_state());
            };
            if let Err(error) = wrote {
                full = Some(error);
                break;
            }
        }
        let why = full.expect("it is full");
        assert!(why.contains("no space left"), "{why}");
        for at in (0..8000).step_by(128) {
            let one = ends(&env, volume.discard(at * 512, 64 * 512)).await;
            assert!(one.is_some(), "the discard of sector {at} never ends; {}", it.set.stuck_state());
            one.expect("it ended").expect("a discard makes room, and needs some for that");
        }
        it.wait(10).await;
        put(&*volume, 0, 1, 2).await.expect("there is room again");
        it.set.stop().await.expect("it stops");
    });
}

/// The cache is full of a volume's data. A device with a disk below it is written all the same.
fn a_cached_device_does_not_wait_for_room_in_the_cache() {
    Rig::new(&USUAL).run(|it| async move {
        it.set.settings.cutoff_writeback_sync.set(100);
        fill_up(&it.set);
        let env = it.set.env.clone();
        let wrote = ends(&env, it.write(0, 8, 7)).await;
        assert!(wrote.is_some(), "it waits for ever; {}", it.set.stuck_state());
        it.holds(0, 8, 7).await;
        it.volume.flush().await.expect("a flush");
        let mut sector = [0; 512];
        it.backing.durable().read(DATA * 512, &mut sector);
        assert_eq!(sector[0], 7);
    });
}

/// A volume is asked for when there is no room for the table that names it.
fn a_volume_that_finds_no_room_is_not_in_the_table() {
    Rig::new(&USUAL).run(|it| async move {
        fill_up(&it.set);
        let (env, uuid) = (it.set.env.clone(), Uuid::from_u128(7));
        let entry = UuidEntry { sectors: Sectors(8), ..UuidEntry::EMPTY };
        let made = ends(&env, it.set.create_volume(uuid, entry)).await.expect("it ends");
        assert!(made.is_err());
        assert_eq!(it.set.uuids.borrow().find(&uuid), None);
    });
}

/// A cache whose prio sets need several buckets (more than 170,000 buckets of 512 KiB, or 1352 of 4 KiB) is filled to the last
/// bucket, and then emptied.
fn a_full_cache_with_several_prio_buckets_can_be_emptied() {
    let world = World::new(Geo { nbuckets: 4096, ..GEO });
    world.runtime.block_on(async {
        let set = world.start().await.expect("starts");
        assert!(set.cache.geometry.prio_buckets() > 1);
        let env = set.env.clone();
        let entry = UuidEntry { sectors: Sectors(64 * 1024), ..UuidEntry::EMPTY };
        let device = set.create_volume(Uuid::from_u128(7), entry).await.expect("a volume");
        let volume = volume(&set, &device);
        let mut at = 0u64;
        while let Ok(wrote) = env.timeout(Duration::from_secs(600), put(&*volume, at, 8, 1)).await {
            if wrote.is_err() {
                break;
            }
            at += 8;
        }
        assert!(at < 64 * 1024, "it is full");
        for at in (0..at).step_by(512) {
            let one = ends(&env, volume.discard(at * 512, 512 * 512)).await;
            one.unwrap_or_else(|| panic!("the discard of {at} never ends; {}", set.stuck_state()))
                .expect("a discard");
        }
        for _ in 0..10 {
            set.trigger_gc();
            env.sleep(Duration::from_secs(6)).await;
        }
        for at in (0..at / 2).step_by(8) {
            let wrote = ends(&env, put(&*volume, at, 8, 1)).await;
            let wrote = wrote.unwrap_or_else(|| panic!("write {at} never ends; {}", set.stuck_state()));
            wrote.unwrap_or_else(|error| panic!("write {at}: {error}; {}", set.stuck_state()));
        }
    });
}

/// Every future of the engine that others hold is dropped at some moment. What it began is finished all the same; nothing is
/// held for ever, and what was acknowledged is there.
fn a_future_that_is_dropped_does_no_harm() {
    for seed in 1..40 {
        drop_at_random(seed);
    }
}

fn drop_at_random(seed: u64) {
    let world = World::new(Geo { seed, ..GEO });
    let mut rng = crate::env::Rng::new(seed);
    world.runtime.block_on(async {
        let set = world.start().await.expect("starts");
        let (device, volume) = world.attach(&set, 0).await.expect("attached");
        device.settings.writeback_running.set(seed.is_multiple_of(2));
        let env = set.env.clone();
        // What each range may hold: the last that was acknowledged, or anything that was begun after it.
        let mut may = vec![vec![0u8]; 64];
        for i in 0..150u64 {
            let (at, byte) = (rng.below(64), 1 + (i % 250) as u8);
            let patience = Duration::from_micros(rng.below(400));
            match rng.below(10) {
                0..5 => {
                    let mut data = crate::dev::Buf::zeroed(4096);
                    data.fill(byte);
                    let write = volume.write(at * 4096, data.freeze(), rng.chance(1, 4));
                    match env.timeout(patience, write).await {
                        Ok(Ok(())) => may[at as usize] = vec![byte],
                        _ => may[at as usize].push(byte),
                    }
                }
                5 => drop(env.timeout(patience, volume.flush()).await),
                6 => drop(
                    env.timeout(patience, set.set_device_attribute(&device, "label", &format!("l{i}"))).await,
                ),
                7 => {
                    set.tree.prune();
                    let modes = ["writeback", "writethrough", "writearound"];
                    let mode = modes[rng.below(3) as usize];
                    drop(env.timeout(patience, set.set_device_attribute(&device, "cache_mode", mode)).await);
                }
                _ => drop(env.timeout(patience, volume.read(at * 4096, 4096)).await),
            }
        }
        env.sleep(Duration::from_secs(100)).await;
        assert_eq!(set.failure(), None, "seed {seed}");
        let left = (
            set.misses.sectors().0,
            device.requests.get(),
            device.dirty_writers.get(),
            set.alloc.prio_blocks(),
        );
        assert_eq!(left, (0, 0, 0, 0), "seed {seed}: misses, requests, dirty writes, blocks of prio sets");
        assert!(device.writes.is_free(), "seed {seed}: a range is held");
        assert_eq!(set.audit().await.expect("an audit"), Vec::<String>::new(), "seed {seed}");
        for (at, may) in may.iter().enumerate() {
            let has = ends(&env, get(&*volume, at as u64 * 8, 8)).await;
            let has = has.unwrap_or_else(|| panic!("seed {seed}: range {at} cannot be read"));
            let has = has.unwrap_or_else(|error| panic!("seed {seed}: range {at}: {error}"));
            assert!(may.contains(&has[0]), "seed {seed}: range {at} has {}, not one of {may:?}", has[0]);
        }
        ends(&env, set.stop()).await.expect("the stop ends").expect("it stops");
    });
}

/// A new uuid table is written, and the journal entry that names it is under way when GC finds nothing in the old one's bucket, and
/// the prio sets want for buckets. A crash now would bring the old one back.
fn the_prio_sets_take_no_bucket_that_the_journal_names() {
    Rig::new(&USUAL).run(|it| async move {
        it.write(0, 8, 1).await;
        it.volume.flush().await.expect("a flush");
        let (set, env) = (Rc::clone(&it.set), it.set.env.clone());
        let old =
            set.uuids.borrow().key.ptr().map(|ptr| set.cache.geometry.ptr_bucket(ptr)).expect("a table");
        it.cache.inject(Fault::slow(FaultOn::Write, 3 * 4096..7 * 4096, Duration::from_secs(10_000)));
        let label = set.set_device_attribute(&it.device, "label", "x");
        env.spawn(label).detach();
        it.wait(1).await;
        while set.alloc.try_take(Reserve::Prio).map(|taken| taken.used().leave()).is_some() {}
        fill_up(&set);
        it.wait(100).await;
        assert!(!set.alloc.free_buckets().contains(&old), "the newest entry names it");
    });
}

/// A read that missed takes long; its device is detached meanwhile, and the set stops.
fn a_stop_waits_for_what_began_before_a_detach() {
    let rig = Rig::new(&crate::rules::crash::Shape { mode: CacheMode::Writethrough, ..USUAL });
    rig.run(|it| async move {
        let slow = Fault::slow(FaultOn::Read, 16 * 512..16 * 512 + 4096, Duration::from_secs(100));
        it.backing.inject(slow.times(1));
        let volume = Rc::clone(&it.volume);
        let read = it.set.env.spawn(async move { volume.read(0, 4096).await.map(|_| ()) });
        it.wait(1).await;
        it.set.detach(&it.device).await.expect("detached");
        it.set.stop().await.expect("stopped");
        assert_eq!(it.set.left_behind(), Vec::<String>::new(), "the stop did not wait for a read");
        read.await.expect("the read ends well");
    });
}
