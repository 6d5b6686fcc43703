//! `bcache serve`: a cached device for NBD clients, without root.

use std::io::{IsTerminal, Read as _, Write as _};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bcache_engine::env::{Env, Runtime, Signals};
use bcache_engine::net::Listener;
use bcache_engine::volume::Volume;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::{Output, Partial, Readers};
use super::{Out, Outcome, escaped, note};
use crate::frontend::nbd::{ExportTable, Limits, Server};
use crate::serve::settings::Assignment;
use crate::serve::{Request, Service, read_only, report, told, too_short};

/// How often progress is told.
const PROGRESS: Duration = Duration::from_millis(500);

/// Serve a cache set to NBD clients on a Unix socket, in the foreground, until a signal
///
/// Each backing device and flash-only volume is an export, found by label, UUID or index; the empty name is the first
/// backing device. SIGTERM and SIGINT stop cleanly; after a kill the next start recovers.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  bcache serve --nbd /tmp/sock --set cache_mode=writeback cache.img disk.img\n  \
    qemu-io -f raw -c 'read 0 4k' 'nbd+unix:///?socket=/tmp/sock'"
)]
pub struct Args {
    /// Listen on this Unix socket
    #[arg(long, value_name = "SOCKET")]
    nbd: PathBuf,
    /// Change a setting, by its name in the kernel's sysfs; can be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<Assignment>,
    /// Write nothing at all to any device; the journal is replayed in memory
    #[arg(long, conflicts_with_all = ["set", "backing_delay"])]
    read_only: bool,
    /// Attach backing devices that belong to no set, or to another and are whole without it, and are served without cache
    /// otherwise
    #[arg(long, conflicts_with = "read_only")]
    attach: bool,
    /// Write statistics to this file at the end
    #[arg(long, value_name = "FILE")]
    stats_json: Option<PathBuf>,
    /// Make each read and write of the backing devices take this many milliseconds longer, for trying things out
    #[arg(long, value_name = "MS")]
    backing_delay: Option<u64>,
    /// The cache device and the backing devices of one set, in any order
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// Serves.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let runtime = Runtime::new().context("no runtime")?;
    let env = runtime.env();
    // Before anything starts a thread: a signal must find all of them blocked.
    let signals = Signals::termination(&env).context("signals")?;
    runtime.block_on(serve(&env, &signals, &args, out))
}

async fn serve(env: &Env, signals: &Signals, args: &Args, out: &mut Out<'_>) -> Outcome {
    // Shown to be possible before anything is written to a device; and what fails later leaves nothing behind.
    let listener = listen(env, &args.nbd).with_context(|| args.nbd.display().to_string())?;
    let report = args.stats_json.as_ref().map(|path| Report::create(path, args, out)).transpose()?;
    let (service, volumes) = if args.read_only {
        (None, read_only::volumes(env, &args.devices)?)
    } else {
        let request = Request {
            devices: &args.devices,
            attach: args.attach,
            settings: &args.set,
            backing_delay: args.backing_delay.map(Duration::from_millis),
        };
        let service = Service::start(env, request).await?;
        let devices = service.exports.iter().filter_map(|export| export.device.as_ref());
        for short in devices.filter_map(|device| too_short(&service.set, device)) {
            note("bcache", &short);
        }
        for stranger in service.exports.iter().filter(|export| export.device.is_none()) {
            let name = &stranger.name;
            note(
                "bcache",
                &format!("{name}: not of this set, and served without cache; --attach attaches it"),
            );
        }
        let volumes = service.exports.iter().map(|export| Rc::clone(&export.volume)).collect();
        (Some(Rc::new(service)), volumes)
    };
    let served = clients(env, signals, (listener, args), out, service.as_ref(), volumes).await;
    // Whatever ended the serving, the set is stopped in order.
    let stopped = match &service {
        Some(service) => service.set.stop().await.map_err(told).context("the set did not stop cleanly"),
        None => Ok(()),
    };
    let server = served?;
    let said = report::json(service.as_deref(), server.stats());
    let reported = report.map_or(Ok(()), |report| report.write(&said));
    // Nobody may read it any more.
    if std::io::stdout().is_terminal() {
        let _ = write!(out, "{}", report::text(&said)).and_then(|()| out.flush());
    }
    stopped?;
    reported?;
    Ok(ExitCode::SUCCESS)
}

