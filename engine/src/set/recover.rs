//! Starting a set: order, and nothing else.
//!
//! | superblock | journal | then |
//! |---|---|---|
//! | SYNC not set | never laid out | a new set: everything on the device is meaningless |
//! | SYNC not set | laid out, or entries in it | refused: the flag is lost, and a new set would be the end of what was dirty |
//! | SYNC set | an entry | read prios, uuids, root as the newest entry names them; walk the btree; mark; replay; write all that |
//! | SYNC set | empty | refused: the metadata is gone, and with it what was dirty |
//! | SYNC set | entries behind a damaged one | refused: they were durable once, so that the damage is no torn end |
//!
//! Long because every step of a start is a function here, so that the order can be read from top to bottom.

use super::cache_dev::{CacheDev, read_superblock};
use super::kept::{keep_anew, take_over};
use super::uuids::UuidTable;
use super::{CacheSet, Mutex, Stage};
use crate::alloc::{Alloc, BucketPin};
use crate::btree::{Extent, ExtentMap, NodeRef, Tree, children_of};
use crate::dev::{BlockDev, Buf};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::gc::Gc;
use crate::journal::{EntryId, FoundJournal, Journal, TailPlace, read_journal};
use crate::request::{Congestion, IoErrors};
use crate::settings::SetSettings;
use crate::stats::{SetStats, Timings};
use crate::sync::WaitQueue;
use bcache_format::Seq;
use bcache_format::bkey::Bkey;
use bcache_format::jset::JSET_MAX_BYTES;
use bcache_format::jset::Jset;
use bcache_format::prio::{INITIAL_PRIO, PrioSet};
use bcache_format::superblock::{NBUCKETS_TOO_FEW, Version};
use bcache_format::uuid_entry::{UuidEntry, parse_table};
use bcache_format::{BucketNr, Pos};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

/// Journal buckets of a new set: one in 128, 2 to 256.
fn journal_buckets(nbuckets: u64) -> u16 {
    (nbuckets / 128).clamp(2, 256) as u16
}

/// Stale dirty extents that are kept to be looked at again. Of what is wrong one is enough, and more than these are not legal
/// in any number that would matter.
const STALE_DIRTY_MAX: usize = 1 << 16;
/// How long nothing may move while the journal is replayed.
const STALL: Duration = Duration::from_secs(120);

/// A set that is being started. If that is given up, for an error or because nobody waits for it any more, its tasks end
/// and nothing more is written.
struct Starting(Rc<CacheSet>, bool);

impl Starting {
    fn begin(set: Rc<CacheSet>) -> Self {
        Self(set, false)
    }
    fn done(mut self) -> Rc<CacheSet> {
        self.1 = true;
        Rc::clone(&self.0)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if !self.1 {
            self.0.give_up("it was not started to the end");
        }
    }
}

/// Refuses to make a new set of a device whose superblock lost its SYNC flag: nothing lays a journal out before the write
/// that sets the flag.
async fn refuse_lost_sync(cache: &CacheDev) -> Result<()> {
    let (laid_out, used) = {
        let sb = cache.sb.borrow();
        (sb.cache().is_some_and(|fields| fields.njournal_buckets > 0), sb.seq > 0)
    };
    let lost = "the superblock says that the set was never used (SYNC is not set)";
    if laid_out {
        return Err(cache.untrusted(format!("{lost}, but it has a journal")));
    }
    let geometry = cache.geometry;
    for i in (0..u64::from(journal_buckets(geometry.nbuckets))).filter(|_| used) {
        let at = geometry.bucket_start_byte(BucketNr(geometry.first_bucket + i));
        let largest = JSET_MAX_BYTES.min(geometry.bucket_bytes());
        let bytes = cache.dev.read(at, Buf::recycled(largest as usize)).await?;
        if let Ok(entry) = Jset::parse(&bytes, cache.magic) {
            return Err(cache.untrusted(format!("{lost}, but journal entry {} is at byte {at}", entry.seq)));
        }
    }
    Ok(())
}

/// Whether `newer` has something else for all of `extent`.
fn covers(newer: &ExtentMap, extent: &Extent) -> bool {
    let mut at = extent.start();
    for over in newer.iter_from(extent.start_pos()) {
        if over.inode() != extent.inode() || over.start() > at {
            break;
        }
        at = over.end();
    }
    at >= extent.end()
}

