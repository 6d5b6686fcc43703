//! Volumes as block devices, through the kernel's NBD client, for kernels without ublk.
//!
//! Client and server are joined by a pair of sockets; there is no handshake, because the kernel is told everything. When
//! the process dies, the device stays, and requests wait for the next process ([`Device::recover`]). Requests that were
//! under way are sent again once their time is over.

mod netlink;

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bcache_engine::env::Env;
use bcache_engine::net::Stream;
use bcache_engine::volume::Volume;
use uuid::Uuid;

use super::nbd::{self, ExportTable, Limits, Server};
use netlink::Config;

/// A request that takes longer makes the kernel give up the connection. What was under way when a process died waits for
/// this long.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests wait for another process for this long: longer than anybody takes to find out what is wrong.
const DEAD_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the kernel may take to notice that a connection ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const STEP: Duration = Duration::from_millis(50);

/// A block device whose requests a volume answers.
pub struct Device {
    env: Env,
    index: u32,
    identifier: String,
    inner: Rc<Inner>,
}

struct Inner {
    server: Server,
    volume: Rc<dyn Volume>,
    ending: Cell<bool>,
}

/// Whether the kernel has the driver.
///
/// # Errors
/// It has not.
pub fn available() -> io::Result<()> {
    std::fs::metadata("/sys/module/nbd").map(drop)
}

/// Who the kernel is told serves a volume.
fn identifier(uuid: Uuid) -> String {
    format!("bcache-{uuid}")
}

/// The kernel's end of a connection, and ours.
fn pair(env: &Env) -> io::Result<(UnixStream, Stream)> {
    let (kernels, ours) = UnixStream::pair()?;
    Ok((kernels, Stream::from_std(env, ours)?))
}

impl Device {
    /// Makes a block device of `volume`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn create(env: &Env, volume: Rc<dyn Volume>, uuid: Uuid) -> Result<Device> {
        let device = |index| Device::new(env, Rc::clone(&volume), index, identifier(uuid));
        let (kernels, ours) = pair(env)?;
        let (bytes, block) = (volume.size_bytes(), volume.block_size().min(4096));
        let (flags, name) = (nbd::flags_of(&*volume), identifier(uuid));
        // The kernel reads the partition table before it answers: somebody must be there.
        let made = device(0);
        made.serve(ours);
        let connected = env
            .offload(move || {
                let (timeout, dead_timeout) = (TIMEOUT, DEAD_TIMEOUT);
                let (socket, identifier) = (kernels.as_fd(), name.as_str());
                netlink::connect(&Config { bytes, block, flags, socket, timeout, dead_timeout, identifier })
            })
            .await;
        match connected {
            Ok(index) => {
                tracing::debug!(index, "the kernel's NBD client is connected");
                Ok(Device { index, ..made })
            }
            Err(error) => {
                made.freeze().await;
                Err(error).context("NBD")
            }
        }
    }

    /// Takes over device `index`, whose server died.
    ///
    /// # Errors
    /// There is no such device, or it is somebody else's.
    pub async fn recover(env: &Env, volume: Rc<dyn Volume>, uuid: Uuid, index: u32) -> Result<Device> {
        let device = Device::new(env, volume, index, identifier(uuid));
        device.reconnect().await?;
        Ok(device)
    }

    fn new(env: &Env, volume: Rc<dyn Volume>, index: u32, identifier: String) -> Device {
        let exports = Rc::new(ExportTable::new(Vec::new()));
        let server = Server::new(env, exports, Limits::default());
        let inner = Rc::new(Inner { server, volume, ending: Cell::new(false) });
        Device { env: env.clone(), index, identifier, inner }
    }

    fn serve(&self, stream: Stream) {
        self.inner.server.serve_volume(stream, Rc::clone(&self.inner.volume));
    }

    async fn reconnect(&self) -> Result<()> {
        let mut waited = Duration::ZERO;
        loop {
            let (kernels, ours) = pair(&self.env)?;
            let probe = ours.clone();
            let (index, name, volume) = (self.index, self.identifier.clone(), &self.inner.volume);
            let (bytes, block) = (volume.size_bytes(), volume.block_size().min(4096));
            let flags = nbd::flags_of(&**volume);
            self.env
                .offload(move || {
                    let (timeout, dead_timeout) = (TIMEOUT, DEAD_TIMEOUT);
                    let (socket, identifier) = (kernels.as_fd(), name.as_str());
                    let config = Config { bytes, block, flags, socket, timeout, dead_timeout, identifier };
                    netlink::reconnect(index, &config)
                })
                .await
                .with_context(|| format!("/dev/nbd{index}"))?;
            // Where the kernel did not need the connection it is closed by now.
            if !probe.is_hung_up() {
                self.serve(ours);
                return Ok(());
            }
            if waited >= PATIENCE {
                bail!("/dev/nbd{index}: the kernel does not take a new connection: somebody else serves it");
            }
            self.env.sleep(STEP).await;
            waited += STEP;
        }
    }

    /// Connects again whenever the kernel gave the connection up, because a request took too long, until the device
    /// is removed.
    pub fn keep_connected(self: &Rc<Self>) {
        let device = Rc::clone(self);
        let env = self.env.clone();
        env.spawn(async move {
            while !device.inner.ending.get() {
                device.inner.server.empty().await;
                if device.inner.ending.get() {
                    return;
                }
                tracing::warn!(nbd = device.index, "the kernel gave the connection up; connecting again");
                if let Err(error) = device.reconnect().await {
                    tracing::error!(nbd = device.index, "{error:#}");
                    return;
                }
            }
        })
        .detach();
    }

    /// Its number: the block device is `/dev/nbdN`.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What was asked of it.
    #[must_use]
    pub fn stats(&self) -> &nbd::Stats {
        self.inner.server.stats()
    }

    /// Answers no more requests, and waits until none is under way. The others wait for the next server.
    pub async fn freeze(&self) {
        self.inner.ending.set(true);
        self.inner.server.stop().await;
    }

    /// Removes the block device. Nobody may have it open.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove(&self) -> Result<()> {
        self.inner.ending.set(true);
        let index = self.index;
        let removed = self.env.offload(move || netlink::disconnect(index)).await;
        self.inner.server.stop().await;
        removed
    }
}

/// Removes device `index`, which nobody serves.
///
/// # Errors
/// The kernel refuses.
pub fn delete(index: u32) -> Result<()> {
    netlink::disconnect(index)
}

/// Whether device `index` was made for the volume `uuid`.
#[must_use]
pub fn is_made_for(index: u32, uuid: Uuid) -> bool {
    let backend = std::fs::read_to_string(format!("/sys/block/nbd{index}/backend"));
    backend.is_ok_and(|backend| backend.trim() == identifier(uuid))
}

/// Devices that were made for the volume `uuid`.
///
/// # Errors
/// sysfs cannot be read.
pub fn devices(uuid: Uuid) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        let index = entry.file_name().to_str().and_then(|name| name.strip_prefix("nbd")?.parse().ok());
        found.extend(index.filter(|index| is_made_for(*index, uuid)));
    }
    found.sort_unstable();
    Ok(found)
}
