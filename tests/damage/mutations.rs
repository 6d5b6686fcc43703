//! Random damage behind right checksums. `UBCACHE_SEED=N cargo test --test damage random` replays one.

use bcache_engine::fsck::view::{Devices, SetView};
use bcache_format::Pos;

use crate::patched::Patched;
use crate::regions::{change, of, view};

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

/// Seeds to run: the one of the environment, or the first `runs`.
pub fn seeds(runs: u64) -> Vec<u64> {
    match std::env::var("UBCACHE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..runs).collect(),
    }
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
            for _ in 0..=random.below(3) {
                let region = regions[random.below(regions.len() as u64) as usize];
                change(&mut device, &region, |bytes| {
                    for _ in 0..=random.below(8) {
                        // Headers are small and matter most.
                        let span = if random.below(2) == 0 { 256 } else { bytes.len() as u64 };
                        let at = random.below(span.min(bytes.len() as u64)) as usize;
                        bytes[at] ^= 1 << random.below(8);
                    }
                });
            }
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
