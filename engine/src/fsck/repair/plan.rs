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
    pub bytes: Vec<u8>,
    /// What it is, for a person.
    pub what: String,
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
                    scratch.write(write.byte, &write.bytes)?;
                }
            }
        }
        Ok(after.into_iter().map(|scratch| Arc::new(scratch) as Device).collect())
    }
}
