//! One finding of a check.

use super::kind::{Kind, Severity};
use super::ranges::Ranges;
use super::view::extent_map::SeenMap;
use super::view::{Fault, What};
use bcache_format::{BucketNr, Pos, Problem, Structure};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Something wrong, with its place and what it costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// The device.
    pub device: Arc<str>,
    /// Where, from the start of the device.
    pub byte: u64,
    /// The bucket that byte is in, on a cache.
    pub bucket: Option<BucketNr>,
    /// This one in particular.
    pub detail: String,
    /// Keys that are lost by it, or whose newest state is: behind the first position, up to the second.
    pub lost: Vec<(Pos, Pos)>,
    /// Its repair goes by what is likely, and proved by nothing: whoever asks for it should know.
    pub guess: bool,
}

impl Finding {
    /// A finding at a place.
    #[must_use]
    pub fn new(kind: Kind, device: &Arc<str>, byte: u64, detail: String) -> Self {
        Self { kind, device: Arc::clone(device), byte, bucket: None, detail, lost: Vec::new(), guess: false }
    }
    /// How bad it is: what its kind says, and a loss whenever something is lost or may be.
    #[must_use]
    pub fn severity(&self) -> Severity {
        let least = if self.lost.is_empty() && !self.guess { Severity::Harmless } else { Severity::Loss };
        self.kind.severity().max(least)
    }
}

/// Pieces that a lost range is cut into at most.
const PIECES_MAX: usize = 256;

/// What is known beyond doubt, whatever is wrong with the btree.
#[derive(Clone, Debug, Default)]
pub struct Sure {
    /// The journal's extents: newer than the btree's.
    pub journal: SeenMap,
    /// Ranges of leaves that nothing leads to any more, but that were found, are whole, and say nothing that another
    /// contradicts.
    pub ranges: Ranges,
    /// Ranges of which leaves that may all be in use say different things.
    pub doubtful: Ranges,
}

/// A finding about the btree without what is known of its lost ranges all the same.
#[must_use]
pub fn narrowed(sure: &Sure, mut finding: Finding) -> Finding {
    if matches!(finding.kind, Kind::JournalKey | Kind::JournalEmpty) {
        return finding;
    }
    let whole = std::mem::take(&mut finding.lost);
    let few = |ranges: &mut dyn Iterator<Item = (Pos, Pos)>| {
        let ranges: Vec<_> = ranges.take(PIECES_MAX + 1).collect();
        (ranges.len() <= PIECES_MAX).then_some(ranges)
    };
    let Some(left) = few(&mut whole.iter().flat_map(|range| sure.ranges.outside(*range))) else {
        finding.lost = whole;
        return finding;
    };
    let mut pieces = Vec::new();
    for (from, to) in &left {
        let mut at = *from;
        for key in sure.journal.between(*from, *to) {
            if at < key.start_pos() {
                pieces.push((at, key.start_pos()));
            }
            at = at.max(key.pos());
        }
        if at < *to {
            pieces.push((at, *to));
        }
    }
    finding.lost = if pieces.len() <= PIECES_MAX { pieces } else { left };
    finding
}

impl Sure {
    /// What is left of a range without those of leaves that were found.
    #[must_use]
    pub fn uncovered(&self, range: (Pos, Pos)) -> Vec<(Pos, Pos)> {
        self.ranges.outside(range).collect()
    }
}

/// Findings of one kind that are kept; more are only counted.
const KEPT_OF_A_KIND: u64 = 1000;

/// Findings in the order they were made: as many as a person reads, all of what they cost.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The findings.
    kept: Vec<Finding>,
    /// How many there are of each kind, also those that are not kept.
    pub counts: BTreeMap<Kind, u64>,
    /// Everything that is lost.
    lost: Ranges,
}

impl std::ops::Deref for Findings {
    type Target = [Finding];

    fn deref(&self) -> &[Finding] {
        &self.kept
    }
}

