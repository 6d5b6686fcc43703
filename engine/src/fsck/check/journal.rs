//! The journal, and the set it leads to.
//!
//! Long because what the journal lacks, and what memory has of it, are judged by the same entries.

use super::super::evidence::{Evidence, is_same};
use super::super::finding::{Finding, narrowed};
use super::super::kind::Kind;
use super::super::ranges::Ranges;
use super::super::view::extent_map::SeenMap;
use super::super::view::journal::{Entry, Journal, Scan, Stop};
use super::super::view::node::NodeView;
use super::super::view::prio::PrioChain;
use super::super::view::{Cache, Fault, SetView, What};
use super::{Checked, Options};
use crate::journal::{Behind, EntryId};
use bcache_format::bset::{self, Keys};
use bcache_format::jset::{HEADER_BYTES, JSET_MAX_BYTES, JsetHeader};
use bcache_format::superblock::SB_OFFSET;
use bcache_format::uuid_entry::UuidEntry;
use bcache_format::{Bkey, BucketNr, Pos, SECTOR_SIZE, Sectors, Structure};
use std::sync::Arc;

/// Reads the journal and everything its newest entry names. False when there is no set to look at.
pub(super) fn pass(checked: &mut Checked, options: Options<'_>) -> bool {
    let Some(cache) = checked.cache.clone() else { return false };
    let mut journal = Journal::read(&cache);
    if cache.sb.sync() && (journal.newest().is_none() || journal.missing(cache.sb.discard()).is_some()) {
        journal = Journal::read_all(&cache);
    }
    let unused = !cache.sb.sync() && journal.newest().is_none();
    checked.journal = journal.clone();
    if unused {
        return false;
    }
    let name = Arc::clone(&cache.name);
    if !cache.sb.sync() {
        let detail = "the SYNC flag is not set, but the journal is not empty".to_owned();
        checked.found(Finding::new(Kind::SbSync, &name, SB_OFFSET, detail));
    }
    for scan in &journal.scans {
        if let Some(Stop::Fault(fault)) = &scan.stopped {
            checked.found(fault.clone().into());
        }
    }
    let hole = journal.overlooked();
    let mut full = if hole.is_some() { journal.with_hidden() } else { journal.clone() };
    let torn = journal.torn_tail().filter(|_| hole.is_none());
    // One entry is written at a time: a crash tears no more than one.
    let rotted = torn.and_then(|torn| last_head(&cache, &journal, torn));
    let Some(newest) = full.newest() else { return lost(checked, full, options) };
    if let Some((byte, seq)) = hole {
        let reached = journal.newest().map_or(0, |newest| newest.jset.seq);
        checked.found(cache.fault(Structure::Jset, byte, What::JournalHole { newest: reached, seq }).into());
    } else if let Some(what) = journal.missing(cache.sb.discard()) {
        checked.found(cache.fault(Structure::Jset, newest.byte, what).into());
    }
    let next = newest.jset.seq.saturating_add(1);
    let reached = kernel_finds(&journal);
    if let Some(found) = journal.newest().filter(|found| Some(found.jset.seq) != reached) {
        let detail = match reached {
            Some(seq) => format!("Linux would find entry {seq}, the newest is {}", found.jset.seq),
            None => format!("Linux would find no entry, the newest is {}", found.jset.seq),
        };
        checked.found(Finding::new(Kind::JournalHidden, &name, found.byte, detail));
    }
    let newest_table = newest.jset.uuid_bucket.ptr();
    let newest_byte = newest.byte;
    let kept = Kept::of(&cache, newest, torn, rotted.as_ref(), options);
    full.replay_also(&kept.behind.keys);
    let mut faults = Vec::new();
    let given = if torn.is_some() { full.clone() } else { std::mem::take(&mut full) };
    let mut view = SetView::above_leaves(cache.clone(), given, &mut |fault| faults.push(fault));
    // What leaves have of an entry that cannot be read would be hidden by what older entries say.
    let mut forget = |view: &mut SetView, mut full: Journal| {
        faults.clear();
        forget_replayed(view, &mut full);
        *view = SetView::above_leaves(cache.clone(), full, &mut |fault| faults.push(fault));
    };
    match (rotted, torn, kept.instead_of_lost) {
        (_, None, _) => {}
        (_, Some(torn), true) => {
            let detail =
                format!("entry {next} is damaged, and was whole before: memory knows what follows it");
            checked.found(Finding::new(Kind::JournalMissing, &name, torn.end, detail));
            forget(&mut view, full);
        }
        // It was being written when the process died: memory has all of it.
        (None, Some(torn), false) if !kept.behind.keys.is_empty() => {
            let detail = format!("entry {next} is not whole");
            checked.found(Finding::new(Kind::JournalTailTorn, &name, torn.end, detail));
        }
        (Some(last), Some(torn), false) => {
            let detail =
                format!("entries {next}..={} are damaged: more than a crash can leave", last.seq.get());
            checked.found(Finding::new(Kind::JournalMissing, &name, torn.end, detail));
            forget(&mut view, full);
        }
        (None, Some(torn), false) => match whole_before(&cache, &view, torn) {
            None => {
                let detail = format!("entry {next} is not whole");
                checked.found(Finding::new(Kind::JournalTailTorn, &name, torn.end, detail));
            }
            Some(whole) => {
                let (kind, detail) = match whole.lossless {
                    true => (Kind::JournalTailKept, format!("entry {next} is not whole, but {}", whole.by)),
                    false => {
                        let detail = format!("entry {next} is damaged, and was whole before: {}", whole.by);
                        (Kind::JournalMissing, detail)
                    }
                };
                checked.found(Finding::new(kind, &name, torn.end, detail));
                full.replay_also(&whole.keys);
                forget(&mut view, full);
            }
        },
    }
    kept.tell(checked, &name, newest_byte);
    checked.reserved.extend(&view.garbage);
    let table_lost = view.uuids.iter().all(UuidEntry::is_free) && has_keys(&view);
    let lost: Vec<_> = faults.iter().filter_map(lost_nodes).collect();
    if !lost.is_empty() || table_lost {
        let evidence = Evidence::gather(&view, lost, &mut |done, of| options.tell(4, done, of));
        let completed = evidence.complete(&mut view);
        checked.reserved.extend(completed.buckets);
        checked.table_found = completed.table;
        let doubt = evidence.recover(&mut view);
        disagree(checked, &view, &doubt);
        checked.found_leaves = evidence.leaves();
        checked.broken_nodes.extend_from_slice(evidence.broken());
        if table_lost
            && faults.iter().all(|fault| fault.structure != Structure::UuidTable)
            && !view.uuids.is_empty()
        {
            let ptr = newest_table.unwrap_or_default();
            let used = view.uuids.iter().filter(|entry| !entry.is_free()).count();
            let detail = format!("the table is empty, though there is data; an older one has {used} slots");
            checked.found(Finding::new(Kind::UuidLost, &name, Sectors(ptr.offset()).bytes(), detail));
        }
    }
    for fault in faults {
        let finding = place(&view, fault);
        checked.found(finding);
    }
    checked.set = Some(view);
    true
}