impl CacheSet {
    /// Starts the set of the cache device `dev`: a new one, or the one that is there. `settings` are changed by what the
    /// superblock says.
    ///
    /// # Errors
    /// The device cannot be used, or what is on it cannot be trusted; then nothing was written.
    pub async fn start(env: Env, dev: Rc<dyn BlockDev>, settings: SetSettings) -> Result<Rc<Self>> {
        Self::start_with(env, dev, settings, None).await
    }

    /// As [`Self::start`], for clients that outlive the process (see [`Self::outlive`]), with keys kept in `place` until the
    /// journal has them. Those that an earlier process left there are in the journal when this returns. Where the memory
    /// cannot be used, writes wait for the journal.
    ///
    /// # Errors
    /// As there.
    pub async fn start_outliving(
        env: Env,
        dev: Rc<dyn BlockDev>,
        settings: SetSettings,
        place: TailPlace,
    ) -> Result<Rc<Self>> {
        let set = Self::start_with(env, dev, settings, Some(place)).await?;
        set.outlive();
        Ok(set)
    }

    async fn start_with(
        env: Env,
        dev: Rc<dyn BlockDev>,
        settings: SetSettings,
        place: Option<TailPlace>,
    ) -> Result<Rc<Self>> {
        let (sb, block) = read_superblock(&dev).await?;
        let cache = CacheDev::new(dev, sb, block)?;
        let sb = cache.sb.borrow().clone();
        let name = cache.dev.name().to_owned();
        let Some(fields) = sb.cache() else {
            return Err(Error::refused(format!("{name}: not a cache device")));
        };
        if fields.nr_in_set != 1 {
            return Err(Error::refused(format!(
                "{name}: sets of several cache devices never worked, nor do they here"
            )));
        }
        if fields.nbuckets <= NBUCKETS_TOO_FEW {
            return Err(Error::refused(format!(
                "{name}: {} buckets are too few, 513 are needed",
                fields.nbuckets
            )));
        }
        settings.discard.set(sb.discard());
        let Some(replacement) = sb.replacement() else {
            return Err(Error::refused(format!(
                "{name}: unknown replacement policy {}",
                sb.replacement_number()
            )));
        };
        settings.cache_replacement_policy.set(replacement);
        if !sb.sync() {
            if !seeded_bug!(SyncLost) {
                refuse_lost_sync(&cache).await?;
            }
            return Self::start_new(env, cache, settings, place).await;
        }
        match read_journal(&cache, sb.discard()).await? {
            Some(found) => Self::start_existing(env, cache, settings, found, place).await,
            None => {
                Err(cache
                    .untrusted("no journal entry can be read, though the superblock says there are some"))
            }
        }
    }

    fn build(
        env: Env,
        cache: CacheDev,
        settings: SetSettings,
        journal: Journal,
        uuids: UuidTable,
    ) -> Rc<Self> {
        let geometry = cache.geometry;
        Rc::new(Self {
            env,
            alloc: Alloc::new(geometry),
            journal,
            tree: Tree::new(settings.btree_cache_bytes.get(), geometry.btree_node_blocks()),
            gc: Gc::new(&geometry),
            misses: Rc::default(),
            congestion: Congestion::default(),
            uuids: RefCell::new(uuids),
            uuids_io: Mutex::new(()),
            dirty: RefCell::default(),
            dirty_ends: RefCell::default(),
            attaching: RefCell::default(),
            left: RefCell::default(),
            devices: RefCell::default(),
            settings,
            stats: SetStats::default(),
            timings: Timings::default(),
            io_errors: IoErrors::default(),
            idle_rounds: Cell::new(0),
            at_max_rate: Cell::new(false),
            failure: RefCell::default(),
            stale_dirty: RefCell::default(),
            outlived: Cell::new(false),
            closing: Cell::new(false),
            closed: WaitQueue::new(),
            tasks: Default::default(),
            tasks_ended: WaitQueue::new(),
            cache,
        })
    }

