//! What goes wrong with devices, one rule a test.

use bcache_engine::dev::Buf;
use bcache_engine::set::CacheSet;
use bcache_engine::settings::SetSettings;
use bcache_engine::sim::{Fault, FaultOn};
use bcache_engine::volume::Volume;
use bcache_format::superblock::CacheMode;
use bcache_format::{Sector, Span};
use bcache_tests::crash::{DATA_OFFSET as DATA, Rig, Shape, Started, USUAL};
use std::time::Duration;

const EVERYWHERE: std::ops::Range<u64> = 0..u64::MAX;
/// The bytes of the journal: four buckets.
const JOURNAL: std::ops::Range<u64> = 3 * 4096..7 * 4096;

#[test]
fn a_read_error_on_clean_data_is_served_from_below_and_counted() {
    let rig = Rig::new(&Shape { mode: CacheMode::Writethrough, ..USUAL });
    rig.run(|it| async move {
        it.write(0, 8, 7).await;
        it.holds(0, 8, 7).await;
        assert_eq!(it.device.stats.cache_hits.get(), 1, "it is in the cache");
        it.cache.inject(Fault::eio(FaultOn::Read, EVERYWHERE));
        it.holds(0, 8, 7).await;
        assert_eq!(it.set.stats.cache_read_errors.get(), 1);
        assert!(it.set.failure().is_none());
    });
}

#[test]
fn a_read_error_on_dirty_data_is_an_error_of_exactly_that_range() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        for i in 0..4 {
            it.write(i * 8, 8, 1 + i as u8).await;
        }
        it.volume.flush().await.expect("a flush");
        it.cache.inject(Fault::eio(FaultOn::Read, it.cached_at(8).await));
        assert_eq!(it.read(8, 8).await, Err(nix::libc::EIO));
        it.holds(0, 8, 1).await;
        it.holds(16, 8, 3).await;
        it.holds(24, 8, 4).await;
    });
}

#[test]
fn a_write_error_below_keeps_the_key_dirty_and_is_tried_again() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        it.write(0, 8, 5).await;
        let inode = it.device.inode.get().expect("it is attached");
        it.backing.inject(Fault::eio(FaultOn::Write, DATA * 512..(DATA + 8) * 512));
        it.device.settings.writeback_delay.set(0);
        it.device.settings.writeback_percent.set(0);
        it.device.settings.writeback_running.set(true);
        it.write(100, 1, 6).await;
        it.wait(10).await;
        assert!(it.device.stats.backing_write_errors.get() > 2, "it is tried again and again");
        assert_eq!(it.set.dirty_sectors(inode), 8, "the rest is written back");
        it.holds(0, 8, 5).await;
        it.backing.heal();
        it.wait(10).await;
        assert_eq!(it.set.dirty_sectors(inode), 0);
        let mut below = [0; 512];
        it.backing.snapshot().read(DATA * 512, &mut below);
        assert_eq!(below, [5; 512]);
        assert!(it.set.failure().is_none());
    });
}

#[test]
fn a_failed_flush_below_is_told_and_what_it_may_have_lost_is_not_called_clean() {
    let rig = Rig::new(&Shape { mode: CacheMode::Writethrough, ..USUAL });
    rig.run(|it| async move {
        it.write(0, 8, 9).await;
        one_flush_below_fails(&it);
        assert!(it.volume.flush().await.is_err(), "the client is told");
        assert!(it.volume.flush().await.is_ok(), "once");
        let inode = it.device.inode.get().expect("it is attached");
        let pieces =
            it.set.pieces(Span::new(inode, Sector(DATA), Sector(DATA + 8))).await.expect("the btree is read");
        assert!(matches!(pieces[..], [bcache_engine::btree::Piece::Missing { .. }]), "{pieces:?}");
        it.set.stop().await.expect("the set stops in order");
    });
}

/// One flush below fails, and then all is well: who was told of it decides who must still be.
fn one_flush_below_fails(it: &Started) {
    it.backing.inject(Fault::eio(FaultOn::Flush, EVERYWHERE).times(1));
}

#[test]
fn a_flush_below_that_failed_for_a_fua_write_is_told_to_the_next_flush_too() {
    let rig = Rig::new(&Shape { mode: CacheMode::Writethrough, ..USUAL });
    rig.run(|it| async move {
        it.write(0, 8, 9).await;
        one_flush_below_fails(&it);
        let data = Buf::copied(&[8; 4096]).freeze();
        assert!(it.volume.write(8 * 512, data, true).await.is_err(), "it is not durable");
        assert!(it.volume.flush().await.is_err(), "nor is what was written before");
        assert!(it.volume.flush().await.is_ok());
    });
}

#[test]
fn a_flush_below_that_failed_and_that_no_client_heard_of_is_told_by_the_stop() {
    let rig = Rig::new(&Shape { mode: CacheMode::Writethrough, ..USUAL });
    rig.run(|it| async move {
        it.write(0, 8, 9).await;
        one_flush_below_fails(&it);
        // Leaves are written, and the backing device flushed first, when they have waited half a minute.
        it.wait(60).await;
        assert!(it.set.stop().await.is_err());
    });
}

