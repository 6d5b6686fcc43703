//! What a repair overwrites, kept in a file so that it can be put back.
//!
//! ```text
//! "ubcache undo 2\n"
//! devices u32  { name length u32, name, UUID before 16 bytes, UUID after 16 bytes } * devices
//! guards u32   { device u32, byte u64, length u64, checksum u64 } * guards
//! writes u32   { device u32, byte u64, length u64, checksum of the new bytes u64 a sector, old bytes } * writes
//! checksum u64 over everything before
//! ```
//! All numbers are little-endian, checksums CRC-64.
//!
//! A **guard** is a place that every use of a set changes: superblocks and journal buckets, without the sectors that
//! the repair writes. Of those each is by itself as before the repair or as after it, so that an undo of a repair, or
//! of an undo, that was cut off goes on where that stopped; anything else there means that the set was used since.

use super::super::view::Device;
use super::super::view::devices::read_sectors;
use super::plan::{Bytes, Plan, Step, Write};
use bcache_format::csum::{SEED_ONES, crc64};
use bcache_format::superblock::{SB_BYTES, SB_OFFSET};
use bcache_format::{SECTOR_SIZE, Superblock};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use thiserror::Error;
use uuid::Uuid;

/// What an undo file begins with.
pub const MAGIC: &[u8] = b"ubcache undo 2\n";
const SECTOR: usize = SECTOR_SIZE as usize;
/// Where a superblock has its UUID.
const UUID_AT: u64 = SB_OFFSET + 0x28;
/// Bytes of a guard that are read at a time.
const CHUNK: u64 = 1 << 20;

/// A device that a repair wrote to, or that belongs to the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name then.
    pub name: Arc<str>,
    /// The UUID in its superblock before the repair, and after it.
    pub uuids: [Uuid; 2],
}

impl Named {
    /// Whether this is the device, by what its superblock says now.
    #[must_use]
    pub fn is(&self, device: &Device) -> bool {
        self.uuids.contains(&uuid_of(device))
    }
}

/// Bytes that were overwritten.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Saved {
    device: usize,
    byte: u64,
    /// What was there before the repair.
    old: Vec<u8>,
    /// Checksums of what was written, a sector each.
    new: Vec<u64>,
}

/// A place that a use of the set would have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Guard {
    device: usize,
    byte: u64,
    bytes: u64,
    csum: u64,
}

/// What an undo file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undo {
    /// The devices.
    pub devices: Vec<Named>,
    guards: Vec<Guard>,
    saved: Vec<Saved>,
}

/// Why an undo file is not used.
#[derive(Debug, Error)]
pub enum UndoError {
    /// Not an undo file, or not all of one.
    #[error("not a whole undo file")]
    Damaged,
    /// The device was written to since.
    #[error(
        "{device} has changed at byte {byte} since the repair: putting old bytes back would destroy the set"
    )]
    Changed {
        /// The device.
        device: Arc<str>,
        /// Where.
        byte: u64,
    },
    /// A device that the file speaks of is not there.
    #[error("the repair was of {name}, superblock UUID {uuid}: no device that was named is that")]
    Missing {
        /// Its name then.
        name: Arc<str>,
        /// Its UUID.
        uuid: Uuid,
    },
    /// The device cannot be read.
    #[error("{device} at byte {byte}: {error}")]
    Read {
        /// The device.
        device: Arc<str>,
        /// Where.
        byte: u64,
        /// What it said.
        error: io::Error,
    },
}

/// The file's content for a plan that is about to be applied.
///
/// # Errors
/// A device cannot be read where the plan writes.
pub fn save(plan: &Plan, devices: &[Device]) -> Result<Vec<u8>, UndoError> {
    let after = plan.simulate(devices, usize::MAX).map_err(|error| UndoError::Read {
        device: devices.first().map_or("", |device| device.name()).into(),
        byte: 0,
        error,
    })?;
    let named = devices.iter().zip(&after).map(|(before, after)| Named {
        name: before.name().into(),
        uuids: [uuid_of(before), uuid_of(after)],
    });
    let mut undo = Undo { devices: named.collect(), guards: Vec::new(), saved: Vec::new() };
    for write in plan.writes() {
        let device = devices.iter().position(|device| device.name() == &*write.device);
        let device = device.ok_or_else(|| UndoError::Read {
            device: Arc::clone(&write.device),
            byte: write.byte,
            error: io::ErrorKind::NotFound.into(),
        })?;
        let Some(content) = devices.get(device) else { continue };
        // Of a place that is written twice the bytes before the first time are those that count.
        match &write.bytes {
            Bytes::These(bytes) => {
                let old = bytes_now(content, write.byte, bytes.len());
                let new = bytes.chunks(SECTOR).map(csum).collect();
                undo.saved.push(Saved { device, byte: write.byte, old, new });
            }
            Bytes::Zeros(count) => undo.saved.extend(cleared(device, content, write.byte, *count)),
        }
    }
    undo.guards = guards(&undo, &after);
    Ok(undo.to_bytes())
}

