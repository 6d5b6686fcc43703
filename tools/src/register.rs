//! Registering a device: finding out what it is, and seeing to it that whoever serves it knows.
//!
//! Long because a part meets many states of its set, and each has its own way.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::mman::{MlockAllFlags, mlockall};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::control::client::{Client, status};
use crate::control::{Request, paths};
use crate::expose;
use crate::identify::{Part, Role, identify};
use crate::kept;
use crate::module;

/// How long a process that was started is waited for until it listens, so that one that cannot start is told.
const START: Duration = Duration::from_secs(20);
/// How long a part is waited for: reading a large set takes its time.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a new program may take to show that it can serve a set.
const CHECK: Duration = Duration::from_secs(60);
/// Between two looks.
const STEP: Duration = Duration::from_millis(20);
/// systemd's unit for a set, without the instance.
const UNIT: &str = "bcache@";
/// Where units are.
const UNIT_DIRS: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

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
/// # Errors
/// It is not one of bcache's, the kernel has it, or no engine can be started.
pub fn register(path: &Path, unless_stopped: bool) -> Result<Outcome> {
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
    let _one = paths::lock_registration(part.set)?;
    // Looked at again: until now an engine may have been at work, and have left dirty data.
    let part = match identify(&path)? {
        now if now.set == part.set => now,
        now => bail!("{}: attached to set {} meanwhile", path.display(), now.set),
    };
    let set = part.set;
    let hand = || -> Result<bool> {
        let Some(mut engine) = Client::connect(set)? else { return Ok(false) };
        paths::add_part(set, &path).context("the list of parts")?;
        engine.ask(&Request::Register { device: path.clone() })?;
        Ok(true)
    };
    if hand()? {
        return Ok(Outcome::Handed(set));
    }
    // An engine says so before it stops listening.
    if unless_stopped && paths::is_stopped(set) {
        return Ok(Outcome::Stopped(set));
    }
    paths::clear_stopped(set).context(paths::DIR)?;
    paths::add_part(set, &path).context("the list of parts")?;
    // One that listens by now may have read the list before.
    if hand()? {
        return Ok(Outcome::Handed(set));
    }
    if part.is_whole_alone() {
        module::load("dm_mod", "/dev/mapper/control");
        match left_by(&part)? {
            None => return Ok(Outcome::Alone(expose::direct(&part)?)),
            Some(other) if other != set => return take_place(other, &path),
            Some(_) => {}
        }
    }
    start_engine(set)?;
    hand()?;
    Ok(Outcome::Handed(set))
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

/// Starts the engine process of a set: by systemd where it runs, else by ourselves.
///
/// # Errors
/// It cannot be started, or ends at once.
pub fn start_engine(set: Uuid) -> Result<()> {
    if has_systemd() {
        let unit = format!("{UNIT}{set}.service");
        if !is_startable(set, &unit)? {
            return Ok(());
        }
        // The process reads the list of parts when it starts: nobody has to wait for it.
        let status = Command::new("systemctl").args(["start", "--no-block", &unit]).status();
        return match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => bail!("systemctl start {unit}: {status}"),
            Err(error) => Err(error).context("systemctl"),
        };
    }
    let program = program().context("where bcache-engine is")?;
    let mut child = spawn(&program, set, &[])?;
    let start = Instant::now();
    while start.elapsed() < START {
        if Client::connect(set)?.is_some() {
            return Ok(());
        }
        if let Some(status) = child.try_wait()?
            && !status.success()
        {
            bail!("bcache-engine ended with {status}; {} says why", paths::log(set).display());
        }
        std::thread::sleep(STEP);
    }
    // It is slow, not gone. It reads the list of parts when it comes to that, so nobody has to wait for it.
    tracing::warn!(%set, "bcache-engine is slow to start");
    Ok(())
}

/// Starts a program as the engine of `set`.
fn spawn(program: &Path, set: Uuid, more: &[&str]) -> Result<Child> {
    let log = || -> io::Result<File> {
        File::options().append(true).create(true).mode(0o600).open(paths::log(set))
    };
    let (out, err) = (log()?, log()?);
    // Whoever ends all processes when the machine leaves its initramfs, or shuts down, spares those that begin with @.
    // A group of its own: what ends a command at a terminal must not end what it started.
    Command::new(program)
        .arg0("@bcache-engine")
        .args(["--set", &set.to_string()])
        .args(more)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .with_context(|| program.display().to_string())
}

