//! The journal's tail, in memory that outlives the process.
//!
//! A key is lost with the process from when it is added to the journal to when its entry is written. Where clients outlive
//! the process (see [`CacheSet::outlive`](crate::set::CacheSet::outlive)) nothing may be acknowledged in between, unless
//! its key stands here, too: each key is written here when it is added, in the same order, and whoever starts the set next
//! takes those that the journal does not have for keys of the entries that were not written any more. A power cut ends this
//! memory and the clients alike.
//!
//! Only one state of the journal is the one that a tail continues. Before an entry is written its number and its checksum
//! are noted here, so that a tail is known not to belong to a set that others have used since.
//!
//! | byte | what |
//! |---|---|
//! | 0 | [`MAGIC`], with the version |
//! | 16 | the boot in which it was made |
//! | 32 | UUID of the set |
//! | 48 | number of slots |
//! | 56 | index of the first record that counts |
//! | 64 | how many records from there on are in no entry of the journal, whatever it has: [`Tail::carry`] |
//! | 72 | not 0: a flush of the cache failed, so that what these records name may never have got there |
//! | 80 | checksum of the 80 bytes before |
//! | 512, 1024 | the entries last noted, those of even and of odd number: number, checksum of the entry, checksum of both |
//! | 4096 | the slots, of [`SLOT`] bytes: index of the record, number of the entry, words of the key, the key, checksum |
//!
//! Record `i` is in slot `i` modulo the number of slots. All numbers are little-endian; checksums are CRC-64, as on the disk.
//!
//! Long because the tail's format, its writer and its reader must agree.

use bcache_format::bkey::Bkey;
use bcache_format::csum::{SEED_ONES, crc64};
use bcache_format::jset::JsetHeader;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;
use uuid::Uuid;

/// What a tail begins with. The last byte is the version.
pub const MAGIC: [u8; 16] = *b"bcache tail\0\0\0\0\x01";
/// Where the slots begin.
const SLOTS_AT: u64 = 4096;
/// Bytes of a slot.
const SLOT: u64 = 64;
/// Bytes of a slot that its checksum is of.
const SUMMED: usize = SLOT as usize - 8;
/// Bytes of a note.
const NOTE: usize = 24;
/// Bytes of the header that its checksum is of.
const HEADER_SUMMED: usize = 80;
/// Words of the longest key that there is room for: one pointer more than keys of extents have.
const SLOT_WORDS: usize = 4;
/// Slots of a tail that nobody wanted otherwise: more than keys are added in `journal_delay_ms`.
pub const SLOTS: u64 = 16 << 10;
/// Slots that are believed at most.
const SLOTS_MAX: u64 = 1 << 20;
/// More records than anybody ever writes.
const INDEX_MAX: u64 = u64::MAX >> 1;
/// Bytes of the longest tail.
pub const BYTES_MAX: u64 = SLOTS_AT + SLOTS_MAX * SLOT;

/// Memory that outlives the process, and ends with the power. Nothing of it may take long.
pub trait TailStore {
    /// All that is there, or its first [`BYTES_MAX`]; nothing where there never was anything.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&self) -> io::Result<Option<Vec<u8>>>;
    /// Puts `bytes` in place of all that is there, or leaves that. Later writes within `bytes` need no more room.
    ///
    /// # Errors
    /// It cannot be written.
    fn create(&self, bytes: &[u8]) -> io::Result<()>;
    /// Writes bytes of what is there. Those of one page are there all or not at all, whenever the process ends.
    ///
    /// # Errors
    /// It cannot be written.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// There is nothing any more.
    ///
    /// # Errors
    /// It cannot be taken away.
    fn remove(&self) -> io::Result<()>;
    /// As [`Self::remove`], but whoever looks for it finds it.
    ///
    /// # Errors
    /// As there.
    fn set_aside(&self) -> io::Result<()>;
}

/// Where the tail of a set is, and whose it is.
#[derive(Clone)]
pub struct TailPlace {
    /// The memory.
    pub store: Rc<dyn TailStore>,
    /// What changes with each boot.
    pub boot: Uuid,
    /// Slots of a new one.
    pub slots: u64,
}

/// An entry of the journal: its number and its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId {
    /// Its number.
    pub seq: u64,
    /// Its checksum.
    pub csum: u64,
}

impl EntryId {
    /// What the entry with this header is.
    #[must_use]
    pub const fn of(header: &JsetHeader) -> Self {
        Self { seq: header.seq.get(), csum: header.csum.get() }
    }
}

