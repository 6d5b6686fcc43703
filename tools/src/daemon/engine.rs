//! The set that a process serves: which parts are there, what runs, how it ends.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
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
use serde_json::{Value, json};
use uuid::Uuid;

use super::exposed::Exposed;
use super::notify::Notify;
use crate::control::{Reply, Request, server};
use crate::dm;
use crate::expose::{self, Claim};
use crate::identify::{Part, Role, identify};
use crate::serve::told;

/// How long a device that is in use is waited for: the kernel takes a moment to let go of what a killed process had.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// What the process was told.
pub struct Options {
    /// The set.
    pub set: Uuid,
    /// Requests under way a device.
    pub queue_depth: u16,
}

/// Where a part stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
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
    env: Env,
    options: Options,
    notify: Rc<Notify>,
    parts: RefCell<BTreeMap<PathBuf, Standing>>,
    set: RefCell<Option<Rc<CacheSet>>>,
    /// Keeps others away from the cache device.
    claim: RefCell<Option<Claim>>,
    exposed: RefCell<Vec<Exposed>>,
    /// Whoever changes what runs holds it.
    changing: Mutex<()>,
    ending: Cell<bool>,
    over: Cell<bool>,
    changed: WaitQueue,
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
            over: Cell::new(false),
            changed: WaitQueue::new(),
        })
    }

    /// Waits for the end.
    pub async fn ended(&self) {
        self.changed.wait_until(|| self.over.get()).await;
    }

    /// Takes a part in the background. One that is known and well is left alone.
    pub fn register(self: &Rc<Self>, path: &Path) {
        match self.parts.borrow_mut().entry(path.to_owned()) {
            Entry::Occupied(mut known) => match known.get() {
                Standing::Failed(_) => known.insert(Standing::New),
                _ => return,
            },
            Entry::Vacant(new) => new.insert(Standing::New).clone(),
        };
        let (engine, path) = (Rc::clone(self), path.to_owned());
        self.env.spawn(async move { engine.take(path).await }).detach();
    }

    async fn take(self: Rc<Self>, path: PathBuf) {
        let _one = self.changing.lock().await;
        if self.ending.get() {
            return;
        }
        let taken = self.take_part(&path).await;
        let standing = match taken {
            Ok(standing) => standing,
            Err(error) => {
                tracing::error!(device = %path.display(), "{error:#}");
                Standing::Failed(format!("{error:#}"))
            }
        };
        self.parts.borrow_mut().insert(path, standing);
        self.tell();
    }

    async fn take_part(self: &Rc<Self>, path: &Path) -> Result<Standing> {
        let owned = path.to_owned();
        let part = self.env.offload(move || identify(&owned)).await?;
        if part.set != self.options.set {
            bail!("{}: belongs to set {} now", path.display(), part.set);
        }
        match part.role {
            Role::Cache => {
                self.start(&part).await?;
                self.attach_waiting().await;
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
        let device = self.open(&part.path)?;
        let started = CacheSet::start(self.env.clone(), device, SetSettings::default()).await;
        let set = started.map_err(told)?;
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

    /// Backing devices that came before the cache.
    async fn attach_waiting(&self) {
        let waiting: Vec<PathBuf> = {
            let parts = self.parts.borrow();
            let waiting = parts.iter().filter(|(_, standing)| **standing == Standing::Waiting);
            waiting.map(|(path, _)| path.clone()).collect()
        };
        for path in waiting {
            let owned = path.clone();
            let attached = match self.env.offload(move || identify(&owned)).await {
                Ok(part) => self.attach(&part).await,
                Err(error) => Err(error),
            };
            let standing = match attached {
                Ok(()) => Standing::Active,
                Err(error) => {
                    tracing::error!(device = %path.display(), "{error:#}");
                    Standing::Failed(format!("{error:#}"))
                }
            };
            self.parts.borrow_mut().insert(path, standing);
        }
    }

    /// Attaches a backing device to the running set, and serves it.
    async fn attach(&self, part: &Part) -> Result<()> {
        let set = self.set.borrow().clone().context("the set does not run")?;
        let uuid = dm::uuid_of(part.uuid);
        let there = self.env.offload(move || dm::find(&uuid)).await?.is_some();
        // A device that is there without its cache holds the claim itself until its table is changed.
        let claim = match self
            .env
            .offload({
                let path = part.path.clone();
                move || Claim::take(&path)
            })
            .await
        {
            Ok(claim) => Some(claim),
            Err(error) if there && error.raw_os_error() == Some(libc::EBUSY) => None,
            Err(_) => Some(self.claim_of(&part.path).await?),
        };
        let device = set.attach(self.open(&part.path)?).await.map_err(told)?;
        self.expose(&set, Rc::clone(&device), claim).await?;
        self.reclaim(part, &device).await;
        Ok(())
    }

    /// Claims the backing device if its name led straight to it until now.
    async fn reclaim(&self, part: &Part, device: &Rc<Device>) {
        let unclaimed = |exposed: &Exposed| Rc::ptr_eq(&exposed.device, device) && exposed.claim.is_none();
        if !self.exposed.borrow().iter().any(unclaimed) {
            return;
        }
        match self.claim_of(&part.path).await {
            Ok(claim) => {
                if let Some(exposed) = self.exposed.borrow_mut().iter_mut().find(|exposed| unclaimed(exposed))
                {
                    exposed.claim = Some(claim);
                }
            }
            Err(error) => tracing::warn!("not protected from others: {error:#}"),
        }
    }

    async fn expose(&self, set: &Rc<CacheSet>, device: Rc<Device>, claim: Option<Claim>) -> Result<()> {
        let name = device.label.to_text();
        let volume = Rc::new(DeviceVolume::new(Rc::clone(set), Rc::clone(&device), name));
        let exposed = Exposed::new(&self.env, device, volume, self.options.queue_depth, claim).await?;
        tracing::info!(name = exposed.name, ublk = exposed.front.id(), "in service");
        self.exposed.borrow_mut().push(exposed);
        Ok(())
    }

    fn open(&self, path: &Path) -> Result<Rc<dyn BlockDev>> {
        // The claim is held apart from this, so that it can be given up while requests go on.
        let mode = OpenMode { write: true, exclusive: false };
        open(&self.env, path, mode).with_context(|| path.display().to_string())
    }

    async fn claim_of(&self, path: &Path) -> Result<Claim> {
        let mut waited = Duration::ZERO;
        loop {
            let owned = path.to_owned();
            match self.env.offload(move || Claim::take(&owned)).await {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && waited < PATIENCE => {
                    self.env.sleep(PAUSE).await;
                    waited += PAUSE;
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    bail!("{}: in use by somebody else", path.display())
                }
                other => return other.with_context(|| path.display().to_string()),
            }
        }
    }

    /// Stops everything. Refused, with nothing changed, while somebody has a device open.
    async fn stop(&self) -> Result<()> {
        let _one = self.changing.lock().await;
        if self.ending.get() {
            return Ok(());
        }
        if let Some(name) = self.in_use().await?.first() {
            bail!("/dev/mapper/{name} is in use; unmount it first");
        }
        self.notify.stopping();
        loop {
            let Some(next) = self.exposed.borrow_mut().pop() else { break };
            if let Err((back, error)) = next.remove(&self.env).await {
                let name = back.name.clone();
                self.exposed.borrow_mut().push(*back);
                return Err(error).context(format!("/dev/mapper/{name}"));
            }
        }
        self.finish().await
    }

    /// Names of devices that somebody has open.
    async fn in_use(&self) -> Result<Vec<String>> {
        let uuids: Vec<Uuid> = self.exposed.borrow().iter().map(|one| one.device.uuid).collect();
        let found = self.env.offload(move || {
            uuids.into_iter().map(|uuid| dm::find(&dm::uuid_of(uuid))).collect::<io::Result<Vec<_>>>()
        });
        let devices = found.await.context("device-mapper")?;
        let open = devices.into_iter().flatten().filter(|device| device.open_count > 0);
        Ok(open.map(|device| device.name).collect())
    }

    /// Ends the process in order and leaves all devices to a successor: requests wait for it.
    async fn hand_over(&self) -> Result<()> {
        let _one = self.changing.lock().await;
        if self.ending.get() {
            return Ok(());
        }
        self.notify.status("handing over");
        let exposed = std::mem::take(&mut *self.exposed.borrow_mut());
        for one in &exposed {
            one.front.freeze().await;
        }
        self.finish().await
    }

    async fn finish(&self) -> Result<()> {
        self.ending.set(true);
        let set = self.set.borrow_mut().take();
        let stopped = match set {
            Some(set) => set.stop().await.map_err(told),
            None => Ok(()),
        };
        if let Err(error) = &stopped {
            tracing::error!("the set did not stop cleanly: {error:#}");
        }
        self.over.set(true);
        self.changed.wake_all();
        stopped
    }

    /// What a request to end from outside means: everything stops if nobody uses it, and waits for a successor if
    /// somebody does.
    pub async fn end_for_now(&self) {
        let idle = self.in_use().await.is_ok_and(|names| names.is_empty());
        let ended = if idle { self.stop().await } else { self.hand_over().await };
        if let Err(error) = ended {
            tracing::error!("{error:#}");
        }
    }

    /// Tells whoever started us how things are.
    fn tell(&self) {
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

    fn status(&self) -> Value {
        let parts: Vec<Value> = self
            .parts
            .borrow()
            .iter()
            .map(|(path, standing)| {
                let (word, why) = match standing {
                    Standing::New => ("new", None),
                    Standing::Waiting => ("waiting", None),
                    Standing::Active => ("active", None),
                    Standing::Failed(why) => ("failed", Some(why.as_str())),
                };
                json!({"device": path, "standing": word, "error": why})
            })
            .collect();
        let exposed: Vec<Value> = self
            .exposed
            .borrow()
            .iter()
            .map(|one| json!({"name": one.name, "uuid": one.device.uuid, "ublk": one.front.id()}))
            .collect();
        json!({"set": self.options.set, "running": self.set.borrow().is_some(), "pid": std::process::id(),
            "parts": parts, "devices": exposed})
    }
}

impl server::Service for Engine {
    async fn answer(self: Rc<Self>, request: Request) -> Reply {
        let done = |result: Result<()>| match result {
            Ok(()) => Reply::Ok(Value::Null),
            Err(error) => Reply::Error(format!("{error:#}")),
        };
        match request {
            Request::Register { device } => {
                self.register(&device);
                Reply::Ok(Value::Null)
            }
            Request::Status => Reply::Ok(self.status()),
            Request::Stop => done(self.stop().await),
            Request::HandOver => done(self.hand_over().await),
        }
    }
}
