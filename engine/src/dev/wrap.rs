//! Devices around devices.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::{BlockDev, Buf, DevError, DevOp, Geometry, Io, Shared};
use crate::env::Env;
use crate::sync::Semaphore;

/// A device that is slower than the one behind it, as a disk with moving heads is.
///
/// Reads and writes each take the delay before they reach the device, and only so many are delayed at once: the
/// rest wait their turn, as for the arm of a disk. Flushes and discards pass at once.
pub struct Delay {
    env: Env,
    inner: Rc<dyn BlockDev>,
    delay: Duration,
    heads: Rc<Semaphore>,
}

impl Delay {
    /// Adds `delay` to each read and write of `inner`, with `heads` of them served at once.
    pub fn new(env: &Env, inner: Rc<dyn BlockDev>, delay: Duration, heads: u64) -> Delay {
        Delay { env: env.clone(), inner, delay, heads: Rc::new(Semaphore::new(heads.max(1))) }
    }

    fn delayed<T: 'static>(&self, operation: impl FnOnce(&dyn BlockDev) -> Io<T> + 'static) -> Io<T> {
        let (completer, io) = Io::pair();
        let (env, inner, delay) = (self.env.clone(), Rc::clone(&self.inner), self.delay);
        let heads = Rc::clone(&self.heads);
        let task = async move {
            let permit = heads.acquire_owned(1).await;
            env.sleep(delay).await;
            let result = operation(&*inner).await;
            drop(permit);
            completer.complete(result);
        };
        self.env.spawn(task).detach();
        io
    }
}

impl BlockDev for Delay {
    fn geometry(&self) -> Geometry {
        Geometry { rotational: true, ..self.inner.geometry() }
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn remeasure(&self) -> Result<u64, DevError> {
        self.inner.remeasure()
    }

    fn read(&self, at: u64, buf: Buf) -> Io<Buf> {
        self.delayed(move |dev| dev.read(at, buf))
    }

    fn write(&self, at: u64, data: Shared, fua: bool) -> Io<()> {
        self.delayed(move |dev| dev.write(at, data, fua))
    }

    fn flush(&self) -> Io<()> {
        self.inner.flush()
    }

    fn discard(&self, at: u64, len: u64) -> Io<()> {
        self.inner.discard(at, len)
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Io<()> {
        self.delayed(move |dev| dev.write_zeroes(at, len))
    }
}

/// Operations that reached a device, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Bytes asked for by reads.
    pub read_bytes: u64,
    /// Writes, those with FUA included.
    pub writes: u64,
    /// Bytes given by writes.
    pub written_bytes: u64,
    /// Writes with FUA.
    pub fua_writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Zeroings.
    pub zeroings: u64,
}

/// A device that counts what it is asked for.
pub struct Counting {
    inner: Rc<dyn BlockDev>,
    counts: Rc<Cell<Counts>>,
}

impl Counting {
    /// Counts what reaches `inner`.
    pub fn new(inner: Rc<dyn BlockDev>) -> Counting {
        Counting { inner, counts: Rc::default() }
    }

    /// The counts, live: the cell goes on being updated.
    pub fn counts(&self) -> Rc<Cell<Counts>> {
        Rc::clone(&self.counts)
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }
}

impl BlockDev for Counting {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn remeasure(&self) -> Result<u64, DevError> {
        self.inner.remeasure()
    }

    fn read(&self, at: u64, buf: Buf) -> Io<Buf> {
        self.count(|counts| {
            counts.reads += 1;
            counts.read_bytes += buf.len() as u64;
        });
        self.inner.read(at, buf)
    }

    fn write(&self, at: u64, data: Shared, fua: bool) -> Io<()> {
        self.count(|counts| {
            counts.writes += 1;
            counts.written_bytes += data.len() as u64;
            counts.fua_writes += u64::from(fua);
        });
        self.inner.write(at, data, fua)
    }

    fn flush(&self) -> Io<()> {
        self.count(|counts| counts.flushes += 1);
        self.inner.flush()
    }

    fn discard(&self, at: u64, len: u64) -> Io<()> {
        self.count(|counts| counts.discards += 1);
        self.inner.discard(at, len)
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Io<()> {
        self.count(|counts| counts.zeroings += 1);
        self.inner.write_zeroes(at, len)
    }
}

/// A device that refuses every change, whatever the one behind it would do.
pub struct ReadOnly(Rc<dyn BlockDev>);

impl ReadOnly {
    /// Lets only reads through to `inner`.
    pub fn new(inner: Rc<dyn BlockDev>) -> ReadOnly {
        ReadOnly(inner)
    }

    fn refuse(&self, op: DevOp, at: u64, len: u64) -> Io<()> {
        Io::ready(Err(DevError::new(self.name(), op, at, len, libc::EROFS)))
    }
}

impl BlockDev for ReadOnly {
    fn geometry(&self) -> Geometry {
        Geometry { read_only: true, ..self.0.geometry() }
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn remeasure(&self) -> Result<u64, DevError> {
        self.0.remeasure()
    }

    fn read(&self, at: u64, buf: Buf) -> Io<Buf> {
        self.0.read(at, buf)
    }

    fn write(&self, at: u64, data: Shared, _fua: bool) -> Io<()> {
        self.refuse(DevOp::Write, at, data.len() as u64)
    }

    fn flush(&self) -> Io<()> {
        Io::ready(Ok(()))
    }

    fn discard(&self, at: u64, len: u64) -> Io<()> {
        self.refuse(DevOp::Discard, at, len)
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Io<()> {
        self.refuse(DevOp::WriteZeroes, at, len)
    }
}
