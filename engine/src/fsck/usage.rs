//! What each part of a cache is used for.

use bcache_format::{BucketNr, Geometry};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Numbers of a page, and pages of a group.
const PAGE: u64 = 1 << 18;
const GROUP: u64 = 1 << 14;

type Page = OnceLock<Box<[AtomicU64]>>;

/// A set of numbers below a limit, that many threads may add to. Memory grows with what is in it, not with what a
/// superblock claims: a bit a number, in pages that come into being with their first number.
#[derive(Default)]
pub struct Bitmap {
    /// The first page: of buckets there seldom are more.
    first: Page,
    groups: Vec<OnceLock<Box<[Page]>>>,
}

/// A page without numbers.
fn fresh_page() -> Box<[AtomicU64]> {
    let page: Box<[AtomicU64]> = (0..PAGE / 64).map(|_| AtomicU64::new(0)).collect();
    // The kernel maps memory that is read first twice: as zeros for all, and again when it is written.
    page.iter().step_by(512).for_each(|word| word.store(0, Ordering::Relaxed));
    page
}

/// The bits of one word for `from..to`, both within it.
const fn mask(from: u64, to: u64) -> u64 {
    (u64::MAX >> (64 - (to - from))) << from
}

/// The words that a range of numbers is in: each with its first number and the bits of it.
fn words(from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = from;
    std::iter::from_fn(move || {
        let start = at / 64 * 64;
        let end = to.min(start + 64);
        (at < end).then(|| {
            let bits = mask(at - start, end - start);
            at = end;
            (start, bits)
        })
    })
}

impl Bitmap {
    /// An empty set of numbers below `limit`.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        let groups = usize::try_from(limit.div_ceil(PAGE * GROUP)).unwrap_or(0);
        Self { first: OnceLock::new(), groups: (0..groups).map(|_| OnceLock::new()).collect() }
    }
    #[inline]
    fn page(&self, at: u64) -> Option<&Page> {
        if at < PAGE {
            return Some(&self.first);
        }
        let group = self.groups.get(usize::try_from(at / PAGE / GROUP).ok()?)?;
        let pages = group.get_or_init(|| (0..GROUP).map(|_| OnceLock::new()).collect());
        pages.get((at / PAGE % GROUP) as usize)
    }
    /// The 64 bits around a number.
    #[inline]
    fn word(&self, at: u64) -> u64 {
        if at < PAGE {
            let word = self.first.get().and_then(|page| page.get((at / 64) as usize));
            return word.map_or(0, |word| word.load(Ordering::Relaxed));
        }
        let group = self.groups.get(usize::try_from(at / PAGE / GROUP).unwrap_or(usize::MAX));
        let page = group.and_then(OnceLock::get).and_then(|pages| pages.get((at / PAGE % GROUP) as usize));
        let word = page.and_then(OnceLock::get).and_then(|page| page.get((at % PAGE / 64) as usize));
        word.map_or(0, |word| word.load(Ordering::Relaxed))
    }
    /// Adds `from..to`. True when one of them was there before.
    #[inline]
    pub fn add(&self, from: u64, to: u64) -> bool {
        let mut before = false;
        for (at, bits) in words(from, to) {
            let Some(page) = self.page(at) else { continue };
            let page = page.get_or_init(fresh_page);
            if let Some(word) = page.get((at % PAGE / 64) as usize) {
                before |= word.fetch_or(bits, Ordering::Relaxed) & bits != 0;
            }
        }
        before
    }
    /// The words of the page that a number is in, and the page's number.
    #[inline]
    fn words_around(&self, at: u64) -> (u64, &[AtomicU64]) {
        (at / PAGE, self.page(at).map_or(&[], |page| page.get_or_init(fresh_page)))
    }
    /// Whether a number is there.
    #[must_use]
    pub fn has(&self, at: u64) -> bool {
        self.word(at) & (1 << (at % 64)) != 0
    }
    /// Whether one of `from..to` is there.
    #[must_use]
    pub fn has_any(&self, from: u64, to: u64) -> bool {
        words(from, to).any(|(at, bits)| self.word(at) & bits != 0)
    }
}

/// Bits of a sector's number that are its place in its region: what the map has of one stays near the processor.
/// More where there would be too many regions.
const REGION_BITS: u32 = 19;
const REGIONS_MAX: u64 = 1 << 12;
/// Ranges that a thread gathers in all, and of one region at least and at most.
const GATHERED: usize = 4 << 20;
const GATHERED_MIN: usize = 256;
const GATHERED_MAX: usize = 8192;

/// The sectors of a device that are in use.
#[derive(Default)]
pub struct SectorMap {
    map: Bitmap,
    /// Of a sector's number these bits are its place in its region: whole buckets, and whole words of the map.
    region_bits: u32,
    /// Whoever holds a region's lock is alone in changing it.
    locks: Vec<Mutex<()>>,
}

