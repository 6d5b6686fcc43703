//! Extents, and the buckets they use.

use super::super::evidence::Evidence;
use super::super::finding::{Finding, Findings, narrowed};
use super::super::kind::Kind;
use super::super::ranges::Ranges;
use super::super::usage::{Gather, SectorMap, Use};
use super::super::view::node::NodeView;
use super::super::view::overlay::Layer;
use super::super::view::packed::Packed;
use super::super::view::read_at::announced;
use super::super::view::slot::{SlotUse, Sound};
use super::super::view::sweep::Pass;
use super::super::view::{Backing, Cache, Fault, Gens, PtrState, SeenExtent, SetView};
use super::{Checked, Options};
use bcache_format::prio::GC_GEN_MAX;
use bcache_format::uuid_entry::UuidEntry;
use bcache_format::{Bkey, BucketNr, Pos, Ptr, SECTOR_SIZE};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

/// Stale dirty extents remembered until all buckets' users are known.
const SUSPECTS_KEPT: usize = 1 << 20;
/// Bytes of data read at a time.
const CHUNK: usize = 1 << 20;

pub(super) fn pass(checked: &mut Checked, options: Options<'_>) {
    let Some(mut view) = checked.set.take() else { return };
    let mut faults = Findings::default();
    let sure = view.sure.clone();
    let (mut tally, mut shared_buckets) = (Tally::default(), BTreeSet::new());
    // Repeated when generations have to be raised, which then are known. What is wrong was told the first time.
    for first in [true, false, false] {
        checked.forget_usage();
        tally = Tally::default();
        let gens = view.gens.clone();
        let account = Account {
            cache: &view.cache.clone(),
            gens: &gens,
            slots: if view.uuids.is_empty() { usize::MAX } else { view.uuids.len() },
            metadata: &checked.metadata,
            sectors: &checked.sectors,
            shared: Mutex::default(),
        };
        let (mut done, of) = (0, view.leaves.len() as u64);
        let mut lost = Vec::new();
        let settled = view.sweep(
            &account,
            checked.metadata.keys().copied(),
            &mut |fault| {
                if first {
                    lost.extend(fault.range.as_deref().copied().filter(|(from, to)| from < to));
                    faults.add(checked.placed(narrowed(&sure, fault.into())));
                }
            },
            &mut |out| {
                tally.add(out, checked);
                done += 1;
                if done % 64 == 0 {
                    options.tell(5, done, of);
                }
            },
        );
        let (mut out, mut gather) = (Out::default(), Gather::default());
        for key in view.replayed.from(Pos::ZERO) {
            account.one(SeenExtent::new(key, Layer::Newer, &gens), &mut gather, &mut out);
        }
        out.suspects.retain(|key| !written_back(&view, key));
        account.finish(gather);
        tally.add(out, checked);
        shared_buckets = account.shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        if first && !lost.is_empty() {
            recover(checked, &mut view, lost, options);
            continue;
        }
        if settled {
            break;
        }
    }
    checked.findings.append(faults);
    checked.findings.append(tally.findings);
    checked.slots = tally.slots;
    for key in tally.suspects {
        suspect(checked, &view, &key, &mut shared_buckets);
    }
    options.tell(6, 0, 1);
    shared(checked, &view, &shared_buckets);
    if options.data {
        data(checked, &view, options);
    }
    checked.set = Some(view);
}

/// Adds what other leaves have of the ranges of those that are damaged.
fn recover(checked: &mut Checked, view: &mut SetView, lost: Vec<(Pos, Pos)>, options: Options<'_>) {
    disown_garbage(checked, view, &lost);
    let evidence = Evidence::gather(view, lost, &mut |done, of| options.tell(5, done, of));
    let doubt = evidence.recover(view);
    super::journal::disagree(checked, view, &doubt);
    checked.found_leaves = evidence.leaves();
    checked.broken_nodes.extend_from_slice(evidence.broken());
    for bucket in &view.nodes {
        checked.metadata.entry(*bucket).or_insert(Use::Node);
    }
}

