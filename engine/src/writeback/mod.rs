//! Writing dirty data back, in the order of the backing device.
//!
//! A pass goes over the dirty extents of a device in key order. What it takes at once is read from the cache, written in
//! order with contiguous runs as one write, and made durable by one flush; only then the keys say clean, each only where
//! the btree still has exactly what was written back. A write error leaves its keys dirty; they are tried again.

mod rate;
mod state;

pub use state::Writeback;

use crate::btree::Extent;
use crate::dev::{Buf, DevError, Shared};
use crate::error::Result;
use crate::request::RangeGuard;
use crate::set::{CacheSet, Device};
use bcache_format::{Sector, Sectors, Span};
use std::rc::Rc;
use std::time::Duration;

/// Sectors taken at once.
const BATCH_SECTORS: Sectors = Sectors(4 << 11);
/// Extents taken at once.
const BATCH_EXTENTS: usize = 128;
/// Sectors of the largest single write.
const RUN_SECTORS: Sectors = Sectors(1 << 11);
/// Pause when all that is dirty is being written to.
const BUSY: Duration = Duration::from_millis(10);
/// Pause after an error.
const RETRY: Duration = Duration::from_secs(1);

/// Dirty extents that are being written back, and where to look next.
struct Batch<'a> {
    taken: Vec<Extent>,
    /// Writes to these sectors go to the cache while this lives.
    held: Vec<RangeGuard<'a>>,
    next: Sector,
}

/// Where an extent's data is in memory while it is written back.
struct Run {
    start: Sector,
    data: Vec<Shared>,
    extents: Vec<Extent>,
}

