//! Volumes that become larger, under whoever uses them, or smaller.

use bcache_format::SECTOR_SIZE;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use bcache_engine::request::DeviceVolume;
use uuid::Uuid;

use super::attach::MOST;
use super::host::{Host, REMOVED};
use super::switch::Switch;
use crate::dm;
use crate::serve::told;

impl Host {
    /// Gives a flash-only volume another size. The kernel's drivers cannot change that of a block device in use: the name
    /// gets another one below.
    ///
    /// # Errors
    /// It is none, somebody has it open and it would become smaller, or the kernel refuses.
    pub(super) async fn resize_volume(self: &Rc<Self>, wanted: &str, bytes: u64) -> Result<()> {
        let _one = self.changing.one().await;
        let (set, device) = (self.running()?, self.find(wanted)?);
        let _turn = self.turns.lock(device.uuid).await;
        if device.backing().is_some() {
            bail!("{wanted}: has the size of its backing device");
        }
        let block = u64::from(set.cache.sb.borrow().block_sectors).max(1) * SECTOR_SIZE;
        let bytes = bytes / block * block;
        if bytes == 0 || bytes > MOST {
            bail!("a volume has at least one block of {block} bytes and at most {MOST}");
        }
        let (before, uuid) = (device.bytes(), device.uuid);
        if bytes == before {
            return Ok(());
        }
        if bytes < before {
            self.env.offload(move || refuse_in_use(uuid)).await?;
        }
        // What is larger has its size before anybody can write there, what is smaller when nobody can any more.
        if bytes > before {
            set.resize_volume(&device, bytes / SECTOR_SIZE).await.map_err(told)?;
        }
        let label = device.label.get().to_text();
        let volume = Rc::new(DeviceVolume::new(Rc::clone(&set), Rc::clone(&device), label));
        let switch = Switch::of_size(&self.env, volume, bytes);
        let name = {
            let exports = self.exports.borrow();
            let one = exports.iter().find(|one| Rc::ptr_eq(&one.device, &device));
            one.map(|one| one.name.clone()).context(REMOVED)?
        };
        let check = move || if bytes < before { refuse_in_use(uuid) } else { Ok(()) };
        self.swap_front(&device, &name, switch, check).await?;
        if bytes < before {
            set.resize_volume(&device, bytes / SECTOR_SIZE).await.map_err(told)?;
        }
        Ok(())
    }
}

fn refuse_in_use(uuid: Uuid) -> std::io::Result<()> {
    match dm::find(&dm::uuid_of(uuid))? {
        Some(device) if dm::is_in_use(&device)? => Err(std::io::Error::new(
            std::io::ErrorKind::ResourceBusy,
            format!("/dev/mapper/{} is in use; unmount it first", device.name),
        )),
        _ => Ok(()),
    }
}