/// A bucket that a leaf should be in, and of which nothing is there, is not the btree's because of that: the pointer may be
/// wrong. Data in it counts, and nothing is written there.
fn disown_garbage(checked: &mut Checked, view: &mut SetView, lost: &[(Pos, Pos)]) {
    let lost: Ranges = lost.iter().copied().collect();
    let geometry = view.cache.geometry;
    for at in view.leaves.iter().filter(|at| lost.touch((at.lower, at.key.pos()))) {
        let Some(ptr) = at.key.ptr().filter(|ptr| ptr.is_device()) else { continue };
        if NodeView::read(&view.cache, *at).is_ok_and(|node| node.sets.is_empty()) {
            let bucket = geometry.ptr_bucket(ptr);
            let table = view.journal.newest().and_then(|newest| newest.jset.uuid_bucket.ptr());
            let others = view.cache.is_journal(bucket)
                || table.is_some_and(|ptr| ptr.is_device() && geometry.ptr_bucket(ptr) == bucket)
                || view.prios.buckets.iter().any(|(prio, _)| *prio == bucket);
            view.nodes.remove(&bucket);
            if !others {
                checked.metadata.remove(&bucket);
            }
            checked.reserved.insert(bucket);
        }
    }
}

/// What is found of extents.
#[derive(Default)]
struct Out {
    findings: Vec<Finding>,
    /// Dirty ones that are stale.
    suspects: Vec<Bkey>,
    slots: Vec<(u32, SlotUse)>,
}

/// The same of all of them.
#[derive(Default)]
struct Tally {
    findings: Findings,
    suspects: Vec<Bkey>,
    slots: BTreeMap<u32, SlotUse>,
}

impl Tally {
    fn add(&mut self, out: Out, checked: &Checked) {
        out.findings.into_iter().for_each(|finding| self.findings.add(checked.placed(finding)));
        let room = SUSPECTS_KEPT.saturating_sub(self.suspects.len());
        self.suspects.extend(out.suspects.into_iter().take(room));
        for (slot, used) in out.slots {
            self.slots.entry(slot).or_default().add(&used);
        }
    }
}

/// Counts extents as users of their buckets.
struct Account<'a> {
    cache: &'a Cache,
    gens: &'a Gens,
    /// Slots of the uuid table; all there can be when it is lost.
    slots: usize,
    metadata: &'a HashMap<BucketNr, Use>,
    sectors: &'a SectorMap,
    /// Buckets in which extents share sectors.
    shared: Mutex<BTreeSet<BucketNr>>,
}

impl Pass for Account<'_> {
    type Worker = Gather;
    type Out = Out;

    fn packed(&self, extents: Packed<'_>, gather: &mut Gather, out: &mut Out) {
        let used = extents.used();
        if used.all > 0 {
            out.slots.push((extents.inode(), used));
        }
        extents.valid().for_each(|sound| {
            gather.add(self.sectors, sound.ptr.offset(), sound.size, &mut |at| self.share(at));
        });
    }
    fn extent(&self, key: Bkey, gather: &mut Gather, out: &mut Out) {
        self.one(SeenExtent::new(key, Layer::Older, self.gens), gather, out);
    }
    fn finish(&self, gather: Gather) {
        gather.finish(self.sectors, &mut |at| self.share(at));
    }
}

impl Account<'_> {
    fn share(&self, sector: u64) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.insert(self.cache.geometry.bucket_of(sector));
    }
    fn one(&self, extent: SeenExtent, gather: &mut Gather, out: &mut Out) {
        let key = extent.key;
        match extent.state {
            PtrState::Live(ptr) => {
                let sound = Sound::new(&key, ptr);
                if self.live(&sound, gather, out) {
                    match out.slots.last_mut().filter(|(slot, _)| *slot == sound.inode) {
                        Some((_, used)) => used.add(&SlotUse::of(&sound)),
                        None => out.slots.push((sound.inode, SlotUse::of(&sound))),
                    }
                }
            }
            PtrState::Stale(_) if key.dirty() => out.suspects.push(key),
            PtrState::Stale(stale) if stale > GC_GEN_MAX => {
                let detail = format!("{key}: stale by {stale}");
                out.findings.push(Finding::new(Kind::ExtentTooStale, &self.cache.name, place(&key), detail));
            }
            PtrState::Stale(_) | PtrState::Empty | PtrState::NoDevice => {}
        }
    }

    /// Counts an extent as a user of its bucket, if it may be one.
    fn live(&self, extent: &Sound, gather: &mut Gather, out: &mut Out) -> bool {
        let bucket = self.cache.geometry.ptr_bucket(extent.ptr);
        if self.metadata.contains_key(&bucket) || extent.inode as usize >= self.slots {
            out.findings.push(self.misplaced(extent));
            return false;
        }
        gather.add(self.sectors, extent.ptr.offset(), extent.size, &mut |at| self.share(at));
        true
    }

    fn misplaced(&self, extent: &Sound) -> Finding {
        let (key, bucket) = (extent.key(), self.cache.geometry.ptr_bucket(extent.ptr));
        if self.metadata.contains_key(&bucket) {
            of_key(Kind::ExtentMetadata, self.cache, &key, &format!("bucket {bucket} holds metadata"))
        } else {
            of_key(Kind::ExtentInode, self.cache, &key, &format!("the uuid table has {} slots", self.slots))
        }
    }
}

