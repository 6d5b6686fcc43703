//! Backing devices that go on without their cache, while somebody uses them: because it is missing at the start, or
//! because it failed. Only those that have nothing dirty, and only once their superblock says, durably, that the cache is
//! out of date.

use bcache_format::SECTOR_SIZE;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use bcache_engine::request::AloneVolume;
use bcache_engine::set::{CacheSet, Device};
use bcache_engine::volume::Volume;
use bcache_format::superblock::BackingState;
use uuid::Uuid;

use super::export::{self, Alone, Export, Kept};
use super::host::{Host, REMOVED, Standing};
use super::switch::Switch;
use crate::expose::{self, Claim};
use crate::hold;
use crate::identify::{Part, Role};
use crate::serve::told;

/// How long the block device below a name that leads elsewhere has to go.
const SOON: std::time::Duration = std::time::Duration::from_secs(5);
/// Between two tries to let a name lead straight to its device.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

impl Host {
    /// Puts a backing device that needs no cache under its name, straight from the device. What a process left behind is
    /// served meanwhile: requests that wait there must end before the name can lead elsewhere.
    pub(super) async fn go_alone(self: &Rc<Self>, part: &Part) -> Result<()> {
        let _one = self.changing.one().await;
        let uuid = part.uuid;
        let _turn = self.turns.lock(uuid).await;
        if self.ending.get() || self.leaving.get() {
            bail!("{}: the process that serves its set ends", part.path.display());
        }
        self.take_over_unlisted(uuid).await?;
        if !self.kept.borrow().contains_key(&uuid) {
            let part = part.clone();
            self.env.offload(move || expose::direct(&part)).await?;
            return Ok(());
        }
        self.answer_from(part).await?;
        if let Err(error) = self.lead_straight(uuid, &part.path).await {
            tracing::error!(device = %uuid, "still served by this process: {error:#}");
            self.lead_straight_later(uuid, &part.path);
        }
        Ok(())
    }

    /// Takes over what a process left behind of a device that was not in its list.
    pub(super) async fn take_over_unlisted(&self, uuid: Uuid) -> Result<()> {
        self.taken_over(uuid).await;
        if self.kept.borrow().contains_key(&uuid) || self.is_exposed(uuid) {
            return Ok(());
        }
        if self.env.offload(move || expose::is_left_behind(uuid)).await.context("device-mapper")? {
            let kept = export::take_over(&self.env, uuid, self.options.patience).await?;
            self.kept.borrow_mut().extend(kept.map(|kept| (uuid, kept)));
            self.list_devices();
        }
        Ok(())
    }

    /// Lets a front end that is kept answer from its backing device.
    async fn answer_from(&self, part: &Part) -> Result<()> {
        let uuid = part.uuid;
        let (switch, on) = {
            let kept = self.kept.borrow();
            let kept = kept.get(&uuid).context(REMOVED)?;
            (Rc::clone(&kept.switch), kept.alone.as_ref().map(|alone| alone.number))
        };
        match on {
            Some(number) if number == part.device => return Ok(()),
            Some(number) if expose::kernel_name(number).is_some() => bail!(
                "{}: /dev/{} has its UUID, {uuid}, and is in service; one of the two is a copy",
                part.path.display(),
                expose::kernel_name(number).unwrap_or_default()
            ),
            _ => {}
        }
        let claim = self.claim_of(&part.path).await?;
        let device = self.open(&part.path).await?;
        let volume = Rc::new(AloneVolume::open(device, false).await.map_err(told)?);
        let held = self.env.timeout(self.options.patience, switch.hold()).await;
        let Ok(_held) = held else { bail!("{}: requests under way hang", part.path.display()) };
        switch.put(Rc::clone(&volume) as Rc<dyn Volume>);
        let mut kept = self.kept.borrow_mut();
        let kept = kept.get_mut(&uuid).context(REMOVED)?;
        (kept.claim, kept.alone) = (Some(claim), Some(Alone { volume, number: part.device }));
        Ok(())
    }

