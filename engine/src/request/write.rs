//! Writes, flushes and discards.

use super::place::Wanted;
use crate::alloc::Reserve;
use crate::btree::{Durability, Extent};
use crate::dev::Shared;
use crate::error::{Error, Result};
use crate::set::{Backing, CacheSet, Device};
use bcache_format::{Sector, Sectors, Span};
use std::rc::Rc;

/// Where a write to a cached device goes.
enum Way {
    /// To the cache only.
    Dirty,
    /// To both.
    Through,
    /// To the backing device only.
    Around,
}

/// A write to a device of the set, whose range is held.
struct Write<'a> {
    device: &'a Rc<Device>,
    span: Span,
    data: Shared,
}

impl CacheSet {
    /// Writes `data` at sector `start` (in the keys' terms) of an attached device.
    pub(crate) async fn write(
        self: &Rc<Self>,
        device: &Rc<Device>,
        start: Sector,
        data: Shared,
        fua: bool,
    ) -> Result<()> {
        device.stats.writes.add(1);
        let end = start + Sectors::from_bytes(data.len() as u64);
        let failures = device.flush_failures();
        let held = device.writes.hold(start, end).await;
        if device.inode.get().is_some() {
            self.journal_admission().await?;
        }
        // Looked up when nothing is waited for any more: the device may have been detached meanwhile.
        match device.inode.get() {
            Some(inode) => {
                let write = Write { device, span: Span::new(inode, start, end), data };
                self.write_cached(&write).await?;
            }
            None => write_below(device, start, data).await?,
        }
        drop(held);
        if let Some(backing) = device.backing()
            && device.flush_failures() != failures
        {
            // Ours may be among what that flush lost, and whoever was told of it did not know of ours.
            backing.dev.tell_again(failures);
        }
        if fua { self.flush_written(device, failures).await } else { Ok(()) }
    }

    async fn write_cached(self: &Rc<Self>, write: &Write<'_>) -> Result<()> {
        let Some(backing) = write.device.backing() else { return self.write_dirty(write, None).await };
        match self.choose_way(write) {
            Way::Dirty => self.write_dirty(write, Some(backing)).await,
            Way::Around => {
                write.device.stats.bypassed_sectors.add(write.span.sectors().0);
                self.write_around(write).await
            }
            Way::Through => self.write_through(write).await,
        }
    }

    fn choose_way(&self, write: &Write<'_>) -> Way {
        let Write { device, span, .. } = write;
        let bypass = self.should_bypass(device, span.start, span.sectors(), true);
        // Older data of this range is on its way to the backing device. Written there, ours could arrive first.
        if device.writeback.active.overlaps(span.start, span.end) || self.should_writeback(device, bypass) {
            Way::Dirty
        } else if bypass {
            Way::Around
        } else {
            Way::Through
        }
    }

    /// To the cache only. The backing superblock says dirty first.
    async fn write_dirty(self: &Rc<Self>, write: &Write<'_>, backing: Option<&Backing>) -> Result<()> {
        let Write { device, span, .. } = write;
        let writer = DirtyWriter::begin(device);
        let result = async {
            let mark = !seeded_bug!(DirtyWithoutSuperblock);
            if let Some(backing) = backing.filter(|_| mark) {
                backing.mark_dirty().await?;
            }
            let placed = self.place(Wanted::of_request(*span, true)).await?;
            self.fill_and_insert(&placed.extents, write).await
        }
        .await;
        match (result, backing) {
            // What has a backing device need not wait for room in the cache. Older data of this range that is on its way there
            // must not arrive after ours.
            (Err(Error::NoSpace(_)), Some(_)) => {
                device.writeback.active.wait_free(span.start, span.end).await;
                drop(writer);
                self.write_around(write).await
            }
            (result, _) => result,
        }
    }

