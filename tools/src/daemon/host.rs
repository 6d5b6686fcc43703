//! The set that a process serves: which parts are there, what runs, how it ends.
//!
//! Long because parts come in any order, and every order ends here.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bcache_engine::dev::{BlockDev, OpenMode, open};
use bcache_engine::env::Env;
use bcache_engine::request::DeviceVolume;
use bcache_engine::set::{CacheSet, Device, read_superblock};
use bcache_engine::settings::SetSettings;
use bcache_engine::sync::WaitQueue;
use bcache_format::superblock::BackingState;
use uuid::Uuid;

use super::export::{self, Export, Kept};
use super::locks::{Locks, Shares};
use super::notify::Notify;
use crate::config::Config;
use crate::control::paths;
use crate::expose::Claim;
use crate::frontend::Driver;
use crate::hold;
use crate::identify::{Part, Role};
use crate::kept;
use crate::serve::told;

/// How long a device that is in use is waited for: what a killed process had under way has to end first.
const PATIENCE: Duration = Duration::from_secs(30);
/// The claim is held apart from what is open, so that it can be given up while requests go on.
pub(super) const WRITING: OpenMode = OpenMode { write: true, exclusive: false };
/// What is said of a device that is not there any more when its turn comes.
pub(super) const REMOVED: &str = "the device was removed in the meantime";
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a disk has for its superblock to be read where others wait.
const SOON: Duration = Duration::from_secs(10);

/// How long a cache that was just started waits for what waited for it, before it is called active.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(10);

/// What the process was told.
pub(super) struct Options {
    /// The set.
    pub set: Uuid,
    /// How long requests wait for parts that are not there.
    pub patience: Duration,
    /// How long a backing device with nothing dirty waits for its cache before it goes on without it; nothing: for ever.
    pub missing_cache: Option<Duration>,
    /// How devices are made: by which driver, and with how many requests under way.
    pub front: (Driver, u16),
}

/// Where a part stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Being looked at.
    New,
    /// The set's cache is not there yet.
    Waiting,
    /// In use.
    Active,
    /// A backing device that goes on without its cache.
    Alone,
    /// Something is wrong with it.
    Failed(String),
}

/// Everything of the process.
pub(super) struct Host {
    pub(super) env: Env,
    pub(super) options: Options,
    /// What the configuration file says.
    pub(super) config: RefCell<Config>,
    pub(super) notify: Rc<Notify>,
    pub(super) parts: RefCell<BTreeMap<PathBuf, Standing>>,
    pub(super) set: RefCell<Option<Rc<CacheSet>>>,
    /// Keeps others away from the cache device.
    claim: RefCell<Option<Claim>>,
    pub(super) exports: RefCell<Vec<Export>>,
    /// What a process left behind and whose parts are not there yet.
    pub(super) kept: RefCell<BTreeMap<Uuid, Kept>>,
    /// Devices that are about to be among them.
    taking: RefCell<BTreeSet<Uuid>>,
    /// Whoever changes one device has a share, whoever changes all of them has all. What one device waits
    /// for under it may hang with its disk: nobody waits for the others without a limit.
    pub(super) changing: Shares,
    /// One at a time looks at a part, and one at a time changes a device: a disk that hangs holds up nobody but itself.
    pub(super) looking: Locks<PathBuf>,
    pub(super) turns: Locks<Uuid>,
    /// When devices could not leave a set that has failed, last.
    pub(super) in_vain: RefCell<BTreeMap<Uuid, u64>>,
    pub(super) ending: Cell<bool>,
    /// It hands over: what is under way and does not end is the successor's, and whatever is left to do it does.
    pub(super) leaving: Cell<bool>,
    /// It ends because somebody wants the set to be stopped.
    pub(super) stays_down: Cell<bool>,
    /// It ends so that systemd starts it again.
    pub(super) restarts: Cell<bool>,
    pub(super) over: Cell<bool>,
    pub(super) changed: WaitQueue,
}

