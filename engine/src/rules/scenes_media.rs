//! Runs on media that lie about metadata: see "What must hold when a medium lies" in [`crate::sim`].

use super::crash::{Rig, Started};
use super::tree::LARGE;
use crate::btree::children_of;
use crate::dev::Buf;
use crate::env::Rng;
use crate::sim::{Fault, FaultOn, Image, Lie};
use crate::volume::Volume;
use bcache_format::BucketNr;
use std::ops::Range;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(4 * 3600);
/// Sectors of a request.
const COUNT: u64 = 8;
/// Places that requests are about.
const PLACES: u64 = 400;
/// Sectors from one place to the next.
const STEP: u64 = 16;

/// What version `version` of a sector holds.
fn stamp(sector: u64, version: u64) -> Vec<u8> {
    [sector + 1, version].map(u64::to_le_bytes).concat().repeat(32)
}

/// A read gave an error, or what these sectors had at some time. Versions are the numbers of the writes so far.
fn judge(sector: u64, answer: Result<Vec<u8>, i32>, writes: u64) -> Result<(), String> {
    let Ok(bytes) = answer else { return Ok(()) };
    for (i, chunk) in (sector..).zip(bytes.chunks(512)) {
        let version = chunk[8..16].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        if chunk.iter().any(|byte| *byte != 0) && (version > writes || *chunk != stamp(i, version)) {
            return Err(format!("sector {i} holds what nobody wrote there: {:02x?}", &chunk[..16]));
        }
    }
    Ok(())
}

async fn ends<T>(it: &Started, what: &str, future: impl Future<Output = T>) -> Result<T, String> {
    it.set.env.timeout(LIMIT, future).await.map_err(|_| format!("{what} does not end"))
}

async fn write(it: &Started, place: u64, version: u64) {
    let bytes: Vec<u8> = (0..COUNT).flat_map(|i| stamp(place * STEP + i, version)).collect();
    // It may fail.
    drop(it.volume.write(place * STEP * 512, Buf::copied(&bytes).freeze(), false).await);
}

/// Buckets of metadata, and superblock and journal.
fn metadata(it: &Started) -> Vec<u64> {
    let (set, geometry) = (&it.set, it.set.cache.geometry);
    let roots = set.roots();
    let named = [roots.btree_root, roots.uuid_bucket].into_iter().filter_map(|key| key.ptr());
    let nodes = children_of(&set.tree.root()).into_iter().map(|child| child.ptr);
    let buckets = named.chain(nodes).map(|ptr| geometry.ptr_bucket(ptr));
    let journal = (geometry.first_bucket..geometry.first_bucket + 4).map(BucketNr);
    let prios = Some(roots.prio_bucket).filter(|bucket| bucket.0 > 0);
    let all = buckets.chain(journal).chain(prios);
    all.map(|bucket| geometry.bucket_start_byte(bucket)).collect()
}

fn draw(rng: &mut Rng, places: &[u64]) -> Fault {
    let mut any = || places[rng.below(places.len() as u64) as usize];
    let (at, other) = (any(), any());
    let range = at..at + 4096;
    // Where other metadata is: data has no checksum that would tell.
    let further = Lie::Elsewhere(other.wrapping_sub(at) % (513 * 4096));
    let fault = match rng.below(5) {
        0 => Fault::lie(FaultOn::Write, range, Lie::Lost),
        1 if other >= at => Fault::lie(FaultOn::Write, range, further),
        2 => Fault::lie(FaultOn::Read, range, Lie::Elsewhere(rng.below(500) * 4096)),
        _ => {
            let byte = at + rng.below(4096);
            Fault::lie(FaultOn::Read, byte..byte + 1, Lie::Flipped(rng.below(8) as u8))
        }
    };
    fault.times(rng.between(1, 3) as u32)
}

/// Requests of all kinds while the cache lies now and then.
async fn load(it: &Started, rng: &mut Rng, writes: &mut u64) -> Result<(), String> {
    for place in 0..PLACES {
        *writes += 1;
        write(it, place, *writes).await;
    }
    for _ in 0..120 {
        if rng.chance(1, 20) {
            it.cache.inject(draw(rng, &metadata(it)));
        }
        let place = rng.below(PLACES);
        match rng.below(12) {
            0..4 => {
                *writes += 1;
                ends(it, "a write", write(it, place, *writes)).await?;
            }
            4..9 => {
                let answer = ends(it, "a read", it.read(place * STEP, COUNT)).await?;
                judge(place * STEP, answer, *writes)?;
            }
            9 => drop(ends(it, "a flush", it.volume.flush()).await?),
            10 => it.set.tree.prune(),
            _ => it.set.trigger_gc(),
        }
    }
    drop(ends(it, "the stop", it.set.stop()).await?);
    Ok(())
}

/// The next start refuses, or serves what was there at some time.
fn reads_again(images: [Image; 2], writes: u64) -> Result<(), String> {
    let started = Rig::with(&LARGE, images).try_run(|it| async move {
        for place in 0..PLACES {
            let answer = ends(&it, "a read", it.read(place * STEP, COUNT)).await?;
            judge(place * STEP, answer, writes)?;
        }
        drop(ends(&it, "the stop", it.set.stop()).await?);
        Ok(())
    });
    // A start that says no is as good.
    started.unwrap_or(Ok(()))
}

fn one(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let rig = Rig::new(&LARGE);
    let mut writes = 0;
    let (random, counted) = (&mut rng, &mut writes);
    rig.run(|it| async move {
        it.device.settings.writeback_running.set(random.chance(1, 2));
        it.device.settings.writeback_delay.set(0);
        load(&it, random, counted).await
    })?;
    // A bit that rots while nobody looks, in metadata or in the superblock.
    let mut images = rig.images();
    if rng.chance(1, 2) {
        let place: Range<u64> = if rng.chance(1, 3) { 4096..8192 } else { 3 * 4096..40 * 4096 };
        let at = place.start + rng.below(place.end - place.start) / 512 * 512;
        let mut sector = [0; 512];
        images[0].read(at, &mut sector);
        // Data begins with its number, and has no checksum.
        let data = u64::from_le_bytes(*sector.first_chunk().unwrap_or(&[0; 8]));
        if !(1..=PLACES * STEP).contains(&data) {
            sector[rng.below(512) as usize] ^= 1 << rng.below(8);
            images[0].write(at, &sector);
        }
    }
    reads_again(images, writes)
}

#[test]
fn a_medium_that_lies_about_metadata_is_never_believed() {
    let seeds = match std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..=seed,
        None => 1..=300,
    };
    for seed in seeds {
        if let Err(what) = one(seed) {
            let test = "rules::scenes_media";
            panic!("seed {seed}: {what}\nreplay: SIM_SEED={seed} cargo test -p bcache-engine --lib {test}");
        }
    }
}
