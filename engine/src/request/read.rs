//! Reads.

use super::place::Wanted;
use crate::alloc::Reserve;
use crate::btree::{Durability, Extent, MissGuard, Piece};
use crate::dev::{Buf, Io, Shared};
use crate::error::{Error, Result};
use crate::set::{CacheSet, Device, DeviceKind, Stage};
use bcache_format::prio::INITIAL_PRIO;
use bcache_format::{Sector, Sectors, Span};
use std::rc::Rc;

/// Sectors of missed data that may be on their way into the cache; what misses beyond is not cached.
const MISS_SECTORS_MAX: Sectors = Sectors(32 << 11);

/// A part of a read under way.
enum ReadPiece {
    Cached { extent: Extent, io: Io<Buf>, began: u64 },
    Missing { span: Span, io: Option<Io<Buf>>, miss: Option<MissGuard> },
}

impl CacheSet {
    /// Reads sectors `start .. end` (in the device's keys' terms) of an attached device.
    pub(crate) async fn read(
        self: &Rc<Self>,
        device: &Rc<Device>,
        start: Sector,
        end: Sector,
    ) -> Result<Vec<Shared>> {
        let Some(inode) = device.inode.get() else { return self.read_uncached(device, start, end).await };
        if self.is_failed() {
            return self.read_failed_set(device, Span::new(inode, start, end)).await;
        }
        let bypass = self.should_bypass(device, start, end - start, false);
        let mut answer = Vec::with_capacity(1);
        let mut hit = true;
        let mut rest = Span::new(inode, start, end);
        while !rest.is_empty() {
            let parts = self.begin_parts(device, rest, bypass).await?;
            for part in parts {
                match part {
                    ReadPiece::Cached { extent, io, began } => {
                        match self.finish_cached(device, extent, io, began).await? {
                            Some(data) => answer.push(data),
                            // The bucket was reused meanwhile: look again, from here.
                            None => break,
                        }
                        rest = rest.from(extent.end());
                    }
                    ReadPiece::Missing { span, io, miss } => {
                        hit = false;
                        answer.push(self.finish_missing(device, span, io, miss).await?);
                        rest = rest.from(span.end);
                    }
                }
            }
        }
        count(device, bypass, hit, end - start);
        Ok(answer)
    }

    /// Looks up `span` and begins to read all of it. Lookup, placeholders and the start of all I/O stand in one
    /// breath: nothing can change in between.
    async fn begin_parts(&self, device: &Device, span: Span, bypass: bool) -> Result<Vec<ReadPiece>> {
        let mut pieces = Vec::with_capacity(1);
        // In hand until all are there, or reading one could put another out of memory, for ever.
        let mut held = Vec::new();
        while let Some(rest) = self.pieces_resident(span, &mut pieces) {
            // Something must be read; after that the whole range is looked up again.
            let leaf = self.node_in_hand(rest.start_pos(), 0, &mut held).await?;
            held.push(leaf);
            pieces.clear();
        }
        Ok(pieces.into_iter().map(|piece| self.begin_part(device, piece, bypass)).collect())
    }

    fn begin_part(&self, device: &Device, piece: Piece, bypass: bool) -> ReadPiece {
        match piece {
            Piece::Cached(extent) => {
                let io = self.cache.dev.read(extent.place(), Buf::recycled(extent.bytes()));
                let bucket = self.cache.geometry.ptr_bucket(extent.ptr());
                self.alloc.buckets.borrow_mut().get_mut(bucket).prio = INITIAL_PRIO;
                ReadPiece::Cached { extent, io, began: self.env.now() }
            }
            Piece::Missing(span) => {
                let sectors = span.sectors();
                let io = device.backing().map(|backing| {
                    backing.dev.dev.read(span.start.byte(), Buf::recycled(sectors.bytes() as usize))
                });
                let room = self.misses.sectors() + sectors <= MISS_SECTORS_MAX;
                // What is read while it is being written may be old.
                let quiet = !device.writes.overlaps(span.start, span.end);
                let trusted = device.flush_failures() == 0;
                let cache = !bypass && room && quiet && trusted && io.is_some();
                let miss = cache.then(|| self.misses.begin(span));
                ReadPiece::Missing { span, io, miss }
            }
        }
    }

    /// Nothing when the bucket was reused while it was read.
    async fn finish_cached(
        &self,
        device: &Device,
        extent: Extent,
        io: Io<Buf>,
        began: u64,
    ) -> Result<Option<Shared>> {
        let result = io.await;
        let now = self.env.now();
        let threshold = self.settings.congested_read_threshold_us.get();
        self.congestion.count(now.saturating_sub(began) / 1000, threshold, now);
        let check = !seeded_bug!(NoGenRecheck);
        if check && self.alloc.buckets.borrow().staleness(extent.ptr()) > 0 {
            self.stats.cache_read_races.add(1);
            return Ok(None);
        }
        self.count_cache_io(result.is_err());
        match result {
            Ok(buf) => Ok(Some(buf.freeze())),
            Err(source) => {
                self.stats.cache_read_errors.add(1);
                if extent.dirty() && !seeded_bug!(OldForLostDirty) {
                    return Err(Error::DirtyLost { start: extent.start().0, end: extent.end().0, source });
                }
                let data = self.read_uncached(device, extent.start(), extent.end()).await?;
                Ok(data.into_iter().next())
            }
        }
    }

