//! How a process takes the place of another: it shows first that it can serve the set, then asks the other to end.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bcache_engine::dev::{OpenMode, open};
use bcache_engine::env::{Env, Runtime};
use bcache_engine::set::read_superblock;
use nix::fcntl::Flock;
use uuid::Uuid;

use super::front;
use crate::control::client::Client;
use crate::control::{Request, paths};
use crate::identify::{Part, Role};
use crate::serve::told;

/// How long a part has for its superblock to be read.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the predecessor has to be gone.
const END: Duration = Duration::from_secs(60);
/// Between two looks.
const STEP: Duration = Duration::from_millis(10);

/// Whether this program could serve the set that another process serves now: drivers, and every part, can be used.
/// Nothing is written, and nobody is disturbed.
///
/// # Errors
/// It could not; the first reason.
pub fn check(set: Uuid) -> Result<()> {
    let runtime = Runtime::new().context("no runtime")?;
    front::choose(runtime.backend())?;
    crate::dm::available().context("device-mapper")?;
    let env = runtime.env();
    let checked = runtime.block_on(parts(&env, set));
    // A read of a disk that hangs is not waited for.
    std::mem::forget(runtime);
    checked
}

async fn parts(env: &Env, set: Uuid) -> Result<()> {
    let mut cache = false;
    for path in paths::parts(set).context("the list of parts")? {
        let name = || path.display().to_string();
        let device = open(env, &path, OpenMode::READ_ONLY).with_context(name)?;
        let Ok(read) = env.timeout(PATIENCE, read_superblock(&device)).await else {
            bail!("{}: does not answer", path.display());
        };
        let (sb, _) = read.map_err(told)?;
        let part = Part::of(&path, &sb)?;
        cache |= part.role == Role::Cache && part.set == set;
    }
    if !cache {
        bail!("its cache is not there");
    }
    Ok(())
}

/// Asks the process that serves the set to hand it over, and waits for its end.
///
/// # Errors
/// This program could not serve the set, or the other one refuses: it goes on.
pub(super) fn take_turn(set: Uuid) -> Result<()> {
    check(set)?;
    let Some(mut predecessor) = Client::connect(set)? else { return Ok(()) };
    // It has been told from here on, whatever it answers: whether it goes is seen by its lock.
    if let Err(error) = predecessor.ask(&Request::HandOver) {
        tracing::warn!("the predecessor did not end in order: {error:#}");
    }
    predecessor.wait_for_end();
    Ok(())
}

/// The lock of the set's engine; whoever succeeds another waits for it.
///
/// # Errors
/// The file cannot be made.
pub(super) fn lock(set: Uuid, patient: bool) -> Result<Option<Flock<File>>> {
    let start = Instant::now();
    loop {
        match paths::lock_engine(set)? {
            None if patient && start.elapsed() < END => std::thread::sleep(STEP),
            lock => return Ok(lock),
        }
    }
}