impl Host {
    /// An engine without any part.
    pub(super) fn new(env: &Env, options: Options, config: Config, notify: Rc<Notify>) -> Rc<Host> {
        Rc::new(Host {
            env: env.clone(),
            options,
            config: RefCell::new(config),
            notify,
            parts: RefCell::default(),
            set: RefCell::default(),
            claim: RefCell::default(),
            exports: RefCell::default(),
            kept: RefCell::default(),
            taking: RefCell::default(),
            changing: Shares::new(),
            looking: Locks::default(),
            turns: Locks::default(),
            in_vain: RefCell::default(),
            ending: Cell::new(false),
            leaving: Cell::new(false),
            stays_down: Cell::new(false),
            restarts: Cell::new(false),
            over: Cell::new(false),
            changed: WaitQueue::new(),
        })
    }

    /// Waits for the end.
    pub(super) async fn ended(&self) {
        self.changed.wait_until(|| self.over.get()).await;
    }

    /// Takes a part in the background. One that is in use is left alone; any other is looked at again, for what its name
    /// leads to may have changed since, also while it was being looked at.
    pub(super) fn register(self: &Rc<Self>, path: &Path) {
        if !self.is_settled(path) && self.parts.borrow().get(path) != Some(&Standing::Alone) {
            self.parts.borrow_mut().insert(path.to_owned(), Standing::New);
        }
        let (host, path) = (Rc::clone(self), path.to_owned());
        self.env.spawn(async move { host.take(path).await }).detach();
    }

    /// Takes over what a process left behind, then takes the parts: requests are answered, with errors at worst, before
    /// anything is done that may fail or hang.
    pub(super) fn begin(self: &Rc<Self>, devices: Vec<Uuid>, parts: Vec<PathBuf>) {
        *self.taking.borrow_mut() = devices.iter().copied().collect();
        // Those, too, that are of another set, or of none any more.
        self.env.spawn(self.env.offload(hold::settle_all)).detach();
        for uuid in devices {
            let host = Rc::clone(self);
            self.env
                .spawn(async move {
                    match export::take_over(&host.env, uuid, host.options.patience).await {
                        Ok(kept) => host.kept.borrow_mut().extend(kept.map(|kept| (uuid, kept))),
                        Err(error) => tracing::error!(device = %uuid, "{error:#}"),
                    }
                    host.taking.borrow_mut().remove(&uuid);
                    host.changed.wake_all();
                })
                .detach();
        }
        for part in parts {
            self.register(&part);
        }
    }

    async fn take(self: Rc<Self>, path: PathBuf) {
        let _one = self.looking.lock(path.clone()).await;
        if self.ending.get() {
            return;
        }
        if self.is_settled(&path) {
            self.grow_part(&path).await;
            return;
        }
        let ran = self.works();
        let taken = self.take_part(&path).await;
        if !ran && matches!(taken, Ok(Standing::Active)) {
            // Last: who waits for the cache waits for what it serves, but not for a disk that hangs.
            let _ = self.env.timeout(PATIENCE_WITH_OTHERS, self.take_waiting(&path)).await;
        }
        self.note(path, taken);
        self.tell();
    }

    /// Takes everything but `cache` that waited for it.
    async fn take_waiting(self: &Rc<Self>, cache: &Path) {
        let waiting = self.waiting().into_iter().filter(|waiting| waiting != cache);
        let taking: Vec<_> = waiting.map(|path| self.env.spawn(Rc::clone(self).take(path))).collect();
        for task in taking {
            task.await;
        }
    }

    /// Ends a set that has failed and that nobody uses any more, so that it can be started anew from a cache that came
    /// back.
    async fn leave_failed_set(&self, part: &Part) -> Result<()> {
        let Some(set) = self.set.borrow().clone() else { return Ok(()) };
        let name = part.path.display();
        if set.failure().is_none() {
            bail!("{name}: the set has a cache device already, {}", set.cache.dev.name());
        }
        if let Some(one) = self.exports.borrow().first() {
            bail!("{name}: {} waits for the set, which has failed; bcache upgrade starts it anew", one.name);
        }
        // What it has under way may reach the device yet: nobody else writes to that before it has ended.
        if self.env.timeout(PATIENCE, set.stop()).await.is_err() {
            bail!("{name}: the set has failed, and what it has under way does not end");
        }
        *self.set.borrow_mut() = None;
        *self.claim.borrow_mut() = None;
        Ok(())
    }

    /// Whether a part needs no look: it is in use, by a set that works.
    fn is_settled(&self, path: &Path) -> bool {
        let of_failed = self
            .set
            .borrow()
            .as_ref()
            .is_some_and(|set| set.failure().is_some() && Path::new(set.cache.dev.name()) == path);
        self.parts.borrow().get(path) == Some(&Standing::Active) && !of_failed
    }

