//! Open buckets: where data is being written.
//!
//! Several are open so that streams do not mix: what was written together goes out of date together. A write goes on
//! where the write just before it in the key space ended; failing that, where the same stream wrote last; failing
//! that, where nobody has written for longest. Flash-only volumes never share a bucket with cached devices: their data
//! is never written back, so such a bucket could never be emptied.

use bcache_format::{Pos, Ptr, Sectors};

/// Buckets open at once (`MAX_OPEN_BUCKETS`); fewer on small caches, which could not afford them.
const MAX_OPEN: usize = 128;

/// Who writes: requests of one stream share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WritePoint(pub u64);

#[derive(Clone, Copy, Debug)]
struct OpenBucket {
    /// Where the next data goes.
    ptr: Ptr,
    sectors_free: Sectors,
    /// End of the last write in the key space.
    last: Pos,
    write_point: WritePoint,
    flash_only: bool,
}

/// The open buckets, longest unused first.
#[derive(Default, Debug)]
pub struct OpenBuckets {
    list: Vec<OpenBucket>,
}

/// What [`OpenBuckets::take`] found.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Where the data goes.
    pub ptr: Ptr,
    /// Sectors.
    pub sectors: Sectors,
    /// The bucket has no room for another block: its pin passes to the caller.
    pub closed: bool,
}

impl OpenBuckets {
    /// Up to `sectors` for a write that starts at `start`. Nothing when no bucket that suits is open.
    pub fn take(
        &mut self,
        start: Pos,
        sectors: Sectors,
        write_point: WritePoint,
        flash_only: bool,
        block_sectors: Sectors,
    ) -> Option<Space> {
        let suits = |open: &OpenBucket| open.flash_only == flash_only;
        let continued = self.list.iter().rposition(|open| suits(open) && open.last == start);
        let same = || self.list.iter().rposition(|open| suits(open) && open.write_point == write_point);
        let index = continued.or_else(same)?;
        let mut open = self.list.remove(index);
        let space = Space {
            ptr: open.ptr,
            sectors: sectors.min(open.sectors_free),
            closed: open.sectors_free - sectors.min(open.sectors_free) < block_sectors,
        };
        open.ptr = open.ptr.advanced(space.sectors.0);
        open.sectors_free -= space.sectors;
        open.last = Pos::new(start.inode, start.offset + space.sectors.0);
        open.write_point = write_point;
        if !space.closed {
            self.list.push(open);
        }
        Some(space)
    }
    /// Opens a bucket. The one longest unused is closed when there are too many for a cache of `nbuckets`; its pin is
    /// the caller's to drop.
    #[must_use]
    pub fn open(
        &mut self,
        ptr: Ptr,
        sectors: Sectors,
        write_point: WritePoint,
        flash_only: bool,
        nbuckets: u64,
    ) -> Option<Ptr> {
        let limit = usize::try_from(nbuckets / 64).unwrap_or(MAX_OPEN).clamp(2, MAX_OPEN);
        let evicted = (self.list.len() >= limit).then(|| self.list.remove(0).ptr);
        self.list.push(OpenBucket { ptr, sectors_free: sectors, last: Pos::MAX, write_point, flash_only });
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_keep_apart_and_go_on_where_they_were() {
        let mut open = OpenBuckets::default();
        let (a, b) = (WritePoint(1), WritePoint(2));
        assert!(open.take(Pos::new(0, 0), Sectors(8), a, false, Sectors(1)).is_none());
        assert!(open.open(Ptr::new(0, 64, 0), Sectors(64), a, false, 10_000).is_none());
        assert!(open.open(Ptr::new(0, 128, 0), Sectors(64), b, false, 10_000).is_none());
        assert_eq!(open.take(Pos::new(0, 0), Sectors(8), a, false, Sectors(1)).unwrap().ptr.offset(), 64);
        assert_eq!(open.take(Pos::new(0, 800), Sectors(8), b, false, Sectors(1)).unwrap().ptr.offset(), 128);
        // The stream is another, but it goes on where the first ended.
        assert_eq!(open.take(Pos::new(0, 8), Sectors(8), b, false, Sectors(1)).unwrap().ptr.offset(), 72);
        assert!(
            open.take(Pos::new(3, 0), Sectors(8), a, true, Sectors(1)).is_none(),
            "volumes have buckets of their own"
        );
    }

    #[test]
    fn a_full_bucket_is_closed() {
        let mut open = OpenBuckets::default();
        let point = WritePoint(1);
        assert!(open.open(Ptr::new(0, 64, 0), Sectors(64), point, false, 10_000).is_none());
        let space = open.take(Pos::new(0, 0), Sectors(100), point, false, Sectors(8)).unwrap();
        assert_eq!((space.sectors, space.closed), (Sectors(64), true));
        assert!(open.take(Pos::new(0, 64), Sectors(8), point, false, Sectors(8)).is_none());
    }

    #[test]
    fn small_caches_open_few() {
        let mut open = OpenBuckets::default();
        for i in 0..100u64 {
            let evicted = open.open(Ptr::new(0, i * 64, 0), Sectors(64), WritePoint(i), false, 513);
            assert_eq!(evicted.is_some(), i >= 8);
        }
    }
}
