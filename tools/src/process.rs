//! The engine's process: started by systemd or by ourselves, checked before it takes another's place, and replaced.

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
use uuid::Uuid;

use crate::control::client::Client;
use crate::control::paths;

/// How long a process that was started is waited for until it listens, so that one that cannot start is told.
const START: Duration = Duration::from_secs(20);
/// How long a new program may take to show that it can serve a set.
const CHECK: Duration = Duration::from_secs(60);
/// systemd's unit for a set, without the instance.
const UNIT: &str = "bcache@";
/// Where units are.
const UNIT_DIRS: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
/// Between two looks.
const STEP: Duration = Duration::from_millis(20);

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
