//! The set that a process serves: which parts are there, what runs, how it ends.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bcache_engine::dev::{BlockDev, OpenMode, open};
use bcache_engine::env::Env;
use bcache_engine::request::DeviceVolume;
use bcache_engine::set::{CacheSet, Device};
use bcache_engine::settings::SetSettings;
use bcache_engine::sync::{Mutex, WaitQueue};
use uuid::Uuid;

use super::exposed::Exposed;
use super::front::Driver;
use super::notify::Notify;
use crate::expose::{self, Claim};
use crate::identify::{Part, Role, identify};
use crate::serve::told;

/// How long a device that is in use is waited for: what a killed process had under way has to end first.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// What the process was told.
pub struct Options {
    /// The set.
    pub set: Uuid,
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
    /// Something is wrong with it.
    Failed(String),
}

/// Everything of the process.
pub struct Engine {
    pub(super) env: Env,
    pub(super) options: Options,
    pub(super) notify: Rc<Notify>,
    pub(super) parts: RefCell<BTreeMap<PathBuf, Standing>>,
    pub(super) set: RefCell<Option<Rc<CacheSet>>>,
    /// Keeps others away from the cache device.
    claim: RefCell<Option<Claim>>,
    pub(super) exposed: RefCell<Vec<Exposed>>,
    /// Whoever changes what runs holds it.
    pub(super) changing: Mutex<()>,
    pub(super) ending: Cell<bool>,
    /// It ends because somebody wants the set to be stopped.
    pub(super) stays_down: Cell<bool>,
    pub(super) over: Cell<bool>,
    pub(super) changed: WaitQueue,
}

impl Engine {
    /// An engine without any part.
    pub fn new(env: &Env, options: Options, notify: Rc<Notify>) -> Rc<Engine> {
        Rc::new(Engine {
            env: env.clone(),
            options,
            notify,
            parts: RefCell::default(),
            set: RefCell::default(),
            claim: RefCell::default(),
            exposed: RefCell::default(),
            changing: Mutex::new(()),
            ending: Cell::new(false),
            stays_down: Cell::new(false),
            over: Cell::new(false),
            changed: WaitQueue::new(),
        })
    }

    /// Waits for the end.
    pub async fn ended(&self) {
        self.changed.wait_until(|| self.over.get()).await;
    }

    /// Takes a part in the background. One that is in use is left alone; any other is looked at again, for what its name
    /// leads to may have changed since, also while it was being looked at.
    pub fn register(self: &Rc<Self>, path: &Path) {
        if self.parts.borrow().get(path) != Some(&Standing::Active) {
            self.parts.borrow_mut().insert(path.to_owned(), Standing::New);
        }
        let (engine, path) = (Rc::clone(self), path.to_owned());
        self.env.spawn(async move { engine.take(path).await }).detach();
    }

    async fn take(self: Rc<Self>, path: PathBuf) {
        let _one = self.changing.lock().await;
        if self.ending.get() || self.parts.borrow().get(&path) == Some(&Standing::Active) {
            return;
        }
        let ran = self.set.borrow().is_some();
        let taken = self.take_part(&path).await;
        if !ran && self.set.borrow().is_some() {
            for waiting in self.waiting().into_iter().filter(|waiting| *waiting != path) {
                let taken = self.take_part(&waiting).await;
                self.note(waiting, taken);
            }
        }
        // Last: who waits for the cache waits for what it serves.
        self.note(path, taken);
        self.tell();
    }

    /// Backing devices that came before the cache, those too that nobody has looked at yet.
    fn waiting(&self) -> Vec<PathBuf> {
        let parts = self.parts.borrow();
        let waiting =
            parts.iter().filter(|(_, standing)| matches!(standing, Standing::Waiting | Standing::New));
        waiting.map(|(path, _)| path.clone()).collect()
    }

    fn note(&self, path: PathBuf, taken: Result<Standing>) {
        let standing = taken.unwrap_or_else(|error| {
            tracing::error!(device = %path.display(), "{error:#}");
            Standing::Failed(format!("{error:#}"))
        });
        self.parts.borrow_mut().insert(path, standing);
    }

    pub(super) async fn identify(&self, path: &Path) -> Result<Part> {
        let path = path.to_owned();
        self.env.offload(move || identify(&path)).await
    }

    async fn take_part(&self, path: &Path) -> Result<Standing> {
        let part = self.identify(path).await?;
        // What a name led to when it was registered may have made way for another disk since.
        if part.set != self.options.set {
            bail!("{}: belongs to set {} now", path.display(), part.set);
        }
        match part.role {
            Role::Cache => {
                self.start(&part).await?;
                Ok(Standing::Active)
            }
            Role::Backing(_) if self.set.borrow().is_some() => {
                self.attach(&part).await?;
                Ok(Standing::Active)
            }
            Role::Backing(_) => {
                if part.is_whole_alone() {
                    self.env.offload(move || expose::direct(&part)).await?;
                }
                Ok(Standing::Waiting)
            }
        }
    }

    /// Starts the set from its cache device.
    async fn start(&self, part: &Part) -> Result<()> {
        if self.set.borrow().is_some() {
            bail!("{}: the set has a cache device already", part.path.display());
        }
        self.notify.status("starting the set");
        let claim = self.claim_of(&part.path).await?;
        let device = self.open(&part.path).await?;
        let started = CacheSet::start(self.env.clone(), device, SetSettings::default()).await;
        let set = started.map_err(told)?;
        // Who uses its devices goes on when this process is killed.
        set.outlive();
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
        &self,
        set: &Rc<CacheSet>,
        device: Rc<Device>,
        claim: Option<Claim>,
    ) -> Result<()> {
        let name = device.label.get().to_text();
        let volume = Rc::new(DeviceVolume::new(Rc::clone(set), Rc::clone(&device), name));
        let exposed = Exposed::new(&self.env, device, volume, self.options.front, claim).await?;
        tracing::info!(name = exposed.name, below = exposed.front.kernel_name(), "in service");
        self.exposed.borrow_mut().push(exposed);
        Ok(())
    }

    pub(super) async fn open(&self, path: &Path) -> Result<Rc<dyn BlockDev>> {
        // The claim is held apart from this, so that it can be given up while requests go on.
        let mode = OpenMode { write: true, exclusive: false };
        let open = || async { open(&self.env, path, mode) };
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
        let names: Vec<String> = self.exposed.borrow().iter().map(|one| one.name.clone()).collect();
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
