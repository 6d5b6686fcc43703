//! The check: passes over one read-only view, each looking for its kinds of findings.
//!
//! Passes only look. What repair would do follows from the findings and from the view they were made over.

mod backings;
mod extents;
mod journal;
mod superblocks;
mod table;

pub(super) use journal::kernel_finds;

pub use super::checked::{Absent, Checked};

use super::bits;
use super::finding::Findings;
use super::lost;
use super::repair::Plan;
use super::view::Device;
use crate::journal::Left;
use uuid::Uuid;

/// The passes, in their order, with a word on each.
pub const PASSES: [(&str, &str); 8] = [
    ("superblock", "what every device says it is"),
    ("journal", "entries that must be replayed are all there"),
    ("prio", "the chain of prio sets is whole"),
    ("uuid", "the table of backing devices can be read"),
    ("btree", "every node can be reached and read, ranges fit"),
    ("extents", "keys, pointers and generations agree"),
    ("buckets", "no bucket is used twice"),
    ("backing", "backing devices agree with the cache"),
];

/// What to check.
#[derive(Clone, Copy, Default)]
pub struct Options<'o> {
    /// Read all data, and compare clean data with the backing device.
    pub data: bool,
    /// Told how far the check is.
    pub progress: Option<&'o dyn Fn(Progress)>,
    /// What memory has of the keys of a set, where it has any that its journal may lack.
    pub kept: Option<&'o dyn Fn(Uuid) -> Option<Left>>,
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Number of the pass in [`PASSES`].
    pub pass: usize,
    /// Its name.
    pub name: &'static str,
    /// How much of the pass is done.
    pub done: u64,
    /// Of how much.
    pub of: u64,
}

impl Options<'_> {
    fn tell(&self, pass: usize, done: u64, of: u64) {
        if let (Some(progress), Some((name, _))) = (self.progress, PASSES.get(pass)) {
            progress(Progress { pass, name, done, of });
        }
    }
}

/// Times that bits are looked for: each may lead to places that could not be reached before.
const ROUNDS: usize = 8;

/// Checks devices: a cache, its backing devices, or some of them, in any order.
pub fn check(devices: impl IntoIterator<Item = Device>, options: Options<'_>) -> Checked {
    let devices: &[Device] = &devices.into_iter().collect::<Vec<_>>();
    let mut checked = passes(devices, options);
    let mut bits = Plan::default();
    let mut findings = Findings::default();
    let mut now = devices.to_vec();
    for _ in 0..ROUNDS {
        if checked.findings.is_empty() {
            break;
        }
        let mut fixes = bits::find(&checked, &now);
        if fixes.is_empty() {
            let found = lost::find(&checked, &now);
            found.notes.iter().for_each(|(device, note)| checked.findings.note(device, note));
            fixes.extend(found.fix);
        }
        if fixes.is_empty() {
            break;
        }
        let mut writes = Vec::new();
        for fix in fixes {
            findings.add(checked.placed(fix.finding));
            writes.push(fix.write);
        }
        let mut step = Plan::default();
        step.push("put flipped bits and lost superblocks back", writes);
        let Ok(better) = step.simulate(&now, usize::MAX) else { break };
        now = better;
        bits.steps.extend(step.steps);
        checked = passes(&now, options);
    }
    superblocks::doubt_wiped(&checked, devices, &mut findings);
    findings.append(std::mem::take(&mut checked.findings));
    (checked.findings, checked.bits) = (findings, bits);
    checked
}

fn passes(devices: &[Device], options: Options<'_>) -> Checked {
    let mut checked = Checked::default();
    options.tell(0, 0, 1);
    superblocks::pass(&mut checked, devices.iter().cloned());
    options.tell(1, 0, 1);
    if journal::pass(&mut checked, options) {
        options.tell(4, 0, 1);
        table::pass(&mut checked);
        options.tell(5, 0, 1);
        extents::pass(&mut checked, options);
    }
    options.tell(7, 0, 1);
    backings::pass(&mut checked);
    superblocks::doubt(&mut checked);
    superblocks::behind_end(&mut checked);
    options.tell(7, 1, 1);
    checked
}
