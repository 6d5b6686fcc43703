//! A backing device without its cache.

use crate::dev::FlushTracked;
use crate::dev::{BlockDev, Buf, Shared};
use crate::error::{Error, Result};
use crate::set::{Backing, Device, DeviceKind, leave_cache, settled_superblock};
use crate::volume::{Volume, VolumeError, VolumeFuture, VolumeId, check_range};
use bcache_format::SECTOR_SIZE;
use std::rc::Rc;

/// A backing device that is served although its cache is not there.
///
/// Its superblock says stale before anything of it can be changed: a cache that comes back later must forget what it
/// has of the device.
pub struct AloneVolume {
    /// Of no set: it was opened for this, or was of a set until that failed or it was detached.
    device: Rc<Device>,
    /// What it is called; its label if nobody said.
    name: Option<String>,
}

impl AloneVolume {
    /// Opens a backing device. One whose newest data is in the cache only with `force`: that data is lost by it.
    ///
    /// # Errors
    /// It is not a backing device, or is dirty, or its superblock cannot be written.
    pub async fn open(dev: Rc<dyn BlockDev>, force: bool) -> Result<Self> {
        let (sb, block) = settled_superblock(&dev).await?;
        let (name, mut alone) = (dev.name().to_owned(), sb.clone());
        let (uuid, label) = (sb.uuid, sb.label);
        let Some(backing) = Backing::new(FlushTracked::new(dev), sb, block) else {
            return Err(Error::refused(format!("{name}: a cache device, not a backing device")));
        };
        let changed =
            leave_cache(&mut alone, force).map_err(|newest| Error::refused(format!("{name}: {newest}")))?;
        if changed && !seeded_bug!(AloneWithoutStale) {
            backing.update(|sb| sb.set_state(alone.state())).await?;
        }
        let device = Rc::new(Device::new(DeviceKind::Cached(Box::new(backing)), uuid, label));
        Ok(Self { device, name: None })
    }

    /// A device that its set has abandoned: [`CacheSet::abandon`](crate::set::CacheSet::abandon). Nothing for any other.
    #[must_use]
    pub fn of(device: Rc<Device>) -> Option<Self> {
        let abandoned = device.inode.get().is_none() && device.backing().is_some();
        abandoned.then_some(Self { device, name: None })
    }

    /// The same under another name than its label.
    #[must_use]
    pub fn named(self, name: String) -> Self {
        Self { name: Some(name), ..self }
    }

    /// The device that answers. A set that attaches it again is told of it before: [`CacheSet::takes_over_from`].
    ///
    /// [`CacheSet::takes_over_from`]: crate::set::CacheSet::takes_over_from
    #[must_use]
    pub fn device(&self) -> &Rc<Device> {
        &self.device
    }

    /// Whether a flush of the backing device failed that no client was told of yet.
    #[must_use]
    pub fn owes_clients(&self) -> bool {
        self.backing().dev.owes_clients()
    }

    fn backing(&self) -> &Backing {
        match &self.device.kind {
            DeviceKind::Cached(backing) => backing,
            DeviceKind::FlashOnly { .. } => unreachable!("neither `open` nor `of` takes one"),
        }
    }

    /// The byte of the device where byte `at` of the volume is.
    fn place(&self, at: u64, len: u64) -> Result<u64, VolumeError> {
        check_range(at, len, self.size_bytes(), SECTOR_SIZE)?;
        Ok(at + self.backing().data_offset * SECTOR_SIZE)
    }
}

impl Volume for AloneVolume {
    fn size_bytes(&self) -> u64 {
        self.backing().data_bytes() / u64::from(self.block_size()) * u64::from(self.block_size())
    }
    fn block_size(&self) -> u32 {
        u32::from(self.backing().sb.borrow().block_sectors) * SECTOR_SIZE as u32
    }
    fn id(&self) -> VolumeId {
        let sb = self.backing().sb.borrow();
        let label = sb.label.to_text();
        VolumeId { name: self.name.clone().unwrap_or_else(|| label.clone()), label, uuid: sb.uuid }
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, at: u64, len: u32) -> VolumeFuture<'_, Vec<Shared>> {
        Box::pin(async move {
            let at = self.place(at, len.into())?;
            Ok(vec![self.backing().dev.dev.read(at, Buf::recycled(len as usize)).await?.freeze()])
        })
    }
    fn write(&self, at: u64, data: Shared, fua: bool) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let at = self.place(at, data.len() as u64)?;
            if fua {
                return Ok(self.backing().dev.write_fua(at, data).await?);
            }
            Ok(self.backing().dev.write(at, data).await?)
        })
    }
    fn flush(&self) -> VolumeFuture<'_, ()> {
        let dev = &self.backing().dev;
        Box::pin(async move { Ok(dev.client_flush(dev.epoch(), dev.reported()).await?) })
    }
    fn discard(&self, at: u64, len: u64) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let at = self.place(at, len)?;
            if self.backing().dev.dev.geometry().discard {
                let discarded = self.backing().dev.dev.discard(at, len).await;
                self.backing().dev.completed();
                discarded?;
            }
            Ok(())
        })
    }
    fn write_zeroes(&self, at: u64, len: u64, fua: bool, _no_hole: bool) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let at = self.place(at, len)?;
            let dev = &self.backing().dev;
            let failures = dev.failures();
            let zeroed = dev.dev.write_zeroes(at, len).await;
            dev.completed();
            zeroed?;
            if fua {
                // Not as a client's flush: if it fails, the next of those must say so, too.
                dev.ensure_flushed(dev.epoch()).await?;
                dev.none_failed_since(failures)?;
            }
            Ok(())
        })
    }
}
