//! Bringing backing devices and volumes to a set.

use super::cache_dev::{read_superblock, settled_superblock_of};
use super::device::{Backing, Device, DeviceKind};
use super::states::{self, Attaching as Rule};
use super::superblock::SuperblockWriter;
use super::{CacheSet, Stage};
use crate::dev::BlockDev;
use crate::dev::FlushTracked;
use crate::error::{Error, Result};
use bcache_format::Sector;
use bcache_format::superblock::{BackingState, Superblock};
use bcache_format::units::Sectors;
use bcache_format::uuid_entry::UuidEntry;
use std::cell::Cell;
use std::rc::{Rc, Weak};
use uuid::Uuid;

/// A device is being attached: nobody else attaches one with its UUID meanwhile.
struct Attaching<'a> {
    set: &'a CacheSet,
    uuid: Uuid,
}

impl<'a> Attaching<'a> {
    fn begin(set: &'a CacheSet, uuid: Uuid) -> Option<Self> {
        let new = set.attaching.borrow_mut().insert(uuid) || seeded_bug!(AttachTwice);
        new.then_some(Self { set, uuid })
    }
}

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        self.set.attaching.borrow_mut().remove(&self.uuid);
    }
}

impl CacheSet {
    /// Attaches a backing device that belongs to this set, or to none yet.
    ///
    /// What its superblock says decides what that means: see [`states`].
    ///
    /// # Errors
    /// The device cannot be used with this set; nothing was changed.
    pub fn attach(
        self: &Rc<Self>,
        dev: Rc<dyn BlockDev>,
    ) -> impl Future<Output = Result<Rc<Device>>> + use<> {
        let set = Rc::clone(self);
        self.env.finish(async move { set.attach_now(dev).await })
    }

    async fn attach_now(self: &Rc<Self>, dev: Rc<dyn BlockDev>) -> Result<Rc<Device>> {
        // What once was attached may be in somebody's hands yet, who changes its label: nobody does from here on.
        let (found, _) = read_superblock(&dev).await?;
        let former = self.former_owners(found.uuid);
        let mut writers = Vec::new();
        if !seeded_bug!(TwoOwners) {
            for backing in former.iter().filter_map(|device| device.backing()) {
                writers.push(backing.sb.writer(&backing.dev).await);
            }
        }
        let tracked = match former.iter().find_map(|device| device.backing()) {
            Some(former) if !seeded_bug!(FailuresForgotten) => FlushTracked::shared(dev, &former.dev),
            _ => FlushTracked::new(dev),
        };
        let (sb, block) = settled_superblock_of(&tracked).await?;
        let name = tracked.dev.name().to_owned();
        let set_uuid = self.cache.sb.borrow().set_uuid;
        let (state, uuid, label) = (sb.state(), sb.uuid, sb.label);
        if sb.block_sectors < self.cache.sb.borrow().block_sectors {
            return Err(Error::refused(format!("{name}: its blocks are smaller than the cache's")));
        }
        let known = self.uuids.borrow().find(&uuid);
        let rule = states::attaching(state, sb.set_uuid == set_uuid, known.is_some());
        if rule == Rule::OtherSet {
            return Err(Error::refused(format!("{name}: belongs to another cache set, {}", sb.set_uuid)));
        }
        if self.devices().iter().any(|device| device.uuid == uuid) {
            return Err(Error::refused(format!("{name}: a device with UUID {uuid} is attached already")));
        }
        let Some(_attaching) = Attaching::begin(self, uuid) else {
            return Err(Error::refused(format!(
                "{name}: a device with UUID {uuid} is being attached already"
            )));
        };
        let Some(backing) = Backing::new(tracked, sb, block) else {
            return Err(Error::refused(format!("{name}: a cache device, not a backing device")));
        };
        if rule == Rule::NotKnown {
            return Err(Error::refused(format!(
                "{name}: its dirty data is in another cache set; attach it to that one first"
            )));
        }
        let device = Rc::new(Device::new(DeviceKind::Cached(Box::new(backing)), uuid, label));
        let slot = match known {
            Some(slot) if rule == Rule::ItsSlot || seeded_bug!(AttachKeepsSlot) => slot,
            _ => {
                if let Some(slot) = known {
                    self.invalidate_slot(slot).await?;
                }
                self.new_slot(&device, set_uuid).await?
            }
        };
        self.adopt(&device, slot);
        writers.into_iter().for_each(SuperblockWriter::hand_over);
        Ok(device)
    }

    /// A device is in service elsewhere, and will be until it is attached here: of a flush that fails meanwhile its clients
    /// are told, whoever answers them by then.
    pub fn takes_over_from(&self, device: &Rc<Device>) {
        let mut left = self.left.borrow_mut();
        if !left.iter().any(|known| known.as_ptr() == Rc::as_ptr(device)) {
            left.push(Rc::downgrade(device));
        }
    }

