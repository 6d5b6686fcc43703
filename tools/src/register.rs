//! Registering a device: finding out what it is, and seeing to it that whoever serves it knows.

use nix::fcntl::Flock;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::control::client::{Client, status};
use crate::control::{Request, paths};
use crate::expose;
use crate::identify::{Part, Role, identify};
use crate::kept;
use crate::module;
use crate::process::start_engine;

/// How long a part is waited for: reading a large set takes its time.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks.
const STEP: Duration = Duration::from_millis(20);

/// What came of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is there, under this name, without a cache.
    Alone(String),
    /// The set's engine has it now, or will have it in a moment.
    Handed(Uuid),
    /// The kernel has it.
    Kernel,
    /// Its set was stopped, and is left so.
    Stopped(Uuid),
}

/// Registers a device with our engine; with `unless_stopped` not if somebody stopped its set.
///
/// What the device is, is found out; then it is handed to the process that serves its set; where there is none, a device
/// that needs none is shown as it is, and for any other a process is started.
///
/// # Errors
/// It is not one of bcache's, the kernel has it, or no engine can be started.
pub fn register(path: &Path, unless_stopped: bool) -> Result<Outcome> {
    let (part, _one) = identify_locked(path)?;
    match hand_over(&part, unless_stopped)? {
        Handed::To(outcome) => return Ok(outcome),
        Handed::NobodyServes => {}
    }
    if part.is_whole_alone()
        && let Some(outcome) = show_alone(&part)?
    {
        return Ok(outcome);
    }
    start_engine(part.set)?;
    ask_to_register(&part)?;
    Ok(Outcome::Handed(part.set))
}

/// What a device is, and the lock of its set's registrations.
fn identify_locked(path: &Path) -> Result<(Part, Flock<File>)> {
    // Links move; what the list of parts says must stay true.
    let path = std::fs::canonicalize(path).with_context(|| path.display().to_string())?;
    let part = identify(&path)?;
    if part.is_kernels() {
        bail!(
            "{}: the kernel's bcache has it; stop it there first (echo 1 > {})",
            path.display(),
            part.kernels_stop()
        );
    }
    paths::prepare().context(paths::DIR)?;
    let one = paths::lock_registration(part.set)?;
    // Looked at again: until now an engine may have been at work, and have left dirty data.
    match identify(&path)? {
        now if now.set == part.set => Ok((now, one)),
        now => bail!("{}: attached to set {} meanwhile", path.display(), now.set),
    }
}

/// What came of handing a part to its set's process.
enum Handed {
    /// It is settled who has it.
    To(Outcome),
    /// No process serves the set, which is to be served: the part is in its list.
    NobodyServes,
}

fn hand_over(part: &Part, unless_stopped: bool) -> Result<Handed> {
    let set = part.set;
    if ask_to_register(part)? {
        return Ok(Handed::To(Outcome::Handed(set)));
    }
    // An engine says so before it stops listening.
    if unless_stopped && paths::is_stopped(set) {
        return Ok(Handed::To(Outcome::Stopped(set)));
    }
    paths::clear_stopped(set).context(paths::DIR)?;
    paths::add_part(set, &part.path).context("the list of parts")?;
    // One that listens by now may have read the list before.
    Ok(if ask_to_register(part)? { Handed::To(Outcome::Handed(set)) } else { Handed::NobodyServes })
}

/// Gives a part to the process of its set. Whether there is one.
fn ask_to_register(part: &Part) -> Result<bool> {
    let Some(mut engine) = Client::connect(part.set)? else { return Ok(false) };
    paths::add_part(part.set, &part.path).context("the list of parts")?;
    engine.ask(&Request::Register { device: part.path.clone() })?;
    Ok(true)
}

/// Shows a backing device that has all of its data, with no process below its name. Nothing if one of its own set has to
/// answer first.
fn show_alone(part: &Part) -> Result<Option<Outcome>> {
    module::load("dm_mod", "/dev/mapper/control");
    Ok(match left_by(part)? {
        None => Some(Outcome::Alone(expose::direct(part)?)),
        Some(other) if other != part.set => Some(take_place(other, &part.path)?),
        Some(_) => None,
    })
}

/// The set whose process died and left requests of a device unanswered. Its name cannot lead elsewhere before they are, and
/// only a process in the place of that one answers them.
fn left_by(part: &Part) -> Result<Option<Uuid>> {
    if !expose::is_left_behind(part.uuid).context("device-mapper")? {
        return Ok(None);
    }
    let sets = paths::sets_with_devices().context(paths::DIR)?;
    Ok(sets.into_iter().find(|set| paths::devices(*set).contains(&part.uuid)))
}

