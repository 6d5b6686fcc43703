//! Repair: from findings to a list of writes, proved on the device's copy in memory before anything is written.
//!
//! Three kinds of writes are made in place: flipped bits, clearing the head of journal entries that nobody needs, and
//! superblocks. For everything else the metadata is written anew from what the view holds, into free buckets; one journal
//! entry then makes it the set's. Before that entry is durable the set is what it was, after it the set is repaired. What
//! makes a set usable, its superblocks, comes after everything that they lead to.
//!
//! Long because the plan, its proof and its journal entry decide together what is written.

mod apply;
mod enlarge;
mod free;
mod judge;
mod plan;
mod rebuild;
mod room;
mod scratch;
mod superblocks;
pub mod undo;
mod uuids;

pub use apply::{Failed, WriteAt, apply};
pub use enlarge::{Enlargement, enlarge};
pub use plan::{Bytes, Plan, Step, Write};
use rebuild::PRIO_SET;
pub use rebuild::{Content, Rebuilt, Sink, rebuild};
pub use scratch::Scratch;
pub(super) use superblocks::{come_last, in_order as write_superblock_in_order, write as write_superblock};
pub(super) use uuids::{Fit, Link, Proof, fits, is_likely, is_proved, links, misfits, stand_in};

use super::check::{Checked, Options, check, kernel_finds};
use super::finding::Finding;
use super::kind::{Kind, Severity};
use super::view::devices::read_sectors;
use super::view::journal::Stop;
use super::view::{Cache, Device, PtrState, SeenExtent, SetView};
use bcache_format::jset::{Jset, VERSION};
use bcache_format::prio::{BucketDisk, INITIAL_PRIO};
use bcache_format::{Bkey, BucketNr, Pos, Ptr, SECTOR_SIZE};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use thiserror::Error;

/// Why nothing is repaired.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refused {
    /// A finding that nothing can be done about.
    #[error("{0} cannot be repaired: {1}")]
    Fatal(Kind, String),
    /// There is no room for new metadata beside the old.
    #[error("{cache} has not enough free buckets for new metadata")]
    NoRoom {
        /// The cache.
        cache: Arc<str>,
    },
    /// No place for a journal entry without overwriting one that is needed.
    #[error("{cache}: the journal has no room for an entry beside those that are needed")]
    NoJournal {
        /// The cache.
        cache: Arc<str>,
    },
    /// The journal has bad sectors in more places than are written over.
    #[error("{cache}: too many places of the journal cannot be read; `bcache salvage` takes what there is")]
    TooManyBad {
        /// The cache.
        cache: Arc<str>,
    },
    /// A device cannot be read where it would be written.
    #[error("{device} at byte {byte}: {message}")]
    Read {
        /// The device.
        device: Arc<str>,
        /// Where.
        byte: u64,
        /// What it said.
        message: String,
    },
    /// The repaired set, tried in memory, still has findings.
    #[error("a repair was tried in memory and would leave {0} ({1})")]
    Unproved(Kind, String),
    /// The repaired set, tried in memory, has other content than it should.
    #[error("a repair was tried in memory and would change the content at {0}")]
    Content(String),
}

/// Computes the repair of everything that `checked` found on `devices`, and proves it.
///
/// # Errors
/// Something cannot be repaired; then nothing is.
pub fn plan(devices: &[Device], checked: &Checked, random: &mut dyn FnMut() -> u64) -> Result<Plan, Refused> {
    if let Some(fatal) = checked.findings.iter().find(|finding| finding.kind.severity() == Severity::Fatal) {
        return Err(Refused::Fatal(fatal.kind, fatal.detail.clone()));
    }
    if let Some(gone) = checked.findings.iter().find(|finding| finding.kind == Kind::JournalEmpty)
        && checked.set.is_none()
    {
        let detail = format!("{}, and there is no btree node to begin from", gone.detail);
        return Err(Refused::Fatal(gone.kind, detail));
    }
    let mut plan = checked.bits.clone();
    let rest = if plan.is_empty() {
        rest(devices, checked, random)?
    } else {
        rest(&simulate(devices, &plan)?, checked, random)?
    };
    plan.steps.extend(rest.steps);
    plan.changed = rest.changed;
    superblocks::come_last(&mut plan, devices, checked.cache.as_ref().map(|cache| &cache.name));
    Ok(plan)
}

