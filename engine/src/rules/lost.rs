//! Scenes in which data was lost, or older data came back: each goes well, and does not with its mistake switched on.

use super::crash::{DATA_OFFSET as DATA, Rig, Shape, USUAL};
use super::scenes;
use super::tree::{LARGE, grow, leave_on_disk};
use super::world::{CacheShape, GEO, Geo, SB, World, ends, get, move_on, parse, put, writes_back};
use crate::btree::{Extent, Piece, children_of};
use crate::request::{AloneVolume, DeviceVolume};
use crate::sim::{Fault, FaultOn};
use crate::volume::Volume;
use bcache_format::superblock::{BackingState, CacheMode};
use bcache_format::{Sectors, Span};
use std::rc::Rc;
use std::time::Duration;

scenes! {
    clean_is_said_again_when_it_could_not_be_said: CleanNotRetried;
    writeback_does_not_overwrite_a_newer_write_below: WritebackHoldsLate;
    two_superblock_changes_at_once_both_stay: SuperblockUnlocked;
    what_is_forgotten_in_doubt_does_not_come_back_dirty: DoubtInMemory;
    what_is_forgotten_in_doubt_is_not_back_in_the_new_node: DoubtsTheFlushed;
    a_detach_that_failed_leaves_a_device_that_can_be_attached_again: SuperblockBeforeDurable;
    the_same_after_a_stop: SuperblockBeforeDurable;
    nothing_dirty_is_acknowledged_while_the_superblock_says_clean: SuperblockBeforeDurable;
    a_label_under_way_does_not_count_as_dirty_on_disk: SuperblockBeforeDurable;
    who_had_a_device_before_writes_its_superblock_no_more: TwoOwners;
    a_device_that_left_is_not_marked: LeftButMarked;
    a_flush_that_failed_between_two_sets_is_remembered: FailuresForgotten;
    a_detach_tells_of_a_flush_that_failed: DetachForgetsFailure;
    what_a_detach_was_told_of_a_client_is_told_too: DetachHearsForClients;
    a_flush_that_fails_while_a_device_comes_back_is_told_to_who_uses_it: FailuresForgotten;
    a_write_under_way_when_a_flush_failed_is_not_called_durable: FailureToldOnce;
    a_flush_that_waits_for_the_journal_hears_of_a_failure_that_another_was_told_of: FailureToldToAnother;
    a_stale_dirty_key_of_the_journal_does_not_count: StaleDirtyCounts;
    a_write_that_waits_for_the_journal_goes_where_the_device_is_by_then;
    dirty_data_behind_the_end_does_not_cost_the_rest: WritesBehindTheEnd;
}

/// Writeback collects extents of leaf 1, waits for leaf 2; meanwhile a write goes past the cache.
fn writeback_does_not_overwrite_a_newer_write_below() {
    let rig = Rig::new(&LARGE);
    rig.run(|it| async move {
        grow(&it).await;
        leave_on_disk(&it).await;
        it.holds(0, 8, 1).await;
        let children = children_of(&it.set.tree.root());
        let at = children[1].ptr.offset() * 512;
        it.cache.inject(Fault::slow(FaultOn::Read, at..at + 4096, Duration::from_secs(100)));
        let pos = bcache_format::Pos::new(0, 16);
        let leaf = it.set.node_at(pos, 0).await.expect("leaf");
        let mut n = 0;
        leaf.for_each_extent(|_| n += 1);
        drop(leaf);
        it.device.settings.writeback_running.set(true);
        it.device.settings.writeback_percent.set(0);
        it.device.writeback.wake();
        it.wait(1).await;
        it.device.settings.cache_mode.set(CacheMode::Writearound);
        it.write(0, 8, 77).await;
        it.volume.flush().await.expect("a flush");
        it.holds(0, 8, 77).await;
        it.wait(1000).await;
        let mut sector = [0; 512];
        it.backing.snapshot().read(16 * 512, &mut sector);
        it.holds(0, 8, 77).await;
        it.set.stop().await.expect("it stops");
        assert_eq!(
            sector[0], 77,
            "an acknowledged and flushed write is gone from the backing device, which says clean"
        );
    });
}

