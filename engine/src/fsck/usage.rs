//! What each part of a cache is used for.

use bcache_format::{BucketNr, Geometry};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Sectors of a region: what a map has of one stays near the processor.
const REGION: u64 = 1 << REGION_BITS;
const REGION_BITS: u32 = 21;
/// Sectors that nearly all ranges start and end at a multiple of.
const UNIT: u64 = 8;
/// Sectors that a pointer has room for.
const SECTORS_MAX: u64 = 1 << 43;

/// Which sectors of a region are in use. A bit stands for eight sectors as long as only whole eights are, and for one
/// from then on.
#[derive(Default)]
struct Region {
    /// None before the first sector is.
    bits: Vec<u64>,
    single: bool,
}

/// The bits of one word for `from..to`, both within it.
const fn mask(from: u64, to: u64) -> u64 {
    (u64::MAX >> (64 - (to - from))) << from
}

/// The words that a range of bits is in: each with its index and the bits of it.
fn words(from: u64, to: u64) -> impl Iterator<Item = (usize, u64)> {
    let mut at = from;
    std::iter::from_fn(move || {
        let start = at / 64 * 64;
        let end = to.min(start + 64);
        (at < end).then(|| {
            let bits = mask(at - start, end - start);
            at = end;
            ((start / 64) as usize, bits)
        })
    })
}

impl Region {
    /// Adds the sectors `from..to`. True when one of them was there before.
    #[inline(always)]
    fn add(&mut self, from: u64, to: u64) -> bool {
        if self.single {
            return self.add_bits(from, to);
        }
        if (from | to).is_multiple_of(UNIT) {
            return self.add_bits(from / UNIT, to / UNIT);
        }
        self.split();
        self.add_bits(from, to)
    }
    #[inline(always)]
    fn add_bits(&mut self, from: u64, to: u64) -> bool {
        if self.bits.is_empty() {
            let sectors = if self.single { 64 } else { 64 * UNIT };
            self.bits = vec![0; (REGION / sectors) as usize];
        }
        let mut add = |index: usize, bits: u64| {
            let Some(word) = self.bits.get_mut(index) else { return false };
            let before = *word;
            *word |= bits;
            before & bits != 0
        };
        let within = from % 64;
        if from < to && within + (to - from) <= 64 {
            // Most ranges are in one word.
            add((from / 64) as usize, mask(within, within + (to - from)))
        } else {
            words(from, to).fold(false, |before, (index, bits)| before | add(index, bits))
        }
    }
    /// Makes a bit stand for one sector.
    #[cold]
    fn split(&mut self) {
        let eights =
            |word: &u64| (0..64).step_by(8).map(move |shift| (word >> shift) as u8).collect::<Vec<_>>();
        let sectors =
            |eights: u8| (0..8).filter(|bit| eights >> bit & 1 == 1).map(|bit| 0xff << (8 * bit)).sum();
        self.bits = self.bits.iter().flat_map(eights).map(sectors).collect();
        self.single = true;
    }
    fn has_any(&self, from: u64, to: u64) -> bool {
        let (from, to) = if self.single { (from, to) } else { (from / UNIT, to.div_ceil(UNIT)) };
        words(from, to).any(|(index, bits)| self.bits.get(index).is_some_and(|word| word & bits != 0))
    }
}

/// The sectors of a device that are in use; many threads may add to it. Memory grows with what is in it, not with what
/// a superblock claims.
#[derive(Default)]
pub struct SectorMap {
    regions: Vec<Mutex<Region>>,
}

/// A range cut at the ends of regions: region, and start and end in it.
fn cut(from: u64, to: u64) -> impl Iterator<Item = (usize, u64, u64)> {
    let regions = from / REGION..to.div_ceil(REGION);
    regions.map(move |region| {
        let start = region * REGION;
        (region as usize, from.max(start) - start, to.min(start + REGION) - start)
    })
}

impl SectorMap {
    /// Of a device of this shape.
    #[must_use]
    pub fn new(geometry: &Geometry) -> Self {
        let limit = geometry.bucket_start(BucketNr(geometry.nbuckets)).0.min(SECTORS_MAX);
        Self { regions: (0..limit.div_ceil(REGION)).map(|_| Mutex::default()).collect() }
    }
    fn region(&self, index: usize) -> Option<MutexGuard<'_, Region>> {
        Some(self.regions.get(index)?.lock().unwrap_or_else(PoisonError::into_inner))
    }
    /// Whether one of `from..to` is in use.
    #[must_use]
    pub fn has_any(&self, from: u64, to: u64) -> bool {
        cut(from, to.min(SECTORS_MAX))
            .any(|(index, from, to)| self.region(index).is_some_and(|region| region.has_any(from, to)))
    }
    /// Adds `from..to`. True when one of them was there before.
    pub fn add(&self, from: u64, to: u64) -> bool {
        cut(from, to.min(SECTORS_MAX)).fold(false, |before, (index, from, to)| {
            before | self.region(index).is_some_and(|mut region| region.add(from, to))
        })
    }
}

/// Ranges that a thread gathers in all, and of one region at least and at most. The last is no power of two: what is at
/// the same place of many pages contends for the same few lines of the processor's cache.
const GATHERED: usize = 4 << 20;
const GATHERED_MIN: usize = 64;
const GATHERED_MAX: usize = 8176;