    /// Lets the name lead straight to the backing device, and takes the front end away, which answers until then, and goes on
    /// answering where the name cannot lead elsewhere. The caller has the device's turn, and a share of `changing`.
    async fn lead_straight(&self, uuid: Uuid, path: &Path) -> Result<()> {
        self.reclaim_kept(uuid, path).await;
        let part = self.identify_soon(path).await?;
        let (name, claim) = {
            let mut kept = self.kept.borrow_mut();
            let kept = kept.get_mut(&uuid).context(REMOVED)?;
            let alone = kept.alone.as_ref().context("nothing is known of its disk")?;
            if alone.number != part.device {
                bail!("{} is another disk now", path.display());
            }
            // Whoever uses it knows how long it is.
            if part.data_sectors * SECTOR_SIZE < kept.switch.shape().bytes {
                bail!("{} has become shorter", path.display());
            }
            // Whom the name leads to the disk nobody tells of it any more.
            if alone.volume.owes_clients() {
                bail!("a flush failed, and no client was told of it yet");
            }
            (kept.name.clone(), kept.claim.take())
        };
        // The table claims the device itself.
        drop::<Option<Claim>>(claim);
        let swapped = name.clone();
        let swap =
            move || hold::swap(&swapped, uuid, &expose::direct_table(&part), || expose::still_whole(&part));
        if let Err(error) = self.env.offload(swap).await {
            self.reclaim_kept(uuid, path).await;
            return Err(error).with_context(|| format!("/dev/mapper/{name}"));
        }
        tracing::info!(name, "goes on without cache");
        let kept = self.kept.borrow_mut().remove(&uuid);
        self.list_devices();
        if let Some(kept) = kept {
            // One that was detached is no part of the set any more.
            let backing = kept.alone.as_ref().and_then(|alone| alone.volume.device().backing());
            if backing.is_some_and(|backing| backing.sb.borrow().state() == BackingState::None) {
                self.parts.borrow_mut().remove(path);
            }
            // Somebody may have the block device itself open, and keep it for as long as that takes.
            match self.env.timeout(SOON, kept.front.remove()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(name, %error, "the block device below is left behind"),
                Err(_) => {
                    tracing::warn!(name, "the block device below goes when nobody has it open any more")
                }
            }
        }
        Ok(())
    }

    /// Claims the disk of a device that is answered from it alone, if nobody could so far.
    async fn reclaim_kept(&self, uuid: Uuid, path: &Path) {
        let unclaimed = |kept: &Kept| kept.alone.is_some() && kept.claim.is_none();
        if !self.kept.borrow().get(&uuid).is_some_and(unclaimed) {
            return;
        }
        let path = path.to_owned();
        match self.env.offload(move || Claim::take(&path)).await {
            Ok(claim) => {
                if let Some(kept) = self.kept.borrow_mut().get_mut(&uuid) {
                    kept.claim = Some(claim);
                }
            }
            Err(error) => tracing::warn!(device = %uuid, %error, "not protected from others"),
        }
    }

    /// Tries again, until it succeeds or there is nothing any more to try it with. A successor does the same.
    fn lead_straight_later(self: &Rc<Self>, uuid: Uuid, path: &Path) {
        {
            let mut kept = self.kept.borrow_mut();
            match kept.get_mut(&uuid) {
                Some(kept) if !kept.leaves => kept.leaves = true,
                _ => return,
            }
        }
        let (host, path) = (Rc::clone(self), path.to_owned());
        let task = async move {
            loop {
                {
                    // What is left to do is everybody's who wants to change the device, or all: it may take their place.
                    let _one = host.changing.one().await;
                    let _turn = host.turns.lock(uuid).await;
                    let leaves = host.kept.borrow().get(&uuid).is_some_and(|kept| kept.leaves);
                    if !leaves || host.ending.get() || host.leaving.get() {
                        return;
                    }
                    match host.lead_straight(uuid, &path).await {
                        Ok(()) => break,
                        Err(error) => {
                            let why = format!("{error:#}");
                            if let Some(kept) = host.kept.borrow_mut().get_mut(&uuid)
                                && kept.why != why
                            {
                                tracing::error!(device = %uuid, "still served by this process: {why}");
                                kept.why = why;
                            }
                        }
                    }
                }
                host.env.sleep(AGAIN).await;
            }
            host.tell();
        };
        self.env.spawn(task).detach();
    }

