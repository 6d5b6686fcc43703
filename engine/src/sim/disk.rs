//! A simulated disk.
//!
//! Long because a simulated disk is one fault model: what is volatile, torn, delayed or refused depends on each other.

use bcache_format::SECTOR_SIZE;
use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};
use std::rc::Rc;
use std::time::Duration;

use slab::Slab;

use super::runtime::World;
use super::store::{Change, Content, Store};
use super::{Fault, Image, Lie, Power, Runtime, Survival};
use crate::dev::{self, BlockDev, Buf, Completer, DevError, DevOp, Geometry, Io, Shared};
use crate::env::Env;
use crate::sync::WaitQueue;

/// What a discarded range reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDiscard {
    /// Zeroes.
    Zeroes,
    /// The bytes from before: the disk ignores discards.
    Unchanged,
    /// Bytes that nobody wrote.
    Garbage,
}

/// How a disk is made. [`Config::new`] gives the usual one.
#[derive(Clone, Debug)]
pub struct Config {
    /// What messages call it.
    pub name: String,
    /// Size and abilities.
    pub geometry: Geometry,
    /// Whether completed writes are volatile until flushed. Without this cache they are durable at once.
    pub volatile: bool,
    /// What a discarded range reads as.
    pub after_discard: AfterDiscard,
    /// Time a read takes, in nanoseconds.
    pub read_ns: RangeInclusive<u64>,
    /// Time a write, discard or zeroing takes, in nanoseconds.
    pub write_ns: RangeInclusive<u64>,
    /// Time a flush takes, in nanoseconds.
    pub flush_ns: RangeInclusive<u64>,
}

impl Config {
    /// A disk of `bytes` bytes with 512-byte blocks, a volatile cache, and the latencies of a fast SSD.
    pub fn new(name: &str, bytes: u64) -> Config {
        let geometry = Geometry {
            bytes,
            logical_block: SECTOR_SIZE as u32,
            discard: true,
            write_zeroes: true,
            rotational: false,
            read_only: false,
        };
        Config {
            name: name.to_owned(),
            geometry,
            volatile: true,
            after_discard: AfterDiscard::Garbage,
            read_ns: 20_000..=200_000,
            write_ns: 10_000..=300_000,
            flush_ns: 50_000..=1_000_000,
        }
    }
}

/// What was asked of a disk so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Reads begun.
    pub reads: u64,
    /// Writes begun.
    pub writes: u64,
    /// Of those, writes with FUA.
    pub fua_writes: u64,
    /// Flushes begun.
    pub flushes: u64,
    /// Discards begun.
    pub discards: u64,
    /// Zeroings begun.
    pub zeroings: u64,
    /// Bytes asked for by reads.
    pub read_bytes: u64,
    /// Bytes given by writes.
    pub written_bytes: u64,
    /// Operations refused because they broke the contract: misaligned, out of range, or writes to a read-only
    /// disk. A test of correct code finds zero here.
    pub refused: u64,
    /// Operations failed by a [`Fault`].
    pub failed: u64,
    /// Of those, flushes.
    pub failed_flushes: u64,
}

/// A simulated disk; clones are handles to the same one. See the [module](super) for its fault model.
#[derive(Clone)]
pub struct Disk(Rc<Inner>);

/// What a disk holds while nobody uses it and the power is on.
#[derive(Clone)]
pub struct Medium(Store);

impl Medium {
    /// What reads would see.
    pub fn image(&self) -> &Image {
        self.0.current()
    }
}

impl From<Image> for Medium {
    /// All of it durable.
    fn from(image: Image) -> Self {
        Self(Store::new(image, SECTOR_SIZE as u32))
    }
}

struct Inner {
    config: Config,
    env: Env,
    world: Rc<World>,
    power: Power,
    state: RefCell<DiskState>,
    released: WaitQueue,
}

struct DiskState {
    store: Store,
    in_flight: Slab<Flight>,
    faults: Vec<Fault>,
    stats: Stats,
    unplugged: bool,
    held: bool,
}