/// The repair of all but flipped bits, which are as they should be on these devices.
fn rest(devices: &[Device], checked: &Checked, random: &mut dyn FnMut() -> u64) -> Result<Plan, Refused> {
    let mut plan = Plan::default();
    let mut expected = None;
    if checked.findings.iter().any(needs_rebuild)
        && let (Some(cache), Some(view)) = (&checked.cache, &checked.set)
    {
        let keys = keys_to_keep(checked, view)?;
        all_is_told(checked, view, &keys)?;
        let uuids = uuids::repaired(checked, view);
        match rewrite(&mut plan, checked, cache, view, &keys, &uuids, random) {
            Err(Refused::NoRoom { .. }) => {
                let room = room::make(checked, cache, view, buckets_wanted(cache, &keys))?;
                return after(devices, room, &mut |devices, roomy| {
                    let mut plan = self::plan(devices, roomy, random)?;
                    if let Some(now) = &roomy.set {
                        judge::changes(checked, view, now)?.iter().for_each(|range| plan.changed.add(range));
                    }
                    Ok(plan)
                });
            }
            other => other?,
        }
        expected = Some(keys);
    } else if let Some(torn) = checked.findings.iter().find(|finding| finding.kind == Kind::JournalTailTorn) {
        clear_torn(&mut plan, checked, torn);
    }
    superblocks::repair(&mut plan, checked)?;
    let repaired = prove(devices, &plan, expected.as_deref())?;
    if let (Some(before), Some(after)) = (&checked.set, &repaired.set) {
        plan.changed = judge::changes(checked, before, after)?;
    }
    Ok(plan)
}

/// Bytes that an extent takes while the metadata is written anew: 64 as a key, and, with what nodes of few keys are padded
/// with, up to 32 each in the plan and in the copy that it is tried on. An undo file is made later and takes less than
/// the keys did.
const OF_AN_EXTENT: u64 = 128;

/// Bytes of memory that the repair of what `checked` found takes, about.
#[must_use]
pub fn memory(checked: &Checked) -> u64 {
    if checked.findings.iter().any(needs_rebuild) { of_extents(checked) } else { 0 }
}

/// Bytes of memory that writing all metadata anew takes, about.
pub(super) fn of_extents(checked: &Checked) -> u64 {
    let extents = checked.set.as_ref().map_or(0, |view| view.tree.extents + view.replayed.len() as u64);
    extents * OF_AN_EXTENT
}

/// Plans over devices and what a check of them found.
type Then<'t> = dyn FnMut(&[Device], &Checked) -> Result<Plan, Refused> + 't;

/// A plan whose first part makes room for the rest, which `then` computes over what the first part leads to.
pub(super) fn after(devices: &[Device], first: Plan, then: &mut Then<'_>) -> Result<Plan, Refused> {
    let roomy = simulate(devices, &first)?;
    let checked = check(roomy.iter().cloned(), Options::default());
    let mut plan = first;
    let rest = then(&roomy, &checked)?;
    plan.steps.extend(rest.steps);
    plan.changed = rest.changed;
    Ok(plan)
}

/// The devices as they would be after a plan.
fn simulate(devices: &[Device], plan: &Plan) -> Result<Vec<Device>, Refused> {
    plan.simulate(devices, usize::MAX).map_err(|error| Refused::Read {
        device: devices.first().map_or("", |device| device.name()).into(),
        byte: 0,
        message: error.to_string(),
    })
}

/// Findings that are put right by writing the metadata anew.
fn needs_rebuild(finding: &Finding) -> bool {
    !matches!(
        finding.kind,
        Kind::BitFlipped
            | Kind::SbWiped
            | Kind::SbLost
            | Kind::SbChecksum
            | Kind::SbSync
            | Kind::JournalTailTorn
            | Kind::BackingState
            | Kind::BackingSetUuid
    )
}

