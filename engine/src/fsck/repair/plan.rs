//! A repair as an ordered list of writes, computed before anything is written.

use super::super::ranges::Ranges;
use super::super::view::Device;
use super::scratch::Scratch;
use std::io;
use std::sync::Arc;

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Name of the device.
    pub device: Arc<str>,
    /// Where.
    pub byte: u64,
    /// What.
    pub bytes: Bytes,
    /// What it is, for a person.
    pub what: String,
}

/// What is written at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// These.
    These(Vec<u8>),
    /// So many zeros, which take no memory: of a cache of large buckets whole gigabytes may have to be cleared.
    Zeros(u64),
}

/// Bytes of the largest piece that [`Bytes::pieces`] gives.
const PIECE: usize = 64 << 10;
static ZEROS: [u8; PIECE] = [0; PIECE];

impl Bytes {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> u64 {
        match self {
            Self::These(bytes) => bytes.len() as u64,
            Self::Zeros(count) => *count,
        }
    }
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// All of them in their order, at most `most` at a time.
    pub fn pieces(&self, most: usize) -> impl Iterator<Item = &[u8]> {
        let (these, zeros) = match self {
            Self::These(bytes) => (bytes.as_slice(), 0),
            Self::Zeros(count) => (&[][..], *count),
        };
        let most = most.clamp(1, PIECE) as u64;
        let zeros = (0..zeros)
            .step_by(most as usize)
            .filter_map(move |at| ZEROS.get(..(zeros - at).min(most) as usize));
        these.chunks(most as usize).chain(zeros)
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::These(bytes)
    }
}

/// Writes whose order among each other does not matter. All are durable before the next step starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What the step achieves.
    pub why: &'static str,
    /// The writes.
    pub writes: Vec<Write>,
}

/// A repair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in their order.
    pub steps: Vec<Step>,
    /// Keys of which a reader gets something else afterwards than what there is now, by the best knowledge of it.
    pub changed: Ranges,
}

impl Plan {
    /// Adds a step, unless it has no writes.
    pub fn push(&mut self, why: &'static str, writes: Vec<Write>) {
        if !writes.is_empty() {
            self.steps.push(Step { why, writes });
        }
    }
    /// All writes, in their order.
    pub fn writes(&self) -> impl Iterator<Item = &Write> {
        self.steps.iter().flat_map(|step| &step.writes)
    }
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
    /// The devices as they would be after the first `count` writes.
    ///
    /// # Errors
    /// A device that cannot be read.
    pub fn simulate(&self, devices: &[Device], count: usize) -> io::Result<Vec<Device>> {
        let mut after: Vec<Scratch> = devices.iter().map(|device| Scratch::new(Arc::clone(device))).collect();
        for write in self.writes().take(count) {
            for (device, scratch) in devices.iter().zip(&mut after) {
                if *device.name() == *write.device {
                    match &write.bytes {
                        Bytes::These(bytes) => scratch.write(write.byte, bytes)?,
                        Bytes::Zeros(count) => scratch.clear(write.byte, *count)?,
                    }
                }
            }
        }
        Ok(after.into_iter().map(|scratch| Arc::new(scratch) as Device).collect())
    }
}