/// An operation begun and not completed.
struct Flight {
    op: DevOp,
    at: u64,
    len: u64,
    /// What it changes; a read, a flush and an ignored discard change nothing.
    change: Option<Change>,
    fua: bool,
    /// For a flush, what it promised to make durable.
    mark: u64,
    errno: Option<i32>,
    lie: Option<(Lie, Range<u64>)>,
}

/// What becomes of an operation.
struct Fate {
    delay: Duration,
    errno: Option<i32>,
    /// With the range of the disk that it is about.
    lie: Option<(Lie, Range<u64>)>,
}

impl Disk {
    /// A disk of zeroes.
    pub fn new(runtime: &Runtime, power: &Power, config: Config) -> Disk {
        Disk::with_image(runtime, power, config, Image::new())
    }

    /// A disk that holds `image`, all of it durable.
    pub fn with_image(runtime: &Runtime, power: &Power, config: Config, image: Image) -> Disk {
        let state = DiskState {
            store: Store::new(image, config.geometry.logical_block),
            in_flight: Slab::new(),
            faults: Vec::new(),
            stats: Stats::default(),
            unplugged: false,
            held: false,
        };
        Disk(Rc::new(Inner {
            config,
            env: runtime.env(),
            world: Rc::clone(runtime.world()),
            power: power.clone(),
            state: RefCell::new(state),
            released: WaitQueue::new(),
        }))
    }

    /// A disk as the end of a process left it: see [`Self::process_ends`].
    pub fn with_medium(runtime: &Runtime, power: &Power, config: Config, medium: Medium) -> Disk {
        let disk = Disk::with_image(runtime, power, config, Image::new());
        let block = disk.0.config.geometry.logical_block;
        disk.0.state.borrow_mut().store = medium.0.with_blocks(block);
        disk
    }

    /// What the disk holds when the process that uses it ends at this moment: what was completed, durable or not, and of
    /// what is under way each operation, a part of it, or nothing. Changes nothing here.
    pub fn process_ends(&self) -> Medium {
        let state = self.0.state.borrow();
        let mut store = state.store.clone();
        self.0.world.rng(|rng| {
            for (_, flight) in &state.in_flight {
                let Some(change) = &flight.change else { continue };
                let durable = flight.fua || !self.0.config.volatile;
                match rng.below(8) {
                    0..4 => store.apply(change, durable, None),
                    4 => store.apply(change, false, Some(rng)),
                    _ => {}
                }
            }
        });
        Medium(store)
    }

    /// The disk as the engine takes it.
    pub fn dev(&self) -> Rc<dyn BlockDev> {
        Rc::new(self.clone())
    }

    /// What reads would see now.
    pub fn snapshot(&self) -> Image {
        self.0.state.borrow().store.current().clone()
    }

    /// What is certain to survive a power cut now.
    pub fn durable(&self) -> Image {
        self.0.state.borrow().store.durable().clone()
    }

    /// What one power cut at this moment leaves. Changes nothing, so that one run may be cut in many ways.
    pub fn crash(&self, survival: Survival) -> Image {
        let state = self.0.state.borrow();
        let in_flight: Vec<Change> = state.in_flight.iter().filter_map(|(_, f)| f.change.clone()).collect();
        self.0.world.rng(|rng| state.store.survivors(&in_flight, survival, rng))
    }

    /// Adds something wrong.
    pub fn inject(&self, fault: Fault) {
        self.0.state.borrow_mut().faults.push(fault);
    }

    /// Takes all faults back.
    pub fn heal(&self) {
        self.0.state.borrow_mut().faults.clear();
    }

    /// Pulls the disk out: everything fails with `ENODEV` from now on, operations in flight included.
    pub fn unplug(&self) {
        self.0.state.borrow_mut().unplugged = true;
    }

    /// Keeps operations from completing until [`release`](Self::release).
    pub fn hold(&self) {
        self.0.state.borrow_mut().held = true;
    }