/// Where a key's data is, for the place of a finding.
fn place(key: &Bkey) -> u64 {
    key.ptr().map_or(0, |ptr: Ptr| ptr.offset().saturating_mul(SECTOR_SIZE))
}

fn of_key(kind: Kind, cache: &Cache, key: &Bkey, why: &str) -> Finding {
    let mut finding = Finding::new(kind, &cache.name, place(key), format!("{key}: {why}"));
    if key.dirty() {
        finding.lost.push((key.start_pos(), key.pos()));
    }
    finding
}

/// Whether the leaf below a dirty extent of the journal has the same data as clean. Linux does not journal that data was
/// written back, so an entry that is still needed for others' sake says dirty of it when it is replayed, by which time
/// the bucket may have been given up.
fn written_back(view: &SetView, key: &Bkey) -> bool {
    let Some(ptr) = key.ptr() else { return false };
    let below = view.tree_extents(key.start_pos(), key.pos()).flatten();
    let mut same = below.filter(|older| {
        let at = older.ptr().filter(|at| at.generation() == ptr.generation());
        at.is_some_and(|at| at.offset() + key.start() == ptr.offset() + older.start())
    });
    same.next().is_some_and(|older| !older.dirty())
}

/// A stale dirty extent that no newer key hides. Where its bucket has other users, that was used again: the data had
/// been written back. Where it has none, the generation has no reason to be ahead: leaves are durable before the
/// buckets that their old keys pointed at are given up (`btree_gc_recurse` in Linux, the sweep of our GC), so a key
/// that is still there speaks of data that still counts. A device that loses flushed writes can make that wrong, which
/// is why `-p` does not do it.
fn suspect(checked: &mut Checked, view: &SetView, key: &Bkey, shared: &mut BTreeSet<BucketNr>) {
    let Some(ptr) = key.ptr() else { return };
    let bucket = view.cache.geometry.ptr_bucket(ptr);
    let revived = checked.revived.contains(&bucket);
    let stale = view.gens.stale_key(key);
    if !revived && !checked.is_free(bucket) {
        if stale > GC_GEN_MAX {
            checked.found(of_key(Kind::ExtentTooStale, &view.cache, key, &format!("stale by {stale}")));
        }
        return;
    }
    let why = format!("stale by {stale}, but bucket {bucket} has no other data");
    let detail = format!("{key}: {why}");
    checked.found(Finding::new(Kind::ExtentDirtyStale, &view.cache.name, place(key), detail));
    checked.revived.insert(bucket);
    if checked.sectors.add(ptr.offset(), ptr.offset() + key.size()) {
        shared.insert(bucket);
    }
    checked.slots.entry(key.inode()).or_default().add(&SlotUse::of(&Sound::new(key, ptr)));
}

/// Tells of leaves that cannot be read any more.
fn tell_news(checked: &mut Checked, view: &SetView, faults: Vec<Fault>) {
    for fault in faults {
        if let Some(finding) = checked.findings.untold(&view.sure, fault) {
            checked.found(finding);
        }
    }
}