impl CacheSet {
    /// Runs until the set or the device stops.
    pub(crate) async fn writeback_task(self: Rc<Self>, device: Rc<Device>) {
        let writeback = &device.writeback;
        let mut at = Sector::ZERO;
        loop {
            let ended = || writeback.is_closed() || self.is_closing();
            writeback.woken.wait_until(|| ended() || self.may_write_back(&device)).await;
            if ended() {
                writeback.progress.wake_all();
                return;
            }
            let step = self.writeback_step(&device, at).await;
            writeback.progress.wake_all();
            match step {
                Ok(Some((next, sectors))) => {
                    at = next;
                    if sectors.0 == 0 {
                        // All of it is being written to just now.
                        self.env.sleep(BUSY).await;
                    }
                    self.writeback_pause(&device, sectors).await;
                }
                Ok(None) => {
                    let behind_end = writeback.unwritable.take();
                    writeback.stuck.set(writeback.unreadable.take() + behind_end);
                    if writeback.behind_end.replace(behind_end) != behind_end {
                        tracing::warn!(
                            uuid = %device.uuid,
                            sectors = behind_end,
                            "dirty data lies behind the end of the backing device, which was larger: it stays in the cache"
                        );
                    }
                    if writeback.stuck.get() > 0 {
                        writeback.progress.wake_all();
                        self.pause_unless(RETRY, ended).await;
                    }
                    let at_start = std::mem::take(&mut at) == Sector::ZERO;
                    self.end_of_pass(&device, at_start).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "writing back failed, trying again");
                    self.pause_unless(RETRY, ended).await;
                }
            }
        }
    }

    pub(crate) fn may_write_back(&self, device: &Device) -> bool {
        // The last dirty data may have been overwritten instead; then all there is to do is to say clean.
        let says = device.backing().is_some_and(crate::set::Backing::may_say_dirty);
        let dirty = device.inode.get().is_some_and(|inode| says || self.dirty_sectors(inode) > 0);
        let due = self.writes_back_all(device) || device.settings.writeback_running.get();
        dirty && due
    }

    /// The cache is to hold nothing dirty of the device any more.
    fn writes_back_all(&self, device: &Device) -> bool {
        device.detaching.get() || self.io_errors.is_retired()
    }

    /// Writing back goes as fast as it can: nothing dirty is to be left, or somebody waits for the space.
    fn hurries(&self, device: &Device) -> bool {
        self.writes_back_all(device) || self.alloc.is_starving()
    }

    /// Nothing is left behind where the pass began, or the pass begins anew.
    async fn end_of_pass(self: &Rc<Self>, device: &Rc<Device>, whole: bool) {
        let (Some(backing), Some(inode)) = (device.backing(), device.inode.get()) else { return };
        if self.has_nothing_dirty(device, inode) || seeded_bug!(CleanTooEarly) {
            // A device that says clean may be used without its cache: no key on disk may call anything of it dirty.
            let marked = match self.checkpoint().await {
                Ok(()) => self.mark_clean(device, backing, inode).await,
                Err(error) => Err(error),
            };
            if let Err(error) = marked {
                tracing::warn!(%error, "the backing superblock could not be written");
                self.pause_unless(RETRY, || device.writeback.is_closed() || self.is_closing()).await;
            }
        } else if whole {
            self.env.sleep(BUSY).await;
        } else if !self.hurries(device) {
            self.pause(device, Duration::from_secs(device.settings.writeback_delay.get())).await;
        }
    }

    /// Waits, but not when the device stops or is detached.
    async fn pause(&self, device: &Device, duration: Duration) {
        let hurry = || device.writeback.is_closed() || self.is_closing() || self.hurries(device);
        self.pause_unless(duration, hurry).await;
    }

    async fn pause_unless(&self, duration: Duration, ended: impl Fn() -> bool) {
        let until = self.env.now() + duration.as_nanos() as u64;
        while !ended() {
            let now = self.env.now();
            if now >= until {
                return;
            }
            let step = Duration::from_nanos(until - now).min(Duration::from_millis(250));
            self.env.sleep(step).await;
        }
    }

    async fn writeback_pause(&self, device: &Device, sectors: Sectors) {
        // Requests that wait go first, also where devices answer at once.
        self.env.yield_now().await;
        if self.hurries(device) || device.settings.writeback_percent.get() == 0 {
            return;
        }
        let rate = device.settings.writeback_rate.get();
        let wait = device.writeback.controller.wait(sectors.0, rate, self.env.now());
        self.pause(device, Duration::from_nanos(wait)).await;
    }

    /// Writes back what is dirty from sector `at` on, as much as is taken at once. Answers where to go on and how many
    /// sectors it was; nothing at the end.
    async fn writeback_step(
        self: &Rc<Self>,
        device: &Rc<Device>,
        at: Sector,
    ) -> Result<Option<(Sector, Sectors)>> {
        let Some(inode) = device.inode.get() else { return Ok(None) };
        let Some(Batch { taken, held, next }) = self.take_dirty(device, inode, at).await? else {
            return Ok(None);
        };
        let sectors: Sectors = taken.iter().map(Extent::size).sum();
        // The keys first: after a crash an older, clean key would stand in for one that only memory had, and what is below
        // would be newer than what the cache calls clean.
        let commit = !seeded_bug!(WritebackBeforeJournal);
        if commit {
            self.commit_keys().await?;
        }
        let failures = device.flush_failures();
        let written = self.copy_back(device, &taken).await?;
        let flush = !seeded_bug!(CleanWithoutFlush);
        if flush {
            self.flush_below_since(device, failures).await?;
        }
        for extent in &written {
            let done = self.replace(*extent, extent.with_dirty(false)).await?;
            device.stats.written_back_sectors.add(done.0);
        }
        drop(held);
        Ok(Some((next, sectors)))
    }

    /// Takes dirty extents from sector `at` of `inode` on. Nothing when there are none.
    ///
    /// An extent is looked up and held in one breath: from then on a write to its sectors goes to the cache. Where one was
    /// only seen, something newer could be below by the time that the next leaf is read.
    async fn take_dirty<'a>(&self, device: &'a Device, inode: u32, at: Sector) -> Result<Option<Batch<'a>>> {
        let mut pos = Span::whole(inode).from(at).start_pos();
        let mut batch = Batch { taken: Vec::new(), held: Vec::new(), next: at };
        let (mut sectors, mut seen) = (Sectors(0), false);
        let end_of_device = device.end_sector();
        loop {
            let leaf = self.node_at(pos, 0).await?;
            let mut full = false;
            let from = Sector(pos.offset);
            leaf.for_each_extent(|extent| {
                let wanted = extent.inode() == inode && extent.end() > from && self.counts_as_dirty(extent);
                if full || !wanted {
                    return;
                }
                let part = extent.part(from, Sector::MAX);
                (seen, batch.next) = (true, part.end());
                if part.end() > end_of_device && !seeded_bug!(WritesBehindTheEnd) {
                    // The device is shorter than it was. This data has no place below, and stays.
                    let stays = &device.writeback.unwritable;
                    stays.set(stays.get() + part.size().0);
                    return;
                }
                // A write to the backing device is under way there; this extent's turn comes again.
                if device.writes.overlaps(part.start(), part.end()) {
                    return;
                }
                let late = seeded_bug!(WritebackHoldsLate);
                if !late {
                    let Some(guard) = device.writeback.active.try_hold(part.start(), part.end()) else {
                        return;
                    };
                    batch.held.push(guard);
                }
                sectors += part.size();
                batch.taken.push(part);
                full = sectors >= BATCH_SECTORS || batch.taken.len() >= BATCH_EXTENTS;
            });
            let end = leaf.max;
            drop(leaf);
            if full || end.inode != inode {
                if seeded_bug!(WritebackHoldsLate) {
                    let hold =
                        |extent: &Extent| device.writeback.active.try_hold(extent.start(), extent.end());
                    batch.held = batch.taken.iter().filter_map(hold).collect();
                }
                return Ok(seen.then_some(batch));
            }
            pos = end;
        }
    }

    /// Reads the extents from the cache and writes them to the backing device. Answers those that arrived.
    async fn copy_back(&self, device: &Device, extents: &[Extent]) -> Result<Vec<Extent>> {
        let Some(backing) = device.backing() else { return Ok(Vec::new()) };
        let reads: Vec<_> = extents
            .iter()
            .map(|extent| (*extent, self.cache.dev.read(extent.place(), Buf::recycled(extent.bytes()))))
            .collect();
        let mut runs: Vec<Run> = Vec::new();
        for (extent, io) in reads {
            match io.await {
                // Replaced and reused meanwhile: somebody wrote something newer.
                Ok(_) if self.alloc.buckets.borrow().staleness(extent.ptr()) > 0 => {}
                Ok(buf) => add_to_runs(&mut runs, extent, buf.freeze()),
                Err(error) => {
                    let unreadable = &device.writeback.unreadable;
                    unreadable.set(unreadable.get() + extent.size().0);
                    self.stats.cache_read_errors.add(1);
                    self.count_cache_io(true);
                    tracing::warn!(%error, "dirty data cannot be read and stays where it is");
                }
            }
        }
        let writes: Vec<_> = runs
            .iter()
            .map(|run| backing.dev.dev.write(run.start.byte(), joined(&run.data), false))
            .collect();
        let mut arrived = Vec::new();
        let mut failed: Option<DevError> = None;
        for (run, io) in runs.into_iter().zip(writes) {
            let wrote = io.await;
            backing.dev.completed();
            match wrote {
                Ok(()) => arrived.extend(run.extents),
                Err(error) => {
                    device.stats.backing_write_errors.add(1);
                    failed = Some(error);
                }
            }
        }
        if failed.is_some() {
            // One for all that was sent at once: a short fault is not many.
            device.count_backing_error();
        }
        match failed {
            Some(error) if arrived.is_empty() => Err(error.into()),
            _ => Ok(arrived),
        }
    }
}

fn add_to_runs(runs: &mut Vec<Run>, extent: Extent, data: Shared) {
    if let Some(run) = runs.last_mut() {
        let sectors: Sectors = run.extents.iter().map(Extent::size).sum();
        if run.start + sectors == extent.start() && sectors + extent.size() <= RUN_SECTORS {
            run.data.push(data);
            run.extents.push(extent);
            return;
        }
    }
    runs.push(Run { start: extent.start(), data: vec![data], extents: vec![extent] });
}

fn joined(parts: &[Shared]) -> Shared {
    if let [only] = parts {
        return only.clone();
    }
    let mut whole = Buf::recycled(parts.iter().map(Shared::len).sum());
    let mut at = 0;
    for part in parts {
        whole[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    whole.freeze()
}
