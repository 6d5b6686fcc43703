//! The journal as recovery finds it (`journal_read_bucket`, `bch_journal_read`, `bch_journal_replay`).
//!
//! A bucket's entries follow each other; its reading ends at the first that is not valid, which is a leftover of an
//! earlier lap, an entry torn by a crash, or the end. The newest entry of all buckets says which are needed.

use super::devices::Cache;
use super::fault::{Fault, What};
use bcache_format::jset::{JSET_MAX_BYTES, Jset, JsetHeader};
use bcache_format::superblock::SB_OFFSET;
use bcache_format::{Bkey, BucketNr, Error, Problem, Structure};
use std::collections::BTreeMap;

/// Bytes read at a time; at least four entries of the largest size.
const WINDOW: u64 = 4 * JSET_MAX_BYTES;

/// One entry with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The journal bucket it is in.
    pub bucket: BucketNr,
    /// Where it starts on the device.
    pub byte: u64,
    /// Bytes it takes, padding included.
    pub bytes: u64,
    /// The entry.
    pub jset: Jset,
}

/// How the reading of one journal bucket went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The bucket.
    pub bucket: BucketNr,
    /// Valid entries found.
    pub entries: u64,
    /// Sequence numbers of the first and the last of them.
    pub seqs: Option<(u64, u64)>,
    /// Where reading ended, from the start of the device.
    pub end: u64,
    /// Why it ended before the end of the bucket.
    pub stopped: Option<Stop>,
    /// Sequence number and `last_seq` of the entries found.
    pub marks: Vec<(u64, u64)>,
}

/// Why a bucket's reading ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The bytes there are no valid entry.
    Invalid {
        /// What is wrong with them.
        error: Error,
        /// The sequence number they carry, when they look like an entry of this set.
        seq: Option<u64>,
    },
    /// The device could not be read.
    Fault(Fault),
}

/// What recovery needs of the journal.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// Entries from the newest one's `last_seq` on, by sequence number.
    pub entries: BTreeMap<u64, Entry>,
    /// How each bucket read, in the order of the ring.
    pub scans: Vec<Scan>,
    /// Valid entries behind places where recovery stops reading a bucket, as far as they could be needed: usually
    /// none, because leftovers of earlier laps are too old.
    pub hidden: BTreeMap<u64, Entry>,
}

