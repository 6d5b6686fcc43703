//! What a front end serves: a volume that may come later than its requests, and may be changed under them.
//!
//! The block device of a process that ended is taken over before anything is known of its parts. Requests then wait for
//! their volume, but not for ever: a file system whose cache never comes back gets errors, which can be dealt with, and
//! not silence, which cannot.
//!
//! Front and behind the volume's data there are [`LEAD`] bytes that read as zeroes and take no writes: what looks for
//! signatures (LVM, blkid, btrfs) finds nothing on the front end's own block device, and everything on the name above it.

use std::cell::{Cell, OnceCell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bcache_engine::dev::{Buf, Shared};
use bcache_engine::env::Env;
use bcache_engine::sync::WaitQueue;
use bcache_engine::volume::{Volume, VolumeError, VolumeFuture, VolumeId};
use uuid::Uuid;

use crate::latency::{Histogram, Latency};

/// Bytes before the data, and behind it.
pub(super) const LEAD: u64 = 1 << 20;

/// What the block device of a [`Switch`] is like, whatever is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes of data.
    pub bytes: u64,
    /// Its block size in bytes.
    pub block: u32,
    /// Bytes before the data and behind it; nothing where an older program made the device.
    pub lead: u64,
}

/// What answers.
enum Behind {
    /// Not there yet: requests wait until then, on the clock of the runtime.
    Nothing { until: u64 },
    /// The volume.
    Volume(Rc<dyn Volume>),
}

/// What is asked when a request fails: whether there is another volume now that it can be tried on.
pub(super) type Rescue = Box<dyn Fn() -> Pin<Box<dyn Future<Output = bool>>>>;

/// A volume whose requests another one answers, once it is there.
pub(super) struct Switch {
    env: Env,
    uuid: Uuid,
    shape: Shape,
    behind: RefCell<Behind>,
    /// Requests that another volume carries out.
    running: Cell<u64>,
    rescue: OnceCell<Rescue>,
    /// Who holds new requests back, because the volume is being changed.
    held: Cell<u32>,
    changed: WaitQueue,
    /// How long requests took, waits for their volume included.
    pub latency: Latency,
}

fn end_of(env: &Env, patience: Duration) -> u64 {
    env.now().saturating_add(u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX))
}

/// New requests of a [`Switch`] wait for as long as this is there.
pub(super) struct Held(Rc<Switch>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.set(self.0.held.get() - 1);
        self.0.changed.wake_all();
    }
}

struct Running<'a>(&'a Switch);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        if self.0.running.get() == 0 {
            self.0.changed.wake_all();
        }
    }
}

impl Switch {
    /// One that has nothing behind it: requests wait for so long, and then fail.
    #[must_use]
    pub(super) fn waiting(env: &Env, uuid: Uuid, shape: Shape, patience: Duration) -> Rc<Switch> {
        let until = end_of(env, patience);
        Switch::with(env, uuid, shape, Behind::Nothing { until })
    }

    /// One with a volume behind it, and zeroes on both sides.
    #[must_use]
    pub(super) fn of(env: &Env, volume: Rc<dyn Volume>) -> Rc<Switch> {
        let bytes = volume.size_bytes();
        Switch::of_size(env, volume, bytes)
    }

    /// The same for the first `bytes` of a volume.
    #[must_use]
    pub(super) fn of_size(env: &Env, volume: Rc<dyn Volume>, bytes: u64) -> Rc<Switch> {
        // Device-mapper takes whole blocks only.
        let block = volume.block_size();
        let bytes = bytes / u64::from(block) * u64::from(block);
        let shape = Shape { bytes, block, lead: LEAD };
        Switch::with(env, volume.id().uuid, shape, Behind::Volume(volume))
    }

    fn with(env: &Env, uuid: Uuid, shape: Shape, behind: Behind) -> Rc<Switch> {
        Rc::new(Switch {
            env: env.clone(),
            uuid,
            shape,
            behind: RefCell::new(behind),
            running: Cell::new(0),
            rescue: OnceCell::new(),
            held: Cell::new(0),
            changed: WaitQueue::new(),
            latency: Latency::default(),
        })
    }

    /// What its block device is like.
    #[must_use]
    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// Lets `volume` answer from now on, those too that wait.
    pub(super) fn put(&self, volume: Rc<dyn Volume>) {
        *self.behind.borrow_mut() = Behind::Volume(volume);
        self.changed.wake_all();
    }

    /// Holds new requests back and waits until none is under way. They go on when what this gives is dropped, and when the
    /// wait is given up.
    pub(super) async fn hold(self: &Rc<Self>) -> Held {
        self.held.set(self.held.get() + 1);
        let held = Held(Rc::clone(self));
        self.changed.wait_until(|| self.running.get() == 0).await;
        held
    }

    /// Asks `rescue` whenever a request fails.
    pub(super) fn rescue_with(&self, rescue: Rescue) {
        // Whoever asked first goes on asking.
        let _ = self.rescue.set(rescue);
    }

