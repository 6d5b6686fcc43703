//! Extents of a leaf as they stand on the device, when nothing is special about them.
//!
//! Most leaves are one bset of sound extents. Looking them over in place, without decoding them into keys, is several
//! times as fast. What is not sound is not judged here: [`Packed::look`] says no, and the node is read the long way.

use super::gens::DataGens;
use super::slot::{SlotUse, Sound};
use bcache_format::bkey::KEY_WORDS;
use bcache_format::prio::GC_GEN_MAX;
use bcache_format::{Bkey, Geometry, Pos, Ptr};
use multiversion::multiversion;

/// Bytes of a key with one pointer.
const KEY: usize = KEY_WORDS * 8;

/// The range of a leaf: behind `lower`, up to `upper`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// End of the leaf before.
    pub lower: Pos,
    /// End of this one.
    pub upper: Pos,
}

/// Extents of one slot and of one pointer each, in order, without overlaps, inside their leaf and the device, none of
/// them in a bucket of metadata; each either valid, or clean and stale.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'p> {
    keys: &'p [[u8; KEY]],
    geometry: &'p Geometry,
    gens: &'p DataGens,
    inode: u32,
    /// What they are in all, if all of them are valid.
    sums: Option<Sums>,
}

/// Sectors of extents.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    all: u64,
    dirty: u64,
}

impl<'p> Packed<'p> {
    /// The extents in `keys`, if nothing is special about them.
    #[must_use]
    pub(crate) fn look(
        keys: &'p [u8],
        bounds: Bounds,
        geometry: &'p Geometry,
        gens: &'p DataGens,
    ) -> Option<Self> {
        let (keys, []) = keys.as_chunks::<KEY>() else { return None };
        let ((first, _), (last, _)) = (Bkey::with_one_ptr(keys.first()?), Bkey::with_one_ptr(keys.last()?));
        let inode = first.inode();
        let fits = first.start_pos() >= bounds.lower
            && last.pos() <= bounds.upper
            && (inode as usize) < geometry.nr_uuids();
        let sums = in_order(keys, inode, geometry).filter(|_| fits)?;
        let packed = Self { keys, geometry, gens, inode, sums: Some(sums) };
        if keys.iter().fold(0, |ahead, bytes| ahead | packed.ahead(Bkey::with_one_ptr(bytes).1)) == 0 {
            return Some(packed);
        }
        let sound = keys.iter().map(Bkey::with_one_ptr).all(|(key, ptr)| {
            let ahead = packed.ahead(ptr);
            ahead == 0 || (ahead <= u16::from(GC_GEN_MAX) && !key.dirty())
        });
        sound.then_some(Self { sums: None, ..packed })
    }
    /// How far the bucket is ahead of a pointer, as [`DataGens`] says it.
    fn ahead(&self, ptr: Ptr) -> u16 {
        self.gens.ahead(self.geometry.ptr_bucket(ptr), ptr.generation())
    }
    /// How many there are, stale ones included.
    #[must_use]
    pub(crate) const fn count(&self) -> u64 {
        self.keys.len() as u64
    }
    /// Slot of the uuid table.
    #[must_use]
    pub(crate) const fn inode(&self) -> u32 {
        self.inode
    }
    /// Those that are valid.
    pub(crate) fn valid(&self) -> impl DoubleEndedIterator<Item = Sound> {
        let all = self.sums.is_some();
        let keys = self.keys.iter().map(Bkey::with_one_ptr);
        keys.filter(move |(_, ptr)| all || self.ahead(*ptr) == 0).map(|(key, ptr)| Sound::new(&key, ptr))
    }
    /// What those that are valid use of their slot.
    #[must_use]
    pub(crate) fn used(&self) -> SlotUse {
        let mut used = SlotUse::default();
        let Some(Sums { all, dirty }) = self.sums else {
            self.valid().for_each(|sound| used.add(&SlotUse::of(&sound)));
            return used;
        };
        let ends = |which: fn(&Sound) -> bool| {
            let (first, last) = (self.valid().find(which), self.valid().rfind(which));
            (first.map_or(0, |sound| sound.start), last.map_or(0, |sound| sound.start + sound.size))
        };
        (used.all, used.dirty) = (all, dirty);
        (used.start, used.end) = ends(|_| true);
        if dirty > 0 {
            (used.dirty_start, used.dirty_end) = ends(|sound| sound.dirty);
        }
        used
    }
}