    /// Lets held operations complete.
    pub fn release(&self) {
        self.0.state.borrow_mut().held = false;
        self.0.released.wake_all();
    }

    /// Operations begun and not completed.
    pub fn in_flight(&self) -> usize {
        self.0.state.borrow().in_flight.len()
    }

    /// What was asked of the disk so far.
    pub fn stats(&self) -> Stats {
        self.0.state.borrow().stats
    }
}

impl Inner {
    fn error(&self, op: DevOp, at: u64, len: u64, errno: i32) -> DevError {
        DevError::new(&self.config.name, op, at, len, errno)
    }

    fn count(&self, op: DevOp, len: u64, fua: bool) {
        let stats = &mut self.state.borrow_mut().stats;
        match op {
            DevOp::Read => {
                stats.reads += 1;
                stats.read_bytes += len;
            }
            DevOp::Write => {
                stats.writes += 1;
                stats.fua_writes += u64::from(fua);
                stats.written_bytes += len;
            }
            DevOp::Flush => stats.flushes += 1,
            DevOp::Discard => stats.discards += 1,
            DevOp::WriteZeroes => stats.zeroings += 1,
            DevOp::Open => {}
        }
    }

    /// The time an operation takes, the error it ends with, and what it does wrong, faults included.
    fn fate(&self, op: DevOp, at: u64, len: u64) -> Fate {
        let range = match op {
            DevOp::Read => &self.config.read_ns,
            DevOp::Flush => &self.config.flush_ns,
            _ => &self.config.write_ns,
        };
        let nanos = self.world.rng(|rng| rng.between(*range.start(), *range.end()));
        let mut delay = Duration::from_nanos(nanos);
        let state = &mut *self.state.borrow_mut();
        let mut errno = state.unplugged.then_some(libc::ENODEV);
        let mut lie = None;
        for fault in state.faults.iter_mut().filter(|fault| fault.strikes(op, at, len)) {
            delay += fault.delay;
            errno = errno.or(fault.errno);
            lie = lie.or_else(|| Some((fault.lie?, fault.range.clone())));
            if let Some(times) = &mut fault.times {
                *times = times.saturating_sub(1);
            }
        }
        state.faults.retain(|fault| fault.times != Some(0));
        state.stats.failed += u64::from(errno.is_some());
        state.stats.failed_flushes += u64::from(errno.is_some() && op == DevOp::Flush);
        Fate { delay, errno, lie }
    }

    /// Where an operation goes on the disk.
    fn place(&self, lie: &Option<(Lie, Range<u64>)>, at: u64, len: u64) -> u64 {
        match lie {
            Some((Lie::Elsewhere(further), _)) => {
                (at + further) % (self.config.geometry.bytes - len + 1) / 4096 * 4096
            }
            _ => at,
        }
    }
}

/// A few bytes of every sector stand for the whole in the trace hash.
fn digest(data: &[u8]) -> u64 {
    data.chunks(SECTOR_SIZE as usize).fold(0u64, |hash, sector| {
        let mut word = [0u8; 8];
        let part = sector.len().min(8);
        word[..part].copy_from_slice(&sector[..part]);
        hash.rotate_left(7) ^ u64::from_le_bytes(word)
    })
}