    /// A new set. Root, uuid table, prios and the first journal entry are durable before the superblock says that there
    /// is anything to find.
    async fn start_new(
        env: Env,
        cache: CacheDev,
        settings: SetSettings,
        place: Option<TailPlace>,
    ) -> Result<Rc<Self>> {
        let geometry = cache.geometry;
        let count = journal_buckets(geometry.nbuckets);
        // An earlier life of a set with the same UUID may have left entries with larger numbers than ours will have.
        for i in 0..u64::from(count) {
            let at = geometry.bucket_start_byte(BucketNr(geometry.first_bucket + i));
            let blank = Buf::zeroed(geometry.block_bytes() as usize).freeze();
            cache.write(at, blank).await?;
        }
        let newest_in = vec![Seq::NONE; count.into()];
        let journal = Journal::new(&geometry, geometry.first_bucket, &newest_in, Seq::NONE, Seq::NONE);
        if let Some(place) = place {
            // What is there is of an earlier life of the set.
            keep_anew(&journal, &cache, place, EntryId { seq: 0, csum: 0 });
        }
        let entries = vec![UuidEntry::EMPTY; geometry.nr_uuids()];
        let uuids = UuidTable { entries, key: Bkey::ZERO };
        let starting = Starting::begin(Self::build(env, cache, settings, journal, uuids));
        let set = Rc::clone(&starting.0);
        set.mark_reserved(count);
        set.alloc.count_available();
        set.hand_out_unused();
        if seeded_bug!(NewSetSyncFirst) {
            set.cache.announce_journal(count).await?;
            set.say_sync(count).await?;
        }
        set.create_first_root().await?;
        set.start_tasks();
        set.change_uuids(|_| Ok(())).await?;
        set.write_prios().await?;
        set.cache.announce_journal(count).await?;
        set.say_sync(count).await?;
        Ok(starting.done())
    }

    /// From now on the superblock says that there is a set to be found.
    async fn say_sync(&self, count: u16) -> Result<()> {
        let result = self
            .cache
            .update_sb(|sb| {
                sb.version = sb.version.max(Version::CacheWithUuid);
                sb.set_sync(true);
                if let Some(fields) = sb.cache_mut() {
                    fields.njournal_buckets = count;
                }
            })
            .await;
        result.inspect_err(|error| self.fail(error.clone()))
    }

    async fn start_existing(
        env: Env,
        cache: CacheDev,
        settings: SetSettings,
        found: FoundJournal,
        place: Option<TailPlace>,
    ) -> Result<Rc<Self>> {
        let geometry = cache.geometry;
        let FoundJournal { newest, csum, mut replay, newest_in } = found;
        let count = newest_in.len() as u16;
        // With discard on, leading entries may be gone; what pins them is given up at once.
        let first = replay.first().map_or(Seq(newest.seq), |(seq, _)| *seq);
        let journal = Journal::new(&geometry, geometry.first_bucket, &newest_in, Seq(newest.seq), first);
        journal.note_roots(&newest.btree_root, &newest.uuid_bucket);
        let newest_id = EntryId { seq: newest.seq, csum };
        let behind = match place {
            Some(place) => take_over(&journal, &cache, place, newest_id)?,
            None => Vec::new(),
        };
        // To whoever asks what the journal names, they are one entry more.
        replay.push((Seq(newest.seq).next(), behind));
        let entries = read_uuids(&cache, &newest.uuid_bucket, newest.version).await?;
        let uuids = UuidTable { entries, key: newest.uuid_bucket };
        let starting = Starting::begin(Self::build(env, cache, settings, journal, uuids));
        let set = Rc::clone(&starting.0);
        set.read_prios(newest.prio_bucket.get(set.cache.this_dev()).copied().unwrap_or_default()).await?;
        set.read_root(&newest.btree_root, newest.btree_level).await?;
        let journal_pins = set.mark_journal(&replay)?;
        set.walk_tree().await?;
        set.mark_journal_data(&replay)?;
        set.mark_reserved(count);
        set.mark_roots();
        if !seeded_bug!(StaleDirtyUnseen) {
            set.refuse_stale_dirty(&replay).await?;
        }
        set.alloc.count_available();
        set.hand_out_unused();
        set.start_tasks();
        set.replay_or_stall(replay).await?;
        drop(journal_pins);
        set.check()?;
        Ok(starting.done())
    }

    /// Replays what the journal holds. Replaying may need buckets, buckets need room in the journal, and the journal may be full
    /// of what is being replayed: where nothing moves any more the start is given up, and nothing is lost.
    async fn replay_or_stall(self: &Rc<Self>, replay: Vec<(Seq, Vec<Bkey>)>) -> Result<()> {
        let mut replaying = Box::pin(self.replay(replay));
        loop {
            let before = self.moved();
            if let Ok(replayed) = self.env.timeout(STALL, replaying.as_mut()).await {
                return replayed;
            }
            if self.moved() == before {
                let what = "the journal cannot be replayed: neither it nor the buckets have room for what that needs";
                return Err(self.cache.untrusted(what));
            }
        }
    }