    async fn finish_missing(
        self: &Rc<Self>,
        device: &Rc<Device>,
        span: Span,
        io: Option<Io<Buf>>,
        miss: Option<MissGuard>,
    ) -> Result<Shared> {
        let Some(io) = io else { return Ok(Buf::zeroed(span.sectors().bytes() as usize).freeze()) };
        let data = match io.await {
            Ok(buf) => buf.freeze(),
            Err(error) => {
                device.stats.backing_read_errors.add(1);
                device.count_backing_error();
                return Err(error.into());
            }
        };
        if let Some(miss) = miss {
            let (set, device, copy) = (Rc::clone(self), Rc::clone(device), data.clone());
            let wanted = Wanted::of_request(span, false);
            // The client does not wait for this.
            self.task(Stage::Device, async move {
                set.insert_miss(&device, wanted, copy, &miss).await;
            });
        }
        Ok(data)
    }

    async fn insert_miss(self: &Rc<Self>, device: &Device, wanted: Wanted, data: Shared, miss: &MissGuard) {
        if self.is_closing() || !miss.holds() {
            device.stats.cache_miss_collisions.add(1);
            return;
        }
        let Some(placed) = self.try_place(wanted, Reserve::None) else { return };
        let extents = &placed.extents;
        let mut wrote = Vec::with_capacity(extents.len());
        for extent in extents {
            // Nothing is written any more, not even where it would do no harm.
            if self.is_failed() {
                break;
            }
            let from = (extent.start() - wanted.span.start).bytes() as usize;
            let slice = data.slice(from..from + extent.bytes());
            wrote.push(self.cache.write(extent.place(), slice).await);
        }
        for (extent, wrote) in extents.iter().zip(wrote) {
            self.count_cache_io(wrote.is_err());
            if wrote.is_err() {
                self.stats.cache_write_errors.add(1);
                continue;
            }
            if !miss.holds() {
                device.stats.cache_miss_collisions.add(1);
                break;
            }
            if let Err(error) = self.insert(*extent, Durability::Miss(miss.id())).await {
                self.fail_if_untrusted(&error);
                break;
            }
        }
    }

    /// Reads from below, without the cache.
    pub(crate) async fn read_uncached(
        &self,
        device: &Device,
        start: Sector,
        end: Sector,
    ) -> Result<Vec<Shared>> {
        let bytes = (end - start).bytes() as usize;
        match &device.kind {
            DeviceKind::FlashOnly { .. } => Ok(vec![Buf::zeroed(bytes).freeze()]),
            DeviceKind::Cached(backing) => {
                let read = backing.dev.dev.read(start.byte(), Buf::recycled(bytes)).await;
                let buf = read.inspect_err(|_| {
                    device.stats.backing_read_errors.add(1);
                    device.count_backing_error();
                })?;
                Ok(vec![buf.freeze()])
            }
        }
    }

    /// A set that stopped writing still answers reads that cannot hide dirty data: of a device that has none, from below;
    /// of others, what the nodes in memory say.
    async fn read_failed_set(&self, device: &Device, span: Span) -> Result<Vec<Shared>> {
        if device.backing().is_some() && self.has_nothing_dirty(device, span.inode) {
            return self.read_uncached(device, span.start, span.end).await;
        }
        let mut pieces = Vec::new();
        if self.pieces_resident(span, &mut pieces).is_some() {
            self.check()?;
        }
        let mut answer = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Missing(span) => {
                    answer.extend(self.read_uncached(device, span.start, span.end).await?);
                }
                Piece::Cached(extent) => {
                    let io = self.cache.dev.read(extent.place(), Buf::recycled(extent.bytes()));
                    // Nothing is reused any more, but what was on its way to be may be gone.
                    let data = self.finish_cached(device, extent, io, self.env.now()).await?;
                    answer.push(data.ok_or_else(|| self.check().err().unwrap_or(Error::Stopping))?);
                }
            }
        }
        Ok(answer)
    }
}

/// Counts a read as a hit or a miss.
fn count(device: &Device, bypass: bool, hit: bool, sectors: Sectors) {
    device.stats.reads.add(1);
    let counter = match (bypass, hit) {
        (false, true) => &device.stats.cache_hits,
        (false, false) => &device.stats.cache_misses,
        (true, true) => &device.stats.cache_bypass_hits,
        (true, false) => &device.stats.cache_bypass_misses,
    };
    counter.add(1);
    if bypass {
        device.stats.bypassed_sectors.add(sectors.0);
    }
}