impl Journal {
    /// Reads all journal buckets. What cannot be read is in [`Self::scans`].
    #[must_use]
    pub fn read(cache: &Cache) -> Self {
        Self::read_to(cache, Depth::Entries)
    }
    /// The same with every block looked at, also far behind one that is not valid: for a journal that is damaged.
    #[must_use]
    pub fn read_all(cache: &Cache) -> Self {
        Self::read_to(cache, Depth::Blocks)
    }
    fn read_to(cache: &Cache, depth: Depth) -> Self {
        let mut journal = Self::default();
        let first = cache.geometry.first_bucket;
        let buckets = first..first + cache.njournal_buckets();
        for bucket in buckets.clone() {
            let window = WINDOW.min(cache.geometry.bucket_bytes());
            cache.device.will_read(cache.geometry.bucket_start_byte(BucketNr(bucket)), window);
        }
        for bucket in buckets {
            let (entries, hidden) = (&mut journal.entries, &mut journal.hidden);
            let scan = scan_bucket(cache, BucketNr(bucket), depth, &mut |entry, reach| match reach {
                Reach::Found => keep(entries, entry),
                Reach::Hidden => keep(hidden, entry),
            });
            journal.scans.push(scan);
        }
        let needed = journal.newest().map_or(0, |newest| newest.jset.last_seq.min(newest.jset.seq));
        journal.entries = journal.entries.split_off(&needed);
        journal.hidden = journal.hidden.split_off(&needed);
        journal.hidden.retain(|seq, _| !journal.entries.contains_key(seq));
        journal
    }
    /// The journal as if hidden entries had been found as well.
    #[must_use]
    pub fn with_hidden(&self) -> Self {
        let mut journal = Self { scans: self.scans.clone(), ..Self::default() };
        for entry in self.entries.values().chain(self.hidden.values()) {
            keep(&mut journal.entries, entry.clone());
        }
        journal
    }
    /// Puts other keys in the place of those that `take` says.
    pub fn replace(&mut self, take: impl Fn(&Bkey) -> bool, with: impl FnOnce(Vec<Bkey>) -> Vec<Bkey>) {
        let mut taken = Vec::new();
        for entry in self.entries.values_mut() {
            taken.extend(entry.jset.keys.extract_if(.., |key| take(key)));
        }
        self.replay_also(&with(taken));
    }
    /// Adds keys to those of the newest entry: a newer one, of which no more than that can be believed, said so.
    pub fn replay_also(&mut self, keys: &[Bkey]) {
        if let Some((_, newest)) = self.entries.iter_mut().next_back() {
            newest.jset.keys.extend_from_slice(keys);
        }
    }
    /// The entry with the highest sequence number.
    #[must_use]
    pub fn newest(&self) -> Option<&Entry> {
        self.entries.last_key_value().map(|(_, entry)| entry)
    }
    /// The newest entry, when every entry is there that must be replayed with it.
    ///
    /// # Errors
    /// An empty journal, or missing entries. Missing ones at the front are right when `discard` is on: their buckets
    /// may have been discarded.
    pub fn replayable(&self, cache: &Cache) -> Result<&Entry, Fault> {
        if let Some(fault) = self.scans.iter().find_map(|scan| match &scan.stopped {
            Some(Stop::Fault(fault)) => Some(fault),
            _ => None,
        }) {
            return Err(fault.clone());
        }
        let Some(newest) = self.newest() else {
            let first = BucketNr(cache.geometry.first_bucket);
            let byte = cache.geometry.bucket_start_byte(first).max(SB_OFFSET);
            return Err(cache.fault(Structure::Jset, byte, What::JournalEmpty));
        };
        if let Some((byte, seq)) = self.overlooked() {
            return Err(cache.fault(
                Structure::Jset,
                byte,
                What::JournalHole { newest: newest.jset.seq, seq },
            ));
        }
        match self.missing(cache.sb.discard()) {
            Some(what) => Err(cache.fault(Structure::Jset, newest.byte, what)),
            None => Ok(newest),
        }
    }
    /// A valid entry newer than the newest that recovery finds, with its byte on the device: an entry before it is
    /// damaged. Entries are written one after the other, so no crash leaves that. (The kernel does not look, and goes
    /// back to the entry before the damaged one.)
    #[must_use]
    pub fn overlooked(&self) -> Option<(u64, u64)> {
        let next = self.newest().map_or(Some(0), |newest| newest.jset.seq.checked_add(1))?;
        let (&seq, entry) = self.hidden.range(next..).next()?;
        // An entry that is damaged leaves a number that is found nowhere. Entries that go on from the newest are of a
        // future that was given up: somebody went back to before the damage and counted on from there.
        (self.entries.is_empty() || seq > next).then_some((entry.byte, seq))
    }
    /// The first gap in the entries that must be replayed.
    #[must_use]
    pub fn missing(&self, discard: bool) -> Option<What> {
        let newest = self.newest()?;
        let (last_seq, newest) = (newest.jset.last_seq, newest.jset.seq);
        let gap = |from, to| Some(What::JournalMissing { from, to, last_seq, newest });
        if last_seq > newest {
            return gap(last_seq, last_seq);
        }
        let mut next = last_seq;
        for &seq in self.entries.keys() {
            if seq != next && !(next == last_seq && discard) {
                return gap(next, seq - 1);
            }
            next = seq.saturating_add(1);
        }
        None
    }
    /// Where an entry was cut off by a crash: the bytes behind the newest entry are the next one, damaged.
    #[must_use]
    pub fn torn_tail(&self) -> Option<&Scan> {
        let newest = self.newest()?;
        let next = newest.jset.seq.checked_add(1)?;
        self.scans
            .iter()
            .find(|scan| matches!(&scan.stopped, Some(Stop::Invalid { seq: Some(seq), .. }) if *seq == next))
    }
}

/// Keeps what may still be needed: nothing older than the newest entry asks for, and of two with one number the first.
fn keep(entries: &mut BTreeMap<u64, Entry>, entry: Entry) {
    // One that asks for entries newer than itself is wrong, and no reason to overlook those.
    let newest = entries.last_key_value().map(|(&seq, newest)| (seq, newest.jset.last_seq.min(seq)));
    let (seq, last_seq) = (entry.jset.seq, entry.jset.last_seq);
    match newest {
        Some((_, needed)) if seq < needed => return,
        Some((newest, _)) if seq > newest => *entries = entries.split_off(&last_seq.min(seq)),
        _ => {}
    }
    entries.entry(seq).or_insert(entry);
}

