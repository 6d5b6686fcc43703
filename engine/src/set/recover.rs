//! Starting a set: order, and nothing else.
//!
//! | superblock | journal | then |
//! |---|---|---|
//! | SYNC not set | never laid out | a new set: everything on the device is meaningless |
//! | SYNC not set | laid out, or entries in it | refused: the flag is lost, and a new set would be the end of what was dirty |
//! | SYNC set | an entry | read prios, uuids, root as the newest entry names them; walk the btree; mark; replay; write all that |
//! | SYNC set | empty | refused: the metadata is gone, and with it what was dirty |
//! | SYNC set | entries behind a damaged one | refused: they were durable once, so that the damage is no torn end |

mod known;

use super::cache_dev::{CacheDev, read_superblock};
use super::kept::{keep_anew, take_over};
use super::uuids::UuidTable;
use super::{CacheSet, Mutex, Stage};
use crate::alloc::Alloc;
use crate::btree::{Extent, Tree};
use crate::dev::{BlockDev, Buf};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::gc::Gc;
use crate::journal::{EntryId, FoundJournal, Journal, TailPlace, read_journal};
use crate::request::{Congestion, IoErrors};
use crate::settings::SetSettings;
use crate::stats::{SetStats, Timings};
use crate::sync::WaitQueue;
use bcache_format::BucketNr;
use bcache_format::Seq;
use bcache_format::bkey::Bkey;
use bcache_format::jset::{JSET_MAX_BYTES, Jset};
use bcache_format::superblock::{NBUCKETS_TOO_FEW, Version};
use bcache_format::uuid_entry::UuidEntry;
use known::read_uuids;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// Journal buckets of a new set: one in 128, 2 to 256.
fn journal_buckets(nbuckets: u64) -> u16 {
    (nbuckets / 128).clamp(2, 256) as u16
}

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

    fn start_tasks(self: &Rc<Self>) {
        self.task(Stage::Journal, Rc::clone(self).journal_task());
        self.task(Stage::Journal, Rc::clone(self).journal_reclaim_task());
        self.task(Stage::Space, Rc::clone(self).refill_task());
        self.task(Stage::Space, Rc::clone(self).gc_task());
        self.task(Stage::Space, Rc::clone(self).flusher_task());
        self.task(Stage::Space, Rc::clone(self).accounting_task());
    }
}