/// Whether a key can be of an extent of the cache.
fn is_sound(cache: &Cache, key: &Bkey) -> bool {
    key.size() > 0 && key.size() <= key.offset() && cache.geometry.ptr_problem(key).is_none()
}

/// Forgets the keys that leaves have, under others perhaps: those are newer then, and of an entry that cannot be read.
fn forget_replayed(view: &SetView, journal: &mut Journal) {
    let sound = |key: &Bkey| is_sound(&view.cache, key);
    journal.replace(sound, |keys| {
        let mut all = SeenMap::default();
        keys.into_iter().for_each(|key| all.insert(key));
        let mut had = Ranges::default();
        for leaf in view.leaves.iter().filter(|at| all.overlaps(at.lower, at.key.pos())) {
            let Some(node) = NodeView::read(&view.cache, *leaf).ok().filter(|node| node.whole) else {
                continue;
            };
            for set in &node.sets {
                let Ok(bytes) = view.cache.read(Structure::Bset, node.byte + set.offset, set.bytes) else {
                    continue;
                };
                let keys = bytes.get(bset::HEADER_BYTES..).unwrap_or_default();
                for key in Keys::new(keys, bset::HEADER_BYTES as u64, Structure::Bset).map_while(Result::ok) {
                    for other in all.between(key.start_pos(), key.pos()).filter(|other| is_same(other, &key))
                    {
                        had.add((key.start_pos().max(other.start_pos()), key.pos().min(other.pos())));
                    }
                }
            }
        }
        let parts = all.into_keys().into_iter().flat_map(|key| {
            let outside = had.outside((key.start_pos(), key.pos())).collect::<Vec<_>>();
            outside.into_iter().filter_map(move |(from, to)| {
                let mut part = key;
                (part.cut_front(from) && part.cut_back(to)).then_some(part)
            })
        });
        parts.collect()
    });
}

