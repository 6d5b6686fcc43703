//! Extents of a leaf as they stand on the device, when nothing is special about them.
//!
//! Most leaves are one bset of sound extents. Looking them over in place, without decoding them into keys, is several
//! times as fast. What is not sound is not judged here: [`Packed::look`] says no, and the node is read the long way.

use super::extents::STALE_MAX;
use super::gens::DataGens;
use bcache_format::{Bkey, Geometry, Pos, Ptr};

/// Bytes of a key with one pointer.
const KEY: usize = 24;

/// The range of a leaf: behind `lower`, up to `upper`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// End of the leaf before.
    pub lower: Pos,
    /// End of this one.
    pub upper: Pos,
}

/// Extents of one pointer each, in order, without overlaps, inside their leaf and the device, none of them in a bucket
/// of metadata; each either valid, or clean and stale.
#[derive(Clone, Copy)]
pub struct Packed<'p> {
    keys: &'p [[u8; KEY]],
    geometry: &'p Geometry,
    gens: &'p DataGens,
    /// All of them are valid.
    valid: bool,
}

impl<'p> Packed<'p> {
    /// The extents in `keys`, if nothing is special about them.
    #[must_use]
    pub fn look(keys: &'p [u8], bounds: Bounds, geometry: &'p Geometry, gens: &'p DataGens) -> Option<Self> {
        let (keys, []) = keys.as_chunks::<KEY>() else { return None };
        let (mut before, mut valid) = (bounds.lower, true);
        for bytes in keys {
            let (key, ptr) = Bkey::of_one_ptr(bytes)?;
            let sound = key.size() > 0
                && key.size() <= key.offset()
                && key.start_pos() >= before
                && ptr.is_device()
                && !geometry.leaves_bucket(ptr, key.size());
            let stale = gens.stale(geometry.ptr_bucket(ptr), ptr.generation())?;
            if !sound || stale > STALE_MAX || (stale > 0 && key.dirty()) {
                return None;
            }
            valid &= stale == 0;
            before = key.pos();
        }
        // The largest key of all is one that only interior nodes have.
        let last = before.inode as usize;
        let fits = before <= bounds.upper && before != Pos::MAX && last < geometry.nr_uuids();
        fits.then_some(Self { keys, geometry, gens, valid })
    }
    /// How many there are, stale ones included.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.keys.len() as u64
    }
    /// Tells those that are valid.
    #[inline]
    pub fn valid(&self, mut tell: impl FnMut(Sound)) {
        for bytes in self.keys {
            let Some((key, ptr)) = Bkey::of_one_ptr(bytes) else { continue };
            if self.valid || self.gens.stale(self.geometry.ptr_bucket(ptr), ptr.generation()) == Some(0) {
                tell(Sound::new(&key, ptr));
            }
        }
    }
}

/// An extent with data: the little that is counted of it.
#[derive(Clone, Copy, Debug)]
pub struct Sound {
    /// Slot of the uuid table.
    pub inode: u32,
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub size: u64,
    /// Only the cache has it.
    pub dirty: bool,
    /// Where the data is.
    pub ptr: Ptr,
}

impl Sound {
    /// Of a key with its pointer.
    #[inline]
    #[must_use]
    pub fn new(key: &Bkey, ptr: Ptr) -> Self {
        let (inode, start, size, dirty) = (key.inode(), key.start(), key.size(), key.dirty());
        Self { inode, start, size, dirty, ptr }
    }
    /// The key.
    #[must_use]
    pub fn key(&self) -> Bkey {
        Bkey::extent(self.inode, self.start + self.size, self.size, self.ptr, self.dirty)
    }
}
