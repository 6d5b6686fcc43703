//! An attached device as front ends see it.

use crate::dev::{Buf, Shared};
use crate::error::Error;
use crate::set::{AtWork, CacheSet, Device, Stage};
use crate::volume::{Volume, VolumeError, VolumeFuture, VolumeId, check_range};
use bcache_format::SECTOR_SIZE;
use bcache_format::{Sector, Sectors};
use std::rc::Rc;

/// Bytes of zeros written at once.
const ZEROES: u64 = 1 << 20;

/// A device of a set.
pub struct DeviceVolume {
    set: Rc<CacheSet>,
    device: Rc<Device>,
    name: String,
    zeroes: Shared,
}

/// Counts a request for as long as it runs.
struct Running {
    device: Rc<Device>,
    /// One that began on an attached device is the set's to wait for, though the device is detached meanwhile.
    _of_set: Option<AtWork>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let requests = &self.device.requests;
        requests.set(requests.get() - 1);
        if requests.get() == 0 {
            self.device.idle.wake_all();
        }
    }
}

impl DeviceVolume {
    /// Serves `device` of `set` under `name`.
    #[must_use]
    pub fn new(set: Rc<CacheSet>, device: Rc<Device>, name: String) -> Self {
        Self { set, device, name, zeroes: Buf::zeroed(ZEROES as usize).freeze() }
    }
    /// The device.
    #[must_use]
    pub const fn device(&self) -> &Rc<Device> {
        &self.device
    }

    fn begin(&self) -> Result<Running, VolumeError> {
        if self.device.closed.get() {
            return Err(Error::Stopping.into());
        }
        if self.device.is_given_up() {
            let detail = format!(
                "{}: its backing device had {} errors, the limit; clear_stats lets it try again",
                self.name,
                self.device.io_errors.get()
            );
            return Err(VolumeError::new(libc::EIO, detail));
        }
        self.set.request_came();
        self.device.requests.set(self.device.requests.get() + 1);
        let attached = self.device.inode.get().is_some() && !seeded_bug!(FormerRequestsLeft);
        let of_set = attached.then(|| self.set.at_work(Stage::Device));
        Ok(Running { device: Rc::clone(&self.device), _of_set: of_set })
    }

    /// A request that changes something: once begun it is finished, whoever waits for it. `request` holds what it is given
    /// until its end. Nothing is put around it: it is large, and moving it shows in every write.
    fn finish<F>(&self, request: impl FnOnce(Running, Rc<CacheSet>, Rc<Device>) -> F) -> VolumeFuture<'_, ()>
    where
        F: Future<Output = Result<(), VolumeError>> + 'static,
    {
        match self.begin() {
            Ok(running) => {
                let (set, device) = (Rc::clone(&self.set), Rc::clone(&self.device));
                Box::pin(self.set.env.finish(request(running, set, device)))
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    /// The range in sectors of the device's keys.
    fn range(&self, at: u64, len: u64) -> Result<(Sector, Sector), VolumeError> {
        let unit = if seeded_bug!(PartsOfBlocks) { SECTOR_SIZE } else { u64::from(self.block_size()) };
        let end = check_range(at, len, self.size_bytes(), unit)?;
        let first = self.device.first_sector();
        Ok((first + Sectors::from_bytes(at), first + Sectors::from_bytes(end)))
    }
}

impl Volume for DeviceVolume {
    fn size_bytes(&self) -> u64 {
        self.device.bytes() / u64::from(self.block_size()) * u64::from(self.block_size())
    }
    fn block_size(&self) -> u32 {
        let sectors = match self.device.backing() {
            Some(backing) => backing.sb.borrow().block_sectors,
            None => self.set.cache.sb.borrow().block_sectors,
        };
        u32::from(sectors) * SECTOR_SIZE as u32
    }
    fn id(&self) -> VolumeId {
        VolumeId { name: self.name.clone(), label: self.device.label.get().to_text(), uuid: self.device.uuid }
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, at: u64, len: u32) -> VolumeFuture<'_, Vec<Shared>> {
        Box::pin(async move {
            let _running = self.begin()?;
            let (start, end) = self.range(at, len.into())?;
            Ok(self.set.read(&self.device, start, end).await?)
        })
    }
    fn write(&self, at: u64, data: Shared, fua: bool) -> VolumeFuture<'_, ()> {
        let range = self.range(at, data.len() as u64);
        self.finish(move |running, set, device| async move {
            let _running = running;
            let (start, end) = range?;
            if start < end {
                set.write(&device, start, data, fua).await?;
            }
            Ok(())
        })
    }
    fn flush(&self) -> VolumeFuture<'_, ()> {
        self.finish(|running, set, device| async move {
            let _running = running;
            Ok(set.flush(&device).await?)
        })
    }
    fn discard(&self, at: u64, len: u64) -> VolumeFuture<'_, ()> {
        // Only whole blocks: a discard is a hint.
        let block = u64::from(self.block_size());
        let (from, to) = (at.next_multiple_of(block), (at.saturating_add(len)) / block * block);
        let range = (from < to).then(|| self.range(from, to - from)).transpose();
        self.finish(move |running, set, device| async move {
            let _running = running;
            if let Some((start, end)) = range? {
                set.discard(&device, start, end).await?;
            }
            Ok(())
        })
    }
    fn write_zeroes(&self, at: u64, len: u64, fua: bool, _no_hole: bool) -> VolumeFuture<'_, ()> {
        let (range, zeroes) = (self.range(at, len), self.zeroes.clone());
        self.finish(move |running, set, device| async move {
            let _running = running;
            let (mut at, end) = range?;
            let failures = device.flush_failures();
            while at < end {
                let now = (end - at).min(Sectors::from_bytes(ZEROES));
                set.write(&device, at, zeroes.slice(0..now.bytes() as usize), false).await?;
                at += now;
            }
            if fua { Ok(set.flush_written(&device, failures).await?) } else { Ok(()) }
        })
    }
}
