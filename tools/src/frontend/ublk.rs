//! Volumes as block devices, through the kernel's ublk driver.
//!
//! A device has one queue, served on the runtime's own ring: a request costs no thread switch. Each tag is a task that
//! waits for a request, answers it and waits for the next. When the process dies, the device and what it had not
//! answered wait for the next process ([`Device::recover`]).

use bcache_format::SECTOR_SIZE;
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bcache_engine::dev::Buf;
use bcache_engine::env::{Backend, Env};
use bcache_engine::sync::WaitQueue;
use bcache_engine::ublk::{Control, Info, Mark, Params, Queue, Request, UblkState, Verb, feature};
use bcache_engine::volume::{Volume, VolumeError};

/// Largest request in bytes.
const MAX_BYTES: u32 = 1 << 20;
/// Largest range zeroed at once, in bytes: longer ones take too long for one request.
const MAX_ZERO_BYTES: u32 = 64 << 20;
/// Milliseconds after which the kernel asks whether the server of a request is still alive. While it is, the answer
/// changes nothing; when it died with every tag in its hands, nothing else tells the kernel.
const IO_TIMEOUT: &str = "2000";
/// How long the remains of a dead server are waited for.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const RECOVERY_STEP: Duration = Duration::from_millis(20);

/// Requests answered.
#[derive(Debug, Default)]
pub struct Stats {
    /// Reads, writes, flushes, discards, zeroings.
    pub requests: Cell<u64>,
    /// Those that failed.
    pub errors: Cell<u64>,
}

/// A block device whose requests a volume answers.
pub struct Device {
    env: Env,
    id: u32,
    served: Rc<Served>,
}

/// What the tasks of all tags share.
struct Served {
    queue: Rc<Queue>,
    volume: Rc<dyn Volume>,
    /// Requests that arrive are left for the next server.
    frozen: Cell<bool>,
    running: Cell<u32>,
    ended: Cell<u32>,
    changed: WaitQueue,
    stats: Stats,
}

/// Whether the driver is there and has what is needed. The reason if not.
///
/// # Errors
/// The driver is not loaded, too old, or I/O is not done on a ring.
pub fn available(backend: Backend) -> io::Result<()> {
    let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::Unsupported, why.to_owned()));
    if backend != Backend::Uring {
        return refuse("ublk needs io_uring, which is forbidden here");
    }
    let features = Control::open()?.features()?;
    if features & feature::NEEDED != feature::NEEDED {
        return refuse("the ublk driver is too old: it lacks user copy or user recovery");
    }
    Ok(())
}

/// Devices whose server died, or whose queue nobody serves yet, with their marks.
///
/// # Errors
/// The driver does not answer.
pub fn devices() -> io::Result<Vec<Info>> {
    let control = Control::open()?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/class/ublk-char")? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("ublkc")).and_then(|id| id.parse().ok());
        let Some(id) = id else { continue };
        // One that goes while we look is no error.
        found.extend(control.info(id));
    }
    found.sort_by_key(|info| info.id);
    Ok(found)
}

