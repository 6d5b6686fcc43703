//! All dirty data to the backing devices, offline.
//!
//! 1. Dirty extents are copied in the order of the backing device, and flushed. They stay dirty meanwhile: a crash
//!    costs nothing but the time of copying again.
//! 2. The metadata is written anew with these extents clean, and one journal entry makes it the set's.
//! 3. Then the backing superblocks say CLEAN.

use super::check::{Checked, Options, check};
use super::kind::Severity;
use super::repair::{self, Plan, Refused, WriteAt};
use super::view::{Backing, Device, SetView};
use bcache_format::superblock::BackingState;
use bcache_format::uuid_entry::UuidEntry;
use bcache_format::{Bkey, Pos, SECTOR_SIZE};
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, mpsc};
use thiserror::Error;

/// Bytes read before they are written: neighbours on the backing device go in one write.
///
/// No more than the processor keeps near with all that are under way.
const CHUNK: u64 = 1 << 20;

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

impl Flush {
    /// Looks at the devices.
    ///
    /// # Errors
    /// A set that is not in order is not touched.
    pub fn new(devices: &[Device]) -> Result<Self, FlushError> {
        let checked = check(devices.iter().cloned(), Options::default());
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
        self.targets.iter().map(|(backing, slot)| {
            let dirty = self.checked.slots.get(slot).map_or(0, |used| used.dirty);
            Target { name: Arc::clone(&backing.name), slot: *slot, dirty }
        })
    }
    /// Slots of backing devices that have dirty data but were not named, with their UUIDs.
    #[must_use]
    pub fn left_out(&self) -> Vec<UuidEntry> {
        let view = self.checked.set.as_ref();
        let uuids = view.map(|view| view.uuids.as_slice()).unwrap_or_default();
        let left = (0u32..).zip(uuids).filter(|(slot, entry)| {
            let dirty = self.checked.slots.get(slot).map_or(0, |used| used.dirty);
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
        if slots.map(|(_, used)| used.dirty).sum::<u64>() > 0 { repair::of_extents(&self.checked) } else { 0 }
    }

    /// Copies all dirty data of the targets, in order, and flushes the devices. `done` is told of bytes copied.
    ///
    /// # Errors
    /// A device failed. The set is as it was.
    pub fn copy(
        &self,
        writable: &[(&str, &dyn WriteAt)],
        done: &mut dyn FnMut(u64),
    ) -> Result<(), FlushError> {
        let view = self.checked.set.as_ref().ok_or(FlushError::NoCache)?;
        for (backing, slot) in &self.targets {
            let found = writable.iter().find(|(name, _)| *name == &*backing.name);
            let failed = |error| FlushError::Device { device: Arc::clone(&backing.name), byte: 0, error };
            let (_, device) = found.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
            copy_slot(view, backing, *slot, *device, done)?;
            device.flush().map_err(failed)?;
        }
        Ok(())
    }

    /// The writes after which the copied extents are clean.
    ///
    /// # Errors
    /// The metadata cannot be written.
    pub fn finish(&self, devices: &[Device], random: &mut dyn FnMut() -> u64) -> Result<Plan, Refused> {
        let slots: BTreeSet<u32> = self.targets.iter().map(|(_, slot)| *slot).collect();
        finish(devices, &self.checked, &slots, random)
    }
}

fn finish(
    devices: &[Device],
    checked: &Checked,
    slots: &BTreeSet<u32>,
    random: &mut dyn FnMut() -> u64,
) -> Result<Plan, Refused> {
    let (Some(view), Some(cache)) = (&checked.set, &checked.cache) else { return Ok(Plan::default()) };
    let mut plan = Plan::default();
    let flushed = |key: &Bkey| key.dirty() && slots.contains(&key.inode());
    let live = view.trusted_extents(Pos::ZERO, Pos::MAX).flatten().filter(|extent| extent.live().is_some());
    let mut keys: Vec<Bkey> = live.map(|extent| extent.key).collect();
    let mut expected = None;
    if keys.iter().any(flushed) {
        keys.iter_mut().filter(|key| flushed(key)).for_each(|key| key.set_dirty(false));
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
        if slot.is_some_and(|(slot, _)| slots.contains(&slot)) {
            let mut sb = backing.sb.clone();
            sb.set_state(BackingState::Clean);
            writes.push(repair::write_superblock(&backing.device, &backing.name, &sb)?);
        }
    }
    plan.push("say that the backing devices are clean", writes);
    repair::prove(devices, &plan, expected.as_deref())?;
    Ok(plan)
}

/// Bytes of the backing device that are still to be written.
struct Batch {
    /// Where they go: runs of bytes, each with its start and its length.
    runs: Vec<(u64, usize)>,
    /// Room for a chunk, of which the runs have a part.
    bytes: Vec<u8>,
}

impl Default for Batch {
    fn default() -> Self {
        Self { runs: Vec::new(), bytes: vec![0; CHUNK as usize] }
    }
}

/// Batches that have been read and wait for being written.
const AHEAD: usize = 4;

/// Copies the dirty extents of a slot: one thread reads, this one writes.
fn copy_slot(
    view: &SetView,
    backing: &Backing,
    slot: u32,
    device: &dyn WriteAt,
    done: &mut dyn FnMut(u64),
) -> Result<(), FlushError> {
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::sync_channel(AHEAD);
        let (give_back, again) = mpsc::channel();
        let read = move || {
            let mut take = |batch| send.send(Ok(batch)).is_ok().then(|| again.try_recv().unwrap_or_default());
            if let Err(error) = read_slot(view, slot, &mut take) {
                // Whoever would be told has given up already.
                let _ = send.send(Err(error));
            }
        };
        let no_thread = |error| FlushError::Device { device: Arc::clone(&view.cache.name), byte: 0, error };
        std::thread::Builder::new().spawn_scoped(scope, read).map_err(no_thread)?;
        for batch in receive {
            let batch: Batch = batch?;
            let mut rest = batch.bytes.as_slice();
            for (at, len) in &batch.runs {
                let (run, behind) = rest.split_at_checked(*len).unwrap_or_default();
                let failed =
                    |error| FlushError::Device { device: Arc::clone(&backing.name), byte: *at, error };
                device.write_at(*at, run).map_err(failed)?;
                done(*len as u64);
                rest = behind;
            }
            // The reader may have ended.
            let _ = give_back.send(batch);
        }
        Ok(())
    })
}

