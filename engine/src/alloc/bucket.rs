//! What is known of every bucket in memory.

use bcache_format::Sectors;
use bcache_format::bkey::gen_after;
use bcache_format::prio::GC_GEN_MAX;
use bcache_format::prio::{BTREE_PRIO, INITIAL_PRIO};
use bcache_format::{BucketNr, Geometry, Ptr};
use std::ops::Range;

/// Buckets that are looked at in one go; others run in between.
const BUCKETS_AT_ONCE: u64 = 8192;

/// The numbers of all buckets that may be allocated, so many at once.
pub(crate) fn bucket_ranges(geometry: &Geometry) -> impl Iterator<Item = Range<u64>> + use<> {
    let (first, end) = (geometry.first_bucket, geometry.nbuckets);
    let starts = (first..end).step_by(BUCKETS_AT_ONCE as usize);
    starts.map(move |from| from..(from + BUCKETS_AT_ONCE).min(end))
}

/// What GC, or the allocation since, found in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mark {
    /// Nothing.
    #[default]
    Free,
    /// Clean data only: may be reused.
    Reclaimable,
    /// Dirty data.
    Dirty,
    /// A btree node, a prio set, the uuid table or the journal.
    Metadata,
}

/// One bucket.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// Priority for replacement.
    pub prio: u16,
    /// Oldest generation that a pointer on disk may have.
    pub last_gc: u8,
    /// What is in it.
    pub mark: Mark,
    /// Was reusable when the running GC began, and still may be reused while it runs.
    pub reclaimable_in_gc: bool,
    /// Its generation is not durable: after a crash the pointers that it makes stale would count again.
    pub unsettled: bool,
    /// Keys that are not in the btree yet, open buckets and free lists hold it.
    pub pin: u32,
    /// Sectors in use.
    pub sectors: u32,
    /// Sectors in use when the running GC began: while it counts, that is what a bucket is worth.
    pub sectors_before: u32,
}

/// Numbers of buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// With nothing in them.
    pub free: u64,
    /// With clean data only.
    pub clean: u64,
    /// With dirty data.
    pub dirty: u64,
    /// With metadata.
    pub metadata: u64,
    /// How long ago, in the units of priorities, data buckets were used, on average.
    pub average_prio: u64,
}

impl Bucket {
    /// By what is known of it, it may be emptied.
    fn is_reusable(&self, generation: u8) -> bool {
        (matches!(self.mark, Mark::Free | Mark::Reclaimable)
            || (self.mark == Mark::Dirty && seeded_bug!(InvalidateDirty)))
            && self.pin == 0
            && generation.wrapping_sub(self.last_gc) < GC_GEN_MAX
    }
}

/// All buckets of the cache device.
pub struct Buckets {
    list: Vec<Bucket>,
    /// Their generations; pointers with an older one are stale. Apart from the rest, because a lookup asks for nothing
    /// else, and these alone stay near the processor.
    generations: Vec<u8>,
    geometry: Geometry,
    /// Marks are complete: no GC is running.
    pub marks_valid: bool,
    /// Smallest priority of a data bucket at the last rescaling.
    pub min_prio: u16,
    rescale: i64,
    raised: u64,
}