/// Takes clients in until a signal.
async fn clients(
    env: &Env,
    signals: &Signals,
    (listener, args): (Listener, &Args),
    out: &mut Out<'_>,
    service: Option<&Rc<Service>>,
    volumes: Vec<Rc<dyn Volume>>,
) -> Result<Server> {
    let mut say = || -> std::io::Result<()> {
        for volume in &volumes {
            let id = volume.id();
            writeln!(out, "export {} uuid {} bytes {}", escaped(&id.name), id.uuid, volume.size_bytes())?;
        }
        writeln!(out, "serving at nbd+unix:///?socket={}", escaped(&args.nbd.display().to_string()))?;
        out.flush()
    };
    // Clients are served whether anybody reads that or not.
    let _ = say();
    let server = Server::new(env, Rc::new(ExportTable::new(volumes)), Limits::default());
    let listening = server.clone();
    let accepting = env.spawn(async move { listening.listen(&listener).await });
    let progress = progress(env, service.cloned(), &server);
    let ended = first(signals.next(), accepting).await;
    progress.finish_and_clear();
    server.stop().await;
    match ended {
        First::One(signal) => signal.map(|_| ()).context("waiting for signals")?,
        First::Other(listened) => listened.context("listening")?,
    }
    Ok(server)
}

/// A line on a terminal that tells what goes on.
fn progress(env: &Env, service: Option<Rc<Service>>, server: &Server) -> ProgressBar {
    let bar =
        if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    let (env, server, told) = (env.clone(), server.clone(), bar.clone());
    if !bar.is_hidden() {
        let task = env.clone();
        task.spawn(async move {
            while !told.is_finished() {
                told.set_message(report::line(service.as_deref(), server.stats()));
                told.tick();
                env.sleep(PROGRESS).await;
            }
        })
        .detach();
    }
    bar
}

/// A socket where there is none. One that was left behind makes way, nothing else does.
fn listen(env: &Env, path: &Path) -> Result<Listener> {
    let there = std::fs::symlink_metadata(path).is_ok_and(|meta| !meta.file_type().is_socket());
    if there {
        bail!("there already, and no socket");
    }
    Ok(Listener::bind(env, path)?)
}

/// The file for statistics.
struct Report<'p> {
    path: &'p Path,
    file: Partial,
}

impl<'p> Report<'p> {
    /// Sees to it that it can be written in the end, and to nothing of value: not to a device, nor to anything else that is
    /// there and is no report.
    fn create(path: &'p Path, args: &Args, out: &mut Out<'_>) -> Result<Self> {
        let name = || path.display().to_string();
        if path == Path::new("-") {
            bail!("-: statistics go to a file");
        }
        let no_report = |meta: &std::fs::Metadata| -> Result<bool> {
            if !meta.is_file() {
                bail!("not a file");
            }
            let mut first = [0];
            Ok(meta.len() > 0 && (std::fs::File::open(path)?.read(&mut first)? != 1 || first != *b"{"))
        };
        if let Ok(meta) = std::fs::metadata(path) {
            let is_device = |device: &PathBuf| {
                std::fs::metadata(device)
                    .is_ok_and(|other| (other.dev(), other.ino()) == (meta.dev(), meta.ino()))
            };
            if args.devices.iter().any(is_device) {
                bail!("{}: a device of the set, not a file for statistics", name());
            }
            if no_report(&meta).with_context(name)? {
                bail!("{}: there already, and no report of statistics; it would be lost", name());
            }
        }
        match Output::create(path, &args.devices, Readers::All, out)? {
            Output::File(file) => Ok(Self { path, file }),
            Output::Stream(_) | Output::Standard(_) => bail!("{}: not a file", name()),
        }
    }

    fn write(self, report: &serde_json::Value) -> Result<()> {
        let name = || self.path.display().to_string();
        let mut text = serde_json::to_string_pretty(report)?;
        text.push('\n');
        self.file.file().write_all_at(text.as_bytes(), 0).with_context(name)?;
        self.file.finish().with_context(|| self.path.display().to_string())
    }
}

/// Which of two came first.
enum First<A, B> {
    One(A),
    Other(B),
}

/// Waits for the first of two; the other is dropped.
async fn first<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> First<A, B> {
    use std::task::Poll;
    let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = one.as_mut().poll(cx) {
            return Poll::Ready(First::One(value));
        }
        other.as_mut().poll(cx).map(First::Other)
    })
    .await
}