/// The superblock of the cache: two changes at once.
fn two_superblock_changes_at_once_both_stay() {
    for seed in 0..50u64 {
        let rig = Rig::new(&USUAL);
        rig.run(|it| async move {
            it.wait(seed % 7).await;
            // the first write takes longer than the second
            it.cache.inject(Fault::slow(FaultOn::Write, 4096..8192, Duration::from_secs(10)).times(1));
            let (a, b) = (Rc::clone(&it.set), Rc::clone(&it.set));
            let env = it.set.env.clone();
            let one = env.spawn(async move { a.set_attribute("discard", "1").await });
            it.wait(1).await;
            let two = env.spawn(async move { b.set_attribute("cache_replacement_policy", "fifo").await });
            one.await.expect("one");
            two.await.expect("two");
            let mut block = vec![0; bcache_format::superblock::SB_BYTES];
            it.cache.durable().read(4096, &mut block);
            let sb = bcache_format::superblock::Superblock::parse(&block).expect("a superblock");
            assert!(
                sb.discard() && sb.replacement() == Some(bcache_format::superblock::Replacement::Fifo),
                "discard {} policy {:?}",
                sb.discard(),
                sb.replacement()
            );
        });
    }
}

/// A flush of the backing device fails once; "doubtful" clean copies are forgotten, but in memory only. A key that was
/// dirty on disk and clean in memory is then neither: a write past the cache sees nothing to forget. After a power cut the
/// dirty key is back, over the newer, flushed write below.
fn what_is_forgotten_in_doubt_does_not_come_back_dirty() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        it.write(0, 8, 1).await;
        // This one cannot be written back, so that the device is not clean all the time.
        it.write(1000, 8, 2).await;
        it.volume.flush().await.expect("a flush");
        it.backing.inject(Fault::eio(FaultOn::Write, (DATA + 1000) * 512..(DATA + 1008) * 512));
        writes_back(&it.device);
        it.wait(3).await;
        let inode = it.device.inode.get().expect("attached");
        assert_eq!(it.set.dirty_sectors(inode), 8, "the first was written back");
        // Something was written through since: what of the leaf that flush was for is not known one by one.
        it.set.set_device_attribute(&it.device, "cache_mode", "writethrough").await.expect("it is set");
        it.write(2000, 8, 3).await;
        it.backing.inject(Fault::eio(FaultOn::Flush, 0..u64::MAX).times(1));
        assert!(it.volume.flush().await.is_err(), "the client is told");
        // From here on nothing fails but that one write.
        it.device.settings.writeback_running.set(false);
        it.set.set_device_attribute(&it.device, "cache_mode", "writearound").await.expect("it is set");
        it.write(0, 8, 77).await;
        it.volume.flush().await.expect("a flush: 77 is durable");
        it.holds(0, 8, 77).await;
    });
    let rig = Rig::with(&USUAL, rig.images());
    rig.run(|it| async move {
        it.holds(0, 8, 77).await;
    });
}

/// A leaf is being written anew: its keys were copied, the new node is on its way. A flush of the backing device fails; the
/// clean copies that are in doubt are forgotten, in the old leaf. A write past the cache sees nothing to forget. Then the new node
/// takes the old one's place, with the clean copy of what was there before. Found by the harness (seed 10818 of hunt_spoilt).
fn what_is_forgotten_in_doubt_is_not_back_in_the_new_node() {
    let rig = Rig::new(&Shape { mode: CacheMode::Writethrough, ..USUAL });
    rig.run(|it| async move {
        let set = &it.set;
        let leaf = set.tree.root();
        // One block is left in the leaf.
        let mut n = 0;
        it.write(3600, 8, 9).await;
        while leaf.state().written + 1 < set.cache.geometry.btree_node_blocks() {
            n += 1;
            it.write(2000 + n * 16, 8, 9).await;
            set.node_write(&leaf).await.expect("the node is written");
        }
        // What is about to be in doubt, and as much more as there is room for.
        it.write(0, 8, 1).await;
        let mut n = 1;
        while leaf.has_room(9, &set.cache.geometry) {
            it.write(n * 16, 8, 9).await;
            n += 1;
        }
        assert!(!leaf.write_queued.get(), "nobody writes it");
        // The next key needs a new node, which takes long to write. Nothing is discarded below.
        let journal_end = 7 * 4096;
        it.cache.inject(Fault::slow(FaultOn::Write, journal_end..u64::MAX, Duration::from_secs(100)));
        let one = it.clone();
        let env = set.env.clone();
        env.spawn(async move { one.volume.discard(3600 * 512, 4096).await }).detach();
        it.wait(10).await;
        assert!(leaf.is_frozen() && !leaf.is_dead(), "it is being written anew");
        it.device.settings.cache_mode.set(CacheMode::Writearound);
        it.write(3000, 8, 9).await;
        it.backing.inject(Fault::eio(FaultOn::Flush, 0..u64::MAX).times(1));
        assert!(it.volume.flush().await.is_err(), "the client is told");
        // From here on nothing fails.
        it.write(0, 8, 77).await;
        it.volume.flush().await.expect("77 is durable");
        it.holds(0, 8, 77).await;
        it.wait(1000).await;
        assert!(leaf.is_dead(), "it was written anew");
        it.holds(0, 8, 77).await;
    });
}