    /// A backing device waits for its cache, and goes on without it after a while if nothing of it is only there.
    pub(super) fn wait_for_cache(self: &Rc<Self>, part: &Part) {
        let Some(patience) = self.options.missing_cache else { return };
        if part.role != Role::Backing(BackingState::Clean) {
            return;
        }
        let (host, path) = (Rc::clone(self), part.path.clone());
        let task = async move {
            host.env.sleep(patience).await;
            let waits = || host.parts.borrow().get(&path) == Some(&Standing::Waiting);
            if !waits() || host.runs() || host.ending.get() {
                return;
            }
            let _one = host.looking.lock(path.clone()).await;
            if !waits() || host.runs() || host.ending.get() {
                return;
            }
            match host.leave_missing_cache(&path).await {
                Ok(()) => {
                    let mut parts = host.parts.borrow_mut();
                    parts.insert(path, Standing::Alone);
                }
                Err(error) => tracing::error!(device = %path.display(), "without its cache: {error:#}"),
            }
            host.tell();
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
            let _claim = self.claim_of(path).await?;
            let device = self.open(path).await?;
            drop(AloneVolume::open(device, false).await.map_err(told)?);
        }
        tracing::warn!(device = %path.display(), "its cache is missing, and has nothing that is only there");
        let part = self.identify(path).await?;
        self.go_alone(&part).await
    }

    /// Keeps the front end of a device that is of no set any more, and answers from its backing device until the name can
    /// lead straight there. Nobody finds it missing in between: it is among what is served, and what a successor takes over.
    pub(super) fn keep_alone(self: &Rc<Self>, device: &Rc<Device>, path: &Path) -> Result<()> {
        let volume = Rc::new(AloneVolume::of(Rc::clone(device)).context("it is of the set still")?);
        // A disk that is gone has none any more.
        let number = expose::number_of(path).unwrap_or_default();
        let (mut exports, mut kept) = (self.exports.borrow_mut(), self.kept.borrow_mut());
        let place = exports.iter().position(|one| Rc::ptr_eq(&one.device, device));
        let Export { name, front, switch, claim, .. } = exports.remove(place.context(REMOVED)?);
        switch.put(Rc::clone(&volume) as Rc<dyn Volume>);
        let alone = Some(Alone { volume, number });
        kept.insert(
            device.uuid,
            Kept { name, front, switch, claim, alone, leaves: false, why: String::new() },
        );
        drop((exports, kept));
        self.parts.borrow_mut().insert(path.to_owned(), Standing::Alone);
        self.list_devices();
        self.lead_straight_later(device.uuid, path);
        Ok(())
    }

    /// Requests that fail because the set has failed are carried out without the cache, where that is possible.
    pub(super) fn rescue_from_failure(self: &Rc<Self>, export: &Export) {
        let (host, uuid) = (Rc::downgrade(self), export.device.uuid);
        export.switch.rescue_with(Box::new(move || {
            let host = host.upgrade();
            Box::pin(async move {
                match host {
                    Some(host) => host.rescue(uuid).await,
                    None => false,
                }
            })
        }));
    }

    /// Whether a device goes on without its cache, now or since a moment ago.
    async fn rescue(self: Rc<Self>, uuid: Uuid) -> bool {
        let asked = self.env.now();
        // Whoever changes the device may wait for its disk; the request that failed does not.
        let turn = async { (self.changing.one().await, self.turns.lock(uuid).await) };
        let turn = self.env.timeout(self.options.patience, turn).await;
        if self.leaving.get() {
            // The successor carries the request out, as one that a crash left unanswered.
            return std::future::pending().await;
        }
        let Ok(_turn) = turn else { return false };
        let (Some(set), false) = (self.set.borrow().clone(), self.ending.get()) else { return false };
        let found = {
            let exports = self.exports.borrow();
            let one = exports.iter().find(|one| one.device.uuid == uuid);
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
        let _held = left.unwrap_or_else(|_| bail!("requests under way, or its disk, hang"))?;
        tracing::warn!(device = %path.display(), "the cache failed; it is clean, so this goes on without");
        self.keep_alone(device, &path)
    }
}