impl Buckets {
    /// As many as the geometry says, all free.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        let count = usize::try_from(geometry.nbuckets).unwrap_or(0);
        let list = vec![Bucket { prio: INITIAL_PRIO, ..Bucket::default() }; count];
        let rescale = Self::rescale_step(&geometry);
        let generations = vec![0; count];
        Self { list, generations, geometry, marks_valid: true, min_prio: INITIAL_PRIO, rescale, raised: 0 }
    }
    const fn rescale_step(geometry: &Geometry) -> i64 {
        (geometry.nbuckets * geometry.bucket_sectors as u64 / 1024) as i64
    }
    /// The bucket with this number. Numbers come from checked pointers and from the free lists.
    #[must_use]
    pub fn get(&self, bucket: BucketNr) -> &Bucket {
        &self.list[bucket.0 as usize]
    }
    /// The bucket with this number, to change it.
    pub fn get_mut(&mut self, bucket: BucketNr) -> &mut Bucket {
        &mut self.list[bucket.0 as usize]
    }
    /// The generation of the bucket with this number.
    #[must_use]
    pub fn generation(&self, bucket: BucketNr) -> u8 {
        self.generations[bucket.0 as usize]
    }
    /// Sets it.
    pub fn set_generation(&mut self, bucket: BucketNr, generation: u8) {
        self.generations[bucket.0 as usize] = generation;
    }
    /// Raises it by one: every pointer into the bucket is stale from now on.
    pub fn next_generation(&mut self, bucket: BucketNr) -> u8 {
        let generation = self.generation(bucket).wrapping_add(1);
        self.set_generation(bucket, generation);
        generation
    }
    /// Buckets that may be allocated, with their numbers.
    pub fn usable(&self) -> impl Iterator<Item = (BucketNr, &Bucket)> {
        let first = self.geometry.first_bucket;
        (first..self.geometry.nbuckets).map(|nr| (BucketNr(nr), &self.list[nr as usize]))
    }
    /// How far the pointer's bucket is ahead of it; 0 when the pointer is good.
    #[must_use]
    pub fn staleness(&self, ptr: Ptr) -> u8 {
        let generation = self.generations.get(self.geometry.ptr_bucket(ptr).0 as usize);
        generation.map_or(128, |generation| gen_after(*generation, ptr.generation()))
    }
    /// Raises a bucket's generation to that of a pointer found on disk, if the pointer is ahead: the prio sets are
    /// written less often than pointers.
    pub fn raise(&mut self, ptr: Ptr) {
        let at = self.geometry.ptr_bucket(ptr).0 as usize;
        if let Some(generation) = self.generations.get_mut(at)
            && gen_after(ptr.generation(), *generation) > 0
        {
            *generation = ptr.generation();
            self.raised += 1;
        }
    }
    /// How often [`Self::raise`] found a pointer that was ahead.
    #[must_use]
    pub const fn raised(&self) -> u64 {
        self.raised
    }
    /// Nothing is known any more of what is in the buckets. Pins stay.
    pub(crate) fn clear_marks(&mut self) {
        for bucket in &mut self.list {
            (bucket.mark, bucket.sectors) = (Mark::Free, 0);
        }
    }
    /// Takes note of a pointer that is on disk, so that its bucket's generation never laps it.
    pub fn note_oldest(&mut self, ptr: Ptr) {
        let at = self.geometry.ptr_bucket(ptr).0 as usize;
        if let Some(bucket) = self.list.get_mut(at)
            && gen_after(bucket.last_gc, ptr.generation()) > 0
        {
            bucket.last_gc = ptr.generation();
        }
    }
    /// GC begins: of these buckets nothing is known but what somebody holds. If the marks could be `trusted` so far, what
    /// could be reused before may be reused while GC runs.
    pub fn begin_marking(&mut self, range: Range<u64>, trusted: bool) {
        self.marks_valid = false;
        let range = range.start as usize..range.end as usize;
        for (bucket, generation) in self.list[range.clone()].iter_mut().zip(&self.generations[range]) {
            bucket.reclaimable_in_gc =
                bucket.is_reusable(*generation) && (trusted || bucket.reclaimable_in_gc);
            bucket.last_gc = *generation;
            bucket.sectors_before = bucket.sectors;
            if bucket.pin == 0 {
                bucket.mark = Mark::Free;
                bucket.sectors = 0;
            }
        }
    }
    /// GC ends: what was said of these buckets for its time says nothing any more.
    pub fn end_marking(&mut self, range: Range<u64>) {
        for bucket in &mut self.list[range.start as usize..range.end as usize] {
            bucket.reclaimable_in_gc = false;
        }
    }
    /// Marks what a live extent points to.
    pub fn mark_data(&mut self, ptr: Ptr, sectors: Sectors, dirty: bool) {
        let limit = self.geometry.bucket_sectors;
        let nr = self.geometry.ptr_bucket(ptr);
        let bucket = self.get_mut(nr);
        if dirty {
            bucket.mark = Mark::Dirty;
        } else if bucket.mark == Mark::Free {
            bucket.mark = Mark::Reclaimable;
        }
        bucket.sectors = bucket.sectors.saturating_add(sectors.0 as u32).min(limit);
        if bucket.prio == BTREE_PRIO {
            bucket.prio = INITIAL_PRIO;
        }
    }
    /// Marks metadata.
    pub fn mark_metadata(&mut self, nr: BucketNr) {
        let sectors = self.geometry.bucket_sectors;
        let bucket = self.get_mut(nr);
        bucket.mark = Mark::Metadata;
        bucket.sectors = sectors;
    }
    /// Sectors in use in buckets that hold data, as of the last GC and what was written since.
    #[must_use]
    pub fn data_sectors(&self) -> u64 {
        let data = self.usable().filter(|(_, bucket)| matches!(bucket.mark, Mark::Reclaimable | Mark::Dirty));
        data.map(|(_, bucket)| u64::from(bucket.sectors)).sum()
    }
    /// How many buckets hold what.
    #[must_use]
    pub fn count_marks(&self) -> Parts {
        let mut parts = Parts::default();
        let (mut prios, mut data) = (0u64, 0u64);
        for (_, bucket) in self.usable() {
            *match bucket.mark {
                Mark::Free => &mut parts.free,
                Mark::Reclaimable => &mut parts.clean,
                Mark::Dirty => &mut parts.dirty,
                Mark::Metadata => &mut parts.metadata,
            } += 1;
            if matches!(bucket.mark, Mark::Reclaimable | Mark::Dirty) {
                prios += u64::from(INITIAL_PRIO.saturating_sub(bucket.prio));
                data += 1;
            }
        }
        parts.average_prio = prios / data.max(1);
        parts
    }
    /// Whether a bucket may be emptied and reused now.
    #[must_use]
    pub fn may_invalidate(&self, nr: BucketNr) -> bool {
        let bucket = self.get(nr);
        (self.marks_valid || bucket.reclaimable_in_gc) && bucket.is_reusable(self.generation(nr))
    }
    /// Empties a bucket: every pointer into it is stale from now on. It stays pinned until it is allocated and used.
    pub fn invalidate(&mut self, nr: BucketNr) {
        self.next_generation(nr);
        let bucket = self.get_mut(nr);
        bucket.unsettled = true;
        bucket.prio = INITIAL_PRIO;
        bucket.pin += 1;
        bucket.reclaimable_in_gc = false;
        bucket.mark = Mark::Free;
        (bucket.sectors, bucket.sectors_before) = (0, 0);
    }
    /// Whether an extent may count, now or after a crash.
    #[must_use]
    pub fn may_count(&self, ptr: Ptr) -> bool {
        self.staleness(ptr) == 0
            || self.list.get(self.geometry.ptr_bucket(ptr).0 as usize).is_some_and(|bucket| bucket.unsettled)
    }
    /// Orders buckets for lru replacement: little used and little filled first.
    #[must_use]
    pub fn lru_weight(&self, bucket: &Bucket) -> u64 {
        // Never 0: what holds nothing goes before all that holds something (the kernel lets them draw level).
        let base = u64::from(INITIAL_PRIO.saturating_sub(self.min_prio)) / 8 + 1;
        let sectors =
            if self.marks_valid { bucket.sectors } else { bucket.sectors.max(bucket.sectors_before) };
        (u64::from(bucket.prio.saturating_sub(self.min_prio)) + base) * u64::from(sectors)
    }
    /// Ages all data buckets once for every 1/1024 of the cache that was read or written.
    pub fn age(&mut self, sectors: Sectors) {
        self.rescale -= sectors.0 as i64;
        if self.rescale >= 0 {
            return;
        }
        self.rescale += Self::rescale_step(&self.geometry).max(sectors.0 as i64);
        let mut min_prio = u16::MAX;
        for bucket in &mut self.list {
            if bucket.prio != 0 && bucket.prio != BTREE_PRIO && bucket.pin == 0 {
                bucket.prio -= 1;
                min_prio = min_prio.min(bucket.prio);
            }
        }
        self.min_prio = min_prio;
    }
    /// Buckets that hold nothing that must stay.
    #[must_use]
    pub fn available(&self) -> u64 {
        let free = |bucket: &Bucket| bucket.pin == 0 && matches!(bucket.mark, Mark::Free | Mark::Reclaimable);
        self.usable().filter(|(_, bucket)| free(bucket)).count() as u64
    }
    /// The geometry.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets() -> Buckets {
        Buckets::new(Geometry { block_sectors: 1, bucket_sectors: 64, first_bucket: 1, nbuckets: 1024 })
    }

    #[test]
    fn a_bucket_with_dirty_data_metadata_or_a_pin_is_never_emptied() {
        let mut all = buckets();
        let nr = BucketNr(7);
        assert!(all.may_invalidate(nr));
        for mark in [Mark::Dirty, Mark::Metadata] {
            all.get_mut(nr).mark = mark;
            assert!(!all.may_invalidate(nr));
        }
        all.get_mut(nr).mark = Mark::Reclaimable;
        assert!(all.may_invalidate(nr));
        all.get_mut(nr).pin = 1;
        assert!(!all.may_invalidate(nr));
        all.get_mut(nr).pin = 0;
        all.marks_valid = false;
        assert!(!all.may_invalidate(nr), "marks are not complete while GC runs");
    }

    #[test]
    fn generations_never_lap_the_oldest_pointer() {
        let mut all = buckets();
        let nr = BucketNr(9);
        for _ in 0..GC_GEN_MAX {
            assert!(all.may_invalidate(nr));
            all.invalidate(nr);
            all.get_mut(nr).pin = 0;
        }
        assert!(!all.may_invalidate(nr));
    }

    #[test]
    fn pointers_ahead_of_their_bucket_raise_it() {
        let mut all = buckets();
        let ptr = Ptr::new(0, 64 * 5, 3);
        assert_eq!(all.staleness(ptr), 0);
        all.raise(ptr);
        assert_eq!(all.generation(BucketNr(5)), 3);
        all.raise(Ptr::new(0, 64 * 5, 2));
        assert_eq!(all.generation(BucketNr(5)), 3);
        assert_eq!(all.staleness(Ptr::new(0, 64 * 5, 1)), 2);
    }
}