/// What extents are in all, if they are of this slot, of one pointer each, in order, without overlaps and inside their
/// buckets. Every branch would count: all that is asked is taken together.
#[multiversion(targets("x86_64+avx2"))]
fn in_order(keys: &[[u8; KEY]], inode: u32, geometry: &Geometry) -> Option<Sums> {
    let (mut sums, mut sound, mut before) = (Sums::default(), true, 0);
    for bytes in keys {
        let (key, ptr) = Bkey::with_one_ptr(bytes);
        let size = key.size();
        sound &= (key.n_ptrs() == 1)
            & (key.inode() == inode)
            & (size > 0)
            & (size <= key.offset())
            & (key.start() >= before)
            & ptr.is_device()
            & !geometry.leaves_bucket(ptr, size);
        sums.all += size;
        sums.dirty += if key.dirty() { size } else { 0 };
        before = key.offset();
    }
    sound.then_some(sums)
}

#[cfg(test)]
mod tests {
    use super::super::gens::Gens;
    use super::*;
    use bcache_format::BucketNr;
    use proptest::prelude::*;

    const GEOMETRY: Geometry =
        Geometry { block_sectors: 1, bucket_sectors: 16, first_bucket: 2, nbuckets: 40 };
    const METADATA: BucketNr = BucketNr(30);

    /// What [`Packed::look`] promises, one rule after the other.
    fn expected(keys: &[Bkey], bounds: Bounds, gens: &Gens) -> Option<SlotUse> {
        let (mut before, mut used) = (bounds.lower, SlotUse::default());
        for key in keys {
            let &[ptr] = key.ptrs() else { return None };
            let stale = gens.stale(ptr);
            let newer = gens
                .get(GEOMETRY.ptr_bucket(ptr).0)
                .is_none_or(|known| known != ptr.generation() && stale == 0);
            let sound = key.inode() == keys.first()?.inode()
                && (key.inode() as usize) < GEOMETRY.nr_uuids()
                && (1..=key.offset()).contains(&key.size())
                && key.start_pos() >= before
                && key.pos() <= bounds.upper
                && ptr.is_device()
                && GEOMETRY.ptr_problem(key).is_none()
                && GEOMETRY.ptr_bucket(ptr) != METADATA
                && !newer
                && (stale == 0 || (stale <= GC_GEN_MAX && !key.dirty()));
            if !sound {
                return None;
            }
            if stale == 0 {
                used.add(&SlotUse::of(&Sound::new(key, ptr)));
            }
            before = key.pos();
        }
        (!keys.is_empty()).then_some(used)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn what_is_looked_over_in_place_is_judged_like_one_key_after_the_other(
            inode in prop::sample::select(vec![0u32, 3, 63, 64]),
            extents in prop::collection::vec((0u64..3, 1u64..9, 2u64..30, 0u64..9, 0u8..3, any::<bool>()), 0..12),
            // A bit of a word of a key is another than it should be; or, instead of the fourth word's, all of its size.
            damage in prop::option::of((any::<prop::sample::Index>(), 0usize..4, 0u32..64)),
            (lower, spare) in (0u64..3, 0u64..3),
        ) {
            let mut end = lower;
            let keys = extents.iter().map(|(gap, size, bucket, at, behind, dirty)| {
                end += gap + size;
                let ptr = Ptr::new(0, bucket * 16 + at.min(&(16 - size)), 5 - behind * u8::from(!dirty));
                Bkey::extent(inode, end, *size, ptr, *dirty)
            });
            let mut words: Vec<u64> = keys.flat_map(|key| key.words().collect::<Vec<_>>()).collect();
            let upper = Pos::new(inode, (end + spare).saturating_sub(1));
            if let Some((index, word, bit)) = damage && !words.is_empty() {
                let at = index.index(words.len() / 3) * 3;
                match word {
                    3 => words[at] &= !Bkey::new(0, 0, u64::MAX).high | Bkey::new(0, 0, 0).high,
                    _ => words[at + word] ^= 1 << bit,
                }
            }
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let keys: Vec<Bkey> = words.chunks(3).map(|words| {
                let key = Bkey::from_words(words);
                // One that has not the pointers it says is none with one pointer.
                key.unwrap_or_default()
            }).collect();

            let gens = Gens::new(GEOMETRY, vec![5; 40]);
            let data_gens = DataGens::new(&gens, [METADATA]);
            let bounds = Bounds { lower: Pos::new(inode, lower), upper };
            let packed = Packed::look(&bytes, bounds, &GEOMETRY, &data_gens);
            prop_assert_eq!(packed.map(|packed| packed.used()), expected(&keys, bounds, &gens));
            if let Some(packed) = packed {
                let mut one_by_one = SlotUse::default();
                packed.valid().for_each(|sound| one_by_one.add(&SlotUse::of(&sound)));
                prop_assert_eq!(packed.used(), one_by_one);
            }
        }
    }
}