/// The superblock's write fails when a device is detached. The device stays attached, and is used on; but the superblock
/// in memory is that of a detached device, and the next dirty write puts it on the disk: dirty, of no set. Nobody can attach it
/// any more.
fn a_detach_that_failed_leaves_a_device_that_can_be_attached_again() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        it.backing.inject(Fault::eio(FaultOn::Write, SB).times(1));
        assert!(it.set.detach(&it.device).await.is_err(), "the superblock cannot be written");
        // As the daemon does.
        it.set.resume_caching(&it.device);
        assert!(it.device.inode.get().is_some(), "it stays attached");
        it.write(0, 8, 7).await;
        it.volume.flush().await.expect("a flush");
        it.holds(0, 8, 7).await;
    });
    let [cache, backing] = rig.images();
    let sb = parse(&backing);
    println!("on disk: {:?} of set {}", sb.state(), sb.set_uuid);
    let again = Rig::with(&USUAL, [cache, backing]).try_run(|it| async move { it.holds(0, 8, 7).await });
    assert_eq!(again, Ok(()));
}

/// The same, with the set stopped in order.
fn the_same_after_a_stop() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        it.backing.inject(Fault::eio(FaultOn::Write, SB).times(1));
        assert!(it.set.detach(&it.device).await.is_err());
        it.set.resume_caching(&it.device);
        it.write(0, 8, 7).await;
        it.set.stop().await.expect("it stops");
    });
    let again = Rig::with(&USUAL, rig.images()).try_run(|it| async move { it.holds(0, 8, 7).await });
    assert_eq!(again, Ok(()));
}

/// Two failed writes of the backing superblock: it says clean on disk, and dirty in memory. Whether a failed write
/// arrived all the same is left to the seed.
fn nothing_dirty_is_acknowledged_while_the_superblock_says_clean() {
    let mut wrong = Vec::new();
    for seed in 1..12 {
        let geo = Geo { seed, ..GEO };
        let world = World::new(geo);
        world.runtime.block_on(async {
            let set = world.start().await.expect("starts");
            let (device, volume) = world.attach(&set, 0).await.expect("attached");
            world.backings[0].inject(Fault::eio(FaultOn::Write, SB).times(1));
            assert!(put(&*volume, 0, 8, 1).await.is_err(), "dirty cannot be said");
            world.backings[0].inject(Fault::eio(FaultOn::Write, SB).times(1));
            assert!(set.set_device_attribute(&device, "label", "x").await.is_err());
            // From here on nothing fails.
            put(&*volume, 0, 8, 2).await.expect("a write");
            volume.flush().await.expect("a flush");
        });
        let state = parse(&world.images()[1]).state();
        let world = World::with(geo, world.images());
        let alone = world.runtime.block_on(AloneVolume::open(world.backings[0].dev(), false)).is_ok();
        if state != BackingState::Dirty {
            wrong.push((seed, state, alone));
        }
    }
    assert!(
        wrong.is_empty(),
        "acknowledged, flushed, dirty data; seed, state on disk, served alone: {wrong:?}"
    );
}