impl Findings {
    /// Adds one.
    pub fn add(&mut self, finding: Finding) {
        finding.lost.iter().for_each(|range| self.lost.add(*range));
        let count = self.counts.entry(finding.kind).or_default();
        *count += 1;
        if *count <= KEPT_OF_A_KIND {
            self.kept.push(finding);
        }
    }
    /// Adds all of another's.
    pub fn append(&mut self, other: Self) {
        for (kind, count) in other.counts {
            let kept = other.kept.iter().filter(|finding| finding.kind == kind).count() as u64;
            *self.counts.entry(kind).or_default() += count - kept;
        }
        other.kept.into_iter().for_each(|finding| self.add(finding));
        other.lost.iter().for_each(|range| self.lost.add(range));
    }
    /// Calls those of one kind on a device what they turned out to be.
    pub fn turn(&mut self, device: &str, from: Kind, to: Kind) {
        for finding in
            self.kept.iter_mut().filter(|finding| finding.kind == from && &*finding.device == device)
        {
            finding.kind = to;
            *self.counts.entry(to).or_default() += 1;
            if let Some(count) = self.counts.get_mut(&from) {
                *count -= 1;
            }
        }
        self.counts.retain(|_, count| *count > 0);
    }
    /// Notes of those of one kind, on one device or on any, that their repair would be a guess, and why.
    pub fn doubt(&mut self, kind: Kind, device: Option<&str>, why: &str) {
        let of = |finding: &&mut Finding| {
            finding.kind == kind && device.is_none_or(|device| *finding.device == *device) && !finding.guess
        };
        for finding in self.kept.iter_mut().filter(of) {
            finding.guess = true;
            finding.detail.push_str(&format!("; {why}"));
        }
    }
    /// Adds what is lost by those of one kind on a device.
    pub fn lose(&mut self, device: &str, kind: Kind, lost: impl Iterator<Item = (Pos, Pos)>) {
        let of = |finding: &&mut Finding| finding.kind == kind && &*finding.device == device;
        let Some(finding) = self.kept.iter_mut().find(of) else { return };
        for range in lost {
            self.lost.add(range);
            finding.lost.push(range);
        }
    }
    /// Adds to what is said of a device without a superblock.
    pub fn note(&mut self, device: &str, what: &str) {
        let of = |finding: &&mut Finding| {
            matches!(finding.kind, Kind::SbMagic | Kind::SbField) && *finding.device == *device
        };
        for finding in self.kept.iter_mut().filter(of) {
            finding.detail.push_str(&format!("; {what}"));
        }
    }
    /// What is lost, in order, without overlaps.
    #[must_use]
    pub fn lost(&self) -> Vec<(Pos, Pos)> {
        self.lost.iter().collect()
    }
    /// The finding of a fault that hides keys of which none tells yet: it was not there a moment ago.
    #[must_use]
    pub fn untold(&self, sure: &Sure, fault: Fault) -> Option<Finding> {
        let finding = narrowed(sure, fault.into());
        (!finding.lost.iter().all(|range| self.lost.cover(*range))).then_some(finding)
    }
}

impl From<Fault> for Finding {
    fn from(fault: Fault) -> Self {
        let kind = kind_of(fault.structure, &fault.what);
        let hidden = fault.range.map(|range| *range).filter(|(from, to)| from < to);
        let lost = match &fault.what {
            What::KeyOrder { places, .. } => hidden.into_iter().chain(places.iter().copied()).collect(),
            _ => hidden.into_iter().collect(),
        };
        let (device, byte, detail) = (fault.device, fault.byte, fault.what.to_string());
        Self { kind, device, byte, bucket: None, detail, lost, guess: false }
    }
}

/// The kind of a fault of the view.
#[must_use]
pub fn kind_of(structure: Structure, what: &What) -> Kind {
    match what {
        What::Io { .. } => unreadable(structure),
        What::Format(problem) => of_problem(structure, problem),
        What::JournalEmpty => Kind::JournalEmpty,
        What::JournalMissing { last_seq, newest, .. } if last_seq > newest => Kind::JournalOrder,
        What::JournalMissing { .. } => Kind::JournalMissing,
        What::JournalHole { .. } => Kind::JournalHole,
        What::PrioLoop(_) => Kind::PrioLoop,
        What::PrioBucket(_) => Kind::PrioBucket,
        What::Pointer { .. } => match structure {
            Structure::UuidTable => Kind::UuidPointer,
            Structure::Jset => Kind::JournalKey,
            Structure::BtreeNode => Kind::NodePointer,
            _ => Kind::KeyPointer,
        },
        What::Misplaced { .. } => Kind::NodeMisplaced,
        What::NotALeaf => Kind::NodeLevel,
        What::KeyOrder { .. } => Kind::KeyOrder,
        What::KeyRange { .. } => Kind::KeyRange,
        What::KeyInode { .. } => Kind::ExtentInode,
        What::KeySize(_) if structure == Structure::Jset => Kind::JournalKey,
        What::KeySize(_) => Kind::KeySize,
        What::NodeTwice(_) => Kind::NodeTwice,
        What::TooDeep(_) => Kind::RootLevel,
        What::NoChild => Kind::NodeNoChild,
        What::ChildrenEnd { .. } => Kind::NodeEnd,
        What::ChildOverlap { .. } => Kind::NodeOrder,
        What::ChildLost { .. } => Kind::ChildLost,
        What::TooStale { .. } => Kind::ExtentTooStale,
    }
}