/// What memory has of keys that the journal lacks.
#[derive(Default)]
struct Kept {
    behind: Behind,
    /// It continues an entry that is damaged.
    instead_of_lost: bool,
}

impl Kept {
    /// What continues the newest entry, or the one that is damaged behind it.
    fn of(
        cache: &Cache,
        newest: &Entry,
        torn: Option<&Scan>,
        rotted: Option<&JsetHeader>,
        options: Options<'_>,
    ) -> Self {
        let Some(left) = options.kept.and_then(|kept| kept(cache.sb.set_uuid)) else {
            return Self::default();
        };
        let head = |byte| JsetHeader::read(&cache.read(Structure::Jset, byte, SECTOR_SIZE).ok()?);
        if let Some(Ok(behind)) = head(newest.byte).map(|header| left.behind(EntryId::of(&header))) {
            return Self { behind, instead_of_lost: false };
        }
        let continued = || {
            let lost = rotted.copied().or_else(|| head(torn?.end))?;
            let behind = left.behind_lost(EntryId::of(&lost), newest.jset.seq)?;
            Some(Self { behind, instead_of_lost: true })
        };
        continued().unwrap_or_default()
    }

    fn tell(self, checked: &mut Checked, name: &Arc<str>, byte: u64) {
        let Behind { keys, damaged, .. } = self.behind;
        if !keys.is_empty() {
            let detail = format!("memory has {} keys that no entry has", keys.len());
            checked.found(Finding::new(Kind::JournalKept, name, byte, detail));
        }
        if damaged > 0 && !self.instead_of_lost {
            let detail = format!("{damaged} keys that memory had are damaged");
            checked.found(Finding::new(Kind::JournalKeptDamaged, name, byte, detail));
        }
        checked.kept = keys;
    }
}

/// What shows that an entry had been whole that looks torn.
struct Whole {
    by: String,
    /// Keys of it that leaves have.
    keys: Vec<Bkey>,
    /// Nothing that it said is lost, whether it was whole or not.
    lossless: bool,
}

/// The keys of an entry that is not whole, if leaves, or older entries, have them all, and it names what the newest one names.
/// Linux writes leaves before the entry that their keys are of, if they are full: a crash that tears it leaves the same as rot.
fn all_of(cache: &Cache, view: &SetView, torn: &Scan, header: &JsetHeader) -> Option<Vec<Bkey>> {
    let newest = view.journal.newest()?;
    let len = (HEADER_BYTES as u64).saturating_add(u64::from(header.keys.get()).saturating_mul(8));
    if len > JSET_MAX_BYTES {
        return None;
    }
    let read = |byte, len| cache.read(Structure::Jset, byte, len).unwrap_or_default();
    let (bytes, before) = (read(torn.end, len), read(newest.byte, HEADER_BYTES as u64));
    let named = NAMED_AT..HEADER_BYTES;
    if bytes.get(named.clone()).is_none() || bytes.get(named.clone()) != before.get(named) {
        return None;
    }
    let keys = Keys::new(bytes.get(HEADER_BYTES..).unwrap_or_default(), HEADER_BYTES as u64, Structure::Jset);
    let mut all = SeenMap::default();
    for key in keys {
        all.insert(key.ok().filter(|key| key.dirty() && is_sound(cache, key))?);
    }
    let all = all.into_keys();
    let had = |key: &Bkey| {
        let of_tree = view.tree_extents(key.start_pos(), key.pos()).flatten();
        let of_journal = view.sure.journal.between(key.start_pos(), key.pos());
        let same = of_tree.chain(of_journal).filter(|other| is_same(other, key));
        let same: Ranges = same.map(|other| (other.start_pos(), other.pos())).collect();
        same.cover((key.start_pos(), key.pos()))
    };
    all.iter().all(had).then_some(all)
}

/// Where an entry names uuid table, root and prio sets.
const NAMED_AT: usize = 40;

