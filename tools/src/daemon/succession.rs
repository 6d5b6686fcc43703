//! How a process takes the place of another: it shows first that it can serve the set, then asks the other to end.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bcache_engine::dev::{OpenMode, open};
use bcache_engine::env::{Env, Runtime};
use bcache_engine::set::read_superblock;
use nix::fcntl::Flock;
use serde_json::{Value, json};
use uuid::Uuid;

use super::front;
use crate::control::client::{self, Client, Refused};
use crate::control::{Request, paths};
use crate::identify::{Part, Role};
use crate::queue::Queue;
use crate::serve::told;

/// How long a part has for its superblock to be read.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the predecessor has to be gone.
const END: Duration = Duration::from_secs(60);
/// How long a predecessor that refuses is watched: one that could not end in order ends all the same.
const REFUSED: Duration = Duration::from_secs(5);
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
    let told = client::status(set).unwrap_or_default();
    let mut cache = false;
    for path in paths::parts(set).context("the list of parts")? {
        match part(env, &path).await {
            Ok(part) => cache |= part.role == Role::Cache && part.set == set,
            // Nobody misses what the predecessor does not use either.
            Err(error) if is_unused(&told, &path) => {
                tracing::warn!("listed, not in use, and does not work: {error:#}");
            }
            Err(error) => return Err(error),
        }
    }
    if !cache {
        bail!("its cache is not there");
    }
    Ok(())
}

async fn part(env: &Env, path: &Path) -> Result<Part> {
    let name = || path.display().to_string();
    let device = open(env, path, OpenMode::READ_ONLY).with_context(name)?;
    let Ok(read) = env.timeout(PATIENCE, read_superblock(&device)).await else {
        bail!("{}: does not answer", path.display());
    };
    let (sb, _) = read.map_err(told)?;
    let part = Part::of(path, &sb)?;
    // Who has it open for writing still reads it; nobody else gets it so.
    if Queue::of(part.device).is_read_only() {
        bail!("{}: read-only", path.display());
    }
    Ok(part)
}

/// Whether an engine says of itself that it does not use a part. One that it still looks at may be in use as soon as it
/// answers.
fn is_unused(status: &Value, path: &Path) -> bool {
    let Some(parts) = status["parts"].as_array() else { return false };
    let needed = ["active", "waiting", "new"].map(Value::from);
    !parts.iter().any(|part| part["device"] == json!(path) && needed.contains(&part["standing"]))
}

/// Asks the process that serves the set to hand it over, and waits for its end.
///
/// # Errors
/// This program could not serve the set, or the other one refuses: it goes on.
pub(super) fn take_turn(set: Uuid) -> Result<()> {
    check(set)?;
    let Some(mut predecessor) = Client::connect(set)? else { return Ok(()) };
    // It has been told from here on, whatever it answers: whether it goes is seen by its lock.
    match predecessor.ask(&Request::HandOver) {
        Err(error) if error.is::<Refused>() && !ends(set)? => return Err(error),
        Err(error) => tracing::warn!("the predecessor did not end in order: {error:#}"),
        Ok(_) => {}
    }
    predecessor.wait_for_end();
    Ok(())
}

/// Whether the process that serves the set ends within a few seconds.
fn ends(set: Uuid) -> Result<bool> {
    let start = Instant::now();
    while start.elapsed() < REFUSED {
        if Client::connect(set)?.is_none() {
            return Ok(true);
        }
        std::thread::sleep(STEP);
    }
    Ok(false)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_predecessor_uses_is_missed() {
        let status = json!({"parts": [
            {"device": "/dev/a", "standing": "active"},
            {"device": "/dev/b", "standing": "failed"},
            {"device": "/dev/c", "standing": "alone"},
            {"device": "/dev/e", "standing": "new"},
        ]});
        for (path, unused) in
            [("/dev/a", false), ("/dev/b", true), ("/dev/c", true), ("/dev/d", true), ("/dev/e", false)]
        {
            assert_eq!(is_unused(&status, Path::new(path)), unused, "{path}");
        }
        // Nobody says anything: all that is listed may be in use.
        assert!(!is_unused(&Value::Null, Path::new("/dev/d")));
    }
}