/// Extents that share sectors. Which of two dirty ones is right nobody can tell; one is kept, and both are reported.
fn shared(checked: &mut Checked, view: &SetView, buckets: &BTreeSet<BucketNr>) {
    if buckets.is_empty() {
        return;
    }
    let geometry = view.cache.geometry;
    let mut users: Vec<(u64, Bkey)> = Vec::new();
    let mut faults = Vec::new();
    let extents = view.trusted_extents(Pos::ZERO, Pos::MAX);
    for extent in extents.filter_map(|extent| extent.map_err(|fault| faults.push(fault)).ok()) {
        let Some(ptr) = extent.key.ptr().filter(|ptr| ptr.is_device()) else { continue };
        let bucket = geometry.ptr_bucket(ptr);
        let revived = checked.revived.contains(&bucket) && extent.key.dirty();
        if buckets.contains(&bucket)
            && (extent.live().is_some() || revived)
            && !checked.metadata.contains_key(&bucket)
        {
            users.push((ptr.offset(), extent.key));
        }
    }
    tell_news(checked, view, faults);
    // Dirty ones first, so that of a dirty and a clean one the dirty one stays.
    users.sort_by_key(|(at, key)| (!key.dirty(), *at));
    // Of the kept ones the sector behind the last, with the first.
    let mut kept: BTreeMap<u64, (u64, Bkey)> = BTreeMap::new();
    for (at, key) in users {
        let clash = kept.range(at + 1..).next().filter(|(_, (start, _))| *start < at + key.size());
        let Some((_, (_, other))) = clash else {
            kept.insert(at + key.size(), (at, key));
            continue;
        };
        let why = format!("shares sectors with {other}");
        let mut finding = of_key(Kind::ExtentShared, &view.cache, &key, &why);
        if key.dirty() {
            finding.lost.push((other.start_pos(), other.pos()));
        }
        checked.dropped.insert(key.pos());
        checked.found(finding);
    }
}

/// Reads all live data, and compares clean data with the backing device it came from.
fn data(checked: &mut Checked, view: &SetView, options: Options<'_>) {
    let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut read, of) = (0, checked.slots.values().map(|used| used.all).sum());
    let backing_of =
        |entry: &UuidEntry| checked.backings.iter().find(|backing| backing.sb.uuid == entry.uuid);
    let backings: Vec<Option<Backing>> = view.uuids.iter().map(|entry| backing_of(entry).cloned()).collect();
    let mut faults = Vec::new();
    let extents = view.trusted_extents(Pos::ZERO, Pos::MAX);
    let extents = extents.filter_map(|extent| extent.map_err(|fault| faults.push(fault)).ok());
    let extents = extents.filter_map(|extent| {
        let backing = backings.get(extent.key.inode() as usize).and_then(Option::as_ref);
        Some((extent.key, extent.live()?, backing.filter(|_| !extent.key.dirty())))
    });
    let tell = |(key, ptr, backing): &(Bkey, Ptr, Option<&Backing>)| {
        let bytes = key.size() * SECTOR_SIZE;
        view.cache.device.will_read(ptr.offset() * SECTOR_SIZE, bytes);
        if let Some(backing) = backing {
            backing.device.will_read(key.start() * SECTOR_SIZE, bytes);
        }
        bytes
    };
    for (key, ptr, backing) in announced(extents, tell) {
        let bytes = key.size() * SECTOR_SIZE;
        read += key.size();
        options.tell(6, read, of);
        let mut done = 0;
        while done < bytes {
            let step = usize::try_from(bytes - done).unwrap_or(CHUNK).min(CHUNK);
            let (Some(ours), Some(theirs)) = (ours.get_mut(..step), theirs.get_mut(..step)) else { break };
            let at = ptr.offset() * SECTOR_SIZE + done;
            if let Err(error) = view.cache.device.read_at(at, ours) {
                let fault = Fault::io(&view.cache.name, bcache_format::Structure::Bkey, at, &error);
                let mut finding: Finding = fault.into();
                if key.dirty() {
                    finding.lost.push((key.start_pos(), key.pos()));
                }
                checked.found(finding);
                checked.dropped.insert(key.pos());
                break;
            }
            if let Some(backing) = backing {
                let from = key.start() * SECTOR_SIZE + done;
                if backing.device.read_at(from, theirs).is_ok() && ours != theirs {
                    let detail = format!("{key}: differs from {} at byte {from}", backing.name);
                    let mut finding = Finding::new(Kind::DataDiffers, &view.cache.name, at, detail);
                    // Which of the two is right nobody can tell, and until now a reader sees the cache's.
                    finding.lost.push((key.start_pos(), key.pos()));
                    checked.found(finding);
                    checked.dropped.insert(key.pos());
                    break;
                }
            }
            done += step as u64;
        }
    }
    tell_news(checked, view, faults);
}
