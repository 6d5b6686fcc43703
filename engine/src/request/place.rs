//! Finding places on the cache device for data.

use crate::alloc::{BucketPin, Mark, Reserve, Space, TakenBucket, WritePoint};
use crate::btree::Extent;
use crate::error::Result;
use crate::set::CacheSet;
use bcache_format::{BucketNr, Ptr, Sector, Sectors, Span};

/// Data that is to be placed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub span: Span,
    pub dirty: bool,
    pub stream: WritePoint,
}

/// Places for data: extents to be. Their buckets are pinned as long as this lives, which is until the data is in the btree
/// or never will be.
pub(crate) struct Placed<'a> {
    /// The places, in the order of the data. Each holds a pin on its bucket.
    pub extents: Vec<Extent>,
    set: &'a CacheSet,
}

impl Wanted {
    /// Requests of a device are a stream.
    pub(crate) fn of_request(span: Span, dirty: bool) -> Self {
        Self { span, dirty, stream: WritePoint(span.inode.into()) }
    }
}

impl<'a> Placed<'a> {
    fn none(set: &'a CacheSet) -> Self {
        Self { extents: Vec::with_capacity(1), set }
    }
    fn add(&mut self, (extent, pin): (Extent, BucketPin<'a>)) {
        pin.leave();
        self.extents.push(extent);
    }
}

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        for extent in &self.extents {
            drop(self.set.alloc.take_pin(self.set.cache.geometry.ptr_bucket(extent.ptr())));
        }
    }
}

impl CacheSet {
    /// Places for data, waiting for free buckets.
    ///
    /// # Errors
    /// The set failed or stops, or GC and writing back have nothing left to free.
    pub(crate) async fn place(&self, wanted: Wanted) -> Result<Placed<'_>> {
        let mut placed = Placed::none(self);
        let mut at = wanted.span.start;
        while at < wanted.span.end {
            match self.place_part(wanted, at) {
                Some(part) => {
                    at = part.0.end();
                    placed.add(part);
                }
                None => self.open_bucket(self.alloc.take(Reserve::None).await?, wanted),
            }
        }
        Ok(placed)
    }

    /// Places for data if there are free buckets, or nothing.
    pub(crate) fn try_place(&self, wanted: Wanted, reserve: Reserve) -> Option<Placed<'_>> {
        let mut placed = Placed::none(self);
        let mut at = wanted.span.start;
        while at < wanted.span.end {
            if let Some(part) = self.place_part(wanted, at) {
                at = part.0.end();
                placed.add(part);
            } else {
                self.open_bucket(self.alloc.try_take(reserve)?, wanted);
            }
        }
        Some(placed)
    }

    /// Places for an extent that GC moves.
    pub(crate) fn place_moved(&self, extent: Extent, stream: WritePoint) -> Result<Option<Placed<'_>>> {
        let wanted = Wanted { span: extent.span(), dirty: extent.dirty(), stream };
        self.check()?;
        Ok(self.try_place(wanted, Reserve::MovingGc))
    }

    fn is_flash_only(&self, inode: u32) -> bool {
        self.uuids.borrow().entries.get(inode as usize).is_some_and(|entry| entry.is_flash_only())
    }

    fn place_part(&self, wanted: Wanted, at: Sector) -> Option<(Extent, BucketPin<'_>)> {
        let geometry = &self.cache.geometry;
        // An extent's size has 16 bits; keep it a multiple of the block.
        let rest = wanted.span.from(at);
        let sectors = rest.sectors().min(Sectors(0x8000));
        let space: Space = self.alloc.open.borrow_mut().take(
            rest.start_pos(),
            sectors,
            wanted.stream,
            self.is_flash_only(wanted.span.inode),
            Sectors(geometry.block_sectors.into()),
        )?;
        let bucket: BucketNr = geometry.ptr_bucket(space.ptr);
        let mut buckets = self.alloc.buckets.borrow_mut();
        let entry = buckets.get_mut(bucket);
        // GC may have passed the place in the tree where the key will be.
        if wanted.dirty {
            entry.mark = Mark::Dirty;
        } else if entry.mark == Mark::Free {
            entry.mark = Mark::Reclaimable;
        }
        drop(buckets);
        // A bucket without room for more is not open any more: its pin is ours.
        let pin = if space.closed { self.alloc.take_pin(bucket) } else { self.alloc.pin(bucket) };
        self.gc.wrote(space.sectors);
        self.stats.sectors_written.add(space.sectors.0);
        let span = Span { end: at + space.sectors, ..rest };
        Some((Extent::of(span, space.ptr, wanted.dirty), pin))
    }

    fn open_bucket(&self, taken: TakenBucket<'_>, wanted: Wanted) {
        let geometry = &self.cache.geometry;
        // As long as it is open it stays pinned.
        let bucket = taken.used().leave();
        let generation = self.alloc.buckets.borrow().generation(bucket);
        let ptr = Ptr::new(self.cache.this_dev() as u16, geometry.bucket_start(bucket).0, generation);
        let evicted = self.alloc.open.borrow_mut().open(
            ptr,
            Sectors(geometry.bucket_sectors.into()),
            wanted.stream,
            self.is_flash_only(wanted.span.inode),
            geometry.nbuckets,
        );
        if let Some(evicted) = evicted {
            drop(self.alloc.take_pin(geometry.ptr_bucket(evicted)));
        }
    }
}
