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
            let page = page.get_or_init(|| (0..PAGE / 64).map(|_| AtomicU64::new(0)).collect());
            if let Some(word) = page.get((at % PAGE / 64) as usize) {
                before |= word.fetch_or(bits, Ordering::Relaxed) & bits != 0;
            }
        }
        before
    }
    /// The same for who is alone in changing these numbers' words.
    #[inline]
    fn add_alone(&self, from: u64, to: u64) -> bool {
        let mut before = false;
        for (at, bits) in words(from, to) {
            let Some(page) = self.page(at) else { continue };
            let page = page.get_or_init(|| (0..PAGE / 64).map(|_| AtomicU64::new(0)).collect());
            if let Some(word) = page.get((at % PAGE / 64) as usize) {
                let now = word.load(Ordering::Relaxed);
                before |= now & bits != 0;
                word.store(now | bits, Ordering::Relaxed);
            }
        }
        before
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

/// Regions that sectors are gathered by.
const REGIONS: u64 = 128;
/// Ranges of a region that are gathered: all together take no more than the processor keeps near.
const GATHERED: usize = 512;
/// Ranges whose words are looked up together.
const BATCH: usize = 32;

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
        let region = (limit / REGIONS + 1).max(geometry.bucket_sectors.into()).max(64).next_power_of_two();
        let locks = (0..REGIONS).map(|_| Mutex::new(())).collect();
        Self { map: Bitmap::new(limit), region_bits: region.trailing_zeros(), locks }
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
    fn put(&self, region: usize, ranges: &[Range], before: &mut dyn FnMut(u64)) {
        let Some(lock) = self.locks.get(region) else { return };
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        for batch in ranges.chunks(BATCH) {
            // Waits for the memory of all of them at once.
            std::hint::black_box(batch.iter().fold(0, |sum, range| sum ^ self.map.word(range.from())));
            for range in batch {
                if self.map.add_alone(range.from(), range.from() + range.len()) {
                    before(range.from());
                }
            }
        }
    }
}

/// First number and length of a range, in one word: a pointer's 43 bits and a key's 16.
#[derive(Clone, Copy)]
struct Range(u64);

impl Range {
    const fn from(self) -> u64 {
        self.0 >> 16
    }
    const fn len(self) -> u64 {
        self.0 & 0xffff
    }
}

/// Ranges inside buckets on their way into a [`SectorMap`]. Extents' data is scattered over the device, and each place
/// is a wait for memory; of one region many are there at once.
#[derive(Default)]
pub struct Gather {
    regions: Vec<Vec<Range>>,
}

impl Gather {
    /// Adds a range of an extent's size. Tells the starts of ranges of which a part was there before.
    #[inline]
    pub fn add(&mut self, map: &SectorMap, from: u64, len: u64, before: &mut dyn FnMut(u64)) {
        if self.regions.is_empty() {
            self.regions.resize_with(map.locks.len(), Vec::new);
        }
        let index = (from >> map.region_bits) as usize;
        let Some(region) = self.regions.get_mut(index) else { return };
        region.push(Range(from << 16 | (len & 0xffff)));
        if region.len() >= GATHERED {
            map.put(index, region, before);
            region.clear();
        }
    }
    /// Adds all that is still on its way.
    pub fn finish(self, map: &SectorMap, before: &mut dyn FnMut(u64)) {
        for (index, region) in self.regions.iter().enumerate().filter(|(_, region)| !region.is_empty()) {
            map.put(index, region, before);
        }
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