#[test]
fn what_is_read_from_below_after_a_failed_flush_is_not_cached() {
    let rig = Rig::new(&Shape { mode: CacheMode::Writethrough, ..USUAL });
    rig.run(|it| async move {
        it.write(0, 8, 9).await;
        one_flush_below_fails(&it);
        assert!(it.volume.flush().await.is_err());
        for _ in 0..2 {
            // The drive may show what it has lost until the power goes.
            it.holds(0, 8, 9).await;
            it.wait(1).await;
        }
        assert_eq!(it.device.stats.cache_hits.get(), 0);
    });
}

#[test]
fn no_flush_of_the_cache_makes_up_for_one_that_failed() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        it.write(0, 8, 9).await;
        it.cache.inject(Fault::eio(FaultOn::Flush, EVERYWHERE).times(1));
        assert!(it.volume.flush().await.is_err());
        let epoch = it.set.cache.epoch();
        assert!(it.set.cache.ensure_flushed(epoch).await.is_err(), "what that one lost stays lost");
        assert!(it.set.failure().is_some());
    });
}

#[test]
fn a_stop_waits_for_nodes_that_are_being_written() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        // More keys than a bset gathers: a leaf begins to be written by itself.
        for i in 0..200 {
            it.write(i * 16, 8, 3).await;
        }
        it.set.stop().await.expect("the set stops");
        let nodes = it.set.stats.node_writes.get();
        it.wait(10).await;
        assert_eq!(it.set.stats.node_writes.get(), nodes);
        assert_eq!(it.cache.in_flight(), 0);
    });
}

#[test]
fn a_detach_that_cannot_write_back_says_so() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        it.write(0, 8, 9).await;
        it.backing.inject(Fault::eio(FaultOn::Write, DATA * 512..(DATA + 8) * 512));
        let error = it.set.detach(&it.device).await.expect_err("nothing can be written back").to_string();
        assert!(error.contains("could not be written back") && error.contains("64 errors"), "{error}");
        it.backing.heal();
        it.set.set_device_attribute(&it.device, "clear_stats", "1").await.expect("counters are cleared");
        it.set.detach(&it.device).await.expect("all is written back");
    });
}

#[test]
fn a_journal_that_cannot_be_written_ends_writing_but_not_reading_what_is_clean() {
    let rig = Rig::new(&Shape { mode: CacheMode::Writethrough, ..USUAL });
    rig.run(|it| async move {
        it.write(0, 8, 3).await;
        it.volume.flush().await.expect("a flush");
        it.cache.inject(Fault::eio(FaultOn::Write, JOURNAL));
        // The write goes below as well, but its key cannot be made durable.
        let _ = it.try_write(8, 8, 4).await;
        assert!(it.volume.flush().await.is_err());
        assert!(it.set.failure().is_some());
        assert!(it.try_write(16, 8, 4).await.is_err());
        it.holds(0, 8, 3).await;
        let writes = it.cache.stats().writes;
        assert!(it.set.stop().await.is_err(), "a stop says that something went wrong");
        assert_eq!(it.cache.stats().writes, writes, "and writes nothing");
    });
}

#[test]
fn no_more_of_a_miss_is_cached_once_the_set_has_failed() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        let before = it.cache.stats().writes;
        it.cache.inject(Fault::slow(FaultOn::Write, JOURNAL.end..u64::MAX, Duration::from_secs(5)));
        // More than a bucket, so that it is copied in pieces.
        it.read(64, 24).await.expect("a miss");
        it.wait(1).await;
        assert_eq!(it.cache.stats().writes, before + 1, "the first is on its way");
        it.cache.heal();
        it.cache.inject(Fault::eio(FaultOn::Write, JOURNAL));
        assert!(it.volume.write(0, Buf::zeroed(512).freeze(), true).await.is_err());
        assert!(it.set.failure().is_some());
        let writes = it.cache.stats().writes;
        it.wait(10).await;
        assert_eq!(it.cache.stats().writes, writes);
    });
}

#[test]
fn a_failed_set_never_serves_what_is_below_dirty_data() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        it.write(0, 8, 3).await;
        it.volume.flush().await.expect("a flush");
        it.cache.inject(Fault::eio(FaultOn::Write, JOURNAL));
        let _ = it.try_write(8, 8, 4).await;
        let _ = it.volume.flush().await;
        assert!(it.set.failure().is_some());
        it.holds(0, 8, 3).await;
        it.cache.inject(Fault::eio(FaultOn::Read, EVERYWHERE));
        assert_eq!(it.read(0, 8).await, Err(nix::libc::EIO));
    });
}

