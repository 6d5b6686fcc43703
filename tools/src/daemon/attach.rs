//! Devices that come to a running set and leave it, while somebody uses them.

use bcache_engine::set::states::{Attaching, attaching};
use bcache_format::SECTOR_SIZE;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use bcache_engine::dev::{BlockDev, open};
use bcache_engine::set::{CacheSet, Device};
use bcache_format::superblock::Label;
use bcache_format::units::Sectors;
use bcache_format::uuid_entry::UuidEntry;
use serde_json::{Value, json};
use uuid::Uuid;

use super::export::{self, Export};
use super::host::{Host, REMOVED, Standing, WRITING};
use crate::expose::{self, Claim};
use crate::hold;
use crate::identify::{Part, Role};
use crate::serve::told;

/// Bytes of a volume at most: more than any disk has, and less than what any layer above or below would overflow at.
pub(super) const MOST: u64 = 1 << 52;

impl Host {
    /// Attaches a backing device to the running set, and serves it.
    pub(super) async fn attach(self: &Rc<Self>, part: &Part) -> Result<()> {
        let set = self.set.borrow().clone().context("the set does not run")?;
        let uuid = part.uuid;
        self.take_over_unlisted(uuid).await?;
        let there = self.env.offload(move || export::tidy(uuid)).await.context("device-mapper")?;
        let same = part.clone();
        self.env.offload(move || expose::refuse_copy(&same)).await?;
        let block = part.block;
        self.env.offload(move || expose::refuse_other_blocks(uuid, block)).await?;
        let claim = self.claim_for(part, &set, there).await?;
        // One that could not be exposed before is attached already.
        let known = set.devices().into_iter().find(|device| device.uuid == uuid);
        let (device, new) = match known.filter(|_| !self.is_exposed(uuid)) {
            Some(device) => (device, false),
            None => (set.attach(self.open_part(part).await?).await.map_err(told)?, part.is_whole_alone()),
        };
        if let Err(error) = self.expose(&set, Rc::clone(&device), claim).await {
            // Nothing of it is in the cache yet: it is as it was before.
            if new && let Err(second) = set.detach(&device).await {
                tracing::error!(device = %uuid, error = %second, "stays attached, and is not in service");
            }
            return Err(error);
        }
        self.reclaim(part, &device).await;
        Ok(())
    }

    /// The claim of a device that is to be attached. One that is there without its cache holds it itself until its table is
    /// changed; one that this process answers without its cache gives its own.
    async fn claim_for(&self, part: &Part, set: &CacheSet, there: bool) -> Result<Option<Claim>> {
        if let Some(kept) = self.kept.borrow_mut().get_mut(&part.uuid)
            && let Some(alone) = &kept.alone
        {
            if alone.number == part.device {
                set.takes_over_from(alone.volume.device());
                if let Some(claim) = kept.claim.take() {
                    return Ok(Some(claim));
                }
            } else if let Some(other) = expose::kernel_name(alone.number) {
                bail!(
                    "{}: /dev/{other} has its UUID, {}, and is in service; one of the two is a copy",
                    part.path.display(),
                    part.uuid
                );
            }
        }
        let path = part.path.clone();
        match self.env.offload(move || Claim::take(&path)).await {
            Ok(claim) => Ok(Some(claim)),
            Err(error) if there && error.raw_os_error() == Some(libc::EBUSY) => Ok(None),
            Err(_) => Ok(Some(self.claim_of(&part.path).await?)),
        }
    }

    /// Opens a backing device that is to be attached. One that this process answers without its cache it has open already, and
    /// its own lock keeps it from opening it once more; one that came back under its number after it was gone is not that one.
    async fn open_part(&self, part: &Part) -> Result<Rc<dyn BlockDev>> {
        let ours = || {
            let kept = self.kept.borrow();
            let alone = kept.get(&part.uuid)?.alone.as_ref()?;
            let backing = alone.volume.device().backing()?;
            (alone.number == part.device).then(|| Rc::clone(&backing.dev.dev))
        };
        match (open(&self.env, &part.path, WRITING), ours()) {
            (Ok(device), _) => Ok(device),
            (Err(error), Some(device)) if error.errno == libc::EBUSY => Ok(device),
            _ => self.open(&part.path).await,
        }
    }

    pub(super) fn is_exposed(&self, uuid: Uuid) -> bool {
        self.exports.borrow().iter().any(|one| one.device.uuid == uuid)
    }