/// Why the keys of a tail are not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TailFault {
    /// It begins with something else.
    #[error("it is no tail of a journal")]
    NotOne,
    /// It is of another version.
    #[error("it is of version {0}, which is not known here")]
    Version(u8),
    /// The header or what it says is damaged.
    #[error("its header is damaged")]
    Header,
    /// It has fewer bytes than its header says.
    #[error("it is cut off: {found} bytes of {expected}")]
    Short {
        /// Bytes that there are.
        found: u64,
        /// Bytes that there should be.
        expected: u64,
    },
    /// Everything that it was about ended with an earlier boot.
    #[error("it was left by an earlier boot")]
    OtherBoot,
    /// It is about another set.
    #[error("it is of set {0}")]
    OtherSet(Uuid),
    /// The journal is not the one that it continues.
    #[error(
        "the set was used by others since: the newest journal entry, {seq}, is none that was noted here; \
         {keys} keys that no entry had then are given up"
    )]
    NotContinued {
        /// The newest entry.
        seq: u64,
        /// Keys that no entry had when the tail was written last.
        keys: u64,
    },
    /// What its keys name may be lost.
    #[error(
        "a flush of the cache failed while only memory had the keys of {keys} writes that were acknowledged: the cache may \
         have lost their data"
    )]
    Doubtful {
        /// How many keys.
        keys: u64,
    },
}

/// What was found of a tail.
pub struct Left {
    first: u64,
    carried: u64,
    doubtful: bool,
    notes: [Option<EntryId>; 2],
    /// By index: number of the entry, and key.
    records: BTreeMap<u64, (u64, Bkey)>,
    slots: u64,
}

const NO_RECORD: (u64, Bkey) = (0, Bkey::ZERO);

/// Keys that the journal does not have, oldest first.
#[derive(Debug, Default)]
pub struct Behind {
    /// The keys.
    pub keys: Vec<Bkey>,
    /// How many more there were, which are damaged.
    pub damaged: u64,
    /// Their place among the records.
    from: u64,
    to: u64,
    /// Slots that the records are in.
    slots: u64,
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes)
}

fn uuid_at(bytes: &[u8], at: usize) -> Option<Uuid> {
    Uuid::from_slice(bytes.get(at..at + 16)?).ok()
}