/// Whether recovery finds an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It does.
    Found,
    /// It stops reading the bucket before it.
    Hidden,
}

/// How far a bucket is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// A little further than recovery does: behind one entry that is not valid.
    Entries,
    /// To its end.
    Blocks,
}

/// Reads one bucket, an entry at a time.
pub fn scan_bucket(
    cache: &Cache,
    bucket: BucketNr,
    depth: Depth,
    found: &mut dyn FnMut(Entry, Reach),
) -> Scan {
    let start = cache.geometry.bucket_start_byte(bucket);
    let end = start.saturating_add(cache.geometry.bucket_bytes());
    let mut scan = Scan { bucket, entries: 0, seqs: None, end: start, stopped: None, marks: Vec::new() };
    let mut window = Window { start, bytes: Vec::new(), fault: None };
    let mut at = start;
    while at < end {
        if let Err(fault) = window.fill(cache, at, end) {
            scan.stopped.get_or_insert(Stop::Fault(fault));
            break;
        }
        let bytes = window.at(at);
        let jset = match Jset::parse(bytes, cache.magic) {
            Ok(jset) => jset,
            Err(error) => {
                let next = next_valid(cache, bytes, at);
                scan.stopped.get_or_insert_with(|| stop(cache, bytes, error, at));
                match next {
                    Some(next) => at = next,
                    None if depth == Depth::Blocks => {
                        at = at.saturating_add(JSET_MAX_BYTES.next_multiple_of(cache.geometry.block_bytes()));
                    }
                    None => break,
                }
                continue;
            }
        };
        let words = jset.keys.iter().map(bcache_format::Bkey::u64s).sum();
        let taken = Jset::padded_bytes(words, cache.geometry.block_bytes());
        let reach = if scan.stopped.is_none() { Reach::Found } else { Reach::Hidden };
        let (seq, last_seq) = (jset.seq, jset.last_seq);
        found(Entry { bucket, byte: at, bytes: taken, jset }, reach);
        at = at.saturating_add(taken);
        if reach == Reach::Found {
            scan.entries += 1;
            scan.seqs = Some((scan.seqs.map_or(seq, |(first, _)| first), seq));
            scan.marks.push((seq, last_seq));
            scan.end = at;
        }
    }
    // What could not be read weighs more than that nothing valid was there.
    scan.stopped = window.fault.map(Stop::Fault).or(scan.stopped);
    scan
}

/// The first valid entry behind one that is not: it starts at a block, no further than an entry can be long.
fn next_valid(cache: &Cache, bytes: &[u8], byte: u64) -> Option<u64> {
    let block = usize::try_from(cache.geometry.block_bytes()).ok()?;
    let reach = usize::try_from(JSET_MAX_BYTES).ok()?;
    (block..=reach).step_by(block).find_map(|skip| {
        Jset::parse(bytes.get(skip..)?, cache.magic).ok()?;
        Some(byte.saturating_add(skip as u64))
    })
}

fn stop(cache: &Cache, bytes: &[u8], error: Error, byte: u64) -> Stop {
    let ours = |header: &JsetHeader| header.magic.get() == cache.magic.jset();
    let seq = JsetHeader::read(bytes).filter(ours).map(|header| header.seq.get());
    // A block that does not even fit is no different from one that is not ours.
    let seq = seq.filter(|_| !matches!(error.problem, Problem::Magic { .. }));
    Stop::Invalid { error: error.at(byte), seq }
}

struct Window {
    start: u64,
    bytes: Vec<u8>,
    /// The first place that could not be read, and was taken for zeros.
    fault: Option<Fault>,
}

impl Window {
    /// Makes sure of the bytes from `at` on: all up to `end`, or at least as many as two entries can have.
    fn fill(&mut self, cache: &Cache, at: u64, end: u64) -> Result<(), Fault> {
        let held = self.start.saturating_add(self.bytes.len() as u64);
        if held < end && held.saturating_sub(at) < 2 * JSET_MAX_BYTES {
            let (bytes, fault) = cache.read_around(Structure::Jset, at, WINDOW.min(end - at))?;
            (self.bytes, self.start) = (bytes, at);
            self.fault = self.fault.take().or(fault);
        }
        Ok(())
    }
    fn at(&self, at: u64) -> &[u8] {
        let skip = usize::try_from(at - self.start).unwrap_or(usize::MAX);
        self.bytes.get(skip..).unwrap_or_default()
    }
}
