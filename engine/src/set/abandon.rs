//! Backing devices that part with a set in disorder: they go on without it because it has failed, or never come back.

use super::{CacheSet, Device, DeviceKind};
use crate::error::{Error, Result};
use bcache_format::superblock::{BackingState, Label};
use std::cell::Cell;
use std::rc::Rc;
use uuid::Uuid;

/// Sectors that a key can name.
const MAX_SECTORS: u64 = 1 << 43;

/// A backing device that the set knows and that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its label.
    pub label: Label,
    /// How much of it only the cache has.
    pub dirty_sectors: u64,
}

impl CacheSet {
    /// Backing devices that the set has slots for and that are not attached.
    #[must_use]
    pub fn absent(&self) -> Vec<Absent> {
        self.absent_slots().map(|(_, absent)| absent).collect()
    }

    fn absent_slots(&self) -> impl Iterator<Item = (u32, Absent)> {
        let (uuids, devices) = (self.uuids.borrow(), self.devices.borrow());
        let slots = (0..).zip(&uuids.entries).filter(|(slot, entry)| {
            let backing = !entry.is_free() && !entry.is_detached() && !entry.is_flash_only();
            backing && !devices.contains_key(slot)
        });
        let absent = slots.map(|(slot, entry)| {
            let dirty_sectors = self.dirty_sectors(slot);
            (slot, Absent { uuid: entry.uuid, label: entry.label, dirty_sectors })
        });
        absent.collect::<Vec<_>>().into_iter()
    }

    /// Gives up what the cache has of a backing device that is not there, and its slot.
    ///
    /// # Errors
    /// There is no such device, its newest data is in the cache and `lose_dirty` is not set, or the set has failed.
    pub async fn forget_device(self: &Rc<Self>, uuid: Uuid, lose_dirty: bool) -> Result<()> {
        let Some((slot, absent)) = self.absent_slots().find(|(_, absent)| absent.uuid == uuid) else {
            return Err(Error::refused(format!("{uuid}: no device of this set that is absent")));
        };
        let dirty = absent.dirty_sectors * bcache_format::SECTOR_SIZE;
        if dirty > 0 && !lose_dirty {
            return Err(Error::refused(format!(
                "{uuid}: {dirty} bytes of its newest data are in the cache alone"
            )));
        }
        // To be rid of its keys it is a volume, with nothing below, for as long as that takes.
        let kind = DeviceKind::FlashOnly { sectors: Cell::new(MAX_SECTORS) };
        let device = Rc::new(Device::new(kind, uuid, absent.label));
        device.inode.set(Some(slot));
        self.devices.borrow_mut().insert(slot, Rc::clone(&device));
        let removed = self.remove_volume(&device).await;
        if removed.is_err() {
            self.devices.borrow_mut().remove(&slot);
        }
        removed
    }

    /// Whether the set has failed, and `device` needs nothing that only the cache has.
    #[must_use]
    pub fn can_abandon(&self, device: &Device) -> bool {
        let whole = device.inode.get().is_some_and(|inode| self.has_nothing_dirty(device, inode));
        self.is_failed() && device.backing().is_some() && whole
    }

    /// Takes `device` out of a set that has failed: its backing device says, durably, that what the cache has of it is
    /// out of date. The caller holds requests back; those that come later may go straight to the backing device.
    ///
    /// # Errors
    /// The set works, the newest data is in the cache, or the backing device fails: nothing has changed, or the device
    /// is marked and still of the set, which is as good as never having been clean.
    pub async fn abandon(self: &Rc<Self>, device: &Rc<Device>) -> Result<()> {
        device.idle.wait_until(|| device.requests.get() == 0).await;
        let (Some(backing), Some(inode)) = (device.backing(), device.inode.get()) else {
            return Err(Error::refused("not an attached backing device"));
        };
        // Looked at when no request is under way that could change it.
        if !self.can_abandon(device) || !device.writeback.active.is_free() {
            return Err(Error::refused("it works, or its newest data is in the cache"));
        }
        // What was acknowledged below must not be lost with the cache's word for it.
        let failures = backing.dev.failures();
        backing.dev.ensure_flushed(backing.dev.epoch()).await?;
        backing.dev.none_failed_since(failures)?;
        if !seeded_bug!(AbandonWithoutStale) {
            backing.update(|sb| sb.set_state(BackingState::Stale)).await?;
        }
        device.inode.set(None);
        self.devices.borrow_mut().remove(&inode);
        self.left.borrow_mut().push(Rc::downgrade(device));
        device.closed.set(true);
        device.writeback.close();
        Ok(())
    }
}
