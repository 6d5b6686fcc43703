//! Scenes of memory that outlives the process.

use super::crash::{Kept, Rig, USUAL};
use super::scenes;
use super::world::{get, put};
use crate::env::Rng;
use crate::journal::TailPlace;
use crate::request::DeviceVolume;
use crate::set::CacheSet;
use crate::settings::SetSettings;
use crate::sim::{Fault, FaultOn, Image};
use crate::volume::Volume;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

scenes! {
    keys_that_continue_another_state_of_the_journal_are_not_taken_over: TailOfAnotherJournal;
    nor_those_that_continue_the_entry_before: TailOfAnOlderCopy;
    what_a_failed_flush_may_have_lost_is_not_taken_over: TailAfterFailedFlush;
    what_cannot_be_used_is_set_aside_and_another_is_begun;
    what_is_taken_over_outlasts_a_second_death;
    without_memory_writes_wait_for_the_journal;
    where_memory_ends_writes_wait_for_the_journal: TailWithGaps;
    no_write_waits_for_the_journal_while_its_key_is_kept;
    a_clean_stop_leaves_nothing;
}

/// A new set, and memory in which nothing is.
fn new_set() -> (Rig, Rc<Kept>) {
    (Rig::new(&USUAL), Rc::new(Kept::empty(&mut Rng::new(1))))
}

fn place(kept: &Rc<Kept>) -> TailPlace {
    TailPlace { store: Rc::clone(kept) as _, boot: kept.boot(), slots: 1024 }
}

/// The set started by an engine whose clients outlive it; nothing is journaled unless it must.
async fn started(rig: &Rig, kept: &Rc<Kept>) -> (Rc<CacheSet>, Rc<DeviceVolume>) {
    let place = TailPlace { store: Rc::clone(kept) as _, boot: kept.boot(), slots: 1024 };
    let started =
        CacheSet::start_outliving(rig.runtime.env(), rig.cache.dev(), SetSettings::default(), place);
    let set = started.await.expect("the set starts");
    set.settings.journal_delay_ms.set(3_600_000);
    let device = set.attach(rig.backing.dev()).await.expect("its device is attached");
    device.settings.writeback_running.set(false);
    device.settings.sequential_cutoff.set(0);
    let volume = Rc::new(DeviceVolume::new(Rc::clone(&set), device, "volume".to_owned()));
    (set, volume)
}

/// What the disks hold after the end of the process alone.
fn left(rig: &Rig) -> [Image; 2] {
    [rig.cache.process_ends().image().clone(), rig.backing.process_ends().image().clone()]
}

async fn holds(volume: &DeviceVolume, sector: u64, byte: u8) {
    let bytes = get(volume, sector, 8).await.expect("it can be read");
    assert!(bytes.iter().all(|found| *found == byte), "sector {sector} holds {} for {byte}", bytes[0]);
}

/// The process of `rig` ends, and whoever starts the set next finds each byte in the eight sectors from there on.
fn successor_holds(rig: &Rig, kept: &Rc<Kept>, sectors: &[(u64, u8)]) {
    let next = Rig::with(&USUAL, left(rig));
    next.runtime.block_on(async {
        let (_, volume) = started(&next, kept).await;
        for (sector, byte) in sectors {
            holds(&volume, *sector, *byte).await;
        }
    });
}

fn keys_that_continue_another_state_of_the_journal_are_not_taken_over() {
    a_copy_is_put_back(&[64, 128, 192]);
}

fn nor_those_that_continue_the_entry_before() {
    a_copy_is_put_back(&[64]);
}

/// Somebody puts a copy back that was made earlier, while the engine is dead. Since then there was an entry for each of
/// `sectors`.
fn a_copy_is_put_back(sectors: &[u64]) {
    let (rig, kept) = new_set();
    let earlier = rig.runtime.block_on(async {
        let (_, volume) = started(&rig, &kept).await;
        put(&*volume, 0, 8, 1).await.expect("a write");
        volume.flush().await.expect("a flush");
        let earlier = left(&rig);
        for sector in sectors {
            put(&*volume, *sector, 8, 2).await.expect("a write");
            volume.flush().await.expect("a flush");
        }
        put(&*volume, 0, 8, 3).await.expect("a write");
        earlier
    });
    let again = Rig::with(&USUAL, earlier);
    again.runtime.block_on(async {
        let (set, volume) = started(&again, &kept).await;
        assert!(kept.aside().is_some(), "it is set aside");
        holds(&volume, 0, 1).await;
        holds(&volume, 64, 0).await;
        set.stop().await.expect("it stops");
    });
}

/// The cache may have dropped what it had not written yet: a flush of the next process would say nothing about it.
fn what_a_failed_flush_may_have_lost_is_not_taken_over() {
    let (rig, kept) = new_set();
    rig.runtime.block_on(async {
        let (set, volume) = started(&rig, &kept).await;
        put(&*volume, 0, 8, 1).await.expect("a write");
        volume.flush().await.expect("a flush");
        put(&*volume, 0, 8, 2).await.expect("a write");
        rig.cache.inject(Fault::eio(FaultOn::Flush, 0..u64::MAX));
        volume.flush().await.expect_err("the cache fails");
        assert!(set.failure().is_some());
    });
    let again = Rig::with(&USUAL, left(&rig));
    again.runtime.block_on(async {
        let (env, cache) = (again.runtime.env(), again.cache.dev());
        let started = CacheSet::start_outliving(env, cache, SetSettings::default(), place(&kept)).await;
        let refused = started.err().expect("it may be lost").to_string();
        assert!(refused.contains("1 writes"), "{refused}");
    });
    assert!(!kept.is_empty(), "whoever wants the set without them takes them away");
    kept.put(None);
    again.runtime.block_on(async {
        let (_, volume) = started(&again, &kept).await;
        holds(&volume, 0, 1).await;
    });
}

