//! What a repair overwrites, kept in a file so that it can be put back.
//!
//! ```text
//! "ubcache undo 1\n"  count u64  { name length u32, name, byte u64, length u64, checksum of the new bytes u64,
//! old bytes } * count  checksum u64 over everything before
//! ```
//! All numbers are little-endian, checksums CRC-64.

use super::super::view::Device;
use super::super::view::devices::read_sectors;
use super::plan::{Plan, Step, Write};
use bcache_format::csum::{SEED_ONES, crc64};
use std::io;
use std::sync::Arc;
use thiserror::Error;

const MAGIC: &[u8] = b"ubcache undo 1\n";

/// Bytes that were overwritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Name of the device.
    pub device: Arc<str>,
    /// Where.
    pub byte: u64,
    /// What was there.
    pub old: Vec<u8>,
    /// Checksum of what was written.
    pub new_csum: u64,
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
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&(plan.writes().count() as u64).to_le_bytes());
    // A place may be written twice: each write's old bytes are those that it finds.
    for (count, write) in plan.writes().enumerate() {
        let failed = |error| UndoError::Read { device: Arc::clone(&write.device), byte: write.byte, error };
        let overlaps = |other: &&Write| {
            other.device == write.device
                && other.byte < write.byte + write.bytes.len() as u64
                && write.byte < other.byte + other.bytes.len() as u64
        };
        let written_before = plan.writes().take(count).any(|other| overlaps(&other));
        let now =
            if written_before { plan.simulate(devices, count).map_err(failed)? } else { devices.to_vec() };
        let device = now.iter().find(|device| device.name() == &*write.device);
        let device = device.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let old = bytes_now(device, write.byte, write.bytes.len());
        out.extend_from_slice(&(write.device.len() as u32).to_le_bytes());
        out.extend_from_slice(write.device.as_bytes());
        out.extend_from_slice(&write.byte.to_le_bytes());
        out.extend_from_slice(&(old.len() as u64).to_le_bytes());
        out.extend_from_slice(&crc64(SEED_ONES, &write.bytes).to_le_bytes());
        out.extend_from_slice(&old);
    }
    let csum = crc64(SEED_ONES, &out);
    out.extend_from_slice(&csum.to_le_bytes());
    Ok(out)
}

/// What is there. What cannot be read is gone whoever overwrites it, and is kept as zeros.
fn bytes_now(device: &Device, byte: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    if device.read_at(byte, &mut bytes).is_err() {
        read_sectors(device, byte, &mut bytes);
    }
    bytes
}

/// What an undo file holds, in the order it was overwritten.
///
/// # Errors
/// It is none, or was cut off or changed.
pub fn load(bytes: &[u8]) -> Result<Vec<Saved>, UndoError> {
    let (body, csum) = bytes.split_last_chunk::<8>().ok_or(UndoError::Damaged)?;
    if crc64(SEED_ONES, body) != u64::from_le_bytes(*csum) {
        return Err(UndoError::Damaged);
    }
    let mut rest = Reader(body.strip_prefix(MAGIC).ok_or(UndoError::Damaged)?);
    let count = rest.u64()?;
    let mut saved = Vec::new();
    for _ in 0..count {
        let len = u64::from(u32::from_le_bytes(rest.chunk()?));
        let name = std::str::from_utf8(rest.take(len)?).map_err(|_| UndoError::Damaged)?;
        let (byte, len, new_csum) = (rest.u64()?, rest.u64()?, rest.u64()?);
        saved.push(Saved { device: name.into(), byte, old: rest.take(len)?.to_vec(), new_csum });
    }
    if rest.0.is_empty() { Ok(saved) } else { Err(UndoError::Damaged) }
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
    fn u64(&mut self) -> Result<u64, UndoError> {
        Ok(u64::from_le_bytes(self.chunk()?))
    }
}

/// The plan that puts everything back, newest first. A repair that was stopped in the middle may have left some
/// places as they were.
///
/// # Errors
/// A device that is neither as before the repair nor as after it.
pub fn plan(saved: &[Saved], devices: &[Device]) -> Result<Plan, UndoError> {
    let mut plan = Plan::default();
    for (index, one) in saved.iter().enumerate().rev() {
        let failed = |error| UndoError::Read { device: Arc::clone(&one.device), byte: one.byte, error };
        let device = devices.iter().find(|device| device.name() == &*one.device);
        let device = device.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let now = bytes_now(device, one.byte, one.old.len());
        // A later write to the same place is undone first; what is there now is that one's.
        let again =
            saved.iter().skip(index + 1).any(|later| later.device == one.device && later.byte == one.byte);
        if now == one.old && !again {
            continue;
        }
        if crc64(SEED_ONES, &now) != one.new_csum && !again {
            return Err(UndoError::Changed { device: Arc::clone(&one.device), byte: one.byte });
        }
        let what = "what was there before".to_owned();
        let write = Write { device: Arc::clone(&one.device), byte: one.byte, bytes: one.old.clone(), what };
        plan.steps.push(Step { why: "put back", writes: vec![write] });
    }
    Ok(plan)
}
