//! Backing devices that go on without their cache, while somebody uses them: because it is missing at the start, or
//! because it failed. Only those that have nothing dirty, and only once their superblock says, durably, that the cache is
//! out of date.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use bcache_engine::request::AloneVolume;
use bcache_engine::set::{CacheSet, Device};
use bcache_format::superblock::BackingState;
use uuid::Uuid;

use super::engine::{Engine, Standing};
use super::exposed::{Exposed, Kept};

use super::switch::Switch;
use crate::expose::{self, Claim};
use crate::hold;
use crate::identify::{Part, Role};
use crate::serve::told;

/// Between two tries to let a name lead straight to its device.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

impl Engine {
    /// Puts a backing device that needs no cache under its name, straight from the device. What a process left behind is
    /// served meanwhile: requests that wait there must end before the name can lead elsewhere.
    pub(super) async fn go_alone(self: &Rc<Self>, part: &Part) -> Result<()> {
        let _turn = self.turns.lock(part.uuid).await;
        self.taken_over(part.uuid).await;
        let kept = self.kept.borrow_mut().remove(&part.uuid);
        if let Some(kept) = kept {
            let opened = match self.open(&part.path).await {
                Ok(device) => AloneVolume::open(device, false).await.map_err(told),
                Err(error) => Err(error),
            };
            match opened {
                Ok(volume) => {
                    kept.switch.put(Rc::new(volume));
                    self.lead_straight(kept, part).await?;
                }
                Err(error) => {
                    self.kept.borrow_mut().insert(part.uuid, kept);
                    return Err(error);
                }
            }
        } else {
            let part = part.clone();
            self.env.offload(move || expose::direct(&part)).await?;
        }
        self.list_devices();
        Ok(())
    }

    /// Lets the name lead straight to the backing device, and takes the front end away, which answers until then, and goes on
    /// answering where the name cannot lead elsewhere.
    async fn lead_straight(&self, kept: Kept, part: &Part) -> Result<()> {
        let (part, swapped, uuid) = (part.clone(), kept.name.clone(), part.uuid);
        let swap =
            move || hold::swap(&swapped, uuid, &expose::direct_table(&part), || expose::still_whole(&part));
        if let Err(error) = self.env.offload(swap).await {
            let name = kept.name.clone();
            self.kept.borrow_mut().insert(uuid, kept);
            return Err(error).with_context(|| format!("/dev/mapper/{name}"));
        }
        let name = kept.name;
        tracing::info!(name, "goes on without cache");
        if let Err(error) = kept.front.remove().await {
            tracing::warn!(name, %error, "the block device below is left behind");
        }
        Ok(())
    }

    /// A backing device waits for its cache, and goes on without it after a while if nothing of it is only there.
    pub(super) fn wait_for_cache(self: &Rc<Self>, part: &Part) {
        let Some(patience) = self.options.missing_cache else { return };
        if part.role != Role::Backing(BackingState::Clean) {
            return;
        }
        let (engine, path) = (Rc::clone(self), part.path.clone());
        let task = async move {
            engine.env.sleep(patience).await;
            let waits = || engine.parts.borrow().get(&path) == Some(&Standing::Waiting);
            if !waits() || engine.runs() || engine.ending.get() {
                return;
            }
            let _one = engine.looking.lock(path.clone()).await;
            if !waits() || engine.runs() || engine.ending.get() {
                return;
            }
            match engine.leave_missing_cache(&path).await {
                Ok(()) => {
                    let mut parts = engine.parts.borrow_mut();
                    parts.insert(path, Standing::Alone);
                }
                Err(error) => tracing::error!(device = %path.display(), "without its cache: {error:#}"),
            }
            engine.tell();
        };
        self.env.spawn(task).detach();
    }

    async fn leave_missing_cache(self: &Rc<Self>, path: &Path) -> Result<()> {
        let part = self.identify(path).await?;
        if part.role == Role::Backing(BackingState::Dirty) {
            bail!("its newest data is in the cache");
        }
        // Nobody may have it in the meantime, and the mark must be there before anybody can write.
        {
            let kept = self.kept.borrow().contains_key(&part.uuid);
            let _claim = if kept { None } else { Some(self.claim_of(path).await?) };
            let device = self.open(path).await?;
            drop(AloneVolume::open(device, false).await.map_err(told)?);
        }
        tracing::warn!(device = %path.display(), "its cache is missing, and has nothing that is only there");
        let part = self.identify(path).await?;
        self.go_alone(&part).await
    }