/// Sees to it that an engine takes the place of one that died, and what that one had of a device.
fn take_place(set: Uuid, path: &Path) -> Result<Outcome> {
    // The caller has that of what the device says now. Nobody who has this one waits for that.
    let _one = paths::lock_registration(set)?;
    paths::add_part(set, path).context("the list of parts")?;
    if Client::connect(set)?.is_none() {
        start_engine(set)?;
    }
    if let Some(mut engine) = Client::connect(set)? {
        engine.ask(&Request::Register { device: path.to_owned() })?;
    }
    Ok(Outcome::Handed(set))
}

/// Waits until a set's engine is done with a part: it is in use, or waits for others.
///
/// # Errors
/// The part cannot be used, or nobody says how it is.
pub fn wait(set: Uuid, path: &Path) -> Result<()> {
    let path = std::fs::canonicalize(path).with_context(|| path.display().to_string())?;
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        // It may be about to begin.
        let status = status(set)?;
        let parts = status.get("parts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let part = parts.iter().find(|part| part["device"] == json!(path));
        match part.and_then(|part| part["standing"].as_str()) {
            Some("active" | "waiting" | "alone") => return Ok(()),
            Some("failed") => bail!("{}", part.and_then(|part| part["error"].as_str()).unwrap_or_default()),
            _ => std::thread::sleep(STEP),
        }
    }
    bail!("{}: still not in use after {} s; bcache status says why", path.display(), PATIENCE.as_secs())
}

/// Lets a backing device run without its cache, for good: what the cache has of it is never used again.
///
/// # Errors
/// It is no backing device, somebody has it, or `lose_dirty` is not set and its newest data is in the cache.
pub fn run_alone(path: &Path, lose_dirty: bool) -> Result<Outcome> {
    let path = std::fs::canonicalize(path).with_context(|| path.display().to_string())?;
    paths::prepare().context(paths::DIR)?;
    let _one = paths::lock_registration(identify(&path)?.set)?;
    let part = identify(&path)?;
    if !matches!(part.role, Role::Backing(_)) {
        bail!("{}: a cache device, not a backing device", path.display());
    }
    if Client::connect(part.set)?.is_some() {
        bail!("{}: its set {} is being served; stop it first (bcache stop)", path.display(), part.set);
    }
    if !part.is_whole_alone() {
        say_stale(&part, lose_dirty)?;
    }
    paths::add_part(part.set, &path).context("the list of parts")?;
    module::load("dm_mod", "/dev/mapper/control");
    Ok(Outcome::Alone(expose::direct(&part)?))
}

/// Says, durably, that the device ran without its cache, before anybody can write to it. Its state is looked at while
/// nobody else can have it: an engine may have ended since the device was identified, and have left dirty data.
fn say_stale(part: &Part, lose_dirty: bool) -> Result<()> {
    use bcache_format::superblock::{SB_BYTES, SB_OFFSET, Superblock};
    use std::os::unix::fs::FileExt;
    let name = || part.path.display().to_string();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(&part.path)
        .with_context(name)?;
    // What is read may have been written by a process that died before it was durable.
    file.sync_all().with_context(name)?;
    let mut block = vec![0; SB_BYTES];
    file.read_exact_at(&mut block, SB_OFFSET).with_context(name)?;
    let mut sb = Superblock::parse(&block).map_err(|error| anyhow::anyhow!("{}: {error}", name()))?;
    let changed = bcache_engine::set::leave_cache(&mut sb, lose_dirty).map_err(|_| {
        anyhow::anyhow!(
            "{}: its newest data is in the cache and would be lost for good; register the cache, or add \
            --lose-dirty-data",
            name()
        )
    })?;
    if changed {
        sb.write_to(&mut block).map_err(|error| anyhow::anyhow!("{}: {error}", name()))?;
        file.write_all_at(&block, SB_OFFSET).with_context(name)?;
    }
    file.sync_all().with_context(name)
}

/// Hands a device to the kernel's bcache.
///
/// # Errors
/// Our engine has it, or the kernel refuses.
pub fn register_with_kernel(path: &Path) -> Result<Outcome> {
    const REGISTER: &str = "/sys/fs/bcache/register";
    let path = std::fs::canonicalize(path).with_context(|| path.display().to_string())?;
    let part = identify(&path)?;
    if part.is_kernels() {
        return Ok(Outcome::Kernel);
    }
    let uuid = crate::dm::uuid_of(part.uuid);
    let served = Client::connect(part.set).ok().flatten().is_some();
    if served || crate::dm::find(&uuid).ok().flatten().is_some() {
        bail!("{}: served by bcache-engine; stop it first (bcache stop {})", path.display(), part.set);
    }
    kept::refuse_path_if_ahead(&path)?;
    module::load("bcache", REGISTER);
    std::fs::write(REGISTER, path.as_os_str().as_encoded_bytes())
        .with_context(|| format!("{}: the kernel refuses it; dmesg says why", path.display()))?;
    Ok(Outcome::Kernel)
}