/// One failed write, then a change of the label that takes long beside a dirty write, then a power cut.
fn a_label_under_way_does_not_count_as_dirty_on_disk() {
    let rig = Rig::new(&USUAL);
    let images = rig.run(|it| async move {
        it.backing.inject(Fault::eio(FaultOn::Write, SB).times(1));
        assert!(it.try_write(0, 8, 1).await.is_err());
        it.backing.inject(Fault::slow(FaultOn::Write, SB, Duration::from_secs(100)).times(1));
        let (set, device) = (Rc::clone(&it.set), Rc::clone(&it.device));
        it.set.env.spawn(async move { set.set_device_attribute(&device, "label", "x").await }).detach();
        it.wait(1).await;
        let written = it.set.env.timeout(Duration::from_secs(10), it.write(0, 8, 2)).await;
        if written.is_err() {
            // It waits, as it should.
            return None;
        }
        // Keys and data only: no flush of the backing device, which is what makes the label durable.
        it.set.commit_keys().await.expect("committed");
        Some([it.cache.durable(), it.backing.durable()])
    });
    if let Some(images) = images {
        assert_eq!(parse(&images[1]).state(), BackingState::Dirty, "dirty data was acknowledged");
    }
}

/// A device is detached, and its label changed through who still has it, while it is attached again and gets dirty data.
fn who_had_a_device_before_writes_its_superblock_no_more() {
    let rig = Rig::new(&USUAL);
    let images = rig.run(|it| async move {
        it.set.detach(&it.device).await.expect("detached");
        it.backing.inject(Fault::slow(FaultOn::Write, SB, Duration::from_secs(100)).times(1));
        let (set, device) = (Rc::clone(&it.set), Rc::clone(&it.device));
        let label = it.set.env.spawn(async move { set.set_device_attribute(&device, "label", "x").await });
        it.wait(1).await;
        let device = it.set.attach(it.backing.dev()).await.expect("attached again");
        device.settings.cache_mode.set(CacheMode::Writeback);
        let volume = DeviceVolume::new(Rc::clone(&it.set), Rc::clone(&device), "again".to_owned());
        put(&volume, 0, 8, 7).await.expect("written");
        volume.flush().await.expect("flushed");
        let _ = label.await;
        let later = it.set.set_device_attribute(&it.device, "label", "y").await;
        assert!(later.is_err(), "two owners of one superblock");
        Some([it.cache.durable(), it.backing.durable()])
    });
    let images = images.expect("a run");
    assert_eq!(parse(&images[1]).state(), BackingState::Dirty, "dirty data was acknowledged");
}

/// A device is detached; then its label cannot be written, and what still waited for its turn to say clean has it.
fn a_device_that_left_is_not_marked() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        it.set.detach(&it.device).await.expect("detached");
        it.backing.inject(Fault::eio(FaultOn::Write, SB).times(1));
        assert!(it.set.set_device_attribute(&it.device, "label", "x").await.is_err());
        let backing = it.device.backing().expect("a backing device");
        backing.mark_clean(|| true).await.expect("nothing to be done");
        assert_eq!(parse(&it.backing.durable()).state(), BackingState::None, "it is of no set");
        assert!(backing.mark_dirty().await.is_err(), "nothing dirty of it can be kept");
        assert_eq!(parse(&it.backing.durable()).state(), BackingState::None, "it is of no set");
    });
}

/// A detached device is written, and its flush fails: what is read below may be gone after a power cut. Attached again,
/// nothing of it is cached, for the copy would be called clean and be newer than what is below.
fn a_flush_that_failed_between_two_sets_is_remembered() {
    let rig = Rig::new(&Shape { mode: CacheMode::Writethrough, ..USUAL });
    rig.run(|it| async move {
        it.set.detach(&it.device).await.expect("detached");
        it.write(0, 8, 7).await;
        it.backing.inject(Fault::eio(FaultOn::Flush, 0..u64::MAX).times(1));
        assert!(it.volume.flush().await.is_err(), "its client is told");
        let device = it.set.attach(it.backing.dev()).await.expect("attached again");
        let volume = DeviceVolume::new(Rc::clone(&it.set), Rc::clone(&device), "again".to_owned());
        get(&volume, 0, 8).await.expect("read");
        it.wait(10).await;
        let inode = device.inode.get().expect("a slot");
        let first = device.first_sector();
        let pieces = it.set.pieces(Span::new(inode, first, first + Sectors(8))).await.expect("looked up");
        let cached = pieces.iter().any(|piece| matches!(piece, Piece::Cached(_)));
        assert!(!cached, "a copy of what may be gone: {pieces:?}");
    });
}