impl Disk {
    /// Starts an operation. `finish` gets the flight back when it completes without an error, and makes the answer.
    fn start<T: 'static>(
        &self,
        (op, at, len): (DevOp, u64, u64),
        content: Option<Content>,
        fua: bool,
        finish: impl FnOnce(&Inner, &Flight) -> T + 'static,
    ) -> Io<T> {
        let inner = &self.0;
        if let Err(error) = dev::check(self, op, at, len) {
            inner.state.borrow_mut().stats.refused += 1;
            return Io::ready(Err(error));
        }
        let (completer, io) = Io::pair();
        if !inner.power.event() {
            return io;
        }
        inner.count(op, len, fua);
        let Fate { delay, errno, lie } = inner.fate(op, at, len);
        inner.world.trace(at ^ len.rotate_left(40) ^ (op as u64) << 60 ^ u64::from(fua) << 59);
        if let Some(Content::Data(data)) = &content {
            inner.world.trace(digest(data));
        }
        let place = inner.place(&lie, at, len);
        let content = content.filter(|_| !matches!(lie, Some((Lie::Lost, _))));
        let change = content.map(|content| Change { at: place, len, content });
        let mut state = inner.state.borrow_mut();
        let mark = state.store.mark();
        let key = state.in_flight.insert(Flight { op, at, len, change, fua, mark, errno, lie });
        drop(state);
        let disk = self.clone();
        let task = async move {
            disk.0.env.sleep(delay).await;
            disk.0.released.wait_until(|| !disk.0.state.borrow().held).await;
            disk.land(key, completer, finish);
        };
        inner.env.spawn(task).detach();
        io
    }

    /// Ends an operation: its effect, then its answer.
    fn land<T>(&self, key: usize, completer: Completer<T>, finish: impl FnOnce(&Inner, &Flight) -> T) {
        let inner = &self.0;
        if !inner.power.event() {
            return;
        }
        let mut state = inner.state.borrow_mut();
        let mut flight = state.in_flight.remove(key);
        if state.unplugged {
            flight.errno = Some(libc::ENODEV);
        }
        inner.world.trace(key as u64 ^ 0xe4d << 40);
        let durable = flight.fua || !inner.config.volatile;
        match (&flight.change, flight.errno) {
            (Some(change), None) => state.store.apply(change, durable, None),
            (Some(change), Some(_)) => inner.world.rng(|rng| state.store.apply(change, false, Some(rng))),
            (None, None) if flight.op == DevOp::Flush => state.store.flush(flight.mark),
            (None, Some(_)) if flight.op == DevOp::Flush => {
                inner.world.rng(|rng| state.store.fail_flush(flight.mark, rng));
            }
            _ => {}
        }
        drop(state);
        completer.complete(match flight.errno {
            Some(errno) => Err(inner.error(flight.op, flight.at, flight.len, errno)),
            None => Ok(finish(inner, &flight)),
        });
    }
}

impl BlockDev for Disk {
    fn geometry(&self) -> Geometry {
        self.0.config.geometry
    }

    fn name(&self) -> &str {
        &self.0.config.name
    }

    fn read(&self, at: u64, mut buf: Buf) -> Io<Buf> {
        let len = buf.len() as u64;
        self.start((DevOp::Read, at, len), None, false, move |inner, flight| {
            let place = inner.place(&flight.lie, flight.at, flight.len);
            inner.state.borrow().store.current().read(place, &mut buf);
            if let Some((Lie::Flipped(bit), range)) = &flight.lie {
                let byte = range.start.saturating_sub(flight.at).min(flight.len - 1);
                buf[byte as usize] ^= 1 << (bit % 8);
            }
            buf
        })
    }

    fn write(&self, at: u64, data: Shared, fua: bool) -> Io<()> {
        let len = data.len() as u64;
        self.start((DevOp::Write, at, len), Some(Content::Data(data)), fua, |_, _| ())
    }

    fn flush(&self) -> Io<()> {
        self.start((DevOp::Flush, 0, 0), None, false, |_, _| ())
    }

    fn discard(&self, at: u64, len: u64) -> Io<()> {
        let content = match self.0.config.after_discard {
            _ if !self.0.config.geometry.discard => None,
            AfterDiscard::Unchanged => None,
            AfterDiscard::Zeroes => Some(Content::Zeroes),
            AfterDiscard::Garbage => Some(Content::Garbage(self.0.world.rng(|rng| rng.bits()))),
        };
        self.start((DevOp::Discard, at, len), content, false, |_, _| ())
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Io<()> {
        self.start((DevOp::WriteZeroes, at, len), Some(Content::Zeroes), false, |_, _| ())
    }
}
