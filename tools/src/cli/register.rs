//! `bcache-register` and `bcache register`: makes the parts of cache sets known to whoever serves them.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use super::{Out, Outcome};
use crate::register::{self, Outcome as Registered};

/// Who is to serve a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineChoice {
    /// bcache-engine, one process a set
    User,
    /// The kernel's bcache
    Kernel,
}

/// Make devices known: a set starts when its cache is there, a device appears when it can be served
///
/// Devices may come one by one, in any order, again, and from several callers at once. A backing device whose newest
/// data is in the cache waits for the cache. The work goes on in the set's engine process; `bcache status` shows it.
/// Exit code 0 when all devices were taken, 1 when one was not.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bcache-register /dev/nvme0n1p2 /dev/sdb\n  \
    bcache-register --wait /dev/nvme0n1p2 /dev/sdb && mount /dev/mapper/data /mnt\n  \
    bcache-register --engine kernel /dev/sdb\n  bcache-register --without-cache /dev/sdb")]
pub struct Args {
    /// Who serves the set
    #[arg(long, value_enum, value_name = "WHO", default_value = "user")]
    engine: EngineChoice,
    /// Run a backing device alone from now on: what the cache has of it is never used again
    #[arg(long, conflicts_with = "engine")]
    without_cache: bool,
    /// With --without-cache: even if the newest data is in the cache, which is lost for good
    #[arg(long, requires = "without_cache")]
    lose_dirty_data: bool,
    /// Do nothing if somebody stopped the set. For udev rules: a device that is closed after a write looks changed to udev
    #[arg(long, conflicts_with_all = ["engine", "without_cache"])]
    unless_stopped: bool,
    /// Wait until the devices are in use, or wait for others, or cannot be used
    #[arg(short, long, conflicts_with = "engine")]
    wait: bool,
    /// Print nothing when all is well
    #[arg(short, long)]
    quiet: bool,
    /// Cache and backing devices
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// `bcache-register`.
#[derive(Debug, Parser)]
#[command(
    name = "bcache-register",
    version,
    about = "Make devices known: a set starts when its cache is there"
)]
pub struct Program {
    #[command(flatten)]
    args: Args,
}

/// Runs `bcache-register`.
pub fn run_program(program: Program, out: &mut Out) -> Outcome {
    run(program.args, out)
}

/// Registers.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let mut code = ExitCode::SUCCESS;
    let mut handed = Vec::new();
    for path in &args.devices {
        let registered = match (args.engine, args.without_cache) {
            (EngineChoice::Kernel, _) => register::register_with_kernel(path),
            (_, true) => register::run_alone(path, args.lose_dirty_data),
            (EngineChoice::User, false) => register::register(path, args.unless_stopped),
        };
        if let Ok(Registered::Handed(set)) = registered {
            handed.push((set, path));
        }
        match registered {
            Ok(_) if args.quiet => {}
            Ok(Registered::Alone(name)) => writeln!(out, "{}: /dev/mapper/{name}, no cache", path.display())?,
            Ok(Registered::Handed(set)) => writeln!(out, "{}: with the engine of set {set}", path.display())?,
            Ok(Registered::Kernel) => writeln!(out, "{}: with the kernel", path.display())?,
            Ok(Registered::Stopped(set)) => {
                writeln!(out, "{}: set {set} was stopped, and stays so", path.display())?;
            }
            Err(error) => {
                tell(out, &error)?;
                code = ExitCode::FAILURE;
            }
        }
    }
    if args.wait {
        for (set, path) in handed {
            if let Err(error) = register::wait(set, path) {
                tell(out, &error)?;
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn tell(out: &mut Out, error: &anyhow::Error) -> std::io::Result<()> {
    out.flush()?;
    writeln!(std::io::stderr(), "bcache-register: {error:#}")
}
