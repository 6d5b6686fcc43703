//! Finding places on the cache device for data.

use crate::alloc::{Mark, Reserve, Space, WritePoint};
use crate::btree::Extent;
use crate::error::Result;
use crate::set::CacheSet;
use bcache_format::{BucketNr, Pos, Ptr};

/// Data that is to be placed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub inode: u32,
    pub start: u64,
    pub end: u64,
    pub dirty: bool,
    pub stream: WritePoint,
}

impl CacheSet {
    /// Places for data, waiting for free buckets. Each place is pinned until [`Self::placed`].
    pub(crate) async fn place(&self, wanted: Wanted) -> Result<Vec<Extent>> {
        let mut extents = Vec::with_capacity(1);
        let mut at = wanted.start;
        while at < wanted.end {
            match self.place_part(wanted, at) {
                Some(extent) => {
                    at = extent.end();
                    extents.push(extent);
                }
                None => match self.alloc.take(Reserve::None).await {
                    Ok(bucket) => self.open_bucket(bucket, wanted),
                    Err(error) => {
                        self.placed(&extents);
                        return Err(error);
                    }
                },
            }
        }
        Ok(extents)
    }

    /// Places for data if there are free buckets, or nothing.
    pub(crate) fn try_place(&self, wanted: Wanted, reserve: Reserve) -> Option<Vec<Extent>> {
        let mut extents = Vec::with_capacity(1);
        let mut at = wanted.start;
        while at < wanted.end {
            if let Some(extent) = self.place_part(wanted, at) {
                at = extent.end();
                extents.push(extent);
            } else if let Some(bucket) = self.alloc.try_take(reserve) {
                self.open_bucket(bucket, wanted);
            } else {
                self.placed(&extents);
                return None;
            }
        }
        Some(extents)
    }

    /// Places for an extent that GC moves.
    pub(crate) fn place_moved(&self, extent: Extent, stream: WritePoint) -> Result<Option<Vec<Extent>>> {
        let (inode, start, end) = (extent.inode(), extent.start(), extent.end());
        let wanted = Wanted { inode, start, end, dirty: extent.dirty(), stream };
        self.check()?;
        Ok(self.try_place(wanted, Reserve::MovingGc))
    }

    /// The data at these places is in the btree, or will never be: drops their pins.
    pub(crate) fn placed(&self, extents: &[Extent]) {
        for extent in extents {
            self.alloc.unpin(self.cache.geometry.ptr_bucket(extent.ptr()));
        }
    }

    fn is_flash_only(&self, inode: u32) -> bool {
        self.uuids.borrow().entries.get(inode as usize).is_some_and(|entry| entry.is_flash_only())
    }

    fn place_part(&self, wanted: Wanted, at: u64) -> Option<Extent> {
        let geometry = &self.cache.geometry;
        // An extent's size has 16 bits; keep it a multiple of the block.
        let sectors = (wanted.end - at).min(0x8000);
        let space: Space = self.alloc.open.borrow_mut().take(
            Pos::new(wanted.inode, at),
            sectors,
            wanted.stream,
            self.is_flash_only(wanted.inode),
            geometry.block_sectors.into(),
        )?;
        let bucket: BucketNr = geometry.ptr_bucket(space.ptr);
        let mut buckets = self.alloc.buckets.borrow_mut();
        let entry = buckets.get_mut(bucket);
        if !space.closed {
            entry.pin += 1;
        }
        // GC may have passed the place in the tree where the key will be.
        if wanted.dirty {
            entry.mark = Mark::Dirty;
        } else if entry.mark == Mark::Free {
            entry.mark = Mark::Reclaimable;
        }
        drop(buckets);
        self.gc.wrote(space.sectors);
        self.stats.sectors_written.add(space.sectors);
        Some(Extent::new(wanted.inode, at + space.sectors, space.sectors, space.ptr, wanted.dirty))
    }

    fn open_bucket(&self, bucket: BucketNr, wanted: Wanted) {
        let geometry = &self.cache.geometry;
        let generation = self.alloc.buckets.borrow().generation(bucket);
        let ptr = Ptr::new(self.cache.this_dev() as u16, geometry.bucket_start(bucket).0, generation);
        let evicted = self.alloc.open.borrow_mut().open(
            ptr,
            geometry.bucket_sectors.into(),
            wanted.stream,
            self.is_flash_only(wanted.inode),
            geometry.nbuckets,
        );
        if let Some(evicted) = evicted {
            self.alloc.unpin(geometry.ptr_bucket(evicted));
        }
    }
}