/// The mark of device `id`, if there is one.
///
/// # Errors
/// The driver does not answer.
pub fn mark_of(id: u32) -> io::Result<Option<Mark>> {
    match Control::open()?.info(id) {
        Ok(info) => Ok(Some(info.mark)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a process answers the requests of device `id`.
///
/// # Errors
/// The driver does not answer.
pub fn is_served(id: u32) -> io::Result<bool> {
    let info = Control::open()?.info(id)?;
    Ok(info.state == UblkState::Live && std::path::Path::new(&format!("/proc/{}", info.pid)).exists())
}

impl Device {
    /// Makes a block device of `volume` with `depth` requests under way at most, best of `optimal` bytes. `mark` is found
    /// again in [`devices`].
    ///
    /// # Errors
    /// The driver refuses.
    pub async fn create(
        env: &Env,
        volume: Rc<dyn Volume>,
        depth: u16,
        optimal: u64,
        mark: Mark,
    ) -> io::Result<Device> {
        let params = params(&*volume, optimal);
        let info = env
            .offload(move || {
                let control = Control::open()?;
                let info = control.add(depth, MAX_BYTES, mark)?;
                match control.set_params(info.id, &params) {
                    Ok(()) => Ok(info),
                    Err(error) => Err(removed(&control, info.id, error)),
                }
            })
            .await?;
        let device = match Device::serve(env, volume, info.id, info.depth) {
            Ok(device) => device,
            Err(error) => {
                return Err(env.offload(move || removed_by_id(info.id, error)).await);
            }
        };
        let started = env
            .offload(move || {
                Control::open()?.start(info.id)?;
                set_timeout(info.id);
                Ok(())
            })
            .await;
        match started {
            Ok(()) => Ok(device),
            Err(error) => {
                let _ = device.remove().await;
                Err(error)
            }
        }
    }

    /// Takes over device `id`, whose server died. Requests that it had not answered come again.
    ///
    /// # Errors
    /// There is no such device, somebody serves it, or the driver refuses.
    pub async fn recover(env: &Env, volume: Rc<dyn Volume>, id: u32) -> io::Result<Device> {
        let info = env.offload(move || Control::open()?.info(id)).await?;
        let mut waited = Duration::ZERO;
        loop {
            let begun = env.offload(move || Control::open()?.start_recovery(id)).await;
            match begun {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && waited < RECOVERY_PATIENCE => {
                    env.sleep(RECOVERY_STEP).await;
                    waited += RECOVERY_STEP;
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        let device = Device::serve(env, volume, id, info.depth)?;
        env.offload(move || Control::open()?.end_recovery(id)).await?;
        Ok(device)
    }

    fn serve(env: &Env, volume: Rc<dyn Volume>, id: u32, depth: u16) -> io::Result<Device> {
        let served = Rc::new(Served {
            queue: Queue::open(env, id, depth)?,
            volume,
            frozen: Cell::new(false),
            running: Cell::new(0),
            ended: Cell::new(0),
            changed: WaitQueue::new(),
            stats: Stats::default(),
        });
        for tag in 0..depth {
            env.spawn(Rc::clone(&served).tag(tag)).detach();
        }
        Ok(Device { env: env.clone(), id, served })
    }

    /// Its number: the block device is `/dev/ublkbN`.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What was asked of it.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.served.stats
    }

    /// The volume behind it.
    #[must_use]
    pub fn volume(&self) -> &Rc<dyn Volume> {
        &self.served.volume
    }

    /// Answers no more requests, and waits until none is under way. Those that arrive wait for the next server, once
    /// this process has ended.
    pub async fn freeze(&self) {
        self.served.frozen.set(true);
        self.served.changed.wait_until(|| self.served.running.get() == 0).await;
    }

    /// Removes the block device. Nobody may have it open, or their requests fail from here on.
    ///
    /// # Errors
    /// The driver refuses.
    pub async fn remove(self) -> io::Result<()> {
        let id = self.id;
        let stopped = self.env.offload(move || Control::open()?.stop(id)).await;
        let served = self.served;
        // The driver gives back every tag, then the last user of the queue's file goes, and with it the device.
        let all = u32::from(served.queue.depth());
        if stopped.is_ok() {
            served.changed.wait_until(|| served.ended.get() == all).await;
        }
        drop(served);
        stopped?;
        self.env.offload(move || Control::open()?.delete(id)).await
    }
}

fn removed(control: &Control, id: u32, error: io::Error) -> io::Error {
    if let Err(second) = control.delete(id) {
        tracing::warn!(id, error = %second, "a ublk device is left behind");
    }
    error
}

fn removed_by_id(id: u32, error: io::Error) -> io::Error {
    match Control::open() {
        Ok(control) => removed(&control, id, error),
        Err(_) => error,
    }
}

/// Deletes device `id`, which nobody serves.
///
/// # Errors
/// The driver refuses.
pub fn delete(id: u32) -> io::Result<()> {
    Control::open()?.delete(id)
}

/// Older kernels have no such file; the default of half a minute is only slower.
fn set_timeout(id: u32) {
    let path = format!("/sys/block/ublkb{id}/queue/io_timeout");
    if let Err(error) = std::fs::write(&path, IO_TIMEOUT) {
        tracing::info!(path, %error, "the kernel's own time limit stays");
    }
}

/// As the kernel's bcache has them: one block for all, and the best requests are those of the disk below. Of a stripe that is
/// no power of two, which the driver cannot be told, a part that divides it.
fn params(volume: &dyn Volume, optimal: u64) -> Params {
    let block = volume.block_size().min(4096);
    let part = if optimal == 0 { 0 } else { 1 << optimal.trailing_zeros().min(30) };
    Params {
        sectors: volume.size_bytes() / SECTOR_SIZE,
        logical_block: block,
        physical_block: block,
        optimal: block.max(part),
        max_bytes: MAX_BYTES,
        max_zero_bytes: MAX_ZERO_BYTES,
        read_only: volume.read_only(),
        rotational: false,
    }
}

impl Served {
    /// Serves one tag until the device is stopped.
    async fn tag(self: Rc<Self>, tag: u16) {
        let mut next = self.queue.fetch(tag).await;
        loop {
            let request = match next {
                Ok(request) => request,
                Err(error) => {
                    if error.raw_os_error() != Some(libc::ENODEV) {
                        tracing::error!(tag, %error, "the ublk driver refused a command");
                    }
                    break;
                }
            };
            if self.frozen.get() {
                break;
            }
            self.running.set(self.running.get() + 1);
            let result = self.answer(tag, request).await;
            self.running.set(self.running.get() - 1);
            let committed = self.queue.commit(tag, result);
            if self.frozen.get() {
                self.changed.wake_all();
            }
            next = committed.await;
        }
        self.ended.set(self.ended.get() + 1);
        self.changed.wake_all();
    }

    async fn answer(&self, tag: u16, request: Request) -> i32 {
        self.stats.requests.set(self.stats.requests.get() + 1);
        match self.execute(tag, &request).await {
            Ok(bytes) => bytes,
            Err(error) => {
                self.stats.errors.set(self.stats.errors.get() + 1);
                tracing::warn!(?request, %error, "request failed");
                -error.errno
            }
        }
    }

    /// Carries a request out; bytes moved.
    async fn execute(&self, tag: u16, request: &Request) -> Result<i32, VolumeError> {
        let Request { verb, at, len, fua, no_unmap } = *request;
        let (volume, queue) = (&self.volume, &self.queue);
        let copy = |error: io::Error| {
            VolumeError::new(libc::EIO, format!("copying data between kernel and process: {error}"))
        };
        match verb {
            Verb::Read => {
                let (bytes, wanted) = data_length(len)?;
                let mut from = 0;
                for piece in volume.read(at, wanted).await? {
                    queue.give(tag, from, &piece).map_err(copy)?;
                    from += piece.len() as u64;
                }
                if from == len { Ok(bytes) } else { Err(VolumeError::new(libc::EIO, "a short read")) }
            }
            Verb::Write => {
                let (bytes, wanted) = data_length(len)?;
                let mut buf = Buf::recycled(wanted as usize);
                queue.take(tag, &mut buf).map_err(copy)?;
                volume.write(at, buf.freeze(), fua).await?;
                Ok(bytes)
            }
            Verb::Flush => volume.flush().await.map(|()| 0),
            Verb::Discard => volume.discard(at, len).await.map(|()| 0),
            Verb::WriteZeroes => volume.write_zeroes(at, len, fua, no_unmap).await.map(|()| 0),
            Verb::Other(_) => Err(VolumeError::new(libc::EOPNOTSUPP, "an unknown request")),
        }
    }
}

/// A request's length as the driver and as volumes count.
fn data_length(len: u64) -> Result<(i32, u32), VolumeError> {
    match u32::try_from(len) {
        Ok(wanted) if wanted <= MAX_BYTES => Ok((wanted as i32, wanted)),
        _ => Err(VolumeError::new(libc::EINVAL, format!("{len} bytes at once"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::ram::RamVolume;

    #[test]
    fn the_best_requests_are_those_of_the_disk_below() {
        let volume = RamVolume::new("", 1 << 20);
        let block = volume.block_size().min(4096);
        for (optimal, told) in
            [(0, block), (512, block), (1 << 20, 1 << 20), (3 << 18, 1 << 18), (1 << 40, 1 << 30)]
        {
            let params = params(&volume, optimal);
            assert_eq!(params.optimal, told, "{optimal}");
            assert_eq!((params.logical_block, params.physical_block), (block, block));
        }
    }
}