/// Whether the word behind `len` bytes from `at` is their checksum.
fn is_whole(bytes: &[u8], at: usize, len: usize) -> bool {
    let summed = bytes.get(at..at + len);
    summed.is_some_and(|summed| word(bytes, at + len) == Some(crc64(SEED_ONES, summed)))
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = crc64(SEED_ONES, &bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

fn header(place: &TailPlace, set: Uuid, first: u64, carried: u64, doubtful: bool) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(place.boot.as_bytes());
    bytes.extend(set.as_bytes());
    bytes.extend([place.slots, first, carried, doubtful.into()].into_iter().flat_map(u64::to_le_bytes));
    sealed(bytes)
}

const fn note_at(seq: u64) -> u64 {
    512 + seq % 2 * 512
}

fn note(entry: EntryId) -> Vec<u8> {
    sealed([entry.seq, entry.csum].into_iter().flat_map(u64::to_le_bytes).collect())
}

fn record(index: u64, seq: u64, key: &Bkey) -> Option<[u8; SLOT as usize]> {
    let mut bytes = [0; SLOT as usize];
    let (places, _) = bytes.as_chunks_mut::<8>();
    let (sum, places) = places.split_last_mut()?;
    if key.u64s() > SLOT_WORDS {
        return None;
    }
    let words = [index, seq, key.u64s() as u64].into_iter().chain(key.words());
    places.iter_mut().zip(words).for_each(|(place, word)| *place = word.to_le_bytes());
    *sum = crc64(SEED_ONES, places.as_flattened()).to_le_bytes();
    Some(bytes)
}

impl Left {
    /// What is left in `bytes` of a tail that was made of the set `set` in the boot `boot`.
    ///
    /// # Errors
    /// It is none, or not that one.
    pub fn parse(bytes: &[u8], boot: Uuid, set: Uuid) -> Result<Self, TailFault> {
        let version = MAGIC.len() - 1;
        if bytes.get(..version) != MAGIC.get(..version) {
            return Err(TailFault::NotOne);
        }
        match bytes.get(version) {
            Some(number) if *number != MAGIC[version] => return Err(TailFault::Version(*number)),
            _ => {}
        }
        let field = |at| word(bytes, at).ok_or(TailFault::Header);
        if !is_whole(bytes, 0, HEADER_SUMMED) {
            return Err(TailFault::Header);
        }
        if uuid_at(bytes, 16) != Some(boot) && !seeded_bug!(TailOfAnotherBoot) {
            return Err(TailFault::OtherBoot);
        }
        let of = uuid_at(bytes, 32).unwrap_or_default();
        if of != set {
            return Err(TailFault::OtherSet(of));
        }
        let (slots, first, carried, doubtful) = (field(48)?, field(56)?, field(64)?, field(72)? != 0);
        if slots == 0 || slots > SLOTS_MAX || carried > slots || first > INDEX_MAX {
            return Err(TailFault::Header);
        }
        let (found, expected) = (bytes.len() as u64, SLOTS_AT + slots * SLOT);
        if found < expected {
            return Err(TailFault::Short { found, expected });
        }
        let notes = [0, 1].map(|seq| {
            let at = note_at(seq) as usize;
            let entry = is_whole(bytes, at, 16).then(|| (word(bytes, at), word(bytes, at + 8)));
            entry.and_then(|(seq, csum)| Some(EntryId { seq: seq?, csum: csum? }))
        });
        let mut records = BTreeMap::new();
        for slot in 0..slots {
            let at = (SLOTS_AT + slot * SLOT) as usize;
            if !is_whole(bytes, at, SUMMED) {
                continue;
            }
            let words: Vec<u64> = (0..3 + SLOT_WORDS).filter_map(|i| word(bytes, at + i * 8)).collect();
            let [index, seq, len, key @ ..] = &words[..] else { continue };
            let key = usize::try_from(*len).ok().and_then(|len| key.get(..len)).and_then(Bkey::from_words);
            if let Some(key) = key.filter(|_| (first..INDEX_MAX).contains(index) && *index % slots == slot) {
                records.insert(*index, (*seq, key));
            }
        }
        Ok(Self { first, carried, doubtful, notes, records, slots })
    }

    /// The keys that a journal whose newest entry is `newest` does not have.
    ///
    /// # Errors
    /// It is not the journal that this tail continues.
    pub fn behind(&self, newest: EntryId) -> Result<Behind, TailFault> {
        if !self.notes.contains(&Some(newest)) && !seeded_bug!(TailOfAnotherJournal) {
            let older = self.notes.iter().flatten().map(|note| note.seq).min().unwrap_or(0);
            return Err(TailFault::NotContinued { seq: newest.seq, keys: self.count_behind(older) });
        }
        let behind = self.keys_behind(newest.seq);
        let keys = behind.keys.len() as u64 + behind.damaged;
        if self.doubtful && keys > 0 && !seeded_bug!(TailAfterFailedFlush) {
            return Err(TailFault::Doubtful { keys });
        }
        Ok(behind)
    }

    /// What is here of the keys that are newer than entry `whole`, the newest that is whole of a journal that had `lost` behind it.
    /// Of lost entries it need not be all: what was durable may have been written over, or never have been here.
    #[must_use]
    pub fn behind_lost(&self, lost: EntryId, whole: u64) -> Option<Behind> {
        let known = self.notes.contains(&Some(lost)) && !self.doubtful;
        known.then(|| self.keys_behind(whole))
    }

    /// How many keys a journal does not have whose newest entry has the number `seq`.
    #[must_use]
    pub fn count_behind(&self, seq: u64) -> u64 {
        let behind = self.keys_behind(seq);
        behind.keys.len() as u64 + behind.damaged
    }

    fn keys_behind(&self, newest: u64) -> Behind {
        let (from, to) = (self.first, self.first + self.carried);
        let mut behind = Behind { from, to, slots: self.slots, ..Behind::default() };
        if self.carried == 0 {
            let missing = |seq: u64| seq > newest || seeded_bug!(TailOverNewer);
            let mut records = self.records.iter();
            let Some((first, _)) = records.find(|(_, (seq, _))| missing(*seq)) else { return behind };
            let (last, _) = self.records.last_key_value().unwrap_or((first, &NO_RECORD));
            // A record is in its slot until one takes it that is as many further as there are slots. If one is not there that
            // should be, right before those that the journal lacks, nobody knows whether it lacks that, too.
            let oldest = self.first.max((last + 1).saturating_sub(self.slots));
            let known = self.records.range(..first).next_back().map_or(oldest, |(index, _)| index + 1);
            (behind.from, behind.to) = (known.max(oldest), last + 1);
        }
        for index in behind.from..behind.to {
            match self.records.get(&index) {
                Some((_, key)) => behind.keys.push(*key),
                None => behind.damaged += 1,
            }
        }
        behind
    }
}

/// The tail of a journal that is being written.
pub struct Tail {
    place: TailPlace,
    set: Uuid,
    /// Index of the first record that counts.
    first: Cell<u64>,
    /// Index of the next record.
    next: Cell<u64>,
    /// Index of the oldest one that the journal does not have yet.
    oldest: Cell<u64>,
    /// The entries that records are of which the journal does not have yet: number, and index behind the last one.
    entries: RefCell<VecDeque<(u64, u64)>>,
    /// The newest entry that the journal has.
    durable: Cell<u64>,
    /// The newest entry that has keys that are not here.
    missing: Cell<u64>,
    /// The first of the keys of a process before this one, while they are being taken over: none are added to them.
    carried: Cell<Option<u64>>,
    phase: Cell<Phase>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Keys are written here.
    Live,
    /// They are not, and never will be again; the journal does not have all that are there yet.
    Broken,
    /// It has, or somebody else takes over what is there: it is not touched any more.
    Gone,
}

impl Tail {
    /// A new one in place of whatever was there, of a journal whose newest entry is `newest`.
    ///
    /// # Errors
    /// There is no room, or nobody may write there.
    pub fn create(place: TailPlace, set: Uuid, newest: EntryId) -> io::Result<Self> {
        let mut bytes = vec![0; (SLOTS_AT + place.slots * SLOT) as usize];
        let mut put = |at: usize, part: &[u8]| {
            if let Some(to) = bytes.get_mut(at..at + part.len()) {
                to.copy_from_slice(part);
            }
        };
        put(0, &header(&place, set, 0, 0, false));
        put(note_at(newest.seq) as usize, &note(newest));
        place.store.create(&bytes)?;
        Ok(Self::new(place, set, newest.seq, Phase::Live, 0))
    }

    /// The one that is there, whose keys `behind` are about to be added to the journal anew. Until they are called adopted they
    /// count as in no entry of it, whatever it has: if this process dies, too, the next one adds them all again.
    ///
    /// # Errors
    /// Nobody may write there. What is there counts as before.
    pub fn carry(place: TailPlace, set: Uuid, newest: EntryId, behind: &Behind) -> io::Result<Self> {
        let carried = behind.to - behind.from;
        let place = TailPlace { slots: behind.slots, ..place };
        place.store.write_at(0, &header(&place, set, behind.from, carried, false))?;
        let tail = Self::new(place, set, newest.seq, Phase::Live, behind.to);
        tail.carried.set(Some(behind.from));
        Ok(tail)
    }

    fn new(place: TailPlace, set: Uuid, durable: u64, phase: Phase, next: u64) -> Self {
        Self {
            place,
            set,
            first: Cell::new(next),
            next: Cell::new(next),
            oldest: Cell::new(next),
            entries: RefCell::default(),
            durable: Cell::new(durable),
            missing: Cell::new(0),
            carried: Cell::new(None),
            phase: Cell::new(phase),
        }
    }

    /// All keys that were carried are in durable entries: from here on it is as one that is new.
    pub(super) fn adopted(&self) {
        if self.carried.take().is_none() || self.phase.get() == Phase::Gone || seeded_bug!(TailReplayedTwice)
        {
            return;
        }
        if let Err(error) = self.write_header(self.next.get(), 0, false) {
            self.give_up(&error);
        }
        if self.phase.get() == Phase::Broken {
            self.retire();
        }
    }

    fn write_header(&self, first: u64, carried: u64, doubtful: bool) -> io::Result<()> {
        self.place.store.write_at(0, &header(&self.place, self.set, first, carried, doubtful))
    }

    /// Whether every key that was added so far is in a durable entry or here.
    pub(super) fn holds_all(&self) -> bool {
        let whole = self.missing.get() <= self.durable.get() && self.carried.get().is_none();
        (self.phase.get() == Phase::Live && whole) || seeded_bug!(TailWithGaps)
    }

    /// Whether the journal should be written soon, to make room.
    pub(super) fn is_crowded(&self) -> bool {
        self.next.get() - self.oldest.get() > self.place.slots / 2
    }

    /// Takes down a key that was added to entry `seq`. If that cannot be, [`Self::holds_all`] says no until the journal has
    /// it; and until then no later one is taken down either, because keys count in their order.
    pub(super) fn add(&self, seq: u64, key: &Bkey) {
        let index = self.next.get();
        let full = index - self.oldest.get() >= self.place.slots;
        let gap = self.missing.get() > self.durable.get() && !seeded_bug!(TailWithGaps);
        if self.phase.get() != Phase::Live || self.carried.get().is_some() || full || gap {
            self.missing.set(seq);
            return;
        }
        let at = SLOTS_AT + index % self.place.slots * SLOT;
        let wrote = record(index, seq, key).map(|record| self.place.store.write_at(at, &record));
        match wrote {
            Some(Ok(())) => {
                self.next.set(index + 1);
                let mut entries = self.entries.borrow_mut();
                match entries.back_mut() {
                    Some((newest, end)) if *newest == seq => *end = index + 1,
                    _ => entries.push_back((seq, index + 1)),
                }
            }
            Some(Err(error)) => {
                self.missing.set(seq);
                self.give_up(&error);
            }
            None => self.missing.set(seq),
        }
        if seeded_bug!(TailReusedEarly) {
            self.oldest.set(index);
        }
    }

    /// Takes down what entry is about to be written.
    ///
    /// # Errors
    /// It cannot be, and something else than that entry is only here: it must not be written then, for nobody would believe
    /// what is here any more.
    pub(super) fn note(&self, entry: EntryId) -> io::Result<()> {
        if self.phase.get() == Phase::Gone || seeded_bug!(TailWithoutNotes) {
            return Ok(());
        }
        let Err(error) = self.place.store.write_at(note_at(entry.seq), &note(entry)) else { return Ok(()) };
        self.give_up(&error);
        let later = self.entries.borrow().back().is_some_and(|(seq, _)| *seq > entry.seq);
        if later || self.carried.get().is_some() { Err(error) } else { Ok(()) }
    }

    /// Entry `seq`, and all before it, are durable.
    pub(super) fn durable(&self, seq: u64) {
        self.durable.set(seq);
        if self.phase.get() == Phase::Gone {
            return;
        }
        {
            let mut entries = self.entries.borrow_mut();
            while let Some((_, end)) = entries.front().copied().filter(|(entry, _)| *entry <= seq) {
                self.oldest.set(end.max(self.oldest.get()));
                entries.pop_front();
            }
        }
        // A journal that ends before this entry is a copy that somebody made earlier.
        if !seeded_bug!(TailOfAnOlderCopy)
            && let Err(error) = self.place.store.write_at(note_at(seq + 1), &[0; NOTE])
        {
            self.give_up(&error);
        }
        if self.entries.borrow().is_empty()
            && self.carried.get().is_none()
            && self.phase.get() == Phase::Broken
        {
            self.retire();
        }
    }

    /// The journal has everything, and nobody adds to it any more.
    pub(super) fn retire(&self) {
        if self.phase.replace(Phase::Gone) == Phase::Gone {
            return;
        }
        // Where it cannot be taken away, it is no tail any more.
        let _ = self.place.store.write_at(0, &[0; MAGIC.len()]);
        if let Err(error) = self.place.store.remove() {
            tracing::warn!(%error, "the journal's tail in memory is left behind");
        }
    }

    /// The set has failed. What is there is left for whoever starts it next, `doubtful` if a flush of the cache has failed.
    pub(super) fn leave(&self, doubtful: bool) {
        if self.phase.replace(Phase::Gone) == Phase::Gone || !doubtful {
            return;
        }
        let (first, carried) = match self.carried.get() {
            Some(first) => (first, self.next.get() - first),
            None => (self.first.get(), 0),
        };
        if let Err(error) = self.write_header(first, carried, true) {
            tracing::warn!(%error, "that a flush failed cannot be said in the journal's tail in memory");
        }
    }

    /// What is there stays until the journal has it: some of it may be all there is of what was acknowledged.
    fn give_up(&self, error: &io::Error) {
        if self.phase.replace(Phase::Broken) != Phase::Broken {
            tracing::warn!(
                %error,
                "keys cannot be kept in memory that outlives the process: writes wait for the journal"
            );
        }
    }
}

#[cfg(test)]
mod tests;