/// Tries the plan in memory: afterwards a check finds nothing, and the extents are those that were to be kept. Tells
/// what that check saw.
pub(super) fn prove(devices: &[Device], plan: &Plan, expected: Option<&[Bkey]>) -> Result<Checked, Refused> {
    let after = simulate(devices, plan)?;
    let again = check(after, Options::default());
    if let Some(finding) = again.findings.first() {
        return Err(Refused::Unproved(finding.kind, finding.detail.clone()));
    }
    let (Some(expected), Some(view)) = (expected, &again.set) else { return Ok(again) };
    let mut expected = expected.iter();
    for extent in view.extents(Pos::ZERO, Pos::MAX) {
        let key = extent.ok().map(|extent| extent.key);
        if key.as_ref() != expected.next() {
            return Err(Refused::Content(key.map_or_else(String::new, |key| key.to_string())));
        }
    }
    match expected.next() {
        Some(key) => Err(Refused::Content(key.to_string())),
        None => Ok(again),
    }
}

/// Findings that mean that journal entries are lost.
const ENTRIES_LOST: [Kind; 6] = [
    Kind::JournalEmpty,
    Kind::JournalHole,
    Kind::JournalMissing,
    Kind::JournalUnreadable,
    Kind::JournalKey,
    Kind::JournalOrder,
];

/// The extents that the repaired set has.
fn keys_to_keep(checked: &Checked, view: &SetView) -> Result<Vec<Bkey>, Refused> {
    let known = view.prios.entries.len() as u64;
    let all_known = known >= view.cache.geometry.nbuckets;
    let dirty = if all_known { HashSet::new() } else { dirty_buckets(checked, view)? };
    // An entry that is lost may have said that an older copy is out of date; the backing device has what is clean.
    let entries_lost = ENTRIES_LOST.iter().any(|kind| checked.has(*kind));
    let keep = |key: &Bkey, ptr: Ptr, stale: bool| {
        let bucket = view.cache.geometry.ptr_bucket(ptr);
        let revived = checked.revived.contains(&bucket);
        let in_table = view.uuids.is_empty() || (key.inode() as usize) < view.uuids.len();
        // Where the stored generation is lost, a clean extent may be stale, and is only a copy. But a bucket with dirty
        // data is never used again, so that what else is in it is not stale either.
        let sure = key.dirty() || !entries_lost && (bucket.0 < known || dirty.contains(&bucket));
        (!stale || (revived && key.dirty()))
            && in_table
            && sure
            && !checked.metadata.contains_key(&bucket)
            && !checked.dropped.contains(&key.pos())
    };
    let mut kept = Vec::new();
    each_extent(checked, view, &mut |extent| {
        let stale = match extent.state {
            PtrState::Live(_) => false,
            PtrState::Stale(_) => true,
            PtrState::Empty | PtrState::NoDevice => return,
        };
        let ptr = extent.key.ptr().filter(|ptr| ptr.is_device());
        kept.extend(ptr.filter(|ptr| keep(&extent.key, *ptr, stale)).map(|_| extent.key));
    })?;
    cut_beyond(checked, view, &mut kept);
    Ok(kept)
}

/// Tells the extents of whole nodes, and of no fewer than the check saw: whoever writes metadata anew from them would
/// lose the others without a word.
pub(super) fn each_extent(
    checked: &Checked,
    view: &SetView,
    tell: &mut dyn FnMut(SeenExtent),
) -> Result<(), Refused> {
    trusted(checked, view).try_for_each(|extent| extent.map(&mut *tell))
}

/// The same one by one.
fn trusted<'v>(
    checked: &'v Checked,
    view: &'v SetView,
) -> impl Iterator<Item = Result<SeenExtent, Refused>> + 'v {
    view.trusted_extents(Pos::ZERO, Pos::MAX).filter_map(|extent| {
        match extent.map_err(|fault| checked.findings.untold(&view.sure, fault)) {
            Ok(extent) => Some(Ok(extent)),
            Err(None) => None,
            Err(Some(Finding { device, byte, detail, .. })) => {
                Some(Err(Refused::Read { device, byte, message: detail }))
            }
        }
    })
}