    /// Devices with this UUID that left the set, and that somebody still has.
    fn former_owners(&self, uuid: Uuid) -> Vec<Rc<Device>> {
        let mut left = self.left.borrow_mut();
        left.retain(|device| device.strong_count() > 0);
        left.iter().filter_map(Weak::upgrade).filter(|device| device.uuid == uuid).collect()
    }

    async fn new_slot(&self, device: &Device, set_uuid: Uuid) -> Result<u32> {
        let now = self.env.wall_secs();
        let entry = UuidEntry {
            uuid: device.uuid,
            label: device.label.get(),
            first_reg: now,
            last_reg: now,
            ..UuidEntry::EMPTY
        };
        let slot = self.take_slot(entry).await?;
        if let Some(backing) = device.backing() {
            backing
                .update(|sb| {
                    sb.set_uuid = set_uuid;
                    sb.set_state(BackingState::Clean);
                })
                .await?;
        }
        Ok(slot)
    }

    fn adopt(self: &Rc<Self>, device: &Rc<Device>, slot: u32) {
        device.inode.set(Some(slot));
        self.devices.borrow_mut().insert(slot, Rc::clone(device));
        if device.backing().is_some() {
            self.task(Stage::Device, Rc::clone(self).writeback_task(Rc::clone(device)));
            self.task(Stage::Device, Rc::clone(self).writeback_rate_task(Rc::clone(device)));
        }
    }

    /// The flash-only volumes that the set has.
    pub fn adopt_volumes(self: &Rc<Self>) -> Vec<Rc<Device>> {
        let entries = self.uuids.borrow().entries.clone();
        let mut volumes = Vec::new();
        for (slot, entry) in entries.iter().enumerate() {
            let slot = slot as u32;
            let known = self.devices.borrow().contains_key(&slot);
            if entry.is_flash_only() && !entry.is_free() && !entry.is_detached() && !known {
                let kind = DeviceKind::FlashOnly { sectors: Cell::new(entry.sectors.0) };
                let device = Rc::new(Device::new(kind, entry.uuid, entry.label));
                self.adopt(&device, slot);
                volumes.push(device);
            }
        }
        volumes
    }

    /// Makes a flash-only volume.
    ///
    /// # Errors
    /// The table is full, or the set has failed.
    pub fn create_volume(
        self: &Rc<Self>,
        uuid: Uuid,
        entry: UuidEntry,
    ) -> impl Future<Output = Result<Rc<Device>>> + use<> {
        let set = Rc::clone(self);
        self.env.finish(async move { set.create_volume_now(uuid, entry).await })
    }

    async fn create_volume_now(self: &Rc<Self>, uuid: Uuid, entry: UuidEntry) -> Result<Rc<Device>> {
        let mut entry = UuidEntry { uuid, ..entry };
        entry.set_flash_only(true);
        self.take_slot(entry).await?;
        self.adopt_volumes().into_iter().find(|device| device.uuid == uuid).ok_or(Error::Stopping)
    }

    /// Gives a flash-only volume another size. Where it becomes smaller, what is behind its new end is gone: nobody may use it
    /// meanwhile.
    ///
    /// # Errors
    /// It is none, or the set has failed; it has the size that it had, perhaps without what is behind the new end.
    pub fn resize_volume(
        self: &Rc<Self>,
        device: &Rc<Device>,
        sectors: u64,
    ) -> impl Future<Output = Result<()>> + use<> {
        let (set, device) = (Rc::clone(self), Rc::clone(device));
        self.env.finish(async move { set.resize_volume_now(&device, sectors).await })
    }

    async fn resize_volume_now(self: &Rc<Self>, device: &Rc<Device>, sectors: u64) -> Result<()> {
        let (Some(inode), DeviceKind::FlashOnly { sectors: size }) = (device.inode.get(), &device.kind)
        else {
            return Err(Error::refused("not a flash-only volume of this set"));
        };
        if sectors < size.get() {
            // Should it grow again, there are zeroes.
            self.discard(device, Sector(sectors), Sector(size.get())).await?;
            self.flush(device).await?;
        }
        self.change_uuids(|entries| {
            if let Some(entry) = entries.get_mut(inode as usize) {
                entry.sectors = Sectors(sectors);
            }
            Ok(())
        })
        .await?;
        size.set(sectors);
        Ok(())
    }

    /// By how many sectors the flash-only volumes are larger than all buckets: a write to them that finds no room fails.
    #[must_use]
    pub fn overcommitted_sectors(&self) -> u64 {
        let geometry = &self.cache.geometry;
        let buckets = geometry.nbuckets.saturating_sub(geometry.first_bucket);
        let volumes = self.devices().into_iter().filter(|device| device.backing().is_none());
        let wanted: u64 = volumes.map(|device| device.bytes() / bcache_format::SECTOR_SIZE).sum();
        wanted.saturating_sub(buckets * u64::from(geometry.bucket_sectors))
    }