/// What followed from an entry that is not whole: then no crash tore it. Leaves have its keys, or there is a chain of prio
/// sets that is two after the one that is named, and written only once an entry names the one between. Of the entry only the
/// sector of its head counts: behind that, where it was torn, an older one may stand, of which leaves have the keys.
fn whole_before(cache: &Cache, view: &SetView, torn: &Scan) -> Option<Whole> {
    let bytes = cache.read(Structure::Jset, torn.end, SECTOR_SIZE).ok()?;
    let header = JsetHeader::read(&bytes)?;
    let words = usize::try_from(header.keys.get()).ok()?.saturating_mul(8);
    let keys = bytes.get(HEADER_BYTES..)?;
    let keys = Keys::new(keys.get(..words.min(keys.len()))?, HEADER_BYTES as u64, Structure::Jset);
    // Older entries have it, too, where it was written to the cache before, and only then moved or made clean.
    let known =
        |key: &Bkey| view.sure.journal.between(key.start_pos(), key.pos()).any(|other| is_same(&other, key));
    let in_leaf = |key: &Bkey| {
        view.tree_extents(key.start_pos(), key.pos()).flatten().any(|other| is_same(&other, key))
    };
    let keys: Vec<Bkey> = keys
        .map_while(Result::ok)
        .filter(|key| is_sound(cache, key))
        .filter(|key| !known(key) && in_leaf(key))
        .collect();
    if !keys.is_empty() {
        let all = all_of(cache, view, torn, &header);
        let (lossless, keys) = (all.is_some(), all.unwrap_or(keys));
        let by = format!(
            "leaves have {} of its keys",
            if lossless { "all".to_owned() } else { keys.len().to_string() }
        );
        return Some(Whole { by, keys, lossless });
    }
    let (_, named) = view.prios.buckets.first()?;
    let number = cache.sb.cache().map_or(0, |cache| usize::from(cache.nr_this_dev));
    let bucket = BucketNr(header.prio_bucket.get(number)?.get());
    let newer = PrioChain::read(cache, bucket, torn.end).buckets.first().map(|(_, seq)| *seq)?;
    let by = format!("prio sets {newer} are there, and an entry must have named those before them");
    (newer > named.saturating_add(1)).then_some(Whole { by, keys, lossless: false })
}

/// The newest head of an entry that is newer than the torn one, of which nothing is valid.
fn last_head(cache: &Cache, journal: &Journal, torn: &Scan) -> Option<JsetHeader> {
    let next = journal.newest()?.jset.seq.checked_add(1)?;
    let geometry = &cache.geometry;
    let block = geometry.block_bytes();
    // Behind it in its bucket, and in the bucket that comes next.
    let end = geometry.bucket_start_byte(torn.bucket).saturating_add(geometry.bucket_bytes());
    let index = journal.scans.iter().position(|scan| scan.bucket == torn.bucket)?;
    let behind = journal.scans.get((index + 1) % journal.scans.len().max(1))?;
    let mut newest: Option<JsetHeader> = None;
    let mut look = |from: u64, to: u64| {
        let to = to.min(from.saturating_add(LOOKED_AT));
        let Ok((bytes, _)) = cache.read_around(Structure::Jset, from, to.saturating_sub(from)) else {
            return;
        };
        for header in bytes.chunks(usize::try_from(block).unwrap_or(512).max(1)).filter_map(JsetHeader::read)
        {
            let (seq, last) = (header.seq.get(), header.last_seq.get());
            // Numbers go on; what is far from that is anything.
            let sound = seq > next && seq - next <= LOOKED_AT / block && last <= seq;
            if header.magic.get() == cache.magic.jset()
                && sound
                && newest.as_ref().is_none_or(|before| before.seq.get() < seq)
            {
                newest = Some(header);
            }
        }
    };
    look(torn.end, end);
    look(behind.end, behind.end.saturating_add(block));
    newest
}

/// Bytes behind a torn entry that are looked at: a few dozen entries of the largest size.
const LOOKED_AT: u64 = 1 << 20;

/// Whether there are extents at all: a new set has none, and no slots either.
fn has_keys(view: &SetView) -> bool {
    let Some(root) = view.root else { return true };
    let empty = |node: &NodeView| root.level == 0 && node.keys.is_empty();
    !view.replayed.is_empty() || !NodeView::read(&view.cache, root).is_ok_and(|node| empty(&node))
}

/// Puts a set together without its journal. False when nothing of one is there.
fn lost(checked: &mut Checked, journal: Journal, options: Options<'_>) -> bool {
    let Some(cache) = checked.cache.clone() else { return false };
    let byte = cache.geometry.bucket_start_byte(BucketNr(cache.geometry.first_bucket));
    let everything = (Pos::ZERO, Pos::MAX);
    let fault = cache.fault(Structure::Jset, byte, What::JournalEmpty).hiding(everything.0, everything.1);
    let mut view = SetView::above_leaves(cache, journal, &mut |_| {});
    let evidence = Evidence::gather(&view, vec![everything], &mut |done, of| options.tell(4, done, of));
    let completed = evidence.complete(&mut view);
    checked.reserved.extend(completed.buckets);
    checked.table_found = completed.table;
    let doubt = evidence.recover(&mut view);
    checked.found_leaves = evidence.leaves();
    checked.broken_nodes.extend_from_slice(evidence.broken());
    let found = checked.found_leaves > 0;
    checked.found(fault.into());
    disagree(checked, &view, &doubt);
    checked.set = found.then_some(view);
    found
}

