//! The table of backing devices and volumes in memory, and writing it.

use super::CacheSet;
use crate::alloc::Reserve;
use crate::dev::Buf;
use crate::error::{Error, Result};
use bcache_format::uuid_entry::{DETACHED_UUID, UuidEntry, write_table};
use bcache_format::{Bkey, Ptr, SECTOR_SIZE};
use uuid::Uuid;

/// The table, and where it is.
#[derive(Clone, Debug)]
pub struct UuidTable {
    /// Slots; the number of one is the inode of its keys.
    pub entries: Vec<UuidEntry>,
    /// The key that names its bucket.
    pub key: Bkey,
}

impl UuidTable {
    /// The slot of a device or volume.
    pub fn find(&self, uuid: &Uuid) -> Option<u32> {
        let position = self.entries.iter().position(|entry| entry.uuid == *uuid)?;
        u32::try_from(position).ok()
    }
}

impl CacheSet {
    /// Changes the table. It counts when it is durable: written to a bucket of its own, and named by a journal entry. The old
    /// bucket is free then.
    ///
    /// # Errors
    /// `change` refuses, there is no bucket, or the set failed; the table is as it was.
    pub(crate) async fn change_uuids<T>(
        &self,
        change: impl FnOnce(&mut [UuidEntry]) -> Result<T>,
    ) -> Result<T> {
        let _one = self.uuids_io.lock().await;
        let geometry = self.cache.geometry;
        let mut entries = self.uuids.borrow().entries.clone();
        let changed = change(&mut entries)?;
        if seeded_bug!(UuidsBeforeDurable) {
            self.uuids.borrow_mut().entries.clone_from(&entries);
        }
        let taken = self.alloc.take(Reserve::Btree).await?;
        let bucket = taken.nr();
        let image = write_table(&entries, geometry.meta_bucket_bytes());
        let at = geometry.bucket_start(bucket);
        self.metadata(self.cache.write(at.bytes(), Buf::copied(&image).freeze()).await)?;
        let generation = self.alloc.buckets.borrow().generation(bucket);
        let ptr = Ptr::new(self.cache.this_dev() as u16, at.0, generation);
        let key = Bkey::extent(0, 0, geometry.meta_bucket_bytes() / SECTOR_SIZE, ptr, false);
        let old = self.uuids.replace(UuidTable { entries, key });
        drop(taken.used());
        self.commit_roots().await?;
        if let Some(ptr) = old.key.ptr() {
            self.alloc.release(geometry.ptr_bucket(ptr));
        }
        Ok(changed)
    }

    /// Gives a device a slot of its own that was never used: a used one's keys are in the tree for ever.
    pub(crate) async fn take_slot(&self, entry: UuidEntry) -> Result<u32> {
        self.change_uuids(|entries| {
            let free = entries.iter_mut().enumerate().find(|(_, slot)| slot.is_free());
            let Some((slot, place)) = free else {
                return Err(Error::refused("the cache set has no room for another device"));
            };
            *place = entry;
            Ok(slot as u32)
        })
        .await
    }

    /// Ends the use of a slot. Its keys are never served again.
    pub(crate) async fn invalidate_slot(&self, slot: u32) -> Result<()> {
        let now = self.env.wall_secs();
        self.change_uuids(|entries| {
            if let Some(entry) = entries.get_mut(slot as usize) {
                entry.uuid = DETACHED_UUID;
                // Or it would be a volume again when the set starts, with Linux as well.
                entry.set_flash_only(false);
                entry.invalidated = now;
            }
            Ok(())
        })
        .await
    }
}