    /// Whether the set runs and has not failed.
    fn works(&self) -> bool {
        self.set.borrow().as_ref().is_some_and(|set| set.failure().is_none())
    }

    pub(super) fn runs(&self) -> bool {
        self.set.borrow().is_some()
    }

    /// Backing devices that came before the cache, those too that nobody has looked at yet.
    fn waiting(&self) -> Vec<PathBuf> {
        let parts = self.parts.borrow();
        let waiting =
            parts.iter().filter(|(_, standing)| !matches!(standing, Standing::Active | Standing::Failed(_)));
        waiting.map(|(path, _)| path.clone()).collect()
    }

    fn note(&self, path: PathBuf, taken: Result<Standing>) {
        let standing = taken.unwrap_or_else(|error| {
            tracing::error!(device = %path.display(), "{error:#}");
            Standing::Failed(format!("{error:#}"))
        });
        self.parts.borrow_mut().insert(path, standing);
    }

    /// Looks at a device. The read goes through the ring: a thread that waits for a disk that hangs could not be ended,
    /// nor could the process.
    pub(super) async fn identify(&self, path: &Path) -> Result<Part> {
        let device =
            open(&self.env, path, OpenMode::READ_ONLY).with_context(|| path.display().to_string())?;
        let (sb, _) = read_superblock(&device).await.map_err(told)?;
        Part::of(path, &sb)
    }

    /// The same for whoever holds what others wait for.
    pub(super) async fn identify_soon(&self, path: &Path) -> Result<Part> {
        let identified = self.env.timeout(SOON, self.identify(path)).await;
        identified.unwrap_or_else(|_| bail!("{}: does not answer", path.display()))
    }

    async fn take_part(self: &Rc<Self>, path: &Path) -> Result<Standing> {
        let part = self.identify(path).await?;
        // What a name led to when it was registered may have made way for another disk since.
        if part.set != self.options.set && !self.left_alone(&part) {
            bail!("{}: belongs to set {} now", path.display(), part.set);
        }
        match part.role {
            Role::Cache => {
                let _one = self.changing.one().await;
                self.start(&part).await?;
                Ok(Standing::Active)
            }
            Role::Backing(_) => self.take_backing(&part).await,
        }
    }

    /// Whether it is one of our devices whose detaching was all but done when the process died.
    fn left_alone(&self, part: &Part) -> bool {
        let kept = self.kept.borrow().contains_key(&part.uuid) || self.taking.borrow().contains(&part.uuid);
        part.role == Role::Backing(BackingState::None) && kept
    }

    async fn take_backing(self: &Rc<Self>, part: &Part) -> Result<Standing> {
        let ours = part.set == self.options.set;
        if !(ours && self.works()) && part.is_whole_alone() {
            self.go_alone(part).await?;
            if !ours {
                return Ok(Standing::Alone);
            }
        }
        if !self.works() {
            self.wait_for_cache(part);
            return Ok(if part.is_whole_alone() { Standing::Alone } else { Standing::Waiting });
        }
        let _one = self.changing.one().await;
        let _turn = self.turns.lock(part.uuid).await;
        if self.ending.get() {
            bail!("{}: the set is being stopped", part.path.display());
        }
        self.attach(part).await?;
        Ok(Standing::Active)
    }

    /// Starts the set from its cache device.
    async fn start(self: &Rc<Self>, part: &Part) -> Result<()> {
        self.leave_failed_set(part).await?;
        self.notify.status("starting the set");
        let claim = self.claim_of(&part.path).await?;
        let device = self.open(&part.path).await?;
        // Who uses its devices goes on when this process is killed.
        let (env, settings) = (self.env.clone(), SetSettings::default());
        let started = match kept::place(self.options.set) {
            Ok(place) => CacheSet::start_outliving(env, device, settings, place).await,
            Err(error) => {
                tracing::warn!(%error, "no keys can be kept in memory: writes wait for the journal");
                CacheSet::start(env, device, settings).await.inspect(|set| set.outlive())
            }
        };
        let set = started.map_err(told)?;
        self.configure_set(&set).await;
        tracing::info!(cache = %part.path.display(), "the set runs");
        *self.set.borrow_mut() = Some(Rc::clone(&set));
        *self.claim.borrow_mut() = Some(claim);
        for device in set.adopt_volumes() {
            let uuid = device.uuid;
            if let Err(error) = self.expose(&set, device, None).await {
                tracing::error!(volume = %uuid, "{error:#}");
            }
        }
        Ok(())
    }