/// A flush that failed, and that no client has heard of, is told by a stop; a detach must tell it, too: after it there is
/// nobody left who knows.
fn a_detach_tells_of_a_flush_that_failed() {
    let rig = Rig::new(&Shape { mode: CacheMode::Writethrough, ..USUAL });
    rig.run(|it| async move {
        it.write(0, 8, 9).await;
        it.backing.inject(Fault::eio(FaultOn::Flush, 0..u64::MAX).times(1));
        // Leaves are written, and the backing device flushed first, when they have waited half a minute.
        it.wait(60).await;
        assert!(
            it.set.detach(&it.device).await.is_err(),
            "what was written before may be lost, and nobody was told"
        );
    });
}

/// Whoever detaches a device is told of a failed flush, and reads it on a terminal. The file system above has heard nothing,
/// and is told by its next flush, or by the stop.
fn what_a_detach_was_told_of_a_client_is_told_too() {
    for stops in [false, true] {
        let rig = Rig::new(&Shape { mode: CacheMode::Writethrough, ..USUAL });
        rig.run(|it| async move {
            it.write(0, 8, 9).await;
            it.backing.inject(Fault::eio(FaultOn::Flush, 0..u64::MAX).times(1));
            assert!(it.set.detach(&it.device).await.is_err(), "the flush of the detach failed");
            if stops {
                assert!(
                    it.set.stop().await.is_err(),
                    "acknowledged data may be lost, and no client was told"
                );
                return;
            }
            assert!(
                it.volume.flush().await.is_err(),
                "acknowledged data may be lost, and no client was told"
            );
            it.set.detach(&it.device).await.expect("everybody was told");
        });
    }
}

/// A device runs without its cache, and is attached again under whoever uses it. Attaching flushes it, and if that fails what
/// was written may be lost: whoever attaches it cannot do anything about that, those who use it can, and are told, whoever
/// answers them by then.
fn a_flush_that_fails_while_a_device_comes_back_is_told_to_who_uses_it() {
    for again in [false, true] {
        let world = World::new(Geo { mode: CacheMode::Writethrough, ..GEO });
        world.runtime.block_on(async {
            let set = world.start().await.expect("starts");
            let alone = AloneVolume::open(world.backings[0].dev(), false).await.expect("it is whole");
            put(&alone, 0, 8, 7).await.expect("written");
            set.takes_over_from(alone.device());
            world.backings[0].inject(Fault::eio(FaultOn::Flush, 0..u64::MAX).times(1));
            assert!(world.attach(&set, 0).await.is_err(), "it cannot be flushed");
            let told = if again {
                let (_device, volume) = world.attach(&set, 0).await.expect("attached");
                volume.flush().await
            } else {
                assert!(alone.owes_clients());
                alone.flush().await
            };
            assert!(told.is_err(), "acknowledged data may be lost, and no client was told");
            assert!(!alone.owes_clients());
        });
    }
}

/// A write is below, but not acknowledged yet, when a flush of another client fails. It is acknowledged later, and the flush
/// after that finds nothing wrong: what the failed one lost is lost without a word. What that is the seed decides.
fn a_write_under_way_when_a_flush_failed_is_not_called_durable() {
    let mut lost = Vec::new();
    for seed in 1..12 {
        let geo = Geo { seed, mode: CacheMode::Writethrough, ..GEO };
        let world = World::new(geo);
        let acknowledged = world.runtime.block_on(async {
            let set = world.start().await.expect("starts");
            let (_device, volume) = world.attach(&set, 0).await.expect("attached");
            let env = set.env.clone();
            world.cache.inject(Fault::slow(FaultOn::Write, 7 * 4096..u64::MAX, Duration::from_secs(10)));
            let one = Rc::clone(&volume);
            let write = env.spawn(async move { put(&*one, 0, 8, 77).await });
            env.sleep(Duration::from_secs(1)).await;
            world.backings[0].inject(Fault::eio(FaultOn::Flush, 0..u64::MAX).times(1));
            assert!(volume.flush().await.is_err(), "its client is told");
            let written = write.await;
            written.is_ok() && volume.flush().await.is_ok()
        });
        let mut sector = [0; 512];
        world.backings[0].durable().read(DATA * 512, &mut sector);
        if acknowledged && sector[0] != 77 {
            lost.push(seed);
        }
    }
    assert!(lost.is_empty(), "acknowledged, flushed and lost with seeds {lost:?}");
}

