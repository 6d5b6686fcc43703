//! All dirty data to the backing devices, offline.
//!
//! 1. Dirty extents are copied in the order of the backing device, a few writes at a time, and flushed. They stay dirty
//!    meanwhile: a crash costs nothing but the time of copying again. Sectors that the cache cannot read, or the backing
//!    device cannot take, are gone around.
//! 2. The metadata is written anew with these extents clean, but for the blocks with such sectors, and one journal entry
//!    makes it the set's.
//! 3. Then the superblocks of the backing devices that have everything say CLEAN.
//!
//! Long because copying, what is tried again, and the account of what is left are one thing.

use super::check::{Checked, Options, check};
use super::kind::Severity;
use super::repair::{self, Plan, Refused, WriteAt};
use super::view::read_at::announced;
use super::view::{Backing, Device, Fault, SetView};
use crate::dev::Buf;
use bcache_format::superblock::BackingState;
use bcache_format::uuid_entry::UuidEntry;
use bcache_format::{Bkey, Pos, Ptr, SECTOR_SIZE};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use thiserror::Error;
use uuid::Uuid;

/// Bytes read before they are written, at most: neighbours on the backing device go in one write.
const CHUNK: u64 = 1 << 20;
/// Such writes under way at a time: enough to keep a device busy, and few enough that a disk sees them in order.
const COPIES: usize = 4;
/// Bytes of a page, which a part of what cannot be copied whole keeps together. A disk has such sectors below the 512 bytes
/// that it shows: where it cannot write a part of one, nothing of it is sure.
const PAGE: u64 = 4096;
/// Ranges that are left around bad sectors of one backing device, at most: with more the device is what is bad.
const LEFT_MAX: usize = 1 << 16;

/// Why nothing is flushed.
#[derive(Debug, Error)]
pub enum FlushError {
    /// There is no cache with a set among the devices.
    #[error("no cache with a set on it was named")]
    NoCache,
    /// The set has to be repaired first.
    #[error("the set has findings ({0}: {1}); `bcache fsck` them first")]
    Findings(&'static str, String),
    /// The metadata cannot be written.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Metadata that was in order a moment ago is not any more.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Less was found to copy than is dirty.
    #[error("{device}: {copied} dirty sectors were found, {dirty} before; `bcache fsck` the set")]
    Fewer {
        /// The backing device.
        device: Arc<str>,
        /// Sectors that were copied.
        copied: u64,
        /// Sectors that are dirty.
        dirty: u64,
    },
    /// A device failed.
    #[error("{device} at byte {byte}: {error}")]
    Device {
        /// Which.
        device: Arc<str>,
        /// Where.
        byte: u64,
        /// What it said.
        error: io::Error,
    },
}

/// What is to be flushed.
pub struct Flush {
    checked: Checked,
    /// Backing devices that are attached here, with their slots.
    targets: Vec<(Backing, u32)>,
}

/// What of a set is dirty, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The backing device.
    pub name: Arc<str>,
    /// Its slot.
    pub slot: u32,
    /// Dirty sectors.
    pub dirty: u64,
}

/// Sectors of a backing device, one behind the other, that could not be copied, and so stay dirty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The backing device.
    pub backing: Arc<str>,
    /// First sector of the backing device.
    pub from: u64,
    /// The sector behind the last.
    pub to: u64,
    /// The device that failed: the cache could not read, or the backing device could not write.
    pub device: Arc<str>,
    /// Where that was, in bytes.
    pub byte: u64,
    /// What it said.
    pub message: String,
}

/// What was not copied, by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    left: BTreeMap<u32, Vec<Left>>,
}

impl Copied {
    /// What was not copied, in order.
    pub fn left(&self) -> impl Iterator<Item = &Left> {
        self.left.values().flatten()
    }
}