    /// Claims the backing device if its name led straight to it until now.
    async fn reclaim(&self, part: &Part, device: &Rc<Device>) {
        let unclaimed = |export: &Export| Rc::ptr_eq(&export.device, device) && export.claim.is_none();
        if !self.exports.borrow().iter().any(unclaimed) {
            return;
        }
        match self.claim_of(&part.path).await {
            Ok(claim) => {
                if let Some(export) = self.exports.borrow_mut().iter_mut().find(|export| unclaimed(export)) {
                    export.claim = Some(claim);
                }
            }
            Err(error) => tracing::warn!("not protected from others: {error:#}"),
        }
    }

    /// Attaches a backing device on request: one that belongs to this set, or to none.
    ///
    /// # Errors
    /// It belongs to another set, or cannot be used.
    pub(super) async fn attach_on_request(self: &Rc<Self>, path: &Path) -> Result<()> {
        let _one = self.changing.one().await;
        let _looking = self.looking.lock(path.to_owned()).await;
        let part = self.identify_soon(path).await?;
        match part.role {
            Role::Cache => bail!("{}: a cache device, not a backing device", path.display()),
            // Whether its set knows it turns out when it is attached.
            Role::Backing(state) => {
                if attaching(state, part.set == self.options.set, true) == Attaching::OtherSet {
                    bail!("{}: attached to set {}; detach it there first", path.display(), part.set)
                }
            }
        }
        let _turn = self.turns.lock(part.uuid).await;
        if self.is_exposed(part.uuid) {
            bail!("{}: attached to this set already", path.display());
        }
        self.attach(&part).await?;
        self.parts.borrow_mut().insert(path.to_owned(), Standing::Active);
        self.tell();
        Ok(())
    }

    /// Finds a device by name, label, UUID or path.
    ///
    /// # Errors
    /// There is none, or several.
    pub(super) fn find(&self, wanted: &str) -> Result<Rc<Device>> {
        let name = wanted.strip_prefix("/dev/mapper/").unwrap_or(wanted);
        let uuid = wanted.parse::<Uuid>().ok();
        let matches = |one: &&Export| {
            one.name == name
                || Some(one.device.uuid) == uuid
                || one.device.label.get().to_text() == wanted
                || one.device.backing().is_some_and(|backing| backing.dev.dev.name() == wanted)
        };
        let exports = self.exports.borrow();
        let found: Vec<&Export> = exports.iter().filter(matches).collect();
        match found[..] {
            [one] => Ok(Rc::clone(&one.device)),
            [] => bail!("{wanted}: the set serves no such device"),
            [..] => bail!("{wanted}: several devices are called so; name one by its UUID"),
        }
    }

    /// Detaches a backing device: it goes on without cache and without this process, under its name and whoever uses
    /// it. The path of the backing device.
    ///
    /// # Errors
    /// Something could not be written back, or the kernel refuses: it stays attached.
    pub(super) async fn detach(self: &Rc<Self>, wanted: &str) -> Result<PathBuf> {
        let (set, device) = (self.running()?, self.find(wanted)?);
        if let Some(backing) = device.backing() {
            self.refuse_other_blocks(&self.identify_soon(Path::new(backing.dev.dev.name())).await?).await?;
        }
        // The long part is done before anything is held: others may come and go meanwhile.
        set.drain(&device).await.map_err(told)?;
        let _one = self.changing.one().await;
        let _turn = self.turns.lock(device.uuid).await;
        let left = self.leave(&set, &device).await;
        if left.is_err() {
            set.resume_caching(&device);
        }
        let path = left?;
        self.parts.borrow_mut().remove(&path);
        self.tell();
        Ok(path)
    }

    /// Refuses where the disk's blocks are not those that whoever uses the device knows.
    async fn refuse_other_blocks(&self, part: &Part) -> Result<()> {
        let part = part.clone();
        let checked = move || expose::refuse_other_blocks(part.uuid, expose::direct_block(&part)?);
        Ok(self.env.offload(checked).await?)
    }