/// Ranges on their way into a [`SectorMap`]. Extents' data is scattered over the device, and each place is a wait for
/// memory; of one region many are there at once.
#[derive(Default)]
pub struct Gather {
    /// Ranges of each region, as many as `limit`: place in the region and length, in one word.
    ranges: Vec<u32>,
    /// How many there are of each region.
    counts: Vec<u32>,
    limit: usize,
}

impl Gather {
    /// Adds `len` sectors from `from` on. Tells the starts of ranges of which a part was there before.
    #[inline]
    pub fn add(&mut self, map: &SectorMap, from: u64, len: u64, before: &mut dyn FnMut(u64)) {
        let (index, place) = ((from / REGION) as usize, from % REGION);
        if place + len <= REGION
            && len < 1 << (u32::BITS - REGION_BITS)
            && let Some(count) = self.counts.get_mut(index)
            && let Some(range) = self.ranges.get_mut(index * self.limit + *count as usize)
        {
            let gathered = *count + 1;
            (*range, *count) = ((place | len << REGION_BITS) as u32, gathered);
            if gathered as usize >= self.limit {
                self.put(map, index, before);
            }
        } else {
            self.add_rarely(map, from, len, before);
        }
    }
    /// The first range, one that is too large, one outside the device, or any of a device with too many regions.
    #[cold]
    fn add_rarely(&mut self, map: &SectorMap, from: u64, len: u64, before: &mut dyn FnMut(u64)) {
        let count = map.regions.len();
        if self.counts.is_empty() && (1..=GATHERED / GATHERED_MIN).contains(&count) {
            self.limit = (GATHERED / count).min(GATHERED_MAX);
            self.ranges = vec![0; self.limit * count];
            self.counts = vec![0; count];
            self.add(map, from, len, before);
        } else if map.add(from, from.saturating_add(len)) {
            before(from);
        }
    }
    /// Adds what was gathered of a region to the map.
    fn put(&mut self, map: &SectorMap, index: usize, before: &mut dyn FnMut(u64)) {
        let count = self.counts.get_mut(index).map_or(0, std::mem::take) as usize;
        let ranges = self.ranges.get(index * self.limit..).and_then(|ranges| ranges.get(..count));
        let Some(mut region) = map.region(index) else { return };
        for range in ranges.unwrap_or_default() {
            let (place, len) = (u64::from(*range) % REGION, u64::from(*range) / REGION);
            if region.add(place, place + len) {
                before(index as u64 * REGION + place);
            }
        }
    }
    /// Adds all that is still on its way.
    pub fn finish(mut self, map: &SectorMap, before: &mut dyn FnMut(u64)) {
        (0..self.counts.len()).for_each(|index| self.put(map, index, before));
    }
}

/// What a bucket of metadata holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Journal entries.
    Journal,
    /// A prio set.
    Prio,
    /// The uuid table.
    Uuids,
    /// A btree node.
    Node,
}

impl Use {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Journal => "the journal",
            Self::Prio => "a prio set",
            Self::Uuids => "the uuid table",
            Self::Node => "a btree node",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn what_is_gathered_is_what_is_in_use(
            ranges in prop::collection::vec((0u64..3, 0u64..600, 1u64..100), 0..60),
            // Whole units, and single sectors.
            unit in prop::sample::select(vec![1, UNIT]),
            // Devices of some regions, and of too many to gather.
            buckets in prop::sample::select(vec![128u64, 1 << 22]),
        ) {
            let map = SectorMap::new(&Geometry {
                block_sectors: 1,
                bucket_sectors: 1 << 16,
                first_bucket: 1,
                nbuckets: buckets,
            });
            let (mut gather, mut set, mut told) = (Gather::default(), HashSet::new(), HashSet::new());
            let mut shared = HashSet::new();
            for (index, start, len) in ranges {
                // Around the end of the first region, that of the second, or the start of the device.
                let from = (index * REGION).saturating_sub(300 / unit * unit) + start / unit * unit;
                let to = from + len.next_multiple_of(unit);
                gather.add(&map, from, to - from, &mut |at| { told.insert(at / REGION); });
                for at in from..to {
                    if !set.insert(at) {
                        shared.insert(at);
                    }
                }
            }
            gather.finish(&map, &mut |at| { told.insert(at / REGION); });
            prop_assert_eq!(told.is_empty(), shared.is_empty());
            for region in 0..4 {
                let (from, to) = (region * REGION, (region + 1) * REGION);
                prop_assert_eq!(map.has_any(from, to), set.iter().any(|at| (from..to).contains(at)));
            }
            for at in set {
                prop_assert!(map.has_any(at, at + 1));
                prop_assert!(map.add(at, at + 1));
            }
        }
        #[test]
        fn a_map_is_a_set(ranges in prop::collection::vec((0u64..70_000, 1u64..200, any::<bool>()), 0..40)) {
            let geometry = Geometry { block_sectors: 1, bucket_sectors: 8, first_bucket: 1, nbuckets: 1 << 30 };
            let map = SectorMap::new(&geometry);
            let mut set = HashSet::new();
            for (from, len, whole) in ranges {
                let unit = if whole { UNIT } else { 1 };
                let (from, to) = (from / unit * unit, (from + len).next_multiple_of(unit));
                let there = (from..to).any(|at| set.contains(&at));
                prop_assert_eq!(map.has_any(from, to), there);
                prop_assert_eq!(map.add(from, to), there);
                set.extend(from..to);
                prop_assert!(map.has_any(from, from + 1) && map.has_any(to - 1, to));
            }
        }
    }
}