    /// Carries a request out, and counts how long that took.
    async fn timed<T>(&self, histogram: &Histogram, request: impl Future<Output = T>) -> T {
        let start = self.env.now();
        let done = request.await;
        histogram.add(self.env.now().saturating_sub(start));
        done
    }

    /// Carries a request out, again if it failed and another volume may do better.
    async fn ask<T>(
        &self,
        request: impl AsyncFn(&dyn Volume) -> Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        let (volume, running) = self.behind().await?;
        let done = request(&*volume).await;
        drop(running);
        match (done, self.rescue.get()) {
            (Err(error), Some(rescue)) if rescue().await => {
                let (now, _running) = self.behind().await?;
                if Rc::ptr_eq(&now, &volume) { Err(error) } else { request(&*now).await }
            }
            (done, _) => done,
        }
    }

    fn current(&self) -> Option<Rc<dyn Volume>> {
        match &*self.behind.borrow() {
            Behind::Volume(volume) if self.held.get() == 0 => Some(Rc::clone(volume)),
            _ => None,
        }
    }

    /// The volume, once it is there.
    async fn behind(&self) -> Result<(Rc<dyn Volume>, Running<'_>), VolumeError> {
        loop {
            if let Some(volume) = self.current() {
                self.running.set(self.running.get() + 1);
                return Ok((volume, Running(self)));
            }
            let until = match *self.behind.borrow() {
                Behind::Nothing { until } if self.held.get() == 0 => Some(until),
                _ => None,
            };
            let there = self.changed.wait_until(|| self.current().is_some());
            match until {
                // Held for a moment, by somebody who lets go in any case.
                None => there.await,
                Some(until) => {
                    let left = Duration::from_nanos(until.saturating_sub(self.env.now()));
                    if left.is_zero() || self.env.timeout(left, there).await.is_err() {
                        return Err(VolumeError::new(libc::EIO, "its parts are not there, or do not work"));
                    }
                }
            }
        }
    }

    /// Where byte `at` is in the volume's data; nothing where the range is in the lead-in or behind the data.
    fn place(&self, at: u64, len: u64) -> Result<Option<u64>, VolumeError> {
        let Shape { bytes, lead, .. } = self.shape;
        let end = at.saturating_add(len);
        if at >= lead && end <= lead + bytes {
            return Ok(Some(at - lead));
        }
        // Whoever reads across the border can read both sides by themselves; the name above never does.
        if end <= lead || at >= lead + bytes {
            return Ok(None);
        }
        Err(VolumeError::new(libc::EIO, "a range across the border of the data"))
    }

    fn place_of_change(&self, at: u64, len: u64) -> Result<u64, VolumeError> {
        let outside = || VolumeError::new(libc::EPERM, "only the name in /dev/mapper takes writes");
        self.place(at, len)?.ok_or_else(outside)
    }
}

impl Volume for Switch {
    fn size_bytes(&self) -> u64 {
        self.shape.bytes + 2 * self.shape.lead
    }
    fn block_size(&self) -> u32 {
        self.shape.block
    }
    fn id(&self) -> VolumeId {
        let current = self.current();
        let unknown = || VolumeId { name: String::new(), label: String::new(), uuid: self.uuid };
        current.map_or_else(unknown, |volume| volume.id())
    }
    fn read_only(&self) -> bool {
        self.current().is_some_and(|volume| volume.read_only())
    }
    fn read(&self, at: u64, len: u32) -> VolumeFuture<'_, Vec<Shared>> {
        Box::pin(async move {
            match self.place(at, len.into()) {
                Ok(Some(at)) => {
                    self.timed(&self.latency.read, self.ask(async |volume| volume.read(at, len).await)).await
                }
                Ok(None) => Ok(vec![Buf::zeroed(len as usize).freeze()]),
                Err(_) => self.read_across(at, len).await,
            }
        })
    }
    fn write(&self, at: u64, data: Shared, fua: bool) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let at = self.place_of_change(at, data.len() as u64)?;
            let write = self.ask(async |volume| volume.write(at, data.clone(), fua).await);
            self.timed(&self.latency.write, write).await
        })
    }
    fn flush(&self) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            self.timed(&self.latency.flush, self.ask(async |volume| volume.flush().await)).await
        })
    }
    fn discard(&self, at: u64, len: u64) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let at = self.place_of_change(at, len)?;
            self.timed(&self.latency.discard, self.ask(async |volume| volume.discard(at, len).await)).await
        })
    }
    fn write_zeroes(&self, at: u64, len: u64, fua: bool, no_hole: bool) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let at = self.place_of_change(at, len)?;
            let write = self.ask(async |volume| volume.write_zeroes(at, len, fua, no_hole).await);
            self.timed(&self.latency.write, write).await
        })
    }
}

