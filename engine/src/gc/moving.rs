//! Moving GC: data of little used buckets is copied together, so that whole buckets become free.

use crate::alloc::{Mark, WritePoint};
use crate::btree::{Extent, Piece};
use crate::dev::Buf;
use crate::error::Result;
use crate::set::CacheSet;
use bcache_format::{BucketNr, Pos};
use std::collections::BTreeSet;
use std::rc::Rc;

/// The stream of moved data.
const MOVING: WritePoint = WritePoint(u64::MAX);

impl CacheSet {
    /// Moves the data of the emptiest buckets, as many as their content fits into the reserve kept for it.
    pub(crate) async fn moving_gc(self: &Rc<Self>) -> Result<()> {
        let chosen = self.buckets_to_move();
        if chosen.is_empty() {
            return Ok(());
        }
        let mut at = Pos::ZERO;
        while at != Pos::MAX && !self.is_closing() {
            let leaf = self.node_at(at, 0).await?;
            at = leaf.max;
            let mut moving = Vec::new();
            leaf.for_each_extent(|extent| {
                if chosen.contains(&self.cache.geometry.ptr_bucket(extent.ptr())) {
                    moving.push(*extent);
                }
            });
            drop(leaf);
            for extent in moving {
                self.move_extent(extent).await?;
            }
        }
        Ok(())
    }

    fn buckets_to_move(&self) -> BTreeSet<BucketNr> {
        let buckets = self.alloc.buckets.borrow();
        let bucket_sectors = self.cache.geometry.bucket_sectors;
        let sparse = |bucket: &crate::alloc::Bucket| {
            bucket.mark != Mark::Metadata
                && bucket.mark != Mark::Free
                && bucket.pin == 0
                && bucket.sectors > 0
                && bucket.sectors < bucket_sectors
        };
        let mut candidates: Vec<(u32, BucketNr)> = buckets
            .usable()
            .filter(|(_, bucket)| sparse(bucket))
            .map(|(nr, bucket)| (bucket.sectors, nr))
            .collect();
        candidates.sort_unstable();
        let mut room = u64::from(bucket_sectors) * self.alloc.moving_reserve() as u64;
        let fits = candidates.into_iter().take_while(|(sectors, _)| {
            let fits = u64::from(*sectors) <= room;
            room = room.saturating_sub(u64::from(*sectors));
            fits
        });
        fits.map(|(_, nr)| nr).collect()
    }

    /// Copies one extent and says so in the btree, if it still is where it was.
    async fn move_extent(self: &Rc<Self>, extent: Extent) -> Result<()> {
        let pieces = self.pieces(extent.span()).await?;
        if pieces != [Piece::Cached(extent)] {
            return Ok(());
        }
        let pin = self.alloc.pin(self.cache.geometry.ptr_bucket(extent.ptr()));
        let read = self.cache.dev.read(extent.place(), Buf::recycled(extent.bytes())).await;
        drop(pin);
        // Unreadable data stays where it is; whoever asks for it is told.
        let Ok(data) = read else { return Ok(()) };
        let data = data.freeze();
        let Some(placed) = self.place_moved(extent, MOVING)? else { return Ok(()) };
        let mut done = 0usize;
        for part in &placed.extents {
            let slice = data.slice(done..done + part.bytes());
            done += part.bytes();
            if !self.is_failed() && self.cache.write(part.place(), slice).await.is_ok() {
                self.replace(extent.part(part.start(), part.end()), *part).await?;
            }
        }
        Ok(())
    }
}