#[test]
fn metadata_that_cannot_be_trusted_is_named_and_nothing_is_written() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        for i in 0..32 {
            it.write(i * 16, 8, 3).await;
        }
        it.set.stop().await.expect("the set stops");
    });
    // Every btree node becomes garbage but for its first word.
    let [mut cache, backing] = rig.images();
    for bucket in 7..513u64 {
        let mut bytes = [0; 4096];
        cache.read(bucket * 4096, &mut bytes);
        let magic = u64::from_le_bytes(std::array::from_fn(|i| bytes[16 + i]));
        if magic != 0 && bytes[..24] != [3; 24] {
            bytes[100..300].fill(0xaa);
            cache.write(bucket * 4096, &bytes);
        }
    }
    let rig = Rig::with(&USUAL, [cache, backing]);
    let error = rig.runtime.block_on(async {
        match CacheSet::start(rig.runtime.env(), rig.cache.dev(), SetSettings::default()).await {
            Ok(_) => panic!("it starts"),
            Err(error) => error.to_string(),
        }
    });
    assert!(error.contains("bucket") && error.contains("checksum"), "{error}");
    assert_eq!(rig.cache.stats().writes + rig.backing.stats().writes, 0);
}

#[test]
fn a_cache_smaller_than_what_is_written_serves_it_all() {
    for mode in [CacheMode::Writeback, CacheMode::Writethrough] {
        let rig = Rig::new(&Shape { mode, backing_sectors: 3 * 4096, ..USUAL });
        rig.run(|it| async move {
            it.device.settings.writeback_running.set(true);
            it.device.settings.writeback_percent.set(0);
            it.device.settings.writeback_delay.set(0);
            for round in 0..2u8 {
                for i in 0..3 * 512 {
                    it.write(i * 8, 8, (i % 200) as u8 + round).await;
                }
                for i in 0..3 * 512 {
                    it.holds(i * 8, 8, (i % 200) as u8 + round).await;
                }
            }
            assert_eq!(it.set.audit().await.expect("the audit"), Vec::<String>::new());
            it.set.stop().await.expect("the set stops");
        });
    }
}

#[test]
fn a_backing_device_of_a_tebibyte_works_to_its_end() {
    let sectors = 1u64 << 31;
    let rig = Rig::new(&Shape { backing_sectors: sectors, ..USUAL });
    rig.run(|it| async move {
        for at in [0, sectors / 2, sectors - 8] {
            it.write(at, 8, 4).await;
            it.holds(at, 8, 4).await;
        }
        assert!(it.try_write(sectors - 4, 8, 4).await.is_err(), "past the end");
        it.device.settings.writeback_running.set(true);
        it.set.detach(&it.device).await.expect("all is written back");
        it.holds(sectors - 8, 8, 4).await;
    });
}

#[test]
fn disks_with_blocks_of_4_kib_are_never_asked_for_less() {
    let rig = Rig::new(&Shape { block_sectors: 8, logical_block: 4096, ..USUAL });
    rig.run(|it| async move {
        for i in 0..128 {
            it.write(i * 16, 8, i as u8).await;
        }
        for i in 0..128 {
            it.holds(i * 16, 8, i as u8).await;
        }
        it.set.stop().await.expect("the set stops");
        assert_eq!(it.cache.stats().refused + it.backing.stats().refused, 0);
    });
}

#[test]
fn a_detach_that_cannot_read_what_is_dirty_says_so() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        it.write(0, 8, 9).await;
        it.cache.inject(Fault::eio(FaultOn::Read, EVERYWHERE));
        let error = it.set.detach(&it.device).await.expect_err("nothing can be read").to_string();
        assert!(error.contains("8 sectors cannot be read"), "{error}");
        it.cache.heal();
        it.set.detach(&it.device).await.expect("all is written back");
        it.holds(0, 8, 9).await;
    });
}

/// A bucket has room for one entry, a node for one bset, and one entry has keys of every leaf.
#[test]
fn many_keys_are_replayed_into_nodes_of_one_block_from_a_journal_of_few_entries() {
    let shape = Shape { block_sectors: 8, logical_block: 4096, ..USUAL };
    let rig = Rig::new(&shape);
    let place = |i: u64| i * 37 % 512 * 8;
    rig.run(|it| async move {
        for i in 0..400 {
            it.write(place(i), 8, 1 + (i % 200) as u8).await;
        }
        it.volume.flush().await.expect("a flush");
    });
    let rig = Rig::with(&shape, rig.images());
    rig.run(|it| async move {
        for i in 0..400 {
            it.holds(place(i), 8, 1 + (i % 200) as u8).await;
        }
        assert_eq!(it.set.audit().await.expect("the audit"), Vec::<String>::new());
        it.set.stop().await.expect("the set stops");
    });
}

#[test]
fn nobody_waits_for_a_journal_that_has_ended() {
    let rig = Rig::new(&USUAL);
    rig.run(|it| async move {
        it.set.stop().await.expect("the set stops");
        assert!(it.set.detach(&it.device).await.is_err(), "it says that the set has stopped");
    });
}
