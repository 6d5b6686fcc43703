//! The engine process of a cache set: `bcache-engine`.
//!
//! One process serves one set, on one thread. Parts come in any order and at any time; the set starts when its cache is
//! there, and each backing device is served as soon as it is there, too. What must survive the process is in the
//! devices, in the kernel (ublk and device-mapper devices) and in the list of parts ([`crate::control::paths`]).
//!
//! # Pieces, and who meets whom
//!
//! - A *part* ([`crate::identify::Part`]) is a device of a set, as its superblock has it. `crate::register` names parts to
//!   the process over the control socket, where `answers` takes them, and `host` and `attach` open them.
//! - `host::Host` is the process: its parts, the `CacheSet` that runs when there is a cache, and what it shows.
//! - An *export* (`export::Export`) is one device that is shown: the set's device, its front, its switch, its claim.
//! - A *front* (`front::Front`) is the block device below a name: one of the two drivers of [`crate::frontend`].
//! - A *switch* (`switch::Switch`) is the volume that a front serves: it leads requests to whatever answers them now, the
//!   set's volume, the backing device alone (`alone`), or nobody yet.
//! - The name in `/dev/mapper` is `crate::dm`'s, led to a front or straight to a disk by `crate::expose`.
//! - `end` and `succession` are how a process ends and the next one comes; `start`, `initramfs`, `confine` how it begins.

mod alone;
mod answers;
mod attach;
mod confine;
mod end;
mod export;
mod front;
mod grow;
mod host;
mod initramfs;
mod locks;
mod notify;
mod resize;
mod start;
mod succession;
mod switch;

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bcache_engine::env::{Env, Runtime, Signals};
use uuid::Uuid;

use crate::config::{self, Config};
use crate::control::{paths, server};
use crate::frontend::Driver;
pub use confine::try_forbidden;
use host::{Host, Options};
use notify::Notify;
pub use succession::check;

/// What the process is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The set.
    pub set: Uuid,
    /// Requests under way a device.
    pub queue_depth: u16,
    /// How long requests wait for parts that are not there, before they fail.
    pub patience: Duration,
    /// How long a backing device with nothing dirty waits for its cache before it goes on without it; nothing: for ever.
    pub missing_cache: Option<Duration>,
}

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nobody has to do anything.
    Done,
    /// It is to be started again: the unit's `RestartForceExitStatus`.
    Restart,
}

/// Runs until the set is stopped, or handed over to a successor.
///
/// # Errors
/// Another process has the set, or the system lacks something.
pub fn run(settings: &Settings, succeed: bool) -> Result<End> {
    paths::prepare().context(paths::DIR)?;
    // This program and its configuration may be on a device of the set: while nobody serves that, nothing of them can be read.
    start::prepare();
    let config = config::read(Path::new(config::PATH));
    if succeed {
        succession::take_turn(settings.set)?;
    }
    let Some(_alone) = succession::lock(settings.set, succeed)? else {
        if succeed {
            bail!("the process that serves the set does not end");
        }
        tracing::info!("another process serves this set already");
        return Ok(End::Done);
    };
    if succeed && paths::is_stopped(settings.set) {
        tracing::info!("somebody stopped the set meanwhile");
        return Ok(End::Done);
    }
    paths::clear_stopped(settings.set).context(paths::DIR)?;
    let mut settings = settings.clone();
    if initramfs::is_one() {
        settings.missing_cache = settings.missing_cache.map(|patience| patience.min(initramfs::PATIENCE));
    }
    let settings = &settings;
    for fault in &config.faults {
        tracing::error!("{}: {fault}", config::PATH);
    }
    if let Err(error) = initramfs::leave() {
        tracing::warn!("once the initramfs is gone, devices that come later will not be found: {error:#}");
    }
    let runtime = Runtime::new().context("no runtime")?;
    let driver = front::choose(runtime.backend())?;
    crate::dm::available().context("device-mapper")?;
    let env = runtime.env();
    let signals = Signals::termination(&env).context("signals")?;
    let served = runtime.block_on(serve(&env, signals, settings, config, driver));
    // A runtime that is dropped waits for what is under way. Devices left to a successor wait for the end of this
    // process instead; everything else has been waited for.
    std::mem::forget(runtime);
    served
}

async fn serve(
    env: &Env,
    signals: Signals,
    settings: &Settings,
    config: Config,
    driver: Driver,
) -> Result<End> {
    let socket = paths::socket(settings.set);
    let listener = server::bind(env, &socket).with_context(|| socket.display().to_string())?;
    let notify = Rc::new(Notify::from_environment());
    // Before any other thread runs, and before any device is opened.
    confine::confine().context("giving up privileges")?;
    crate::log::start().context("a thread for the log")?;
    let Settings { set, queue_depth, patience, missing_cache } = *settings;
    let options = Options { set, patience, missing_cache, front: (driver, queue_depth) };
    let host = Host::new(env, options, config, Rc::clone(&notify));
    env.spawn(server::serve(env.clone(), listener, Rc::clone(&host))).detach();
    notify.ready();
    if let Some(interval) = notify.interval() {
        let (env, notify) = (env.clone(), Rc::clone(&notify));
        let task = env.clone();
        task.spawn(async move {
            loop {
                notify.alive();
                env.sleep(interval).await;
            }
        })
        .detach();
    }
    let parts = paths::parts(settings.set).context("the list of parts")?;
    host.begin(paths::devices(settings.set), parts);
    let asked = Rc::clone(&host);
    env.spawn(async move {
        while let Ok(signal) = signals.next().await {
            tracing::info!(%signal, "asked to end");
            asked.end_for_now().await;
        }
    })
    .detach();
    host.ended().await;
    let _ = std::fs::remove_file(&socket);
    if host.stays_down.get() {
        paths::clear_engine(set);
    }
    Ok(if host.restarts.get() { End::Restart } else { End::Done })
}