    /// Grows as long as anything of replay gets on.
    fn moved(&self) -> u64 {
        let stats = &self.stats;
        let counts =
            [&stats.journal_writes, &stats.prio_writes, &stats.node_writes, &stats.node_reads, &stats.splits];
        counts.iter().map(|count| count.get()).sum()
    }

    async fn replay(self: &Rc<Self>, mut replay: Vec<(Seq, Vec<Bkey>)>) -> Result<()> {
        let behind = replay.pop().map(|(_, keys)| keys).unwrap_or_default();
        for ((seq, keys), pin) in replay.into_iter().zip(self.journal.replay_pins()) {
            let extents = self.all_replayed(&keys)?;
            self.insert_replayed(&extents, seq).await?;
            drop(pin);
        }
        let mut extents = self.all_replayed(&behind)?;
        if seeded_bug!(TailInTheWrongOrder) {
            extents.reverse();
        }
        self.insert_behind(&extents).await?;
        // What was concluded is durable before anybody relies on it. After another crash all who read the set, by whatever
        // rules, would replay the same entries, and take for good a clean key that is a hole here, though something newer
        // has been written below since.
        if !seeded_bug!(ReplayNotDurable) {
            self.checkpoint().await?;
        }
        self.journal.adopted();
        Ok(())
    }

    fn all_replayed(&self, keys: &[Bkey]) -> Result<Vec<Extent>> {
        let mut extents = Vec::with_capacity(keys.len());
        for key in keys {
            extents.extend(self.replayed(key)?);
        }
        extents.iter().filter(|extent| extent.dirty()).for_each(|extent| self.note_dirty_end(extent));
        Ok(extents)
    }

    /// The chain of prio sets: counted, because its end points into the chain before.
    async fn read_prios(&self, head: BucketNr) -> Result<()> {
        let geometry = self.cache.geometry;
        let mut found = crate::alloc::PrioChain::default();
        let mut seen = BTreeSet::new();
        let mut next = head;
        let per = geometry.prios_per_bucket();
        for i in 0..geometry.prio_buckets() {
            if !geometry.is_usable(next) || !seen.insert(next) {
                return Err(self.cache.untrusted(format!("prio set {i} cannot be in bucket {next}")));
            }
            let at = geometry.bucket_start_byte(next);
            let bytes = self.cache.dev.read(at, Buf::recycled(geometry.meta_bucket_bytes() as usize)).await?;
            let set = PrioSet::parse(&bytes, self.cache.magic)
                .map_err(|error| self.cache.untrusted(format!("bucket {next} (byte {at}): {error}")))?;
            let mut buckets = self.alloc.buckets.borrow_mut();
            for (nr, entry) in (i * per..geometry.nbuckets).zip(&set.entries) {
                buckets.set_generation(BucketNr(nr), entry.generation);
                let bucket = buckets.get_mut(BucketNr(nr));
                bucket.prio = entry.prio.get();
                bucket.last_gc = entry.generation;
            }
            found.buckets.push(next);
            found.seq = found.seq.max(set.seq);
            next = set.next_bucket;
        }
        self.alloc.prio_head.set(head);
        *self.alloc.prio.borrow_mut() = found;
        Ok(())
    }

    async fn read_root(&self, key: &Bkey, level: u16) -> Result<()> {
        let broken = |what: &str| self.cache.untrusted(format!("btree root {key}, level {level}: {what}"));
        let Some(ptr) = key.ptr().filter(|ptr| key.n_ptrs() == 1 && ptr.is_device()) else {
            return Err(broken("not a pointer to a node"));
        };
        if let Some(problem) = self.cache.geometry.ptr_problem(key) {
            return Err(broken(problem));
        }
        // A tree of this height would need more nodes than pointers can name.
        let Some(level) = u8::try_from(level).ok().filter(|level| *level < 16) else {
            return Err(broken("impossible level"));
        };
        self.alloc.buckets.borrow_mut().raise(ptr);
        let root = self.node(NodeRef { ptr, level, max: Pos::MAX }).await?;
        self.tree.set_root(&root);
        Ok(())
    }

    /// Visits every node in order: generations from all pointers, marks, and how much is dirty. Once more if a pointer was
    /// newer than its bucket: what was seen before it may have been stale.
    async fn walk_tree(&self) -> Result<()> {
        loop {
            let raised = self.alloc.buckets.borrow().raised();
            self.alloc.buckets.borrow_mut().clear_marks();
            self.dirty.borrow_mut().clear();
            self.dirty_ends.borrow_mut().clear();
            self.stale_dirty.borrow_mut().clear();
            self.walk_tree_once().await?;
            if self.alloc.buckets.borrow().raised() == raised {
                return Ok(());
            }
        }
    }

