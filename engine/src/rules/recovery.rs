//! Scenes of starting: what is on the disk has been damaged, or was left by a crash.

use super::crash::{DATA_OFFSET as DATA, Rig, Started, USUAL};
use super::scenes;
use super::world::{CacheShape, GEO, Geo, World, move_on, parse, put};
use crate::sim::Image;
use crate::volume::Volume;
use bcache_format::bkey::Bkey;
use bcache_format::jset::Jset;
use bcache_format::superblock::{CacheMode, SB_BYTES, SB_OFFSET};

scenes! {
    entries_behind_a_damaged_one_are_not_the_end: RotIsTheEnd;
    a_damaged_entry_is_not_one_of_a_discarded_bucket: RotIsTheEnd;
    a_torn_end_is_the_end;
    a_set_whose_sync_flag_is_lost_is_not_made_new: SyncLost;
    a_generation_ahead_of_dirty_data_is_refused: StaleDirtyUnseen;
    what_replay_concludes_outlasts_the_next_crash: ReplayNotDurable;
    a_start_that_is_given_up_leaves_nothing_running;
}

/// The first of the journal's four buckets, in bytes.
const JOURNAL: u64 = 3 * 4096;
const BLOCK: u64 = 512;

/// What is certain to be on the disks after some writes, each in a journal entry of its own.
fn crashed(writes: u64) -> ([Image; 2], bcache_format::magic::SetMagic) {
    let rig = Rig::new(&USUAL);
    let magic = rig.run(|it| async move {
        for i in 0..writes {
            it.write(i * 16, 8, 1 + i as u8).await;
            it.volume.flush().await.expect("a flush");
        }
        it.set.cache.magic
    });
    (rig.images(), magic)
}

/// Where entries are in the journal, with their numbers.
fn entries(cache: &Image, magic: bcache_format::magic::SetMagic) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    for at in (JOURNAL..JOURNAL + 4 * 4096).step_by(BLOCK as usize) {
        let mut bytes = vec![0; 4096];
        cache.read(at, &mut bytes);
        if let Ok(entry) = Jset::parse(&bytes, magic) {
            found.push((entry.seq, at));
        }
    }
    found.sort_unstable();
    found
}

fn flip(image: &mut Image, at: u64) {
    let mut sector = [0; 512];
    image.read(at / 512 * 512, &mut sector);
    sector[(at % 512) as usize] ^= 4;
    image.write(at / 512 * 512, &sector);
}

fn start(images: [Image; 2]) -> Result<(), String> {
    Rig::with(&USUAL, images).try_run(|_| async {})
}

fn entries_behind_a_damaged_one_are_not_the_end() {
    let (images, magic) = crashed(12);
    let all = entries(&images[0], magic);
    // In the bucket of the newest, and the first of that bucket.
    let newest = all.last().expect("entries").1;
    let here: Vec<_> = all.iter().filter(|(_, at)| at / 4096 == newest / 4096).collect();
    assert!(here.len() > 2, "{all:?}");
    for (seq, at) in here.iter().take(here.len() - 1) {
        let mut images = images.clone();
        flip(&mut images[0], at + 200);
        let refused = start(images).expect_err("entries are behind it");
        assert!(refused.contains("journal entr") && refused.contains("bcache fsck"), "{seq}: {refused}");
    }
}

/// With discard on leading entries may be missing, because their buckets were given up. A damaged one is none of those.
fn a_damaged_entry_is_not_one_of_a_discarded_bucket() {
    let rig = Rig::new(&USUAL);
    let magic = rig.run(|it| async move {
        it.set.set_attribute("discard", "1").await.expect("it is set");
        for i in 0..12u64 {
            it.write(i * 16, 8, 1).await;
            it.volume.flush().await.expect("a flush");
        }
        it.set.cache.magic
    });
    let all = entries(&rig.images()[0], magic);
    let needed = |images: &[Image; 2]| {
        let (_, at) = all.last().copied().expect("entries");
        let mut bytes = vec![0; 4096];
        images[0].read(at, &mut bytes);
        Jset::parse(&bytes, magic).expect("the newest").last_seq
    };
    let mut images = rig.images();
    let oldest = needed(&images);
    let first = all.iter().find(|(seq, _)| *seq == oldest).expect("the oldest that is needed").1;
    let start_of_bucket = all.iter().filter(|(seq, at)| *seq >= oldest && at / 4096 == first / 4096).count();
    assert!(start_of_bucket > 1 && all.last().expect("entries").1 / 4096 != first / 4096, "{all:?}");
    flip(&mut images[0], first + 200);
    let refused = start(images).expect_err("it was needed");
    assert!(refused.contains("bcache fsck"), "{refused}");
}

fn a_torn_end_is_the_end() {
    let (mut images, magic) = crashed(12);
    let (_, newest) = entries(&images[0], magic).last().copied().expect("entries");
    flip(&mut images[0], newest + 200);
    start(images).expect("a torn end is what a crash leaves");
}