fn unreadable(structure: Structure) -> Kind {
    match structure {
        Structure::Superblock => Kind::SbUnreadable,
        Structure::Jset => Kind::JournalUnreadable,
        Structure::PrioSet => Kind::PrioUnreadable,
        Structure::UuidTable => Kind::UuidUnreadable,
        Structure::Bset | Structure::BtreeNode => Kind::NodeUnreadable,
        Structure::Bkey => Kind::DataUnreadable,
    }
}

fn of_problem(structure: Structure, problem: &Problem) -> Kind {
    match (structure, problem) {
        (Structure::Superblock, Problem::Magic { .. }) => Kind::SbMagic,
        (Structure::Superblock, Problem::Checksum { .. }) => Kind::SbChecksum,
        (Structure::Superblock, Problem::Version(_)) => Kind::SbVersion,
        (Structure::Superblock, Problem::Features { .. }) => Kind::SbFeatures,
        (Structure::Superblock, Problem::Field { rule, .. }) if rule.contains("device") => Kind::SbTooBig,
        (Structure::Superblock, Problem::Field { .. }) => Kind::SbField,
        (Structure::PrioSet, Problem::Magic { .. }) => Kind::PrioMagic,
        (Structure::PrioSet, Problem::Checksum { .. }) => Kind::PrioChecksum,
        (Structure::Bset, Problem::Version(_)) => Kind::BsetVersion,
        (Structure::Bset, Problem::Magic { .. }) => Kind::BsetMagic,
        (Structure::Bset, Problem::Checksum { .. }) => Kind::BsetChecksum,
        (Structure::Bset, Problem::Field { .. }) => Kind::BsetEmpty,
        // A set larger than its node needs a number of words; a key larger than its set needs a byte more.
        (Structure::Bset, Problem::Truncated { need, have }) if *need == 16 || *need == have + 1 => {
            Kind::BsetKeys
        }
        (Structure::Bset, Problem::Truncated { .. }) => Kind::BsetSize,
        (Structure::BtreeNode, Problem::Field { value: 0, .. }) => Kind::NodeEmpty,
        (Structure::BtreeNode, Problem::Field { .. }) => Kind::BsetLost,
        (structure, _) => unreadable(structure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bcache_format::Bkey;

    #[test]
    fn what_the_journal_holds_is_not_lost() {
        let mut journal = SeenMap::default();
        for (end, size) in [(20, 10), (40, 5), (200, 100)] {
            journal.insert(Bkey::new(0, end, size));
        }
        let mut finding = Finding::new(Kind::BsetChecksum, &"cache".into(), 0, String::new());
        finding.lost.push((Pos::new(0, 15), Pos::new(0, 150)));
        let want = [(20, 35), (40, 100)].map(|(from, to)| (Pos::new(0, from), Pos::new(0, to)));
        let mut sure = Sure { journal, ..Sure::default() };
        assert_eq!(narrowed(&sure, finding.clone()).lost, want);
        sure.ranges.add((Pos::new(0, 10), Pos::new(0, 30)));
        assert_eq!(
            narrowed(&sure, finding).lost,
            [(30, 35), (40, 100)].map(|(a, b)| (Pos::new(0, a), Pos::new(0, b)))
        );
    }

    #[test]
    fn what_is_lost_is_known_whole_however_many_findings_are_kept() {
        let device: Arc<str> = "cache".into();
        let mut findings = Findings::default();
        for i in 0..3000 {
            let mut finding = Finding::new(Kind::KeyRange, &device, 0, String::new());
            finding.lost.push((Pos::new(0, 10 * i), Pos::new(0, 10 * i + 5)));
            findings.add(finding);
        }
        assert_eq!(
            (findings.kept.len(), findings.counts[&Kind::KeyRange], findings.lost().len()),
            (1000, 3000, 3000)
        );
        let mut all = Findings::default();
        let mut whole = Finding::new(Kind::KeyRange, &device, 0, String::new());
        whole.lost.push((Pos::new(0, 3), Pos::new(0, 29_000)));
        all.add(whole);
        all.append(findings);
        assert_eq!(all.counts[&Kind::KeyRange], 3001);
        assert_eq!(all.lost()[0], (Pos::new(0, 0), Pos::new(0, 29_005)));
        assert_eq!(all.lost().len(), 100);
    }
}
