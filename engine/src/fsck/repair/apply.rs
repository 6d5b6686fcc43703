//! Writing a plan to the devices.

use super::plan::Plan;
use std::io;
use std::sync::Arc;
use thiserror::Error;

/// Something that can be written at any place.
pub trait WriteAt: Sync {
    /// Writes all of `bytes` at `byte`.
    ///
    /// # Errors
    /// What the device says.
    fn write_at(&self, byte: u64, bytes: &[u8]) -> io::Result<()>;
    /// Writes data that nobody reads here again soon. What starts at a page and ends at a block may go past the page
    /// cache.
    ///
    /// # Errors
    /// What the device says.
    fn write_data(&self, byte: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(byte, bytes)
    }
    /// Returns when everything written before is durable.
    ///
    /// # Errors
    /// What the device says.
    fn flush(&self) -> io::Result<()>;
}

/// A write that did not work. What came before it is on the devices.
#[derive(Debug, Error)]
#[error("{device}: writing at byte {byte}: {error}")]
pub struct Failed {
    /// The device.
    pub device: Arc<str>,
    /// Where.
    pub byte: u64,
    /// What it said.
    #[source]
    pub error: io::Error,
}

/// Writes the plan to devices by their names, a step at a time, each durable before the next.
///
/// # Errors
/// The first write or flush that does not work.
pub fn apply(plan: &Plan, devices: &[(&str, &dyn WriteAt)]) -> Result<(), Failed> {
    for step in &plan.steps {
        for write in &step.writes {
            let failed = |error| Failed { device: Arc::clone(&write.device), byte: write.byte, error };
            let device = devices.iter().find(|(name, _)| *name == &*write.device);
            let (_, device) = device.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
            let mut at = write.byte;
            for piece in write.bytes.pieces(usize::MAX) {
                device.write_at(at, piece).map_err(failed)?;
                at += piece.len() as u64;
            }
        }
        for (name, device) in devices {
            let failed = |error| Failed { device: (*name).into(), byte: 0, error };
            device.flush().map_err(failed)?;
        }
    }
    Ok(())
}
