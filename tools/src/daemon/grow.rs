//! A device whose backing device has become longer becomes longer, too, under whoever uses it.
//!
//! No driver of ours lets a block device grow everywhere, so a second one of the new length is made beside it, and the name
//! is led there: requests wait for as long as a table takes to change.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use bcache_engine::request::DeviceVolume;
use bcache_engine::set::Device;
use bcache_engine::volume::Volume;
use uuid::Uuid;

use super::export::Export;
use super::host::{Host, REMOVED};
use super::switch::Switch;
use crate::hold;

impl Host {
    /// Looks how long the backing device of one of ours is now, and lets that grow. Its length in bytes.
    ///
    /// # Errors
    /// The backing device has become shorter, there is none, or the kernel refuses: it stays as long as it was.
    pub(super) async fn grow(self: &Rc<Self>, uuid: Uuid) -> Result<u64> {
        let _one = self.changing.one().await;
        let _turn = self.turns.lock(uuid).await;
        let set = self.running()?;
        let found = {
            let exports = self.exports.borrow();
            let one = exports.iter().find(|one| one.device.uuid == uuid);
            one.map(|one| (Rc::clone(&one.device), one.name.clone(), one.switch.shape()))
        };
        let (device, name, before) = found.context(REMOVED)?;
        measure(&device)?;
        let label = device.label.get().to_text();
        let volume = Rc::new(DeviceVolume::new(Rc::clone(&set), Rc::clone(&device), label));
        let switch = Switch::of(&self.env, volume as Rc<dyn Volume>);
        if switch.shape().bytes <= before.bytes {
            return Ok(before.bytes);
        }
        let bytes = self.swap_front(&device, &name, switch, || Ok(())).await?;
        tracing::info!(name, bytes, "has grown");
        Ok(bytes)
    }

    /// The same for a part, if it is one of ours that is in use: udev says that it has changed.
    pub(super) async fn grow_part(self: &Rc<Self>, path: &Path) {
        let uuid = {
            let exports = self.exports.borrow();
            let is_it = |one: &&Export| {
                one.device.backing().is_some_and(|backing| Path::new(backing.dev.dev.name()) == path)
            };
            exports.iter().find(is_it).map(|one| one.device.uuid)
        };
        let Some(uuid) = uuid else { return };
        if let Err(error) = self.grow(uuid).await {
            tracing::error!(device = %path.display(), "{error:#}");
        }
    }

    /// Leads the name of a device to a front end of another length, made for this, if `check` finds nothing against it while
    /// nobody can claim what it asks about. Its length in bytes.
    ///
    /// # Errors
    /// What the check says, or the kernel refuses; the name leads to where it did.
    pub(super) async fn swap_front(
        self: &Rc<Self>,
        device: &Rc<Device>,
        name: &str,
        switch: Rc<Switch>,
        check: impl FnOnce() -> std::io::Result<()> + Send + 'static,
    ) -> Result<u64> {
        let (uuid, bytes) = (device.uuid, switch.shape().bytes);
        let (front, table) = Export::another_front(&self.env, self.options.front, &switch, device).await?;
        let loaded = name.to_owned();
        let swap = move || hold::swap(&loaded, uuid, &table, check);
        if let Err(error) = self.env.offload(swap).await {
            let error = anyhow::Error::from(error).context(format!("/dev/mapper/{name}"));
            return Err(super::export::undone(front, error).await);
        }
        let old = {
            let mut exports = self.exports.borrow_mut();
            let one = exports.iter_mut().find(|one| Rc::ptr_eq(&one.device, device));
            let one = one.context(REMOVED)?;
            one.switch = switch;
            let old = std::mem::replace(&mut one.front, front);
            self.rescue_from_failure(one);
            old
        };
        if let Err(error) = old.remove().await {
            tracing::warn!(name, %error, "the block device of before is left behind");
        }
        Ok(bytes)
    }
}

/// Has a backing device measured anew.
fn measure(device: &Device) -> Result<()> {
    let Some(backing) = device.backing() else { return Ok(()) };
    let below = &backing.dev.dev;
    let (before, now) = (below.geometry().bytes, below.remeasure()?);
    if now < before {
        bail!(
            "{} is {now} bytes long, and was {before}: what is behind its end is lost, unless it becomes as long again",
            below.name()
        );
    }
    Ok(())
}