/// A repair leaves out no dirty sector of which no finding says that it is lost: what a reader sees before it, by the best
/// there is, is compared with what it sees afterwards. A clean copy may go: the backing device has it.
fn all_is_told(checked: &Checked, view: &SetView, keys: &[Bkey]) -> Result<(), Refused> {
    let lost = checked.lost();
    let told = |from: Pos, to: Pos| {
        let index = lost.partition_point(|(start, _)| *start <= from);
        index.checked_sub(1).and_then(|index| lost.get(index)).is_some_and(|(_, end)| to <= *end)
    };
    let mut untold = None;
    each_extent(checked, view, &mut |extent| {
        let Some(ptr) = extent.live().filter(|_| extent.key.dirty()) else { return };
        let mut at = extent.key.start_pos();
        let first = keys.partition_point(|key| key.pos() <= at);
        for key in keys.iter().skip(first).take_while(|key| key.start_pos() < extent.key.pos()) {
            let same = key.ptr().is_some_and(|kept| {
                kept.generation() == ptr.generation()
                    && kept.offset().wrapping_sub(key.start())
                        == ptr.offset().wrapping_sub(extent.key.start())
            });
            if key.dirty() && same && key.start_pos() <= at {
                at = at.max(key.pos());
            }
        }
        if at < extent.key.pos() && !told(at, extent.key.pos()) {
            untold = untold.or(Some(extent.key));
        }
    })?;
    untold.map_or(Ok(()), |key| Err(Refused::Content(key.to_string())))
}

/// Buckets with dirty data. Looks at all extents once more, which few repairs need.
fn dirty_buckets(checked: &Checked, view: &SetView) -> Result<HashSet<BucketNr>, Refused> {
    let mut buckets = HashSet::new();
    each_extent(checked, view, &mut |extent| {
        let ptr = extent.key.ptr().filter(|ptr| ptr.is_device() && extent.key.dirty());
        let bucket = ptr.map(|ptr| view.cache.geometry.ptr_bucket(ptr));
        buckets.extend(bucket.filter(|bucket| extent.live().is_some() || checked.revived.contains(bucket)));
    })?;
    Ok(buckets)
}

/// Removes what lies outside the backing devices.
fn cut_beyond(checked: &Checked, view: &SetView, keys: &mut Vec<Bkey>) {
    if !checked.has(Kind::ExtentBeyond) {
        return;
    }
    keys.retain_mut(|key| {
        let Some(entry) = view.uuids.get(key.inode() as usize) else { return true };
        let backing = checked.backings.iter().find(|backing| backing.sb.uuid == entry.uuid);
        let Some(backing) = backing else { return true };
        let end = bcache_format::Sectors::from_bytes(backing.device.size()).0;
        key.cut_front(Pos::new(key.inode(), backing.fields.data_offset.0))
            && key.cut_back(Pos::new(key.inode(), end))
    });
}

/// Room for metadata of these keys on a full cache.
pub(super) fn make_room(
    checked: &Checked,
    cache: &Cache,
    view: &SetView,
    keys: &[Bkey],
) -> Result<Plan, Refused> {
    room::make(checked, cache, view, buckets_wanted(cache, keys))
}

/// New metadata, and the journal entry that makes it the set's.
pub(super) fn rewrite(
    plan: &mut Plan,
    checked: &Checked,
    cache: &Cache,
    view: &SetView,
    keys: &[Bkey],
    uuids: &[bcache_format::uuid_entry::UuidEntry],
    random: &mut dyn FnMut() -> u64,
) -> Result<(), Refused> {
    let want = buckets_wanted(cache, keys);
    let mut free: VecDeque<BucketNr> = free::free_buckets(checked, cache, want).into();
    let seq = view.prios.buckets.first().map_or(1, |(_, seq)| seq.wrapping_add(1));
    let buckets = bucket_entries(cache, view, keys);
    let content = Content { keys: &mut keys.iter().copied(), uuids, buckets, prio_seq: seq };
    let mut writes = Vec::new();
    let sink = Sink { free: &mut || free.pop_front(), random, write: &mut |write| writes.push(write) };
    let rebuilt = rebuild(cache, content, sink);
    let rebuilt = rebuilt.ok_or_else(|| Refused::NoRoom { cache: Arc::clone(&cache.name) })?;
    let no_journal = || Refused::NoJournal { cache: Arc::clone(&cache.name) };
    let jset = new_entry(view, &rebuilt).ok_or_else(no_journal)?;
    let placed = place_entry(checked, cache, view, &jset)?;
    let (prios, nodes) = writes.into_iter().partition(|write: &Write| write.what.starts_with(PRIO_SET));
    plan.push("write new metadata where nothing is", nodes);
    plan.push("write the generations with which it counts", prios);
    let unreadable = unreadable_buckets(checked);
    let (there, elsewhere): (Vec<_>, Vec<_>) =
        unreadable.into_iter().partition(|bucket| *bucket == placed.bucket);
    plan.push("write the unreadable journal bucket that comes next", overwrite(cache, &there)?);
    plan.push("make it the set's", vec![placed.write]);
    if !placed.found {
        plan.push(
            "clear journal buckets that hide the new entry",
            clear_others(checked, cache, placed.bucket),
        );
    }
    plan.push("write unreadable journal buckets", overwrite(cache, &elsewhere)?);
    Ok(())
}