/// Tells of places of which leaves that were found say different things.
pub(super) fn disagree(checked: &mut Checked, view: &SetView, doubt: &Ranges) {
    let cache = &view.cache;
    let ranges: Vec<_> = doubt.iter().collect();
    for some in ranges.chunks(PIECES) {
        let detail = format!("{} ranges of which leaves that were found say different things", some.len());
        let mut finding = Finding::new(Kind::NodesDisagree, &cache.name, 0, detail);
        finding.lost = some.to_vec();
        checked.found(finding);
    }
}

/// Ranges that are told with one finding.
const PIECES: usize = 256;

/// The range of keys that a fault above the leaves hides.
fn lost_nodes(fault: &Fault) -> Option<(Pos, Pos)> {
    let of_a_node = !matches!(fault.structure, Structure::Jset | Structure::UuidTable | Structure::PrioSet);
    fault.range.as_deref().copied().filter(|(from, to)| of_a_node && from < to)
}

/// A fault as a finding; one at the root's own key is of the root.
fn place(view: &SetView, fault: Fault) -> Finding {
    let at_root = view.root.is_some_and(|root| root.named_at == fault.byte);
    let mut finding = narrowed(&view.sure, fault.into());
    if at_root && finding.kind == Kind::NodePointer {
        finding.kind = Kind::RootPointer;
    }
    finding
}

/// The newest entry that Linux' search comes across (`bch_journal_read`): a scattered search for any bucket with
/// entries, a binary one for the end of the ring, then back over all buckets that have any.
pub(in super::super) fn kernel_finds(journal: &Journal) -> Option<u64> {
    let n = journal.scans.len();
    let mut list = FoundEntries::default();
    let mut seen = vec![false; n];
    let mut read = |bucket: usize, seen: &mut Vec<bool>| {
        if let Some(flag) = seen.get_mut(bucket) {
            *flag = true;
        }
        list.add(journal.scans.get(bucket).map(|scan| scan.marks.as_slice()).unwrap_or_default())
    };
    let scattered = (0..n).map(|i| (i as u32).wrapping_mul(2_654_435_769) as usize % n);
    let mut start = None;
    for bucket in scattered {
        if seen.get(bucket).copied().unwrap_or(true) {
            break;
        }
        if read(bucket, &mut seen).0 {
            start = Some(bucket);
            break;
        }
    }
    if start.is_none() {
        start =
            (0..n).find(|&bucket| !seen.get(bucket).copied().unwrap_or(true) && read(bucket, &mut seen).0);
    }
    let mut left = start?;
    let mut middle = left;
    let mut right = (left + 1..n).find(|&bucket| seen.get(bucket).copied().unwrap_or(false)).unwrap_or(n);
    while left + 1 < right {
        let before = read(usize::MAX, &mut seen).1;
        middle = usize::midpoint(left, right);
        if read(middle, &mut seen).1 == before {
            right = middle;
        } else {
            left = middle;
        }
    }
    let mut bucket = middle;
    loop {
        bucket = bucket.checked_sub(1).unwrap_or(n - 1);
        if bucket == middle {
            break;
        }
        if !seen.get(bucket).copied().unwrap_or(true) && !read(bucket, &mut seen).0 {
            break;
        }
    }
    read(usize::MAX, &mut seen).1
}

/// The entries a search has come across, as `journal_read_bucket` keeps them.
#[derive(Default)]
struct FoundEntries {
    marks: std::collections::BTreeMap<u64, u64>,
}

impl FoundEntries {
    /// Adds a bucket's entries; whether any was kept, and the newest of all.
    fn add(&mut self, bucket: &[(u64, u64)]) -> (bool, Option<u64>) {
        let mut kept = false;
        for &(seq, last_seq) in bucket {
            while self.marks.first_key_value().is_some_and(|(&oldest, _)| oldest < last_seq) {
                self.marks.pop_first();
            }
            // Entries do not know less than older ones, so the newest one's `last_seq` is the largest.
            let expired = self.marks.last_key_value().is_some_and(|(_, &needed)| seq < needed);
            if !expired && !self.marks.contains_key(&seq) {
                self.marks.insert(seq, last_seq);
                kept = true;
            }
        }
        (kept, self.marks.last_key_value().map(|(&seq, _)| seq))
    }
}