impl Flush {
    /// Looks at the devices.
    ///
    /// # Errors
    /// A set that is not in order is not touched.
    pub fn new(devices: &[Device]) -> Result<Self, FlushError> {
        Self::with(devices, Options::default())
    }
    /// The same with what else the check is to know.
    ///
    /// # Errors
    /// As there.
    pub fn with(devices: &[Device], options: Options<'_>) -> Result<Self, FlushError> {
        let checked = check(devices.iter().cloned(), options);
        if let Some(finding) = checked.findings.iter().find(|finding| finding.severity() > Severity::Harmless)
        {
            return Err(FlushError::Findings(finding.kind.id(), finding.detail.clone()));
        }
        let view = checked.set.as_ref().ok_or(FlushError::NoCache)?;
        let slot_of = |backing: &Backing| {
            let attached = matches!(backing.sb.state(), BackingState::Dirty | BackingState::Clean);
            let mut slots = (0u32..).zip(&view.uuids);
            let slot = slots.find(|(_, entry)| entry.uuid == backing.sb.uuid && attached);
            slot.map(|(slot, _)| (backing.clone(), slot))
        };
        let targets = checked.backings.iter().filter_map(slot_of).collect();
        Ok(Self { checked, targets })
    }
    /// The attached backing devices that were named.
    pub fn targets(&self) -> impl Iterator<Item = Target> + '_ {
        self.targets.iter().map(|(backing, slot)| Target {
            name: Arc::clone(&backing.name),
            slot: *slot,
            dirty: self.dirty(*slot),
        })
    }
    /// Dirty sectors of a slot.
    fn dirty(&self, slot: u32) -> u64 {
        self.checked.slots.get(&slot).map_or(0, |used| used.dirty)
    }
    /// The set some of whose keys only memory has, which [`Self::finish`] makes part of it.
    #[must_use]
    pub fn kept(&self) -> Option<Uuid> {
        self.checked.set.as_ref().filter(|_| !self.checked.kept.is_empty()).map(|view| view.cache.sb.set_uuid)
    }
    /// Slots of backing devices that have dirty data but were not named, with their UUIDs.
    #[must_use]
    pub fn left_out(&self) -> Vec<UuidEntry> {
        let view = self.checked.set.as_ref();
        let uuids = view.map(|view| view.uuids.as_slice()).unwrap_or_default();
        let left = (0u32..).zip(uuids).filter(|(slot, entry)| {
            let dirty = self.dirty(*slot);
            let named = self.targets.iter().any(|(_, target)| target == slot);
            dirty > 0 && !named && !entry.is_flash_only() && !entry.is_detached()
        });
        left.map(|(_, entry)| *entry).collect()
    }

    /// Bytes of memory that [`Self::finish`] takes, about.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let slots =
            self.checked.slots.iter().filter(|(slot, _)| self.targets.iter().any(|(_, of)| of == *slot));
        if slots.map(|(_, used)| used.dirty).sum::<u64>() > 0 || !self.checked.kept.is_empty() {
            repair::of_extents(&self.checked)
        } else {
            0
        }
    }

    /// Copies all dirty data of the targets, in order, around sectors that cannot be read or written, and flushes the
    /// devices. `done` is told of bytes that were gone over.
    ///
    /// # Errors
    /// A device failed as a whole. The set is as it was.
    pub fn copy(
        &self,
        writable: &[(&str, &dyn WriteAt)],
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<Copied, FlushError> {
        let view = self.checked.set.as_ref().ok_or(FlushError::NoCache)?;
        let mut all = Copied::default();
        for (backing, slot) in &self.targets {
            let found = writable.iter().find(|(name, _)| *name == &*backing.name);
            let failed = |error| FlushError::Device { device: Arc::clone(&backing.name), byte: 0, error };
            let (_, device) = found.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
            let copied = AtomicU64::new(0);
            let left = copy_slot(view, backing, *slot, *device, &|bytes| {
                copied.fetch_add(bytes / SECTOR_SIZE, Ordering::Relaxed);
                done(bytes);
            })?;
            let (copied, dirty) = (copied.into_inner(), self.dirty(*slot));
            if copied != dirty {
                return Err(FlushError::Fewer { device: Arc::clone(&backing.name), copied, dirty });
            }
            device.flush().map_err(failed)?;
            if !left.is_empty() {
                all.left.insert(*slot, left);
            }
        }
        Ok(all)
    }

    /// The writes after which the copied extents are clean.
    ///
    /// # Errors
    /// The metadata cannot be written.
    pub fn finish(
        &self,
        devices: &[Device],
        copied: &Copied,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<Plan, Refused> {
        let left = |slot: u32| copied.left.get(&slot).map(Vec::as_slice).unwrap_or_default();
        let slots: Slots<'_> = self.targets.iter().map(|(_, slot)| (*slot, left(*slot))).collect();
        finish(devices, &self.checked, &slots, random)
    }
}

/// Slots that were copied, each with what was not.
type Slots<'l> = BTreeMap<u32, &'l [Left]>;

fn finish(
    devices: &[Device],
    checked: &Checked,
    slots: &Slots<'_>,
    random: &mut dyn FnMut() -> u64,
) -> Result<Plan, Refused> {
    let (Some(view), Some(cache)) = (&checked.set, &checked.cache) else { return Ok(Plan::default()) };
    let mut plan = Plan::default();
    let block = u64::from(cache.sb.block_sectors).max(1);
    let mut keys = Vec::new();
    let mut any = !checked.kept.is_empty();
    repair::each_extent(checked, view, &mut |extent| {
        let key = extent.key;
        match slots.get(&key.inode()).filter(|_| key.dirty()) {
            _ if extent.live().is_none() => {}
            Some(left) => any |= clean(key, left, block, &mut keys),
            None => keys.push(key),
        }
    })?;
    let mut expected = None;
    if any {
        match repair::rewrite(&mut plan, checked, cache, view, &keys, &view.uuids, random) {
            Err(Refused::NoRoom { .. }) => {
                let room = repair::make_room(checked, cache, view, &keys)?;
                return repair::after(devices, room, &mut |devices, checked| {
                    finish(devices, checked, slots, random)
                });
            }
            other => other?,
        }
        expected = Some(keys);
    }
    let mut writes = Vec::new();
    for backing in checked.backings.iter().filter(|backing| backing.sb.state() == BackingState::Dirty) {
        let slot = (0u32..).zip(&view.uuids).find(|(_, entry)| entry.uuid == backing.sb.uuid);
        if slot.is_some_and(|(slot, _)| slots.get(&slot).is_some_and(|left| left.is_empty())) {
            let mut sb = backing.sb.clone();
            sb.set_state(BackingState::Clean);
            writes.push(repair::write_superblock(&backing.device, &backing.name, &sb)?);
        }
    }
    plan.push("say that the backing devices are clean", writes);
    repair::prove(devices, &plan, expected.as_deref())?;
    Ok(plan)
}

/// Adds the parts of a dirty extent that was copied: clean, but for the blocks in which something was left. Tells whether
/// any is clean.
fn clean(key: Bkey, left: &[Left], block: u64, parts: &mut Vec<Bkey>) -> bool {
    let at = |sector: u64| Pos::new(key.inode(), sector);
    let mut any = false;
    let mut push = |from: u64, to: u64, dirty: bool| {
        let mut part = key;
        if from < to && part.cut_front(at(from)) && part.cut_back(at(to)) {
            part.set_dirty(dirty);
            any |= !dirty;
            parts.push(part);
        }
    };
    let mut done = key.start();
    let first = left.partition_point(|one| one.to <= key.start());
    for one in left.iter().skip(first).take_while(|one| one.from < key.offset()) {
        let from = (one.from - one.from % block).max(done);
        let to = one.to.next_multiple_of(block).min(key.offset());
        push(done, from, false);
        push(from, to, true);
        done = done.max(to);
    }
    push(done, key.offset(), false);
    any
}

/// Some of an extent's data, at most a [`CHUNK`].
struct Piece {
    /// Byte of the cache device.
    from: u64,
    /// Byte of the backing device.
    to: u64,
    bytes: u64,
}

/// The dirty data of a slot, in the order of the backing device.
fn pieces(view: &SetView, slot: u32) -> impl Iterator<Item = Result<Piece, Fault>> + '_ {
    let extents = view.trusted_extents(Pos::new(slot, 0), Pos::new(slot + 1, 0));
    let of_key = |key: Bkey, ptr: Ptr| {
        let (from, to) = (ptr.offset() * SECTOR_SIZE, key.start() * SECTOR_SIZE);
        let bytes = key.size() * SECTOR_SIZE;
        (0..bytes).step_by(CHUNK as usize).map(move |done| Piece {
            from: from + done,
            to: to + done,
            bytes: CHUNK.min(bytes - done),
        })
    };
    extents.flat_map(move |extent| {
        let (dirty, fault) = match extent {
            Ok(extent) => (extent.live().filter(|_| extent.key.dirty()).map(|ptr| (extent.key, ptr)), None),
            Err(fault) => (None, Some(Err(fault))),
        };
        dirty.into_iter().flat_map(move |(key, ptr)| of_key(key, ptr)).map(Ok).chain(fault)
    })
}

