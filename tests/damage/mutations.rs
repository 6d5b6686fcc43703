//! Random damage behind right checksums. `UBCACHE_SEED=N cargo test --test damage random` replays one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bcache_engine::fsck::salvage::Salvage;
use bcache_engine::fsck::view::{Device, Devices, SetView};
use bcache_engine::fsck::{Options, check, repair};
use bcache_format::Pos;

use crate::cases::World;
use crate::patched::Patched;
use crate::regions::{Region, change, of, view};

/// Damages of each set in a normal run.
const RUNS: u64 = 100;

/// xorshift64*: the same numbers everywhere for a seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// Seeds to run: the one of the environment, or as many as it says, or the first `runs`.
pub fn seeds(runs: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    match (number("UBCACHE_SEED"), number("UBCACHE_RUNS")) {
        (Some(seed), _) => vec![seed],
        (_, Some(runs)) => (0..runs).collect(),
        _ => (0..runs).collect(),
    }
}

/// Flips bits of some structures of a cache, half of the time behind a right checksum.
pub fn damage(device: &mut Patched, regions: &[Region], random: &mut Random) {
    for _ in 0..=random.below(3) {
        let region = regions[random.below(regions.len() as u64) as usize];
        let flips: Vec<(u64, u8)> = (0..=random.below(8))
            .map(|_| {
                // Headers are small and matter most.
                let span = if random.below(2) == 0 { 256 } else { region.len };
                (random.below(span.min(region.len)), 1 << random.below(8))
            })
            .collect();
        let flip = |bytes: &mut [u8]| flips.iter().for_each(|(at, bit)| bytes[*at as usize] ^= bit);
        if random.below(2) == 0 {
            change(device, &region, flip);
        } else {
            let mut bytes = device.bytes(region.byte, region.len);
            flip(&mut bytes);
            device.write(region.byte, &bytes);
        }
    }
}

/// A check of anything ends, and a repair ends in a set without findings or is refused before it writes.
#[test]
fn random_damage_is_repaired_or_refused() {
    let sets = ["wb-dirty", "wb-crash", "two-backing-flash", "deep-btree"];
    let worlds: Vec<World> = sets.iter().map(|name| World::of(name)).collect();
    let (mut repaired, mut refusals) = (0, BTreeMap::<String, Vec<u64>>::new());
    for seed in seeds(5 * RUNS) {
        let world = &worlds[(seed % 4) as usize];
        let mut random = Random::new(seed);
        let mut cache = world.cache.clone();
        damage(&mut cache, &world.regions, &mut random);
        let mut devices: Vec<Device> = vec![cache.device()];
        devices.extend(world.backings.iter().map(Patched::device));
        let start = Instant::now();
        let checked = check(devices.iter().cloned(), Options::default());
        // The plan is proved: what it leads to was checked and has no finding.
        match repair::plan(&devices, &checked, &mut || random.next()) {
            Ok(_) => repaired += 1,
            Err(refused) => {
                let why = refused.to_string();
                let why = why.split(['(', ':']).next().unwrap().to_owned();
                refusals.entry(why).or_default().push(seed);
            }
        }
        if seed % 8 == 0
            && let Some(cache) = &checked.cache
        {
            let _ = Salvage::scan(cache, &|_, _| {});
        }
        // A hang, not a measurement: seconds where a tenth of one is normal.
        assert!(start.elapsed() < Duration::from_secs(60), "UBCACHE_SEED={seed} hangs");
    }
    println!("repaired {repaired}, refused {refusals:#?}");
}

#[test]
fn random_damage_never_panics_or_hangs() {
    for name in ["wb-dirty", "wb-crash", "two-backing-flash"] {
        let device = Patched::cache_of(name);
        let regions = of(&view(device.cache()));
        let extents = view(device.cache()).extents(Pos::ZERO, Pos::MAX).count();
        for seed in seeds(RUNS) {
            let mut random = Random::new(seed);
            let mut device = device.clone();
            damage(&mut device, &regions, &mut random);
            let Ok(mut devices) = Devices::open([device.device()]) else { continue };
            let Some(cache) = devices.caches.pop() else { continue };
            let mut faults = 0u64;
            let view = SetView::read(cache, &mut |_| faults += 1);
            let found = view.extents(Pos::ZERO, Pos::MAX).count() as u64;
            // Bounded: a walk gives no more than the set has keys.
            assert!(found + faults < 4 * extents as u64 + 10_000, "{name} UBCACHE_SEED={seed}");
        }
    }
}