fn a_set_whose_sync_flag_is_lost_is_not_made_new() {
    let (mut images, _) = crashed(3);
    let mut sb = parse(&images[0]);
    for laid_out in [true, false] {
        sb.set_sync(false);
        if let Some(fields) = sb.cache_mut().filter(|_| !laid_out) {
            fields.njournal_buckets = 0;
        }
        let mut block = vec![0; SB_BYTES];
        sb.write_to(&mut block).expect("a superblock");
        images[0].write(SB_OFFSET, &block);
        let rig = Rig::with(&USUAL, images.clone());
        let refused = rig.try_run(|_| async {}).expect_err("there is a set");
        assert!(refused.contains("SYNC"), "{refused}");
        for (before, after) in images.iter().zip(rig.images()) {
            for at in (0..513 * 4096).step_by(4096) {
                let (mut a, mut b) = ([0; 4096], [0; 4096]);
                before.read(at, &mut a);
                after.read(at, &mut b);
                assert_eq!(a, b, "byte {at} was written");
            }
        }
    }
}

async fn written_leaf(it: &Started) {
    it.write(0, 8, 1).await;
    for node in it.set.tree.dirty_nodes() {
        it.set.node_write(&node).await.expect("the node is written");
    }
    it.set.stop().await.expect("it stops");
}

fn a_generation_ahead_of_dirty_data_is_refused() {
    let rig = Rig::new(&USUAL);
    let (shape, bucket) = rig.run(|it| async move {
        it.device.settings.writeback_running.set(false);
        written_leaf(&it).await;
        let at = it.cached_at(0).await.start / 4096;
        (CacheShape::of(&it.set), at)
    });
    let [mut cache, backing] = rig.images();
    move_on(&mut cache, &shape, bucket);
    let refused = start([cache, backing]).expect_err("dirty data would be lost without a word");
    assert!(refused.contains("generation") && refused.contains("bcache fsck"), "{refused}");
}

/// Written through; a crash; written around the cache where that was; a crash. What the journal said before the first must not
/// be what anybody reads after the second.
fn what_replay_concludes_outlasts_the_next_crash() {
    let world = World::new(Geo { mode: CacheMode::Writethrough, ..GEO });
    let magic = world.runtime.block_on(async {
        let set = world.start().await.expect("starts");
        let (_, volume) = world.attach(&set, 0).await.expect("attached");
        put(&*volume, 0, 8, 1).await.expect("a write");
        volume.flush().await.expect("a flush");
        set.cache.magic
    });
    let world = World::with(Geo { mode: CacheMode::Writearound, ..GEO }, world.images());
    world.runtime.block_on(async {
        let set = world.start().await.expect("starts");
        let (device, volume) = world.attach(&set, 0).await.expect("attached");
        device.settings.cache_mode.set(CacheMode::Writearound);
        put(&*volume, 0, 8, 77).await.expect("a write");
        volume.flush().await.expect("a flush");
    });
    let cache = world.cache.durable();
    let mut newest: Option<Jset> = None;
    let mut keys: Vec<(u64, Bkey)> = Vec::new();
    for at in (JOURNAL..JOURNAL + 4 * 4096).step_by(BLOCK as usize) {
        let mut bytes = vec![0; 4096];
        cache.read(at, &mut bytes);
        let Ok(entry) = Jset::parse(&bytes, magic) else { continue };
        keys.extend(entry.keys.iter().map(|key| (entry.seq, *key)));
        if newest.as_ref().is_none_or(|newest| newest.seq < entry.seq) {
            newest = Some(entry);
        }
    }
    let newest = newest.expect("entries");
    // As Linux replays them, the newest last.
    keys.retain(|(seq, key)| *seq >= newest.last_seq && key.start() < DATA + 8 && key.offset() > DATA);
    keys.sort_by_key(|(seq, _)| *seq);
    let says = keys.last().is_some_and(|(_, key)| key.ptr().is_some_and(|ptr| ptr.is_device()));
    assert!(!says, "the journal would bring the copy back that was there before the first crash: {keys:?}");
}

/// Somebody begins to start a set, and goes away at any moment.
fn a_start_that_is_given_up_leaves_nothing_running() {
    let (images, _) = crashed(12);
    for steps in 0..200u64 {
        let rig = Rig::with(&USUAL, images.clone());
        rig.runtime.block_on(async {
            let env = rig.runtime.env();
            let start = crate::set::CacheSet::start(env.clone(), rig.cache.dev(), Default::default());
            let started = env.timeout(std::time::Duration::from_micros(steps * 37), start).await;
            if started.is_err() {
                env.sleep(std::time::Duration::from_secs(100)).await;
                assert_eq!(rig.runtime.live_tasks(), 0, "tasks are left after {steps} steps");
            }
        });
        let result = start([rig.cache.durable(), rig.backing.durable()]);
        assert_eq!(result, Ok(()), "{steps} steps");
    }
}