/// Journal buckets that cannot be read throughout.
fn unreadable_buckets(checked: &Checked) -> Vec<BucketNr> {
    let scans = checked.journal.scans.iter();
    let unreadable = scans.filter(|scan| matches!(scan.stopped, Some(Stop::Fault(_))));
    unreadable.map(|scan| scan.bucket).collect()
}

/// Bytes of a journal bucket that are read at a time.
const CHUNK: u64 = 1 << 20;
/// Most places that cannot be read of which each is written by itself. A device with more is past repair, not past rescue.
const PLACES: usize = 1 << 16;

/// Zeros for what cannot be read of buckets: a drive replaces such sectors when they are written. No other entry there is
/// needed any more. What can be read stays: a drive whose blocks are larger than a sector can read all of one or nothing,
/// and is never given a part to write.
fn overwrite(cache: &Cache, buckets: &[BucketNr]) -> Result<Vec<Write>, Refused> {
    let mut writes: Vec<Write> = Vec::new();
    let mut chunk = vec![0; CHUNK as usize];
    for bucket in buckets {
        let start = cache.geometry.bucket_start_byte(*bucket);
        let end = start.saturating_add(cache.geometry.bucket_bytes());
        for at in (start..end).step_by(CHUNK as usize) {
            let Some(part) = chunk.get_mut(..CHUNK.min(end - at) as usize) else { continue };
            if cache.device.read_at(at, part).is_ok() {
                continue;
            }
            for byte in read_sectors(&cache.device, at, part) {
                let behind = |write: &&mut Write| write.byte + write.bytes.len() == byte;
                if let Some(Write { bytes: Bytes::Zeros(count), .. }) = writes.last_mut().filter(behind) {
                    *count += SECTOR_SIZE;
                    continue;
                }
                if writes.len() == PLACES {
                    return Err(Refused::TooManyBad { cache: Arc::clone(&cache.name) });
                }
                writes.push(Write {
                    device: Arc::clone(&cache.name),
                    byte,
                    bytes: Bytes::Zeros(SECTOR_SIZE),
                    what: format!("clear what cannot be read of journal bucket {bucket}"),
                });
            }
        }
    }
    Ok(writes)
}

/// Buckets that the metadata for so many keys takes, with some to spare.
fn buckets_wanted(cache: &Cache, keys: &[Bkey]) -> usize {
    let words: usize = keys.iter().map(Bkey::u64s).sum();
    let room = (cache.geometry.btree_node_bytes() / 16) as usize;
    let leaves = words / room.max(1) + 1;
    let prios = usize::try_from(cache.geometry.prio_buckets()).unwrap_or(usize::MAX / 4);
    (leaves + leaves / 8 + 16).saturating_add(prios)
}

/// Priority and generation of every bucket: as stored, raised by pointers, and for buckets with data what their
/// extents say.
fn bucket_entries(cache: &Cache, view: &SetView, keys: &[Bkey]) -> Vec<BucketDisk> {
    let mut entries = view.prios.entries.clone();
    let count = usize::try_from(cache.geometry.nbuckets).unwrap_or(usize::MAX);
    entries.resize(count, BucketDisk::default());
    for (bucket, entry) in (0u64..).zip(&mut entries) {
        entry.generation = view.gens.get(bucket).unwrap_or(entry.generation);
    }
    for ptr in keys.iter().flat_map(|key| key.ptrs()) {
        let bucket = cache.geometry.ptr_bucket(*ptr).0;
        if let Some(entry) = usize::try_from(bucket).ok().and_then(|bucket| entries.get_mut(bucket)) {
            entry.generation = ptr.generation();
            if entry.prio.get() == 0 || entry.prio.get() == u16::MAX {
                entry.prio = INITIAL_PRIO.into();
            }
        }
    }
    entries
}

