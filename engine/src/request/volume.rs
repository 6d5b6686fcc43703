//! An attached device as front ends see it.

use crate::dev::{Buf, Shared};
use crate::error::Error;
use crate::set::{CacheSet, Device};
use crate::volume::{Volume, VolumeError, VolumeFuture, VolumeId};
use bcache_format::SECTOR_SIZE;
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
struct Running<'a>(&'a Device);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
        if self.0.requests.get() == 0 {
            self.0.idle.wake_all();
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

    fn begin(&self) -> Result<Running<'_>, VolumeError> {
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
        Ok(Running(&self.device))
    }

    /// The range in sectors of the device's keys.
    fn range(&self, at: u64, len: u64) -> Result<(u64, u64), VolumeError> {
        let end = at.checked_add(len).filter(|end| *end <= self.size_bytes());
        let aligned = at.is_multiple_of(SECTOR_SIZE) && len.is_multiple_of(SECTOR_SIZE);
        let Some(end) = end.filter(|_| aligned) else {
            return Err(VolumeError::new(
                libc::EINVAL,
                format!("{len} bytes at {at} are not a range of this device"),
            ));
        };
        let first = self.device.first_sector();
        Ok((first + at / SECTOR_SIZE, first + end / SECTOR_SIZE))
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
        Box::pin(async move {
            let _running = self.begin()?;
            let (start, end) = self.range(at, data.len() as u64)?;
            if start < end {
                self.set.write(&self.device, start, data, fua).await?;
            }
            Ok(())
        })
    }
    fn flush(&self) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let _running = self.begin()?;
            Ok(self.set.flush(&self.device).await?)
        })
    }
    fn discard(&self, at: u64, len: u64) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let _running = self.begin()?;
            // Only whole blocks: a discard is a hint.
            let block = u64::from(self.block_size());
            let (from, to) = (at.next_multiple_of(block), (at.saturating_add(len)) / block * block);
            if from < to {
                let (start, end) = self.range(from, to - from)?;
                self.set.discard(&self.device, start, end).await?;
            }
            Ok(())
        })
    }
    fn write_zeroes(&self, at: u64, len: u64, fua: bool, _no_hole: bool) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let _running = self.begin()?;
            self.range(at, len)?;
            let failures = self.device.flush_failures();
            let mut done = 0;
            while done < len {
                let now = (len - done).min(ZEROES);
                let (start, _) = self.range(at + done, now)?;
                self.set.write(&self.device, start, self.zeroes.slice(0..now as usize), false).await?;
                done += now;
            }
            if fua { Ok(self.set.flush_written(&self.device, failures).await?) } else { Ok(()) }
        })
    }
}