/// A client's flush waits for the journal. Meanwhile somebody else's flush fails and is told so, which drops what the client
/// wrote; the flush that the client's request sends then succeeds.
fn a_flush_that_waits_for_the_journal_hears_of_a_failure_that_another_was_told_of() {
    let rig = Rig::new(&Shape { mode: CacheMode::Writethrough, ..USUAL });
    rig.run(|it| async move {
        it.write(0, 8, 77).await;
        it.cache.inject(Fault::slow(FaultOn::Write, 0..u64::MAX, Duration::from_secs(10)).times(1));
        let one = it.clone();
        let flush = it.set.env.spawn(async move { one.volume.flush().await });
        it.wait(1).await;
        it.backing.inject(Fault::eio(FaultOn::Flush, 0..u64::MAX).times(1));
        let dev = &it.device.backing().expect("a backing device").dev;
        // As a detach does.
        assert!(dev.client_flush(dev.epoch(), dev.reported()).await.is_err(), "it is told");
        assert!(!flush.is_finished(), "the client waits");
        assert!(
            flush.await.is_err(),
            "what the client wrote may be lost, and it was told that it is durable"
        );
    });
}

/// A journal entry has a dirty key whose bucket has moved on (Linux leaves such).
fn a_stale_dirty_key_of_the_journal_does_not_count() {
    let rig = Rig::new(&USUAL);
    let (shape, bucket) = rig.run(|it| async move {
        it.write(0, 8, 1).await;
        it.volume.flush().await.expect("a flush");
        let at = it.cached_at(0).await.start / 4096;
        (CacheShape::of(&it.set), at)
    });
    let [mut cache, backing] = rig.images();
    move_on(&mut cache, &shape, bucket);
    Rig::with(&USUAL, [cache, backing]).run(|it| async move {
        let env = it.set.env.clone();
        let detached = ends(&env, it.set.detach(&it.device)).await;
        assert!(matches!(detached, Some(Ok(()))), "the detach never ends: {detached:?}");
    });
}

/// A write that waits for the journal while its device is detached.
fn a_write_that_waits_for_the_journal_goes_where_the_device_is_by_then() {
    Rig::new(&USUAL).run(|it| async move {
        let (set, env) = (&it.set, it.set.env.clone());
        // The journal has as much to write as it takes.
        it.cache.inject(Fault::slow(FaultOn::Write, 3 * 4096..7 * 4096, Duration::from_secs(100)));
        let mut at = 0;
        while !set.journal.congested() {
            at += 8;
            set.journal.add(Extent::hole(200, at, 8).key());
        }
        let one = it.clone();
        let write = env.spawn(async move { one.try_write(0, 8, 9).await });
        env.yield_now().await;
        assert!(!write.is_finished(), "it waits");
        set.detach(&it.device).await.expect("detached");
        write.await.expect("it is acknowledged");
        it.holds(0, 8, 9).await;
    });
}

/// The backing device is shorter than it was.
fn dirty_data_behind_the_end_does_not_cost_the_rest() {
    let world = World::new(GEO);
    world.runtime.block_on(async {
        let set = world.start().await.expect("starts");
        let (_, volume) = world.attach(&set, 0).await.expect("attached");
        put(&*volume, 0, 8, 1).await.expect("a write");
        put(&*volume, 16 * 1024 - 8, 8, 2).await.expect("a write");
        volume.flush().await.expect("a flush");
    });
    let world = World::with(Geo { backing_sectors: 8 * 1024, ..GEO }, world.images());
    world.runtime.block_on(async {
        let set = world.start().await.expect("starts");
        let (device, volume) = match world.attach(&set, 0).await {
            Ok(attached) => attached,
            Err(error) => return println!("refused: {error}"),
        };
        assert_eq!(set.missing_sectors(&device), 8 * 1024, "whoever serves it can tell");
        writes_back(&device);
        set.env.sleep(Duration::from_secs(1000)).await;
        assert_eq!(get(&*volume, 0, 8).await.map(|data| data[0]), Ok(1));
    });
}

/// The superblock cannot be written when the last dirty data has been written back. A device that says dirty for ever could not
/// be used without its cache.
fn clean_is_said_again_when_it_could_not_be_said() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        it.write(0, 8, 1).await;
        it.volume.flush().await.expect("a flush");
        it.backing.inject(Fault::eio(FaultOn::Write, SB).times(1));
        writes_back(&it.device);
        it.wait(60).await;
        it.set.stop().await.expect("it stops");
    });
    assert_eq!(parse(&rig.images()[1]).state(), BackingState::Clean);
}