    /// The part of detaching during which requests are held back.
    async fn leave(self: &Rc<Self>, set: &Rc<CacheSet>, device: &Rc<Device>) -> Result<PathBuf> {
        let Some(backing) = device.backing() else { bail!("a flash-only volume cannot be detached") };
        let path = PathBuf::from(backing.dev.dev.name());
        let part = self.identify_soon(&path).await?;
        self.refuse_other_blocks(&part).await?;
        let place = |exports: &[Export]| exports.iter().position(|one| Rc::ptr_eq(&one.device, device));
        let (name, claim) = {
            let mut exports = self.exports.borrow_mut();
            let index = place(&exports).context(REMOVED)?;
            let one = exports.get_mut(index).context(REMOVED)?;
            (one.name.clone(), one.claim.take())
        };
        // The new table claims the backing device, so ours ends here.
        drop(claim);
        let (loaded, direct, uuid) = (name.clone(), part.clone(), device.uuid);
        let held = self.env.offload(move || {
            let mut unused = None;
            let check = || {
                unused = expose::keep_unused(uuid, expose::direct_block(&direct)?)?;
                Ok(())
            };
            let loaded = hold::Changing::load(&loaded, uuid, &expose::direct_table(&direct), check)?;
            io::Result::Ok((loaded.hold()?, unused))
        });
        let (held, _unused) = match held.await.with_context(|| format!("/dev/mapper/{name}")) {
            Ok(held) => held,
            Err(error) => {
                self.reclaim(&part, device).await;
                return Err(error);
            }
        };
        if let Err(error) = set.detach(device).await {
            self.env.offload(move || held.keep()).await;
            self.reclaim(&part, device).await;
            return Err(told(error));
        }
        // Of a flush that failed and that no client has heard of none would hear on the straight way.
        let changed = if backing.dev.owes_clients() {
            self.env.offload(move || held.keep()).await;
            Err(io::Error::other("a flush failed, and no client was told of it yet"))
        } else {
            self.env.offload(move || held.change()).await
        };
        if let Err(error) = changed {
            self.keep_alone(device, &path)?;
            bail!(
                "/dev/mapper/{name} has no cache any more, but its table cannot be changed ({error}): \
                 its engine goes on serving it, and tries again"
            );
        }
        let gone = {
            let mut exports = self.exports.borrow_mut();
            place(&exports).map(|index| exports.remove(index))
        };
        if let Some(gone) = gone
            && let Err(error) = gone.front.remove().await
        {
            tracing::warn!(name, %error, "the block device below is left behind");
        }
        self.list_devices();
        tracing::info!(name, "goes on without cache");
        Ok(path)
    }

    /// The set, if it runs.
    pub(super) fn running(&self) -> Result<Rc<CacheSet>> {
        self.set.borrow().clone().context("the set does not run: its cache is not there")
    }

    /// Makes a flash-only volume; its name.
    ///
    /// # Errors
    /// The set has no room for another device, or the kernel refuses.
    pub(super) async fn create_volume(self: &Rc<Self>, bytes: u64, label: &str) -> Result<Value> {
        let _one = self.changing.one().await;
        let set = self.running()?;
        let block = u64::from(set.cache.sb.borrow().block_sectors).max(1) * SECTOR_SIZE;
        let bytes = bytes / block * block;
        if bytes == 0 {
            bail!("a volume has at least one block of {block} bytes");
        }
        if bytes > MOST {
            bail!("a volume has at most {MOST} bytes");
        }
        let label = Label::new(label).with_context(|| format!("{label:?}: too long for a label"))?;
        let now = self.env.wall_secs();
        let entry = UuidEntry {
            label,
            first_reg: now,
            last_reg: now,
            sectors: Sectors::from_bytes(bytes),
            ..UuidEntry::EMPTY
        };
        let device = set.create_volume(Uuid::new_v4(), entry).await.map_err(told)?;
        if let Err(error) = self.expose(&set, Rc::clone(&device), None).await {
            if let Err(second) = set.remove_volume(&device).await {
                tracing::error!(volume = %device.uuid, error = %second, "a volume is left behind");
            }
            return Err(error);
        }
        self.tell();
        let exports = self.exports.borrow();
        let one = exports.iter().find(|one| Rc::ptr_eq(&one.device, &device));
        let mut answer = json!({"name": one.map(|one| one.name.clone()).unwrap_or_default()});
        let beyond = set.overcommitted_sectors() * SECTOR_SIZE;
        if beyond > 0 {
            answer["note"] = json!(format!(
                "the volumes of this set are {beyond} bytes larger than its cache: \
                 once that is full, writes to them fail for want of space"
            ));
        }
        Ok(answer)
    }

    /// Removes a flash-only volume and its data.
    ///
    /// # Errors
    /// Somebody has it open, or it is none.
    pub(super) async fn remove_volume(&self, wanted: &str) -> Result<()> {
        let _one = self.changing.one().await;
        let (set, device) = (self.running()?, self.find(wanted)?);
        let _turn = self.turns.lock(device.uuid).await;
        if device.backing().is_some() {
            bail!("{wanted}: a backing device; it can be detached");
        }
        let one = {
            let mut exports = self.exports.borrow_mut();
            let index = exports.iter().position(|one| Rc::ptr_eq(&one.device, &device));
            exports.remove(index.context(REMOVED)?)
        };
        let name = one.name.clone();
        if let Err((back, error)) = one.remove(&self.env).await {
            self.exports.borrow_mut().push(*back);
            return Err(error).with_context(|| format!("/dev/mapper/{name}"));
        }
        set.remove_volume(&device).await.map_err(told)?;
        self.list_devices();
        self.tell();
        Ok(())
    }
}
