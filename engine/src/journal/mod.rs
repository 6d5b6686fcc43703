//! The journal: keys are durable here before their leaves are.
//!
//! Keys are added to the open entry; the writer closes and writes it when somebody waits for it, when it is full, or
//! after `journal_delay_ms`. Each write is a flush of the cache device (so that data is durable before the keys that
//! name it), then the entry with FUA.
//!
//! Every leaf with keys that are not on disk pins the oldest entry it has keys of. `last_seq` of an entry is the oldest
//! pinned one when it is written: recovery replays from there. A journal bucket is written anew only when a *durable*
//! entry says that nothing in it is needed.

mod pins;
mod reclaim;
mod replay;
mod tail;
mod write;

pub use pins::JournalPin;
pub use replay::{FoundJournal, read as read_journal};
pub use tail::{
    BYTES_MAX as TAIL_BYTES_MAX, Behind, EntryId, Left, MAGIC as TAIL_MAGIC, SLOTS as TAIL_SLOTS, Tail,
    TailFault, TailPlace, TailStore,
};

use crate::sync::WaitQueue;
use bcache_format::bkey::Bkey;
use bcache_format::jset::{HEADER_BYTES, Jset};
use bcache_format::{BucketNr, Geometry, Ptr, Seq};
use pins::Pins;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Words of keys that the largest entry has room for.
const ENTRY_WORDS: usize = (bcache_format::jset::JSET_MAX_BYTES as usize - HEADER_BYTES) / 8;
/// Closed entries that may wait for the writer before those who add keys have to wait.
const CLOSED_MAX: usize = 16;

/// An entry that is being filled, or waits to be written.
struct Entry {
    seq: Seq,
    /// Its own, until it is written.
    pin: JournalPin,
    keys: Vec<Bkey>,
    words: usize,
}

impl Entry {
    const fn new(pin: JournalPin) -> Self {
        Self { seq: pin.seq(), pin, keys: Vec::new(), words: 0 }
    }
}

/// One bucket of the ring.
#[derive(Clone, Copy, Debug)]
struct RingBucket {
    nr: BucketNr,
    /// Newest entry in it; 0 for none.
    newest: Seq,
}

/// Where the next entry goes.
struct Ring {
    buckets: Vec<RingBucket>,
    current: usize,
    /// Byte in the current bucket.
    used: u64,
}

/// The journal's state.
pub struct Journal {
    open: RefCell<Entry>,
    closed: RefCell<VecDeque<Entry>>,
    pins: Rc<Pins>,
    /// Pins of the entries that recovery has to replay, until it has.
    replaying: RefCell<Vec<JournalPin>>,
    ring: RefCell<Ring>,
    /// Newest durable entry, and the oldest that it needs.
    durable: Cell<Seq>,
    durable_last: Cell<Seq>,
    /// Where the newest durable entry says that root and uuid table are: a crash brings them back.
    durable_roots: Cell<[Option<Ptr>; 2]>,
    /// The open entry must be written even if it holds no keys.
    requested: Cell<Seq>,
    timer_armed: Cell<bool>,
    writer: WaitQueue,
    reclaimer: WaitQueue,
    written: WaitQueue,
    closing: Cell<bool>,
    /// Keeps keys over the end of the process, where somebody asked for it.
    tail: OnceCell<Tail>,
    /// Nobody writes entries any more.
    ended: Cell<bool>,
    block_bytes: u64,
    bucket_bytes: u64,
}