/// Whether the program that is installed now could serve `set` in the place of the process that does.
///
/// # Errors
/// It cannot run, or could not; what it says.
pub fn check_program(set: Uuid) -> Result<()> {
    let program = program().context("where bcache-engine is")?;
    let set = set.to_string();
    for args in [&["--version"][..], &["--set", &set, "--check"]] {
        let done = output(&program, args).with_context(|| program.display().to_string())?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            bail!("{} {}: {}\n{}", program.display(), args.join(" "), done.status, said.trim_end());
        }
    }
    Ok(())
}

/// What a program that is not trusted to end says.
fn output(program: &Path, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let (mut child, start) = (command.spawn()?, Instant::now());
    while child.try_wait()?.is_none() {
        if start.elapsed() > CHECK {
            child.kill()?;
            bail!("it does not end");
        }
        std::thread::sleep(STEP);
    }
    Ok(child.wait_with_output()?)
}

/// A process that takes the place of the one that serves `set`.
pub struct Successor {
    child: Child,
    set: Uuid,
    /// The program that serves the set now, whatever was installed over it.
    before: Option<File>,
}

impl Successor {
    /// Starts it. From here on nothing depends on who called this.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(set: Uuid, pid: u64) -> Result<Successor> {
        let before = File::open(format!("/proc/{pid}/exe")).ok();
        let program = program().context("where bcache-engine is")?;
        Ok(Successor { child: spawn(&program, set, &["--succeed"])?, set, before })
    }

    /// Looks whether it still lives. If not, and the one before has gone already, that one's program is started again.
    ///
    /// # Errors
    /// It has ended.
    pub fn look(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let log = paths::log(self.set);
        if Client::connect(self.set)?.is_some() {
            bail!(
                "the new engine ended with {status}, and the one before goes on; {} says why",
                log.display()
            );
        }
        if paths::is_stopped(self.set) {
            bail!("somebody stopped the set meanwhile");
        }
        let before = self.before.take().context("the new engine ended, and nobody serves the set now")?;
        spawn(Path::new(&format!("/proc/self/fd/{}", before.as_raw_fd())), self.set, &[])?;
        bail!(
            "the new engine ended with {status}, and the one before was started again; {} says why",
            log.display()
        );
    }
}

/// Whether systemd watches over the set's engine: then it starts the next one, too.
#[must_use]
pub fn is_systemds(set: Uuid) -> bool {
    has_systemd() && show(&format!("{UNIT}{set}.service")).is_ok_and(|state| state.trim_ascii() == b"active")
}

/// Whether systemd starts engines here.
#[must_use]
pub fn systemd_starts() -> bool {
    has_systemd()
}

/// Waits until systemd knows of the end of a process that listens no more: while it takes the unit for active it starts
/// nothing. Not if somebody listens: then there is nothing to start.
fn is_startable(set: Uuid, unit: &str) -> Result<bool> {
    let start = Instant::now();
    while start.elapsed() < START {
        let state = show(unit)?;
        // Asked last: it listens before systemd takes it for active.
        if Client::connect(set)?.is_some() {
            return Ok(false);
        }
        if !matches!(state.trim_ascii(), b"active" | b"deactivating") {
            break;
        }
        std::thread::sleep(STEP);
    }
    Ok(true)
}

/// Reads what starting an engine needs into memory, and keeps this process there.
pub fn read_ahead(set: Uuid) {
    // What fails here is read when it is needed.
    let _ = mlockall(MlockAllFlags::MCL_CURRENT);
    if let Ok(program) = program() {
        let _ = std::fs::read(&program);
        let _ = Command::new(program).arg("--version").output();
    }
    if has_systemd() {
        let _ = show(&format!("{UNIT}{set}.service"));
    }
}

/// How systemd sees a unit.
fn show(unit: &str) -> Result<Vec<u8>> {
    let shown = Command::new("systemctl").args(["show", "--value", "--property=ActiveState", unit]).output();
    Ok(shown.context("systemctl")?.stdout)
}

fn has_systemd() -> bool {
    let installed = |dir: &str| Path::new(dir).join(format!("{UNIT}.service")).exists();
    // What systemd itself looks at to say whether it runs.
    Path::new("/run/systemd/system").is_dir() && UNIT_DIRS.iter().any(|dir| installed(dir))
}

/// `bcache-engine`, beside the running program.
fn program() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("bcache-engine"))
}