/// What is one piece on the backing device, at most a [`CHUNK`] of it.
fn runs(
    pieces: impl Iterator<Item = Result<Piece, Fault>>,
) -> impl Iterator<Item = Result<Vec<Piece>, Fault>> {
    let mut pieces = pieces.peekable();
    std::iter::from_fn(move || {
        let first = match pieces.next()? {
            Ok(first) => first,
            Err(fault) => return Some(Err(fault)),
        };
        let (mut end, limit) = (first.to + first.bytes, first.to + CHUNK);
        let mut run = vec![first];
        let fits = |end: u64, next: &Result<Piece, Fault>| {
            next.as_ref().is_ok_and(|next| next.to == end && end + next.bytes <= limit)
        };
        while let Some(Ok(piece)) = pieces.next_if(|next| fits(end, next)) {
            end += piece.bytes;
            run.push(piece);
        }
        Some(Ok(run))
    })
}

/// Copies the dirty extents of a slot. Tells what could not be copied, in order, what is one behind the other together.
fn copy_slot(
    view: &SetView,
    backing: &Backing,
    slot: u32,
    device: &dyn WriteAt,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Left>, FlushError> {
    let tell = |piece: &Result<Piece, Fault>| {
        let Ok(piece) = piece else { return 0 };
        view.cache.device.will_read(piece.from, piece.bytes);
        piece.bytes
    };
    let runs = Mutex::new(runs(announced(pieces(view, slot), tell)));
    let failed = OnceLock::new();
    let left = Mutex::new(LeftOut::default());
    let copier = Copier { view, backing, device, left: &left };
    let work = || {
        let mut buf = Buf::zeroed(CHUNK as usize);
        while failed.get().is_none() {
            // A statement of its own, so that others may take the next while this one is copied.
            let run = runs.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(run) = run else { break };
            match run {
                Ok(run) => match copier.copy_run(&run, &mut buf) {
                    Ok(()) => done(run.iter().map(|piece| piece.bytes).sum()),
                    Err(error) => drop(failed.set(error)),
                },
                // The first is the one to tell.
                Err(fault) => drop(failed.set(FlushError::Fault(fault))),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..COPIES {
            // Fewer threads are slower and no reason to stop.
            if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    Ok(left.into_inner().unwrap_or_else(PoisonError::into_inner).into_sorted())
}

/// What could not be copied, by its place: what is one behind the other together.
#[derive(Default)]
struct LeftOut {
    ranges: BTreeMap<u64, Left>,
}

impl LeftOut {
    /// Adds a range. False when there are too many: then not sectors are bad, but the device.
    fn add(&mut self, mut left: Left) -> bool {
        // Two of one page that cannot be written have the same range. What is known of one place twice is told with what
        // failed first in it.
        let joins = |other: &Left| {
            let overlap = other.from < left.to && left.from < other.to;
            overlap || other.device == left.device && other.message == left.message
        };
        let near = self.ranges.range(..=left.to).rev().take_while(|(_, other)| other.to >= left.from);
        let near: Vec<u64> = near.filter(|(_, other)| joins(other)).map(|(at, _)| *at).collect();
        for before in near.iter().filter_map(|at| self.ranges.remove(at)).collect::<Vec<_>>() {
            let (from, to) = (before.from.min(left.from), before.to.max(left.to));
            let first = if before.from <= left.from { before } else { left };
            left = Left { from, to, ..first };
        }
        self.ranges.insert(left.from, left);
        self.ranges.len() <= LEFT_MAX
    }
    fn into_sorted(self) -> Vec<Left> {
        self.ranges.into_values().collect()
    }
}

/// What a thread that copies needs.
#[derive(Clone, Copy)]
struct Copier<'c> {
    view: &'c SetView,
    backing: &'c Backing,
    device: &'c dyn WriteAt,
    /// What could not be copied.
    left: &'c Mutex<LeftOut>,
}

impl Copier<'_> {
    /// Copies what is one piece on the backing device; where that fails, a part of it at a time.
    fn copy_run(&self, run: &[Piece], buf: &mut Buf) -> Result<(), FlushError> {
        let Some(first) = run.first() else { return Ok(()) };
        let mut filled = 0;
        let read = run.iter().try_for_each(|piece| {
            let place = filled..filled + piece.bytes as usize;
            filled = place.end;
            self.read(piece.from, buf.get_mut(place))
        });
        let whole = read.and_then(|()| self.write(first.to, buf.get(..filled)));
        if whole.is_err() { run.iter().try_for_each(|piece| self.copy_around(piece, buf)) } else { Ok(()) }
    }
    /// Copies a piece by halves, down to the sectors that cannot be read, and the pages that cannot be written.
    fn copy_around(&self, piece: &Piece, buf: &mut Buf) -> Result<(), FlushError> {
        let end = piece.to + piece.bytes;
        let read = self.read(piece.from, buf.get_mut(..piece.bytes as usize));
        let half = match read {
            Err(error) => {
                if piece.bytes <= SECTOR_SIZE {
                    return self.leave((piece.to, end), &self.view.cache.name, piece.from, error);
                }
                // Pages stay whole: what begins at one may go past the page cache.
                let unit = if piece.bytes > PAGE { PAGE } else { SECTOR_SIZE };
                (piece.bytes / 2).next_multiple_of(unit).min(piece.bytes - SECTOR_SIZE)
            }
            Ok(()) => match self.write(piece.to, buf.get(..piece.bytes as usize)) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    let (from, to) = (piece.to / PAGE * PAGE, end.next_multiple_of(PAGE));
                    if to - from <= PAGE {
                        return self.leave((from, to), &self.backing.name, piece.to, error);
                    }
                    // The boundary of a page of the backing device in its middle.
                    from + ((to - from) / PAGE / 2).max(1) * PAGE - piece.to
                }
            },
        };
        let first = Piece { from: piece.from, to: piece.to, bytes: half };
        let second = Piece { from: piece.from + half, to: piece.to + half, bytes: piece.bytes - half };
        self.copy_around(&first, buf)?;
        self.copy_around(&second, buf)
    }
    /// Notes bytes of the backing device that could not be copied.
    fn leave(
        &self,
        (from, to): (u64, u64),
        device: &Arc<str>,
        byte: u64,
        error: io::Error,
    ) -> Result<(), FlushError> {
        let left = Left {
            backing: Arc::clone(&self.backing.name),
            from: from / SECTOR_SIZE,
            to: to / SECTOR_SIZE,
            device: Arc::clone(device),
            byte,
            message: error.to_string(),
        };
        let few = self.left.lock().unwrap_or_else(PoisonError::into_inner).add(left);
        if few { Ok(()) } else { Err(FlushError::Device { device: Arc::clone(device), byte, error }) }
    }
    fn read(&self, byte: u64, buf: Option<&mut [u8]>) -> io::Result<()> {
        self.view.cache.device.read_at(byte, buf.ok_or(io::ErrorKind::InvalidInput)?)
    }
    fn write(&self, byte: u64, bytes: Option<&[u8]>) -> io::Result<()> {
        self.device.write_data(byte, bytes.ok_or(io::ErrorKind::InvalidInput)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(from: u64, to: u64, device: &str) -> Left {
        let (backing, message) = ("backing".into(), "broken".to_owned());
        Left { backing, from, to, device: device.into(), byte: from * SECTOR_SIZE, message }
    }

    #[test]
    fn what_is_left_is_told_together_and_bounded() {
        let mut out = LeftOut::default();
        // A page that cannot be written, and sectors around and inside it that cannot be read.
        let added =
            [(8, 16, "backing"), (16, 17, "cache"), (18, 19, "cache"), (17, 18, "cache"), (9, 10, "cache")];
        assert!(added.iter().all(|(from, to, device)| out.add(left(*from, *to, device))));
        assert!(out.add(left(16, 24, "backing")));
        let told: Vec<_> =
            out.into_sorted().iter().map(|one| (one.from, one.to, one.device.to_string())).collect();
        assert_eq!(told, [(8, 24, "backing".to_owned())]);
        // One range however many sectors; with ranges without end the device is what is bad.
        let mut out = LeftOut::default();
        assert!((0..2 * LEFT_MAX as u64).rev().all(|at| out.add(left(at, at + 1, "backing"))));
        assert_eq!(out.into_sorted().len(), 1);
        let mut out = LeftOut::default();
        let added =
            (0..2 * LEFT_MAX as u64).take_while(|at| out.add(left(2 * at, 2 * at + 1, "backing"))).count();
        assert_eq!(added, LEFT_MAX);
    }
}