    /// Data first, then the keys that name it.
    async fn fill_and_insert(self: &Rc<Self>, extents: &[Extent], write: &Write<'_>) -> Result<()> {
        let ios: Vec<_> = extents.iter().map(|extent| self.begin_fill(extent, write)).collect();
        if seeded_bug!(TailBeforeData) {
            for extent in extents {
                self.insert(*extent, Durability::Journal).await?;
            }
        }
        self.filled(ios).await?;
        for extent in extents {
            self.insert(*extent, Durability::Journal).await?;
        }
        self.commit_if_outlived().await
    }

    /// Waits for writes of data to the cache device; the error of one of those that failed.
    async fn filled(&self, ios: Vec<crate::dev::Io<()>>) -> Result<()> {
        let began = self.env.now();
        let mut result = Ok(());
        for io in ios {
            let wrote = io.await;
            self.cache.completed();
            self.count_cache_io(wrote.is_err());
            if let Err(error) = wrote {
                self.stats.cache_write_errors.add(1);
                result = Err(error.into());
            }
        }
        let now = self.env.now();
        let threshold = self.settings.congested_write_threshold_us.get();
        self.congestion.count(now.saturating_sub(began) / 1000, threshold, now);
        result
    }

    fn begin_fill(&self, extent: &Extent, write: &Write<'_>) -> crate::dev::Io<()> {
        let from = (extent.start() - write.span.start).bytes() as usize;
        self.cache.dev.write(extent.place(), write.data.slice(from..from + extent.bytes()), false)
    }

    /// To both.
    async fn write_through(self: &Rc<Self>, write: &Write<'_>) -> Result<()> {
        let Some(placed) = self.try_place(Wanted::of_request(write.span, false), Reserve::None) else {
            return self.write_around(write).await;
        };
        let extents = &placed.extents;
        let ios: Vec<_> = extents.iter().map(|extent| self.begin_fill(extent, write)).collect();
        let failures = write.device.flush_failures();
        let below = self.write_around(write).await;
        let filled = self.filled(ios).await.is_ok();
        let mut result = below;
        for extent in extents.iter().filter(|_| filled) {
            if result.is_ok() {
                result = self.insert(*extent, Durability::JournalUnlessDoubtful(failures)).await;
            }
        }
        result
    }

    /// To the backing device, after which the cache knows nothing of the range.
    ///
    /// A power cut may keep the new data below and a clean copy of the old in the cache, or lose the new data below and
    /// forget newer, dirty data in the cache. Neither may be: clean copies are forgotten, durably, before the write, and
    /// dirty data only when the write is durable.
    async fn write_around(self: &Rc<Self>, write: &Write<'_>) -> Result<()> {
        let Write { device, span, data } = write;
        // Reads that began before may have old data on its way into the cache; those that begin now do not cache.
        self.misses.invalidate(*span, None);
        let cached = self.extents_of(*span).await?;
        let (dirty, clean): (Vec<Extent>, Vec<Extent>) =
            cached.into_iter().partition(|extent| extent.dirty());
        let strict = !seeded_bug!(StaleCleanCopy);
        if strict {
            self.forget(&clean).await?;
            // Where dirty data is whose key only memory has, an older, clean key would come back.
            if !clean.is_empty() || !dirty.is_empty() {
                self.commit_keys().await?;
            }
        }
        self.commit_doubt(device).await?;
        let failures = device.flush_failures();
        write_below(device, span.start, data.clone()).await?;
        if !dirty.is_empty() {
            self.flush_below_since(device, failures).await?;
            self.forget(&dirty).await?;
            self.commit_if_outlived().await?;
        }
        if !strict {
            self.forget(&clean).await?;
        }
        Ok(())
    }

    /// Makes durable that what a failed flush put in doubt is forgotten: in the tree it is not there any more, so that nobody
    /// would forget it before something newer is written below.
    async fn commit_doubt(&self, device: &Device) -> Result<()> {
        self.commit(device.doubt.get()).await
    }