/// The entry that makes new metadata the set's: nothing has to be replayed with it.
fn new_entry(view: &SetView, rebuilt: &Rebuilt) -> Option<Jset> {
    // With the journal gone numbers begin anew: there is no entry any more that they could be taken for.
    let newest = view.journal.newest();
    let seq = newest.map_or(0, |newest| newest.jset.seq).checked_add(1)?;
    let mut jset = Jset {
        seq,
        last_seq: seq,
        version: VERSION,
        uuid_bucket: rebuilt.uuids,
        btree_root: rebuilt.root.0,
        btree_level: rebuilt.root.1,
        prio_bucket: newest.map(|newest| newest.jset.prio_bucket).unwrap_or_default(),
        keys: Vec::new(),
    };
    name_prios(&mut jset, &view.cache, rebuilt.prio_bucket)?;
    Some(jset)
}

fn name_prios(jset: &mut Jset, cache: &Cache, bucket: BucketNr) -> Option<()> {
    let number = cache.sb.cache().map_or(0, |cache| usize::from(cache.nr_this_dev));
    *jset.prio_bucket.get_mut(number)? = bucket;
    Some(())
}

/// Where the next journal entry goes.
struct Placed {
    write: Write,
    bucket: BucketNr,
    /// Linux' search would find it as the journal is.
    found: bool,
}

/// Finds a place for the entry after the newest one, where it overwrites none that is needed.
fn place_entry(checked: &Checked, cache: &Cache, view: &SetView, jset: &Jset) -> Result<Placed, Refused> {
    let no_journal = || Refused::NoJournal { cache: Arc::clone(&cache.name) };
    let bytes = jset.write(cache.magic, cache.geometry.block_bytes()).map_err(|_| no_journal())?;
    let (first, count) = (cache.geometry.first_bucket, cache.njournal_buckets());
    let newest = view.journal.newest();
    let next = newest.map_or(0, |newest| newest.bucket.0.saturating_sub(first) + 1) % count.max(1);
    let next = BucketNr(first + next);
    let needed = view.journal.entries.values().any(|entry| entry.bucket == next);
    // The next bucket of the ring, as Linux would after a start; if it is still needed, behind the newest entry.
    let (bucket, byte) = match newest {
        _ if count == 0 => return Err(no_journal()),
        Some(newest) if needed => {
            let readable = !unreadable_buckets(checked).contains(&newest.bucket);
            let end = cache.geometry.bucket_start_byte(newest.bucket) + cache.geometry.bucket_bytes();
            let behind = newest.byte + newest.bytes;
            if !readable || behind + bytes.len() as u64 > end {
                return Err(no_journal());
            }
            (newest.bucket, behind)
        }
        _ => (next, cache.geometry.bucket_start_byte(next)),
    };
    let mut after = checked.journal.clone();
    for scan in after.scans.iter_mut().filter(|scan| scan.bucket == bucket) {
        if byte == cache.geometry.bucket_start_byte(bucket) {
            scan.marks.clear();
        }
        scan.marks.push((jset.seq, jset.last_seq));
    }
    let found = kernel_finds(&after) == Some(jset.seq);
    let what = format!("journal entry {}", jset.seq);
    let write = Write { device: Arc::clone(&cache.name), byte, bytes: bytes.into(), what };
    Ok(Placed { write, bucket, found })
}

/// Clears the first block of every journal bucket but `keep`.
fn clear_others(checked: &Checked, cache: &Cache, keep: BucketNr) -> Vec<Write> {
    let block = Bytes::Zeros(cache.geometry.block_bytes());
    let others = checked.journal.scans.iter().filter(|scan| scan.bucket != keep);
    others
        .map(|scan| Write {
            device: Arc::clone(&cache.name),
            byte: cache.geometry.bucket_start_byte(scan.bucket),
            bytes: block.clone(),
            what: format!("clear journal bucket {}", scan.bucket),
        })
        .collect()
}

/// Clears the first block of an entry that was cut off.
fn clear_torn(plan: &mut Plan, checked: &Checked, torn: &Finding) {
    let Some(cache) = &checked.cache else { return };
    let bytes = Bytes::Zeros(cache.geometry.block_bytes());
    let what = "clear the entry that was cut off".to_owned();
    plan.push(
        "clear the torn end of the journal",
        vec![Write { device: Arc::clone(&cache.name), byte: torn.byte, bytes, what }],
    );
}