impl SectorMap {
    /// Of a device of so many buckets.
    #[must_use]
    pub fn new(geometry: &Geometry) -> Self {
        let limit = geometry.bucket_start(BucketNr(geometry.nbuckets)).0;
        let least = (limit / REGIONS_MAX + 1).max(geometry.bucket_sectors.into());
        let region_bits = least.next_power_of_two().trailing_zeros().max(REGION_BITS);
        let locks = (0..=limit >> region_bits).map(|_| Mutex::new(())).collect();
        Self { map: Bitmap::new(limit), region_bits, locks }
    }
    /// Whether one of `from..to` is in use.
    #[must_use]
    pub fn has_any(&self, from: u64, to: u64) -> bool {
        self.map.has_any(from, to)
    }
    /// Adds `from..to`. True when one of them was there before.
    pub fn add(&self, from: u64, to: u64) -> bool {
        self.map.add(from, to)
    }
    /// Adds ranges of one region. Tells the starts of those of which a part was there before.
    fn put(&self, region: usize, ranges: impl Iterator<Item = (u64, u64)>, before: &mut dyn FnMut(u64)) {
        let Some(lock) = self.locks.get(region) else { return };
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = (u64::MAX, [].as_slice());
        for (from, len) in ranges {
            let mut add = |at: u64, bits: u64| {
                if page.0 != at / PAGE {
                    page = self.map.words_around(at);
                }
                let Some(word) = page.1.get((at % PAGE / 64) as usize) else { return false };
                let now = word.load(Ordering::Relaxed);
                word.store(now | bits, Ordering::Relaxed);
                now & bits != 0
            };
            // Most ranges are in one word.
            let within = from % 64;
            let shared = if len > 0 && within + len <= 64 {
                add(from, mask(within, within + len))
            } else {
                words(from, from + len).fold(false, |shared, (at, bits)| shared | add(at, bits))
            };
            if shared {
                before(from);
            }
        }
    }
}

/// Ranges inside buckets on their way into a [`SectorMap`]. Extents' data is scattered over the device, and each place
/// is a wait for memory; of one region many are there at once.
#[derive(Default)]
pub struct Gather {
    /// Ranges of each region, as many as `limit`: place in the region and length, in one word.
    ranges: Vec<u32>,
    /// How many there are of each region.
    counts: Vec<u32>,
    limit: usize,
}

impl Gather {
    /// Adds a range of an extent's size. Tells the starts of ranges of which a part was there before.
    #[inline]
    pub fn add(&mut self, map: &SectorMap, from: u64, len: u64, before: &mut dyn FnMut(u64)) {
        let bits = map.region_bits;
        let index = (from >> bits) as usize;
        if let Some(count) = self.counts.get_mut(index)
            && len < 1 << u32::BITS.saturating_sub(bits)
            && let Some(place) = self.ranges.get_mut(index * self.limit + *count as usize)
        {
            *place = (from & ((1 << bits) - 1) | len << bits) as u32;
            *count += 1;
            if *count as usize >= self.limit {
                self.put(map, index, before);
            }
        } else {
            self.add_rarely(map, from, len, before);
        }
    }
    /// The first range, one that is too large, or one outside the device.
    #[cold]
    fn add_rarely(&mut self, map: &SectorMap, from: u64, len: u64, before: &mut dyn FnMut(u64)) {
        let (bits, count) = (map.region_bits, map.locks.len());
        if self.counts.is_empty() && count > 0 {
            self.limit = (GATHERED / count).clamp(GATHERED_MIN, GATHERED_MAX);
            self.ranges = vec![0; self.limit * count];
            self.counts = vec![0; count];
            self.add(map, from, len, before);
        } else {
            map.put((from >> bits) as usize, std::iter::once((from, len)), before);
        }
    }
    /// Adds what was gathered of a region to the map.
    fn put(&mut self, map: &SectorMap, index: usize, before: &mut dyn FnMut(u64)) {
        let count = self.counts.get_mut(index).map_or(0, std::mem::take) as usize;
        let ranges = self.ranges.get(index * self.limit..).and_then(|ranges| ranges.get(..count));
        let (start, bits) = ((index as u64) << map.region_bits, map.region_bits);
        let ranges = ranges.unwrap_or_default().iter().map(|range| {
            let range = u64::from(*range);
            (start | range & ((1 << bits) - 1), range >> bits)
        });
        map.put(index, ranges, before);
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

    fn geometry(bucket_sectors: u32, nbuckets: u64) -> Geometry {
        Geometry { block_sectors: 1, bucket_sectors, first_bucket: 1, nbuckets }
    }

    proptest! {
        #[test]
        fn what_is_gathered_is_what_is_in_use(
            ranges in prop::collection::vec((0u64..70, 0u64..256, 1u64..256), 0..60),
            // Buckets of 128 KiB, of 32 MiB and of 2 GiB, on devices of some regions and of too many.
            shape in prop::sample::select(vec![(256u32, 100u64), (1 << 16, 100), (1 << 22, 100), (256, 1 << 40)]),
        ) {
            let (bucket, map) = (u64::from(shape.0), SectorMap::new(&geometry(shape.0, shape.1)));
            let (mut gather, mut set, mut shared, mut told) =
                (Gather::default(), HashSet::new(), HashSet::new(), HashSet::new());
            for (index, start, len) in ranges {
                let (from, len) = (index * bucket + start, len.min(bucket - start));
                gather.add(&map, from, len, &mut |at| { told.insert(at / bucket); });
                if (from..from + len).filter(|at| !set.insert(*at)).count() > 0 {
                    shared.insert(index);
                }
            }
            gather.finish(&map, &mut |at| { told.insert(at / bucket); });
            prop_assert_eq!(told, shared);
            for at in set {
                prop_assert!(map.has_any(at, at + 1));
            }
        }
        #[test]
        fn a_bitmap_is_a_set(ranges in prop::collection::vec((0u64..70_000, 1u64..200), 0..40)) {
            let map = Bitmap::new(1 << 40);
            let mut set = HashSet::new();
            for (from, len) in ranges {
                let there = (from..from + len).any(|at| set.contains(&at));
                prop_assert_eq!(map.has_any(from, from + len), there);
                prop_assert_eq!(map.add(from, from + len), there);
                set.extend(from..from + len);
                prop_assert!(map.has(from) && map.has(from + len - 1));
                prop_assert_eq!(map.has(from + len), set.contains(&(from + len)));
            }
        }
    }
}