    /// Says that sectors are not in the cache.
    async fn forget(self: &Rc<Self>, extents: &[Extent]) -> Result<()> {
        for extent in extents {
            self.insert(Extent::hole_of(extent.span()), Durability::Journal).await?;
        }
        Ok(())
    }

    /// Makes all that was acknowledged durable: keys in the journal, and data on the backing device if any went there.
    pub(crate) async fn flush(&self, device: &Device) -> Result<()> {
        // Of a failure that somebody else is told of meanwhile, this client has to hear, too.
        let began = device.backing().map(|backing| (backing.dev.epoch(), backing.dev.reported()));
        self.flush_keys(device).await?;
        let below = !seeded_bug!(FlushWithoutBacking);
        if let (Some(backing), Some((epoch, reported)), true) = (device.backing(), began, below) {
            let failures = device.flush_failures();
            let reported = if seeded_bug!(FailureToldToAnother) { backing.dev.reported() } else { reported };
            let result = backing.dev.client_flush(epoch, reported).await;
            self.doubt_if_failed(device, failures);
            result?;
        }
        Ok(())
    }

    /// Makes durable what a client wrote with FUA since `failures` of the device's flushes had failed. A failure is told
    /// to it even if a client's flush was told already, and to the next client's flush even if this one is: each write
    /// may have been dropped.
    pub(crate) async fn flush_written(&self, device: &Device, failures: u64) -> Result<()> {
        self.flush_keys(device).await?;
        let below = !seeded_bug!(FlushWithoutBacking);
        if below { self.flush_below_since(device, failures).await } else { Ok(()) }
    }

    async fn flush_keys(&self, device: &Device) -> Result<()> {
        device.stats.flushes.add(1);
        let commit = !seeded_bug!(FlushWithoutJournal);
        if commit && device.inode.get().is_some() {
            self.commit_keys().await?;
        }
        Ok(())
    }

    /// Forgets sectors, in the cache and below: their content is undefined.
    pub(crate) async fn discard(
        self: &Rc<Self>,
        device: &Rc<Device>,
        start: Sector,
        end: Sector,
    ) -> Result<()> {
        let _held = device.writes.hold(start, end).await;
        // What is being written back must not come back after the discard.
        device.writeback.active.wait_free(start, end).await;
        if let Some(inode) = device.inode.get() {
            self.journal_admission().await?;
            let span = Span::new(inode, start, end);
            self.misses.invalidate(span, None);
            let cached = self.extents_of(span).await?;
            if !cached.is_empty() {
                // As before a write: no copy may come back when what is below is gone.
                self.forget(&cached).await?;
                self.commit_keys().await?;
            }
            self.commit_doubt(device).await?;
        }
        if let Some(backing) = device.backing().filter(|backing| backing.dev.dev.geometry().discard) {
            let result = backing.dev.dev.discard(start.byte(), (end - start).bytes()).await;
            backing.dev.completed();
            result?;
        }
        Ok(())
    }
}

/// A write that is going to be dirty, and is not in the btree yet.
struct DirtyWriter<'a>(&'a Device);

impl<'a> DirtyWriter<'a> {
    fn begin(device: &'a Device) -> Self {
        device.dirty_writers.set(device.dirty_writers.get() + 1);
        Self(device)
    }
}

impl Drop for DirtyWriter<'_> {
    fn drop(&mut self) {
        self.0.dirty_writers.set(self.0.dirty_writers.get() - 1);
        self.0.writeback.wake();
        self.0.writeback.progress.wake_all();
    }
}

async fn write_below(device: &Device, start: Sector, data: Shared) -> Result<()> {
    let Some(backing) = device.backing() else { return Err(Error::refused("a volume has nothing below it")) };
    let result = backing.dev.write(start.byte(), data).await;
    result.inspect_err(|_| {
        device.stats.backing_write_errors.add(1);
        device.count_backing_error();
    })?;
    Ok(())
}