    /// Keeps the front end of a device that is of no set any more and whose name cannot lead elsewhere yet: it answers from
    /// the backing device. That is tried again until it succeeds; a successor does the same.
    pub(super) fn keep_alone(self: &Rc<Self>, one: Exposed, path: &Path) {
        let Exposed { name, front, switch, device, .. } = one;
        let uuid = device.uuid;
        if let Some(volume) = AloneVolume::of(device) {
            switch.put(Rc::new(volume));
        }
        self.kept.borrow_mut().insert(uuid, Kept { name, front, switch });
        self.parts.borrow_mut().insert(path.to_owned(), Standing::Alone);
        let (engine, path) = (Rc::clone(self), path.to_owned());
        let task = async move {
            loop {
                engine.env.sleep(AGAIN).await;
                let _turn = engine.turns.lock(uuid).await;
                let Some(kept) = engine.kept.borrow_mut().remove(&uuid) else { return };
                let led = match engine.identify(&path).await {
                    Ok(part) => engine.lead_straight(kept, &part).await,
                    Err(error) => {
                        engine.kept.borrow_mut().insert(uuid, kept);
                        Err(error)
                    }
                };
                match led {
                    Ok(()) => {
                        engine.parts.borrow_mut().remove(&path);
                        engine.list_devices();
                        return;
                    }
                    Err(error) => tracing::error!(device = %uuid, "still served by this process: {error:#}"),
                }
            }
        };
        self.env.spawn(task).detach();
    }

    /// Requests that fail because the set has failed are carried out without the cache, where that is possible.
    pub(super) fn rescue_from_failure(self: &Rc<Self>, exposed: &Exposed) {
        let (engine, uuid) = (Rc::downgrade(self), exposed.device.uuid);
        exposed.switch.rescue_with(Box::new(move || {
            let engine = engine.upgrade();
            Box::pin(async move {
                match engine {
                    Some(engine) => engine.rescue(uuid).await,
                    None => false,
                }
            })
        }));
    }

    /// Whether a device goes on without its cache, now or since a moment ago.
    async fn rescue(self: Rc<Self>, uuid: Uuid) -> bool {
        let asked = self.env.now();
        let patience = self.options.patience;
        // Whoever changes the device may wait for its disk; the request that failed does not.
        let Ok(_turn) = self.env.timeout(patience, self.turns.lock(uuid)).await else { return false };
        let (Some(set), false) = (self.set.borrow().clone(), self.ending.get()) else { return false };
        let found = {
            let exposed = self.exposed.borrow();
            let one = exposed.iter().find(|one| one.device.uuid == uuid);
            one.map(|one| (Rc::clone(&one.device), Rc::clone(&one.switch)))
        };
        // Somebody was faster.
        let Some((device, switch)) = found else { return true };
        // Somebody was, and got nowhere: those who waited meanwhile are not to wait for as long again, one after the other.
        let in_vain = self.in_vain.borrow().get(&uuid).is_some_and(|&since| since >= asked);
        if in_vain || !set.can_abandon(&device) {
            return false;
        }
        match self.abandon(&set, &device, &switch).await {
            Ok(()) => true,
            Err(error) => {
                self.in_vain.borrow_mut().insert(uuid, self.env.now());
                tracing::error!(device = %uuid, "it cannot go on without its cache: {error:#}");
                false
            }
        }
    }

    async fn abandon(
        self: &Rc<Self>,
        set: &Rc<CacheSet>,
        device: &Rc<Device>,
        switch: &Rc<Switch>,
    ) -> Result<()> {
        let path = PathBuf::from(device.backing().context("a volume has no backing device")?.dev.dev.name());
        // A request that hangs below must not hold up all others for good.
        let leaving = async {
            let held = switch.hold().await;
            set.abandon(device).await.map_err(told)?;
            anyhow::Ok(held)
        };
        let left = self.env.timeout(self.options.patience, leaving).await;
        let held = left.unwrap_or_else(|_| bail!("requests under way, or its disk, hang"))?;
        let volume = AloneVolume::of(Rc::clone(device)).context("it is of the set still")?;
        switch.put(Rc::new(volume));
        drop(held);
        tracing::warn!(device = %path.display(), "the cache failed; it is clean, so this goes on without");
        self.parts.borrow_mut().insert(path.clone(), Standing::Alone);
        let place = self.exposed.borrow().iter().position(|one| Rc::ptr_eq(&one.device, device));
        let Some(one) = place.map(|place| self.exposed.borrow_mut().remove(place)) else { return Ok(()) };
        self.list_devices();
        // Requests are answered from here on: nobody has to wait for the rest.
        let engine = Rc::clone(self);
        self.env
            .spawn(async move {
                let uuid = one.device.uuid;
                if let Err(error) = engine.leave_front_end(&path, one).await {
                    tracing::error!(device = %uuid, "still served by this process: {error:#}");
                }
                engine.tell();
            })
            .detach();
        Ok(())
    }

    async fn leave_front_end(&self, path: &Path, one: Exposed) -> Result<()> {
        let Exposed { name, front, switch, device, claim, .. } = one;
        let kept = Kept { name, front, switch };
        let part = match self.identify(path).await {
            Ok(part) => part,
            Err(error) => {
                self.kept.borrow_mut().insert(device.uuid, kept);
                return Err(error);
            }
        };
        // The table claims the device itself.
        drop::<Option<Claim>>(claim);
        self.lead_straight(kept, &part).await
    }
}