    /// Writes everything dirty of a device back, and caches nothing of it from then on: it is ready to be detached.
    ///
    /// # Errors
    /// The set stopped before, the backing device fails too often, or all that is left cannot be read from the cache;
    /// the device is cached as before.
    pub async fn drain(&self, device: &Rc<Device>) -> Result<()> {
        let Some(inode) = device.inode.get().filter(|_| device.backing().is_some()) else {
            return Err(Error::refused("not an attached backing device"));
        };
        device.detaching.set(true);
        device.writeback.wake();
        // A write to where older data is on its way down goes to the cache even now, so nothing may be.
        let quiet = || device.writeback.active.is_free();
        let clean = || self.has_nothing_dirty(device, inode) && quiet();
        device.writeback.stuck.set(0);
        let stuck = || (1..=device.writeback.stuck.get()).contains(&self.dirty_sectors(inode));
        let hopeless = || device.is_given_up() || stuck();
        let ends = || self.is_closing() || device.writeback.is_closed();
        device.writeback.progress.wait_until(|| clean() || ends() || hopeless()).await;
        if !clean() {
            self.resume_caching(device);
            self.check()?;
            if hopeless() {
                let (errors, lost) = (device.io_errors.get(), device.writeback.stuck.get());
                return Err(Error::refused(format!(
                    "dirty data could not be written back: its backing device had {errors} errors, \
                     and {lost} sectors cannot be read from the cache"
                )));
            }
            return Err(Error::Stopping);
        }
        Ok(())
    }

    /// Takes [`drain`](Self::drain) back.
    pub fn resume_caching(&self, device: &Device) {
        device.detaching.set(false);
    }

    /// Detaches a backing device: everything dirty is written back first; then its superblock says that it is whole by
    /// itself, and its slot is never used again. Requests that come later go to the backing device.
    ///
    /// What the superblock says decides: a cache in which the slot is still in use forgets it when the device comes again. So
    /// where nothing is dirty a cache that cannot be written any more keeps nobody from leaving it.
    ///
    /// # Errors
    /// Something could not be written back, or may have been lost by a flush that failed; the device stays attached.
    pub fn detach(self: &Rc<Self>, device: &Rc<Device>) -> impl Future<Output = Result<()>> + use<> {
        let (set, device) = (Rc::clone(self), Rc::clone(device));
        self.env.finish(async move { set.detach_now(&device).await })
    }

    async fn detach_now(self: &Rc<Self>, device: &Rc<Device>) -> Result<()> {
        if self.closing.get() {
            return Err(Error::Stopping);
        }
        self.drain(device).await?;
        let (Some(backing), Some(inode)) = (device.backing(), device.inode.get()) else {
            return Err(Error::refused("not an attached backing device"));
        };
        let left = self.leave(device, backing).await;
        if left.is_err() {
            self.resume_caching(device);
        }
        let told = left?;
        device.inode.set(None);
        self.devices.borrow_mut().remove(&inode);
        self.left.borrow_mut().push(Rc::downgrade(device));
        device.writeback.close();
        device.detaching.set(false);
        if let Err(error) = told.and(self.invalidate_slot(inode).await) {
            let name = backing.dev.dev.name();
            tracing::warn!(%error, "{name} is detached, but the cache cannot note it; it will when the device comes again");
        }
        Ok(())
    }

    /// Makes the superblock of a device with nothing dirty say that it belongs to no cache. Answers how telling the cache went.
    async fn leave(&self, device: &Rc<Device>, backing: &Backing) -> Result<Result<()>> {
        // Of a failure that no client has heard of, whoever detaches the device must hear.
        let failures = device.flush_failures();
        let flushed = backing.dev.operator_flush().await;
        self.doubt_if_failed(device, failures);
        if !seeded_bug!(DetachForgetsFailure) {
            flushed?;
        }
        // Whoever reads the cache from here on, after a crash too, finds nothing dirty of a device that has moved on.
        let told = self.checkpoint().await;
        let detached = |sb: &mut Superblock| {
            sb.set_uuid = Uuid::nil();
            sb.set_state(BackingState::None);
        };
        backing.update(detached).await?;
        Ok(told)
    }

    /// Removes a flash-only volume and everything in it. Requests that come later are refused.
    ///
    /// # Errors
    /// The set has failed.
    pub fn remove_volume(self: &Rc<Self>, device: &Rc<Device>) -> impl Future<Output = Result<()>> + use<> {
        let (set, device) = (Rc::clone(self), Rc::clone(device));
        self.env.finish(async move { set.remove_volume_now(&device).await })
    }

    async fn remove_volume_now(self: &Rc<Self>, device: &Rc<Device>) -> Result<()> {
        let Some(inode) = device.inode.get().filter(|_| device.backing().is_none()) else {
            return Err(Error::refused("not a flash-only volume of this set"));
        };
        device.close().await;
        // Its keys are dirty: without this they would keep their buckets for ever.
        let emptied = match self.discard(device, device.first_sector(), device.end_sector()).await {
            Ok(()) => self.flush(device).await,
            Err(error) => Err(error),
        };
        emptied.inspect_err(|_| device.closed.set(false))?;
        device.inode.set(None);
        self.devices.borrow_mut().remove(&inode);
        self.invalidate_slot(inode).await
    }
}