/// What there is where zeros are written. Nothing is kept of what is all zeros, or cannot be read: gigabytes may be so. That
/// it is zeros afterwards is for the guards to see.
fn cleared(device: usize, content: &Device, byte: u64, count: u64) -> Vec<Saved> {
    let end = byte.saturating_add(count);
    let mut saved: Vec<Saved> = Vec::new();
    let zeros = csum(&[0; SECTOR]);
    for at in (byte..end).step_by(CHUNK as usize) {
        let bytes = bytes_now(content, at, usize::try_from(CHUNK.min(end - at)).unwrap_or(0));
        for (at, sector) in (at..).step_by(SECTOR).zip(bytes.chunks(SECTOR)) {
            if sector.iter().all(|byte| *byte == 0) {
                continue;
            }
            let new = if sector.len() == SECTOR { zeros } else { csum(&vec![0; sector.len()]) };
            match saved.last_mut().filter(|last| last.byte + last.old.len() as u64 == at) {
                Some(last) => {
                    last.old.extend_from_slice(sector);
                    last.new.push(new);
                }
                None => saved.push(Saved { device, byte: at, old: sector.to_vec(), new: vec![new] }),
            }
        }
    }
    saved
}

/// Superblocks and journal buckets, as they are without what a repair writes.
fn guards(undo: &Undo, after: &[Device]) -> Vec<Guard> {
    let mut guards = Vec::new();
    for (device, content) in after.iter().enumerate() {
        let mut places = vec![(SB_OFFSET, SB_BYTES as u64)];
        let sb = Superblock::parse(&bytes_now(content, SB_OFFSET, SB_BYTES)).ok();
        if let Some((geometry, cache)) = sb.as_ref().and_then(|sb| Some((sb.geometry()?, sb.cache()?))) {
            let first = geometry.first_bucket.saturating_mul(geometry.bucket_bytes());
            let bytes = u64::from(cache.njournal_buckets).saturating_mul(geometry.bucket_bytes());
            places.push((first, bytes.min(content.size().saturating_sub(first))));
        }
        for (byte, bytes) in places {
            let csum = undo.guarded(device, content, byte, bytes);
            guards.push(Guard { device, byte, bytes, csum });
        }
    }
    guards
}

fn csum(bytes: &[u8]) -> u64 {
    crc64(SEED_ONES, bytes)
}

fn uuid_of(device: &Device) -> Uuid {
    let bytes = bytes_now(device, UUID_AT, 16);
    Uuid::from_bytes(bytes.try_into().unwrap_or_default())
}

/// What is there. What cannot be read is gone whoever overwrites it, and is kept as zeros.
fn bytes_now(device: &Device, byte: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    if device.read_at(byte, &mut bytes).is_err() {
        read_sectors(device, byte, &mut bytes);
    }
    bytes
}

impl Undo {
    /// The checksum of a guarded place: over the checksums of its chunks, the repair's sectors taken for zeros.
    fn guarded(&self, device: usize, content: &Device, byte: u64, bytes: u64) -> u64 {
        let written: BTreeSet<u64> = self.sectors(device).map(|(at, _, _)| at).collect();
        let mut sums = Vec::new();
        let mut at = byte;
        let end = byte.saturating_add(bytes);
        while at < end {
            let len = CHUNK.min(end - at);
            let mut chunk = bytes_now(content, at, usize::try_from(len).unwrap_or(0));
            for sector in written.range(at..at + len) {
                let skip = usize::try_from(sector - at).unwrap_or(usize::MAX);
                chunk.iter_mut().skip(skip).take(SECTOR).for_each(|byte| *byte = 0);
            }
            sums.extend_from_slice(&csum(&chunk).to_le_bytes());
            at += len;
        }
        csum(&sums)
    }