    async fn walk_tree_once(&self) -> Result<()> {
        let root = self.tree.root();
        self.alloc.buckets.borrow_mut().mark_metadata(root.bucket);
        let mut todo = vec![root];
        let mut visited = BTreeSet::new();
        while let Some(node) = todo.pop() {
            if !visited.insert(node.bucket) {
                return Err(self
                    .cache
                    .untrusted(format!("btree node in bucket {} is reached twice", node.bucket)));
            }
            if node.level == 0 {
                self.mark_leaf(&node);
                continue;
            }
            // Children below leaves are read one by one, so that a large tree does not have to fit into memory.
            for child in children_of(&node).into_iter().rev() {
                let wanted = NodeRef { ptr: child.ptr, level: node.level - 1, max: child.max };
                self.alloc.buckets.borrow_mut().mark_metadata(self.cache.geometry.ptr_bucket(child.ptr));
                let read = self.node(wanted).await?;
                if read.level == 0 {
                    if !visited.insert(read.bucket) {
                        let what = format!("btree node in bucket {} is reached twice", read.bucket);
                        return Err(self.cache.untrusted(what));
                    }
                    self.mark_leaf(&read);
                } else {
                    todo.push(read);
                }
            }
        }
        Ok(())
    }

    fn mark_leaf(&self, leaf: &crate::btree::Node) {
        leaf.for_each_extent(|extent| {
            let mut buckets = self.alloc.buckets.borrow_mut();
            buckets.raise(extent.ptr());
            buckets.note_oldest(extent.ptr());
            if extent.dirty() && buckets.staleness(extent.ptr()) > 0 {
                let mut stale = self.stale_dirty.borrow_mut();
                if stale.len() < STALE_DIRTY_MAX {
                    stale.push(*extent);
                }
            }
            if buckets.staleness(extent.ptr()) == 0 {
                buckets.mark_data(extent.ptr(), extent.size(), extent.dirty());
            }
            drop(buckets);
            if self.counts_as_dirty(extent) {
                self.account_dirty(extent.inode(), extent.size().0 as i64);
                self.note_dirty_end(extent);
            }
        });
    }

    fn note_dirty_end(&self, extent: &Extent) {
        let mut ends = self.dirty_ends.borrow_mut();
        let end = ends.entry(extent.inode()).or_default();
        *end = extent.end().max(*end);
    }

    /// Refuses a set of which a bucket's generation is ahead of dirty data in it, though nothing else is there that it could
    /// have been given to. A leaf says that data is clean, durably, before its bucket is given up, so that generation is
    /// wrong. (Of what only the journal says dirty this is no sign: that data was written back is not journaled.)
    async fn refuse_stale_dirty(&self, replay: &[(Seq, Vec<Bkey>)]) -> Result<()> {
        let suspects = std::mem::take(&mut *self.stale_dirty.borrow_mut());
        let mut newer = ExtentMap::new();
        for key in replay.iter().flat_map(|(_, keys)| keys) {
            if let Some(extent) = self.replayed(key)? {
                newer.overlay(extent, true, u64::from(self.cache.geometry.bucket_sectors), |_| ());
            }
        }
        for extent in suspects {
            let bucket = self.cache.geometry.ptr_bucket(extent.ptr());
            let unused = self.alloc.buckets.borrow().get(bucket).mark == crate::alloc::Mark::Free;
            if unused && !covers(&newer, &extent) {
                let what = format!(
                    "{extent:?} is dirty, but the generation of bucket {bucket}, in which nothing else is, is ahead of it"
                );
                return Err(self.cache.untrusted(what));
            }
        }
        Ok(())
    }

    /// An extent of the journal; nothing for keys that say nothing.
    fn replayed(&self, key: &Bkey) -> Result<Option<Extent>> {
        if key.size() == 0 {
            return Ok(None);
        }
        match Extent::from_key(key) {
            Some(extent) if self.cache.geometry.ptr_problem(key).is_none() => Ok(Some(extent)),
            _ => Err(self.cache.untrusted(format!("journal key {key} is impossible"))),
        }
    }