impl Switch {
    /// Reads a range of which a part is data: read-ahead on the front end's own block device knows no border.
    async fn read_across(&self, at: u64, len: u32) -> Result<Vec<Shared>, VolumeError> {
        let Shape { bytes, lead, .. } = self.shape;
        let end = at.saturating_add(len.into());
        let (from, to) = (at.max(lead), end.min(lead + bytes));
        let zeroes = |count: u64| Buf::zeroed(count as usize).freeze();
        let mut pieces = Vec::new();
        if at < from {
            pieces.push(zeroes(from - at));
        }
        let (at, len) = (from - lead, (to - from) as u32);
        pieces.extend(self.ask(async |volume| volume.read(at, len).await).await?);
        if to < end {
            pieces.push(zeroes(end - to));
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bcache_engine::env::Runtime;

    use crate::frontend::ram::RamVolume;

    const BYTES: u64 = 8 << 20;

    fn ram() -> Rc<dyn Volume> {
        Rc::new(RamVolume::new("ram", BYTES))
    }

    fn data(byte: u8) -> Shared {
        Buf::copied(&[byte; 4096]).freeze()
    }

    #[test]
    fn a_request_waits_for_its_volume_and_fails_when_it_never_comes() {
        let runtime = Runtime::new().expect("a runtime");
        let env = runtime.env();
        runtime.block_on(async {
            let shape = Shape { bytes: BYTES, block: 512, lead: 0 };
            let never = Switch::waiting(&env, Uuid::nil(), shape, Duration::from_millis(1));
            let error = never.read(0, 4096).await.expect_err("nothing is behind it");
            assert_eq!(error.errno, libc::EIO);
            assert_eq!(never.write(0, data(1), true).await.expect_err("as above").errno, libc::EIO);
            assert_eq!(never.flush().await.expect_err("as above").errno, libc::EIO);
            // One that comes later still than that is used.
            never.put(ram());
            never.write(4096, data(1), true).await.expect("it is there now");

            let late = Switch::waiting(&env, Uuid::nil(), shape, Duration::from_secs(3600));
            let (asked, volume) = (Rc::clone(&late), ram());
            let reading = env.spawn(async move { asked.read(4096, 4096).await });
            env.yield_now().await;
            volume.write(4096, data(7), false).await.expect("memory takes everything");
            late.put(volume);
            let pieces = reading.await.expect("the volume came");
            assert!(pieces.iter().flat_map(|piece| piece.iter()).all(|byte| *byte == 7));
        });
    }

    #[test]
    fn requests_go_on_when_whoever_holds_them_back_gives_up() {
        let runtime = Runtime::new().expect("a runtime");
        let env = runtime.env();
        runtime.block_on(async {
            let switch = Switch::of(&env, ram());
            let (_, under_way) = switch.behind().await.expect("it is there");
            let given_up = env.timeout(Duration::from_millis(1), switch.hold()).await;
            assert!(given_up.is_err(), "a request was under way");
            let read = env.timeout(Duration::from_secs(5), switch.read(LEAD, 4096)).await;
            assert!(matches!(read, Ok(Ok(_))), "nobody holds it back any more");
            drop(under_way);
            let held = switch.hold().await;
            assert!(env.timeout(Duration::from_millis(1), switch.read(LEAD, 4096)).await.is_err());
            drop(held);
            assert!(switch.read(LEAD, 4096).await.is_ok());
        });
    }

    #[test]
    fn both_sides_of_the_data_read_as_zeroes_and_take_no_writes() {
        let runtime = Runtime::new().expect("a runtime");
        let env = runtime.env();
        runtime.block_on(async {
            let volume = ram();
            volume.write(0, data(1), false).await.expect("memory takes everything");
            volume.write(BYTES - 4096, data(2), false).await.expect("memory takes everything");
            let led = Switch::of(&env, volume);
            assert_eq!(led.size_bytes(), BYTES + 2 * LEAD);
            for at in [0, LEAD - 4096, LEAD + BYTES, LEAD + BYTES + LEAD - 4096] {
                let read = led.read(at, 4096).await.expect("zeroes");
                assert!(read.iter().flat_map(|piece| piece.iter()).all(|byte| *byte == 0), "{at}");
                assert!(led.write(at, data(9), false).await.is_err(), "{at}");
                assert!(led.discard(at, 4096).await.is_err(), "{at}");
                assert!(led.write_zeroes(at, 4096, false, false).await.is_err(), "{at}");
            }
            // Nobody waited for what was refused, and zeroes cost nothing.
            assert_eq!([led.latency.read.count(), led.latency.write.count()], [0, 0]);
            for (at, byte) in [(LEAD, 1), (LEAD + BYTES - 4096, 2)] {
                let read = led.read(at, 4096).await.expect("data");
                assert!(read.iter().flat_map(|piece| piece.iter()).all(|seen| *seen == byte), "{at}");
            }
            assert_eq!(led.latency.read.count(), 2);
            // Across each border, and over all.
            for at in [LEAD - 4096, LEAD + BYTES - 4096] {
                let read = led.read(at, 8192).await.expect("half of it is data");
                assert_eq!(read.iter().map(|piece| piece.len()).sum::<usize>(), 8192);
            }
            assert!(led.write(LEAD - 2048, data(9), false).await.is_err());
        });
    }
}