    /// The sectors that were written on a device: where, what was there, and the checksum of what was written.
    fn sectors(&self, device: usize) -> impl Iterator<Item = (u64, &[u8], u64)> {
        let saved = self.saved.iter().filter(move |saved| saved.device == device);
        saved.flat_map(|saved| {
            let places = (saved.byte..).step_by(SECTOR);
            places.zip(saved.old.chunks(SECTOR)).zip(&saved.new).map(|((at, old), new)| (at, old, *new))
        })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let count = |out: &mut Vec<u8>, len: usize| out.extend_from_slice(&(len as u32).to_le_bytes());
        count(&mut out, self.devices.len());
        for device in &self.devices {
            count(&mut out, device.name.len());
            out.extend_from_slice(device.name.as_bytes());
            device.uuids.iter().for_each(|uuid| out.extend_from_slice(uuid.as_bytes()));
        }
        count(&mut out, self.guards.len());
        for guard in &self.guards {
            count(&mut out, guard.device);
            [guard.byte, guard.bytes, guard.csum]
                .iter()
                .for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        }
        count(&mut out, self.saved.len());
        for saved in &self.saved {
            count(&mut out, saved.device);
            out.extend_from_slice(&saved.byte.to_le_bytes());
            out.extend_from_slice(&(saved.old.len() as u64).to_le_bytes());
            saved.new.iter().for_each(|csum| out.extend_from_slice(&csum.to_le_bytes()));
            out.extend_from_slice(&saved.old);
        }
        let sum = csum(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }
}

/// What an undo file holds.
///
/// # Errors
/// It is none, or was cut off or changed.
pub fn load(bytes: &[u8]) -> Result<Undo, UndoError> {
    let (body, sum) = bytes.split_last_chunk::<8>().ok_or(UndoError::Damaged)?;
    if csum(body) != u64::from_le_bytes(*sum) {
        return Err(UndoError::Damaged);
    }
    let mut rest = Reader(body.strip_prefix(MAGIC).ok_or(UndoError::Damaged)?);
    let mut undo = Undo { devices: Vec::new(), guards: Vec::new(), saved: Vec::new() };
    for _ in 0..rest.u32()? {
        let len = rest.u32()?.into();
        let name = std::str::from_utf8(rest.take(len)?).map_err(|_| UndoError::Damaged)?.into();
        let uuids = [Uuid::from_bytes(rest.chunk()?), Uuid::from_bytes(rest.chunk()?)];
        undo.devices.push(Named { name, uuids });
    }
    for _ in 0..rest.u32()? {
        let device = rest.u32()? as usize;
        undo.guards.push(Guard { device, byte: rest.u64()?, bytes: rest.u64()?, csum: rest.u64()? });
    }
    for _ in 0..rest.u32()? {
        let (device, byte, bytes) = (rest.u32()? as usize, rest.u64()?, rest.u64()?);
        let new = rest.take(bytes.div_ceil(SECTOR_SIZE).saturating_mul(8))?.as_chunks::<8>().0;
        let new = new.iter().map(|csum| u64::from_le_bytes(*csum)).collect();
        let old = rest.take(bytes)?.to_vec();
        undo.saved.push(Saved { device, byte, old, new });
    }
    let known = |device: usize| device < undo.devices.len();
    let sound = undo.guards.iter().all(|guard| known(guard.device))
        && undo.saved.iter().all(|saved| known(saved.device));
    if rest.0.is_empty() && sound { Ok(undo) } else { Err(UndoError::Damaged) }
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, len: u64) -> Result<&'b [u8], UndoError> {
        let len = usize::try_from(len).map_err(|_| UndoError::Damaged)?;
        let (taken, rest) = self.0.split_at_checked(len).ok_or(UndoError::Damaged)?;
        self.0 = rest;
        Ok(taken)
    }
    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], UndoError> {
        self.take(N as u64)?.try_into().map_err(|_| UndoError::Damaged)
    }
    fn u32(&mut self) -> Result<u32, UndoError> {
        Ok(u32::from_le_bytes(self.chunk()?))
    }
    fn u64(&mut self) -> Result<u64, UndoError> {
        Ok(u64::from_le_bytes(self.chunk()?))
    }
}

/// The plan that puts everything back, newest first, on devices in any order.
///
/// # Errors
/// A device that is not there, or that was used since the repair.
pub fn plan(undo: &Undo, devices: &[Device]) -> Result<Plan, UndoError> {
    let mut here = Vec::new();
    for named in &undo.devices {
        // Of devices of one name and many the name decides; a nil UUID names nobody.
        let by_name = devices.iter().find(|device| device.name() == &*named.name && named.is(device));
        let by_uuid = devices.iter().find(|device| named.is(device) && !uuid_of(device).is_nil());
        let missing = || UndoError::Missing { name: Arc::clone(&named.name), uuid: named.uuids[1] };
        here.push(by_name.or(by_uuid).ok_or_else(missing)?);
    }
    let changed = |device: &Device, byte| UndoError::Changed { device: device.name().into(), byte };
    for guard in &undo.guards {
        let Some(device) = here.get(guard.device) else { continue };
        let inside = guard.byte.checked_add(guard.bytes).is_some_and(|end| end <= device.size());
        if !inside || undo.guarded(guard.device, device, guard.byte, guard.bytes) != guard.csum {
            return Err(changed(device, guard.byte));
        }
    }
    for (index, device) in here.iter().enumerate() {
        let mut states: BTreeMap<(u64, usize), Vec<u64>> = BTreeMap::new();
        for (at, old, new) in undo.sectors(index) {
            states.entry((at, old.len())).or_default().extend([csum(old), new]);
        }
        for ((at, len), states) in states {
            if !states.contains(&csum(&bytes_now(device, at, len))) {
                return Err(changed(device, at));
            }
        }
    }
    let mut plan = Plan::default();
    for one in undo.saved.iter().rev() {
        let Some(device) = here.get(one.device) else { continue };
        if bytes_now(device, one.byte, one.old.len()) == one.old {
            continue;
        }
        let what = "what was there before".to_owned();
        let write =
            Write { device: device.name().into(), byte: one.byte, bytes: one.old.clone().into(), what };
        plan.steps.push(Step { why: "put back", writes: vec![write] });
    }
    Ok(plan)
}