impl Journal {
    /// The journal of a set whose newest entry is `newest` (0 for none), written to buckets `first .. first + count`.
    /// `last_seq` is the oldest entry that the newest needs, `newest_in` the newest entry of each bucket.
    #[must_use]
    pub fn new(geometry: &Geometry, first: u64, newest_in: &[Seq], newest: Seq, last_seq: Seq) -> Self {
        let bucket =
            |(i, newest): (usize, &Seq)| RingBucket { nr: BucketNr(first + i as u64), newest: *newest };
        let buckets: Vec<RingBucket> = newest_in.iter().enumerate().map(bucket).collect();
        let current =
            buckets.iter().enumerate().max_by_key(|(_, bucket)| bucket.newest).map_or(0, |(i, _)| i);
        let front = if newest == Seq::NONE { newest.next() } else { last_seq };
        let pins = Pins::new(front);
        let replaying = (front.0..=newest.0).map(|_| pins.next()).collect();
        // Nothing is written behind an old entry: the tail may be torn. A new set starts at the start.
        let used = if newest == Seq::NONE { 0 } else { geometry.bucket_bytes() };
        Self {
            open: RefCell::new(Entry::new(pins.next())),
            closed: RefCell::default(),
            pins,
            replaying: RefCell::new(replaying),
            ring: RefCell::new(Ring { buckets, current, used }),
            durable: Cell::new(newest),
            durable_last: Cell::new(last_seq),
            durable_roots: Cell::default(),
            requested: Cell::new(Seq::NONE),
            timer_armed: Cell::new(false),
            writer: WaitQueue::new(),
            reclaimer: WaitQueue::new(),
            written: WaitQueue::new(),
            closing: Cell::new(false),
            tail: OnceCell::new(),
            ended: Cell::new(false),
            block_bytes: geometry.block_bytes(),
            bucket_bytes: geometry.bucket_bytes(),
        }
    }
    /// Adds a key to the open entry and says which that is. Never waits; see [`Self::congested`].
    pub fn add(&self, key: Bkey) -> Seq {
        if self.open.borrow().words + key.u64s() > self.entry_words() {
            self.close_open();
        }
        let mut open = self.open.borrow_mut();
        open.words += key.u64s();
        open.keys.push(key);
        if let Some(tail) = self.tail.get() {
            tail.add(open.seq.0, &key);
            if tail.is_crowded() {
                self.requested.set(self.requested.get().max(open.seq));
                self.writer.wake_all();
            }
        }
        open.seq
    }
    /// From now on keys are kept by `tail`, too, until their entries are durable. Before any is added.
    pub(crate) fn keep(&self, tail: Tail) {
        debug_assert!(!self.has_unwritten_keys());
        let _ = self.tail.set(tail);
    }
    /// Whether the end of the process would lose none of the keys added so far.
    pub(crate) fn is_kept(&self) -> bool {
        self.tail.get().is_some_and(Tail::holds_all)
    }
    /// The keys that a process before this one left in the tail are durable.
    pub(crate) fn adopted(&self) {
        if let Some(tail) = self.tail.get() {
            tail.adopted();
        }
    }
    /// The set has failed: what is kept is for whoever starts it next; `doubtful` if a flush of the cache has failed.
    pub(crate) fn leave_tail(&self, doubtful: bool) {
        if let Some(tail) = self.tail.get() {
            tail.leave(doubtful);
        }
    }
    /// Everything that was added is durable, and nothing more will be added.
    pub(crate) fn retire_tail(&self) {
        if let Some(tail) = self.tail.get() {
            tail.retire();
        }
    }
    /// Words of keys an entry may have: it must also fit into a bucket.
    fn entry_words(&self) -> usize {
        let bucket = usize::try_from(self.bucket_bytes).unwrap_or(usize::MAX);
        ENTRY_WORDS.min((bucket - HEADER_BYTES) / 8)
    }
    fn close_open(&self) {
        let mut open = self.open.borrow_mut();
        let next = Entry::new(self.pins.next());
        self.closed.borrow_mut().push_back(std::mem::replace(&mut open, next));
        self.writer.wake_all();
    }
    /// Whether so much waits to be written that nothing should be added.
    #[must_use]
    pub fn congested(&self) -> bool {
        self.closed.borrow().len() >= CLOSED_MAX
    }
    /// Number of the entry that keys are being added to.
    #[must_use]
    pub fn open_seq(&self) -> Seq {
        self.open.borrow().seq
    }
    /// Newest durable entry.
    #[must_use]
    pub fn durable_seq(&self) -> Seq {
        self.durable.get()
    }
    /// Whether keys wait to be written.
    #[must_use]
    pub fn has_unwritten_keys(&self) -> bool {
        !self.open.borrow().keys.is_empty() || !self.closed.borrow().is_empty()
    }
    /// Whether the newest durable entry names this bucket for the root or the uuid table, whatever memory says by now.
    pub(crate) fn names(&self, geometry: &Geometry, nr: BucketNr) -> bool {
        self.durable_roots.get().into_iter().flatten().any(|ptr| geometry.ptr_bucket(ptr) == nr)
    }
    /// Takes note of what the newest durable entry names.
    pub(crate) fn note_roots(&self, root: &Bkey, uuids: &Bkey) {
        self.durable_roots.set([root.ptr(), uuids.ptr()]);
    }
    /// Keeps entry `seq`, which has keys that nobody wrote yet, from being reclaimed.
    pub fn pin(&self, seq: Seq) -> JournalPin {
        self.pins.pin(seq)
    }
    /// The pins of the entries that are to be replayed, oldest first. Each is to be dropped when its entry was.
    pub(crate) fn replay_pins(&self) -> Vec<JournalPin> {
        std::mem::take(&mut *self.replaying.borrow_mut())
    }
    /// Oldest entry that somebody needs.
    #[must_use]
    pub fn last_seq(&self) -> Seq {
        self.pins.front()
    }
    /// Wakes all who wait, to see that the set failed or stops.
    pub(crate) fn close(&self) {
        self.closing.set(true);
        self.writer.wake_all();
        self.reclaimer.wake_all();
        self.written.wake_all();
        self.pins.unpinned.wake_all();
    }
}

/// The parts of an entry that name where the rest of the metadata is.
#[derive(Clone, Copy, Debug)]
pub struct Roots {
    /// The btree's root.
    pub btree_root: Bkey,
    /// Its level.
    pub btree_level: u16,
    /// The uuid table.
    pub uuid_bucket: Bkey,
    /// The first prio set.
    pub prio_bucket: BucketNr,
}

impl Roots {
    fn jset(self, seq: Seq, last_seq: Seq, this_dev: usize, keys: Vec<Bkey>) -> Jset {
        let mut prio_bucket = [BucketNr(0); 8];
        if let Some(slot) = prio_bucket.get_mut(this_dev) {
            *slot = self.prio_bucket;
        }
        Jset {
            seq: seq.0,
            last_seq: last_seq.0,
            version: bcache_format::jset::VERSION,
            uuid_bucket: self.uuid_bucket,
            btree_root: self.btree_root,
            btree_level: self.btree_level,
            prio_bucket,
            keys,
        }
    }
}