fn what_cannot_be_used_is_set_aside_and_another_is_begun() {
    let (rig, kept) = new_set();
    rig.runtime.block_on(async {
        let (_, volume) = started(&rig, &kept).await;
        put(&*volume, 0, 8, 1).await.expect("a write");
        volume.flush().await.expect("a flush");
        put(&*volume, 8, 8, 2).await.expect("a write");
    });
    let images = left(&rig);
    let whole = kept.bytes().expect("a tail");
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    let mut of_another_boot = whole.clone();
    of_another_boot[16..32].copy_from_slice(Uuid::from_u128(7).as_bytes());
    let strange = [
        Vec::new(),
        whole[..100].to_vec(),
        whole[..whole.len() / 2].to_vec(),
        changed(3),
        changed(15),
        changed(33),
        of_another_boot,
        vec![0xa5; whole.len()],
    ];
    for bytes in strange {
        kept.put(Some(bytes.clone()));
        let again = Rig::with(&USUAL, images.clone());
        again.runtime.block_on(async {
            let (_, volume) = started(&again, &kept).await;
            assert_eq!(kept.aside(), Some(bytes));
            holds(&volume, 0, 1).await;
            put(&*volume, 16, 8, 4).await.expect("a write");
        });
        successor_holds(&again, &kept, &[(0, 1), (16, 4)]);
    }
}

/// The next process dies, too, at any moment of its start.
fn what_is_taken_over_outlasts_a_second_death() {
    let (rig, kept) = new_set();
    let sector = |i: u64| if i.is_multiple_of(2) { i } else { 2000 + i };
    rig.runtime.block_on(async {
        let (set, volume) = started(&rig, &kept).await;
        for i in 0..300 {
            put(&*volume, i * 8, 1, 255).await.expect("a write");
        }
        set.checkpoint().await.expect("all of it is written");
        for i in 0..20 {
            put(&*volume, sector(i), 1, 1 + i as u8).await.expect("a write");
        }
    });
    let (images, bytes) = (left(&rig), kept.bytes());
    for step in 0.. {
        kept.put(bytes.clone());
        let next = Rig::with(&USUAL, images.clone());
        let ended = next.runtime.block_on(async {
            let settings = SetSettings::default();
            settings.journal_delay_ms.set(1);
            settings.btree_cache_bytes.set(1);
            let start =
                CacheSet::start_outliving(next.runtime.env(), next.cache.dev(), settings, place(&kept));
            next.runtime.env().timeout(Duration::from_micros(step * 50), start).await.is_ok()
        });
        let last = Rig::with(&USUAL, left(&next));
        last.runtime.block_on(async {
            let (_, volume) = started(&last, &kept).await;
            for i in 0..20 {
                let found = get(&*volume, sector(i), 1).await.expect("it can be read")[0];
                assert_eq!(found, 1 + i as u8, "write {i}, after {step} steps");
            }
        });
        if ended {
            assert!(step > 20, "it took {step} steps");
            return;
        }
    }
}

fn without_memory_writes_wait_for_the_journal() {
    writes_wait_for_the_journal(true);
}

fn where_memory_ends_writes_wait_for_the_journal() {
    writes_wait_for_the_journal(false);
}

fn writes_wait_for_the_journal(from_the_start: bool) {
    let (rig, kept) = new_set();
    if from_the_start {
        kept.fail();
    }
    rig.runtime.block_on(async {
        let (set, volume) = started(&rig, &kept).await;
        kept.fail();
        let before = set.stats.journal_writes.get();
        put(&*volume, 0, 8, 1).await.expect("a write");
        assert!(set.stats.journal_writes.get() > before, "its key is in the journal");
        assert!(kept.is_empty());
        put(&*volume, 8, 8, 2).await.expect("a write");
    });
    successor_holds(&rig, &kept, &[(0, 1), (8, 2)]);
}

fn no_write_waits_for_the_journal_while_its_key_is_kept() {
    let (rig, kept) = new_set();
    rig.runtime.block_on(async {
        let (set, volume) = started(&rig, &kept).await;
        put(&*volume, 0, 8, 0).await.expect("a write");
        let counts = || (set.stats.journal_writes.get(), rig.cache.stats());
        let (journaled, before) = counts();
        for i in 0..20 {
            put(&*volume, 8 + i * 2, 1, i as u8).await.expect("a write");
        }
        let (now, after) = counts();
        assert_eq!((now, after.flushes, after.writes), (journaled, before.flushes, before.writes + 20));
        volume.flush().await.expect("a flush");
        let (now, last) = counts();
        assert_eq!((now, last.flushes), (journaled + 1, after.flushes + 1));
    });
}

fn a_clean_stop_leaves_nothing() {
    let (rig, kept) = new_set();
    rig.runtime.block_on(async {
        let (set, volume) = started(&rig, &kept).await;
        put(&*volume, 0, 8, 1).await.expect("a write");
        assert!(!kept.is_empty());
        set.stop().await.expect("it stops");
        assert!(kept.is_empty() && kept.aside().is_none());
    });
}