/// Reads the dirty extents of a slot and hands them to `take`, which gives memory for the next batch, or nothing when no
/// more is wanted. Neighbours are one run.
fn read_slot(
    view: &SetView,
    slot: u32,
    take: &mut dyn FnMut(Batch) -> Option<Batch>,
) -> Result<(), FlushError> {
    let (mut batch, mut held) = (Batch::default(), 0);
    for extent in view.trusted_extents(Pos::new(slot, 0), Pos::new(slot + 1, 0)).flatten() {
        let Some(ptr) = extent.live().filter(|_| extent.key.dirty()) else { continue };
        let (mut to, mut from) = (extent.key.start() * SECTOR_SIZE, ptr.offset() * SECTOR_SIZE);
        let mut left = extent.key.size() * SECTOR_SIZE;
        while left > 0 {
            if held as u64 >= CHUNK {
                let Some(next) = take(batch) else { return Ok(()) };
                (batch, held) = (next, 0);
                batch.runs.clear();
            }
            let step = left.min(CHUNK - held as u64);
            let target = batch.bytes.get_mut(held..held + step as usize).unwrap_or_default();
            let name = &view.cache.name;
            let failed = |error| FlushError::Device { device: Arc::clone(name), byte: from, error };
            view.cache.device.read_at(from, target).map_err(failed)?;
            match batch.runs.last_mut().filter(|(at, len)| *at + *len as u64 == to) {
                Some((_, len)) => *len += step as usize,
                None => batch.runs.push((to, step as usize)),
            }
            held += step as usize;
            (to, from, left) = (to + step, from + step, left - step);
        }
    }
    if !batch.runs.is_empty() {
        take(batch);
    }
    Ok(())
}