    pub(super) async fn expose(
        self: &Rc<Self>,
        set: &Rc<CacheSet>,
        device: Rc<Device>,
        claim: Option<Claim>,
    ) -> Result<()> {
        let name = device.label.get().to_text();
        let uuid = device.uuid;
        let volume = Rc::new(DeviceVolume::new(Rc::clone(set), Rc::clone(&device), name));
        self.take_over_unlisted(uuid).await?;
        let switch = self.kept.borrow().get(&uuid).map(|kept| Rc::clone(&kept.switch));
        let held = match switch {
            // A request that began on what answered until now must not end after one that began here.
            Some(switch) => {
                let held = self.env.timeout(self.options.patience, switch.hold()).await;
                Some(held.map_err(|_| anyhow::anyhow!("requests under way hang"))?)
            }
            None => None,
        };
        let kept = self.kept.borrow_mut().remove(&uuid);
        let export = match kept {
            Some(kept) => Export::of(kept, device, volume, claim),
            None => Export::new(&self.env, device, volume, self.options.front, claim).await?,
        };
        drop(held);
        tracing::info!(name = export.name, below = export.front.kernel_name(), "in service");
        if export.device.backing().is_some() {
            self.rescue_from_failure(&export);
        }
        let device = Rc::clone(&export.device);
        self.exports.borrow_mut().push(export);
        self.list_devices();
        self.configure_device(set, &device).await;
        Ok(())
    }

    /// Waits until what a process left behind of a device is with us.
    pub(super) async fn taken_over(&self, uuid: Uuid) {
        self.changed.wait_until(|| !self.taking.borrow().contains(&uuid)).await;
    }

    /// Writes down what a successor has to take over.
    pub(super) fn list_devices(&self) {
        let exports = self.exports.borrow();
        let mut uuids: Vec<Uuid> = exports.iter().map(|one| one.device.uuid).collect();
        uuids.extend(self.kept.borrow().keys());
        if let Err(error) = paths::write_devices(self.options.set, &uuids) {
            tracing::warn!(%error, "after a crash, requests may wait until all parts are there");
        }
    }

    pub(super) async fn open(&self, path: &Path) -> Result<Rc<dyn BlockDev>> {
        let open = || async { open(&self.env, path, WRITING) };
        let opened = self.patiently(open, |error| error.errno == libc::EBUSY).await;
        opened.with_context(|| path.display().to_string())
    }

    pub(super) async fn claim_of(&self, path: &Path) -> Result<Claim> {
        let take = || {
            let owned = path.to_owned();
            self.env.offload(move || Claim::take(&owned))
        };
        let claimed = self.patiently(take, |error| error.raw_os_error() == Some(libc::EBUSY)).await;
        let why = "cannot be claimed; the kernel or another program may have it, or it is mounted";
        claimed.with_context(|| format!("{}: {why}", path.display()))
    }

    /// Tries again for a while as long as somebody else has what is asked for.
    async fn patiently<T, E, F>(&self, take: impl Fn() -> F, busy: impl Fn(&E) -> bool) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut waited = Duration::ZERO;
        loop {
            match take().await {
                Err(error) if busy(&error) && waited < PATIENCE => {
                    self.env.sleep(PAUSE).await;
                    waited += PAUSE;
                }
                taken => return taken,
            }
        }
    }

    /// Tells whoever started us how things are.
    pub(super) fn tell(&self) {
        let parts = self.parts.borrow();
        let of = |wanted: fn(&Standing) -> bool| parts.values().filter(|standing| wanted(standing)).count();
        let failed = of(|standing| matches!(standing, Standing::Failed(_)));
        let names: Vec<String> = self.exports.borrow().iter().map(|one| one.name.clone()).collect();
        let mut text = match (self.set.borrow().is_some(), names.is_empty()) {
            (false, _) => format!("{} parts wait for the cache", of(|s| *s == Standing::Waiting)),
            (true, true) => "runs; no backing device yet".to_owned(),
            (true, false) => format!("serves {}", names.join(", ")),
        };
        if failed > 0 {
            text += &format!("; {failed} parts failed");
        }
        self.notify.status(&text);
    }
}