    /// What the journal names is in use until it is replayed: the pins. Generations from its pointers.
    fn mark_journal(&self, replay: &[(Seq, Vec<Bkey>)]) -> Result<Vec<BucketPin<'_>>> {
        let mut pins = Vec::new();
        for key in replay.iter().flat_map(|(_, keys)| keys) {
            let Some(extent) = self.replayed(key)?.filter(|extent| !extent.is_hole()) else { continue };
            self.alloc.buckets.borrow_mut().raise(extent.ptr());
            pins.push(self.alloc.pin(self.cache.geometry.ptr_bucket(extent.ptr())));
        }
        Ok(pins)
    }

    fn mark_journal_data(&self, replay: &[(Seq, Vec<Bkey>)]) -> Result<()> {
        for key in replay.iter().flat_map(|(_, keys)| keys) {
            let Some(extent) = self.replayed(key)?.filter(|extent| !extent.is_hole()) else { continue };
            let mut buckets = self.alloc.buckets.borrow_mut();
            if buckets.staleness(extent.ptr()) == 0 {
                buckets.mark_data(extent.ptr(), extent.size(), extent.dirty());
            }
        }
        Ok(())
    }

    /// The journal's buckets are never allocated.
    fn mark_reserved(&self, journal_buckets: u16) {
        let first = self.cache.geometry.first_bucket;
        let mut buckets = self.alloc.buckets.borrow_mut();
        for nr in first..first + u64::from(journal_buckets) {
            buckets.mark_metadata(BucketNr(nr));
        }
    }

    /// The uuid table's bucket and the prio sets'.
    pub(crate) fn mark_roots(&self) {
        let chain = self.alloc.prio.borrow();
        let mut buckets = self.alloc.buckets.borrow_mut();
        for nr in chain.buckets.iter().chain(&chain.retiring) {
            buckets.mark_metadata(*nr);
        }
        if let Some(ptr) = self.uuids.borrow().key.ptr() {
            buckets.mark_metadata(self.cache.geometry.ptr_bucket(ptr));
        }
    }

    /// Puts buckets in which nothing is on the free lists at once: nothing on disk points there, so their generations
    /// need not be durable first, and without some free buckets no prio set could be written and none become free.
    fn hand_out_unused(&self) {
        let unused: Vec<BucketNr> = {
            let buckets = self.alloc.buckets.borrow();
            let unused = |(nr, bucket): &(BucketNr, &crate::alloc::Bucket)| {
                bucket.sectors == 0 && bucket.mark == crate::alloc::Mark::Free && buckets.may_invalidate(*nr)
            };
            buckets.usable().filter(unused).map(|(nr, _)| nr).collect()
        };
        for nr in unused {
            self.alloc.buckets.borrow_mut().invalidate(nr);
            self.alloc.buckets.borrow_mut().get_mut(nr).unsettled = false;
            if !self.alloc.push_free(nr) {
                let mut buckets = self.alloc.buckets.borrow_mut();
                let bucket = buckets.get_mut(nr);
                bucket.pin -= 1;
                bucket.prio = INITIAL_PRIO;
                let generation = buckets.generation(nr).wrapping_sub(1);
                buckets.set_generation(nr, generation);
                // What comes before is taken, and filled last of all.
                self.alloc.fifo_next.set(nr);
                return;
            }
        }
    }

    fn start_tasks(self: &Rc<Self>) {
        self.task(Stage::Journal, Rc::clone(self).journal_task());
        self.task(Stage::Journal, Rc::clone(self).journal_reclaim_task());
        self.task(Stage::Space, Rc::clone(self).refill_task());
        self.task(Stage::Space, Rc::clone(self).gc_task());
        self.task(Stage::Space, Rc::clone(self).flusher_task());
        self.task(Stage::Space, Rc::clone(self).accounting_task());
    }
}

async fn read_uuids(cache: &CacheDev, key: &Bkey, version: u32) -> Result<Vec<UuidEntry>> {
    let geometry = cache.geometry;
    let pointer = key.ptr().filter(|ptr| ptr.is_device() && geometry.ptr_problem(key).is_none());
    let Some(ptr) = pointer else {
        return Err(cache.untrusted(format!("uuid table {key}: not a place on the device")));
    };
    let at = geometry.bucket_start_byte(geometry.ptr_bucket(ptr));
    let bytes = cache.dev.read(at, Buf::recycled(geometry.meta_bucket_bytes() as usize)).await?;
    parse_table(&bytes, version, geometry.nr_uuids())
        .map_err(|error| cache.untrusted(format!("uuid table at byte {at}: {error}")))
}
