//! Superblocks that are gone, put together from what is left.
//!
//! A cache says where it is by what stands on it: journal entries, prio sets and btree nodes begin with a magic number that
//! the first half of the set's UUID follows from, and they stand at bucket boundaries and blocks. A backing device has
//! nothing of its own; the uuid table of its cache has its UUID and label, and cached data says whose it is.
//!
//! Nothing is written over what may be somebody else's: what stands before the superblock must be zeros, as the programs
//! that make devices leave it, and a superblock fits only where what it leads to is there.
//!
//! Long because there are many kinds of evidence for what a lost superblock said, each with a function or two.

use super::bits::Fix;
use super::check::Checked;
use super::finding::Finding;
use super::image::{MARK, MARK_AT};
use super::kind::Kind;
use super::repair::{Fit, Write, fits, is_likely};
use super::salvage::scan::scan;
use super::view::journal::{Entry, Journal};
use super::view::prio::PrioChain;
use super::view::{Backing, Cache, Device, Devices, SetView};
use bcache_format::feature::{Features, INCOMPAT_LOG_LARGE_BUCKET_SIZE};
use bcache_format::jset::{Jset, JsetHeader};
use bcache_format::magic::SetMagic;
use bcache_format::prio::{PrioHeader, PrioSet};
use bcache_format::superblock::{
    BLOCK_SECTORS_MAX, BUCKET_SECTORS_MIN, BackingFields, BackingState, CacheFields, CacheMode,
    DATA_OFFSET_DEFAULT, NBUCKETS_MIN, RawSuperblock, Role, SB_BYTES, SB_OFFSET, Version,
};
use bcache_format::uuid_entry::UuidEntry;
use bcache_format::{Bkey, BucketNr, Geometry, Pos, SECTOR_SIZE, Sectors, Structure, Superblock};
use std::collections::HashSet;
use std::sync::Arc;
use uuid::Uuid;

/// Sectors before the first bucket that is used, at least (`make-bcache`).
const RESERVED_SECTORS: u32 = 23;
/// Sectors of a bucket of a backing device that nobody chose; of no meaning.
const BACKING_BUCKET_SECTORS: u16 = 1024;
/// Bytes read at a time while structures are looked for.
const CHUNK: u64 = 1 << 20;
/// Sectors at the beginning of a device that may have been lost with the superblock.
const WIPED_SECTORS: u64 = 2048;
/// Sectors that people align what is on a device to.
const MEBIBYTE_SECTORS: u64 = 2048;
/// Sets of which entries stand in one journal that are tried: an image made to be slow has another in each bucket.
const SETS_TRIED: usize = 4;
/// Buckets of a cache with as many journal buckets as there can be.
const JOURNAL_WHOLE: u64 = 256 * 128;
/// So many times as large a device that was cut off is taken to have been, where nothing says how large it was.
const CUT_OFF_TIMES: u64 = 64;
/// Structures stand at pages at least: no bucket is smaller.
const PAGE: u64 = 4096;

/// What was found of superblocks that are gone.
#[derive(Default)]
pub(super) struct Found {
    /// The superblock of the first device of which enough is left.
    pub fix: Option<Fix>,
    /// What is missing to put others together, by their devices.
    pub notes: Vec<(Arc<str>, String)>,
}

/// Looks for what the superblocks said of those of `devices` that have none.
pub(super) fn find(checked: &Checked, devices: &[Device]) -> Found {
    let damaged = |device: &&Device| {
        let of = |kind: Kind| matches!(kind, Kind::SbMagic | Kind::SbField);
        checked.findings.iter().any(|finding| of(finding.kind) && *finding.device == *device.name())
    };
    let lost = devices.iter().filter(damaged).filter(|device| is_none(device) && nothing_before(device));
    let lost: Vec<&Device> = lost.collect();
    let mut all = Found::default();
    for device in &lost {
        let name: Arc<str> = device.name().into();
        let found = if checked.cache.is_none() {
            cache(checked, device, lost.len() - 1)
        } else {
            backing(checked, device).map(Ok)
        };
        let (sb, detail) = match found {
            None => continue,
            Some(Err(note)) => {
                all.notes.push((name, note));
                continue;
            }
            Some(Ok(found)) => found,
        };
        // What else is in the block is what was there, or was lost with it: nobody reads it.
        let mut bytes = vec![0; SB_BYTES];
        if sb.write_to(&mut bytes).is_err() {
            continue;
        }
        let what = "superblock".to_owned();
        all.fix = Some(Fix {
            finding: Finding::new(Kind::SbLost, &name, SB_OFFSET, detail),
            write: Write { device: name, byte: SB_OFFSET, bytes: bytes.into(), what },
        });
        break;
    }
    all
}

/// Whether there is nothing that was a superblock.
fn is_none(device: &Device) -> bool {
    let mut bytes = vec![0; SB_BYTES];
    device.read_at(SB_OFFSET, &mut bytes).is_ok()
        && RawSuperblock::read(&bytes).is_some_and(|raw| !raw.has_magic())
}

/// Whether nothing stands before where a superblock is, but for the mark of what was made of an image.
pub(super) fn nothing_before(device: &Device) -> bool {
    let mut before = vec![1; usize::try_from(SB_OFFSET).unwrap_or(0)];
    let read = device.peek_at(0, &mut before).is_ok();
    let mark = MARK_AT as usize..MARK_AT as usize + MARK.len();
    if let Some(mark) = before.get_mut(mark).filter(|bytes| *bytes == MARK) {
        mark.fill(0);
    }
    read && before.iter().all(|byte| *byte == 0)
}

/// What a cache's superblock said, or what is missing to say it. `others` more devices have none either.
fn cache(checked: &Checked, device: &Device, others: usize) -> Option<Result<(Superblock, String), String>> {
    let attached = |backing: &&Backing| !matches!(backing.sb.state(), BackingState::None);
    let attached: Vec<&Backing> = checked.backings.iter().filter(attached).collect();
    let (magic, bucket_sectors, from) = by_journal(device).or_else(|| by_prios(device))?;
    let of_set = attached.iter().find(|backing| backing.sb.set_magic() == magic);
    if of_set.is_none() && !attached.is_empty() {
        // A cache of another set than the devices that were named with it.
        return None;
    }
    let set_uuid = of_set.map_or_else(|| half_uuid(magic), |backing| backing.sb.set_uuid);
    // Blocks may not be larger than those of any device that the cache serves.
    let largest = attached.iter().map(|backing| backing.sb.block_sectors).min();
    let blocks =
        [1, 2, 4, BLOCK_SECTORS_MAX].into_iter().filter(|block| largest.is_none_or(|most| *block <= most));
    let (nbuckets, by_what) = buckets(device, set_uuid, bucket_sectors)?;
    let mut best: Option<((u64, u64), Superblock)> = None;
    for block in blocks {
        let sb = superblock(set_uuid, bucket_sectors, block, nbuckets)?;
        let Some(found) = found_with(device, &sb, &attached) else { continue };
        // The wrong block misses what comes behind the first of each; where nothing does, that of the devices it is.
        let alike = best.as_ref().is_some_and(|(most, _)| *most == found) && largest == Some(block);
        if alike || best.as_ref().is_none_or(|(most, _)| *most < found) {
            best = Some((found, sb));
        }
    }
    let (_, sb) = best?;
    if of_set.is_none() && devices_of(device, &sb) > others {
        let known: String = magic.uuid_start().iter().map(|byte| format!("{byte:02x}")).collect();
        return Some(Err(format!(
            "it was the cache of a set whose UUID begins with {known}; the rest of that its backing devices know: name one \
             of them too"
        )));
    }
    let whole = match of_set {
        Some(backing) => format!("set {set_uuid} by {}", backing.name),
        None => format!("set {set_uuid}, of which the first half is by its magic numbers, the rest made up"),
    };
    let block = sb.block_sectors;
    let detail = format!(
        "a cache: {whole}; buckets of {bucket_sectors} sectors by where {from} are, {nbuckets} of them by {by_what}; \
         blocks of {block}; the device's own UUID, its label and its policy are not known"
    );
    Some(Ok((sb, detail)))
}

/// Backing devices that a cache has slots for. With a UUID that is made up they would be of another set.
fn devices_of(device: &Device, sb: &Superblock) -> usize {
    let view = opened(device, sb).map(|cache| SetView::read(cache, &mut |_| {}));
    let uuids = view.map(|view| view.uuids).unwrap_or_default();
    let of_device = |entry: &&UuidEntry| !entry.is_free() && !entry.is_detached() && !entry.is_flash_only();
    // Without a table there may be any.
    if uuids.is_empty() { 1 } else { uuids.iter().filter(of_device).count() }
}

/// How many journal buckets a cache has, as Linux lays them out.
fn journal_buckets(nbuckets: u64) -> u64 {
    (nbuckets / 128).clamp(2, 256)
}

/// Most buckets of a cache that has so many journal buckets, as Linux lays them out.
fn most_buckets(journal: u64, all: u64) -> u64 {
    match journal {
        0..=2 => 383,
        3..256 => journal * 128 + 127,
        _ => all,
    }
}

/// How many buckets a cache has, and by what. That is the device's size, unless what is on it says that it was copied from
/// a smaller one: then its journal is smaller, too, and what would be taken for the rest of it is data.
fn buckets(device: &Device, set_uuid: Uuid, bucket_sectors: u32) -> Option<(u64, String)> {
    let mut all = Sectors::from_bytes(device.size()).0 / u64::from(bucket_sectors);
    let mut by_size = (all, "the device's size".to_owned());
    let mut cache = opened(device, &superblock(set_uuid, bucket_sectors, 1, all)?)?;
    // A device that was cut off had more journal buckets than one of its size has.
    let wide = opened(device, &superblock(set_uuid, bucket_sectors, 1, all.max(JOURNAL_WHOLE))?)?;
    let chain = Journal::read(&wide).newest().and_then(|newest| chain(&wide, newest));
    match chain {
        Some(chain) if chain.least > all => {
            // Where they do not tell how many, rather too many: what is behind the end is not there, but what leads there
            // is no damage. Nothing is written to such a device.
            let many = all.saturating_mul(CUT_OFF_TIMES).max(JOURNAL_WHOLE);
            all = if chain.ends { chain.most } else { chain.most.max(many) };
            by_size = (all, "its prio sets, its table and its root: the device was cut off".to_owned());
            cache = opened(device, &superblock(set_uuid, bucket_sectors, 1, all)?)?;
        }
        Some(chain) if chain.ends && chain.most < all => {
            by_size = (chain.most, format!("its {} prio sets: the device was smaller", chain.sets));
        }
        _ => {}
    }
    let (geometry, count) = (cache.geometry, cache.njournal_buckets());
    let first = geometry.first_bucket;
    let place = |index: u64| geometry.bucket_start_byte(BucketNr(first + index));
    let magic = cache.magic;
    let begun: Vec<u64> =
        (0..count).filter(|index| entry_at(device, place(*index)).is_some_and(|of| of == magic)).collect();
    let journal = Journal::read(&cache);
    let Some(newest) = journal.newest().cloned() else { return Some(by_size) };
    let upper = by_size.0;
    let view = SetView::read_with(cache, journal, &mut |_| {});
    let bucket = |key: &Bkey| key.ptr().filter(|ptr| ptr.is_device()).map(|ptr| geometry.ptr_bucket(ptr));
    let data = view.extents(Pos::ZERO, Pos::MAX).flatten().filter(|extent| extent.live().is_some());
    let named = [newest.jset.uuid_bucket, newest.jset.btree_root];
    let prios = newest
        .jset
        .prio_bucket
        .first()
        .into_iter()
        .chain(view.prios.buckets.iter().map(|(bucket, _)| bucket));
    let (mut lowest, mut highest) = (u64::MAX, 0);
    data.filter_map(|extent| bucket(&extent.key))
        .chain(named.iter().filter_map(bucket))
        .chain(view.nodes.iter().copied())
        .chain(prios.copied())
        .for_each(|bucket| (lowest, highest) = (lowest.min(bucket.0), highest.max(bucket.0)));
    // Neither is what was a node or a prio set before.
    let others = (first..first + count).find(|bucket| {
        let mut head = [0; 16];
        let read = device.read_at(geometry.bucket_start_byte(BucketNr(*bucket)), &mut head).is_ok();
        let of = head.last_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        read && [magic.bset(), magic.prio_set()].map(Some).contains(&of)
    });
    let lowest = others.map_or(lowest, |bucket| lowest.min(bucket));
    let fits = |journal: u64| {
        let most = most_buckets(journal, all);
        (most < upper && highest < most && first + journal <= lowest).then_some(most)
    };
    // The journal is a ring: where older entries stand behind the newest, it has been round, and ends with them.
    let ends = begun.last().map(|last| last + 1);
    if let Some(ends) = ends.filter(|ends| first + ends > newest.bucket.0 + 1 && *ends < count)
        && let Some(most) = fits(ends)
    {
        return Some((
            most,
            format!("its journal, which goes round in {ends} buckets: the device was smaller"),
        ));
    }
    if lowest < first + count
        && let Some(most) = fits(lowest.saturating_sub(first))
    {
        return Some((
            most,
            format!("its journal, which ends before bucket {lowest}, where data is: the device was smaller"),
        ));
    }
    // What is used behind that says that the end of the chain was none; so do entries where its journal would not reach.
    let reaches = begun.last().is_none_or(|last| *last < journal_buckets(by_size.0));
    Some(if highest < by_size.0 && reaches { by_size } else { (all, "the device's size".to_owned()) })
}

/// How many buckets a chain of prio sets is for.
struct Chain {
    sets: u64,
    least: u64,
    most: u64,
    /// A set of an older chain comes behind it, as Linux writes it, or its first, as a repair does: there are no others.
    ends: bool,
}

/// The chain that an entry names, as far as it can be followed. Whether a set is of it is told by its number.
fn chain(cache: &Cache, newest: &Entry) -> Option<Chain> {
    let geometry = &cache.geometry;
    let mut next = newest.jset.prio_bucket.first().copied().unwrap_or_default();
    let (mut seq, mut ends, mut seen) = (None, false, HashSet::new());
    while geometry.is_usable(next) && !seen.contains(&next) {
        let byte = geometry.bucket_start_byte(next);
        let bytes = cache.read(Structure::PrioSet, byte, geometry.meta_bucket_bytes());
        let Some(set) = bytes.ok().and_then(|bytes| PrioSet::parse(&bytes, cache.magic).ok()) else { break };
        ends = seq.is_some_and(|seq| set.seq < seq);
        if *seq.get_or_insert(set.seq) != set.seq {
            break;
        }
        seen.insert(next);
        next = set.next_bucket;
    }
    ends |= seen.contains(&next);
    let (sets, each) = (seen.len() as u64, geometry.prios_per_bucket().max(1));
    // What the entry names was there when it was written, before the end of the device or not.
    let named = [newest.jset.uuid_bucket, newest.jset.btree_root];
    let named = named.iter().filter_map(|key| key.ptr()).filter(|ptr| ptr.is_device());
    let named = named.map(|ptr| geometry.ptr_bucket(ptr)).chain([next]).map(|bucket| bucket.0).max();
    let least = (sets.saturating_sub(1) * each + 1).max(named.map_or(0, |bucket| bucket.saturating_add(1)));
    let most = least.div_ceil(each).checked_mul(each)?;
    (least > 1).then_some(Chain { sets, least, most: most.max(sets * each), ends })
}

/// A UUID of which the first half is known.
fn half_uuid(magic: SetMagic) -> Uuid {
    let mut bytes = [0; 16];
    let first = magic.uuid_start();
    bytes.iter_mut().zip(first.into_iter().chain(first)).for_each(|(byte, of)| *byte = of);
    if let Some(variant) = bytes.get_mut(8) {
        *variant = *variant & 0x3f | 0x80;
    }
    Uuid::from_bytes(bytes)
}

fn superblock(set_uuid: Uuid, bucket_sectors: u32, block: u16, nbuckets: u64) -> Option<Superblock> {
    let large = bucket_sectors > u16::MAX.into();
    let fields = CacheFields {
        nbuckets,
        bucket_sectors,
        nr_in_set: 1,
        nr_this_dev: 0,
        first_bucket: u16::try_from(RESERVED_SECTORS / bucket_sectors + 1).ok()?,
        njournal_buckets: u16::try_from(journal_buckets(nbuckets)).ok()?,
    };
    let version = if large { Version::CacheWithFeatures } else { Version::CacheWithUuid };
    // Nothing else has the device's own: as good as any.
    let uuid = Uuid::from_u128(set_uuid.as_u128() ^ 0xcac4e);
    let mut sb = Superblock::new(version, uuid, set_uuid, block, Role::Cache(fields));
    if large {
        sb.features = Features { incompat: INCOMPAT_LOG_LARGE_BUCKET_SIZE, ..Features::default() };
    }
    sb.seq = 1;
    sb.set_sync(true);
    Some(sb)
}

/// How much is where a superblock leads: journal entries, and bytes of nodes. Nothing when it leads nowhere, or to a set
/// that knows none of the devices that should be its: half a UUID may be that of two sets.
fn found_with(device: &Device, sb: &Superblock, attached: &[&Backing]) -> Option<(u64, u64)> {
    let cache = opened(device, sb)?;
    let journal = Journal::read(&cache);
    let entries = journal.scans.iter().map(|scan| scan.entries).sum();
    let Some(newest) = journal.newest() else {
        // Leaves that can be read whole, and what they have.
        let found = scan(&cache, &[(Pos::ZERO, Pos::MAX)].into_iter().collect(), &mut |_, _| {});
        let whole = found.leaves.iter().filter(|leaf| leaf.whole).count() as u64;
        return Some((whole, found.leaves.iter().map(|leaf| leaf.keys.len() as u64).sum()));
    };
    let first = newest.jset.prio_bucket.first().copied().unwrap_or_default();
    let prios = PrioChain::read(&cache, first, newest.byte);
    let view = SetView::read_with(cache, journal, &mut |_| {});
    let known = |backing: &&Backing| view.uuids.iter().any(|entry| entry.uuid == backing.sb.uuid);
    if !attached.is_empty() && !view.uuids.is_empty() && !attached.iter().any(known) {
        return None;
    }
    let leads = prios.broken.is_none() || view.tree.nodes > 0 || view.cache.is_cut_off();
    leads.then_some((entries, view.tree.bytes))
}

fn opened(device: &Device, sb: &Superblock) -> Option<Cache> {
    let mut devices = Devices::default();
    devices.push_with(Arc::clone(device), sb.clone());
    devices.caches.pop()
}

/// The set's magic and the size of buckets, by journal entries at the start of journal buckets.
fn by_journal(device: &Device) -> Option<(SetMagic, u32, &'static str)> {
    let mut best: Option<((u64, u32), SetMagic)> = None;
    // Of a device that was cut off a few may be left.
    for bucket_sectors in bucket_sizes(device, BUCKETS_LEFT) {
        let first = u64::from(RESERVED_SECTORS / bucket_sectors + 1);
        let all = Sectors::from_bytes(device.size()).0 / u64::from(bucket_sectors);
        let count = journal_buckets(all);
        let entries = (first..first + count).filter_map(|bucket| {
            let byte = bucket * u64::from(bucket_sectors) * SECTOR_SIZE;
            entry_at(device, byte)
        });
        let mut tried = Vec::new();
        for magic in entries {
            // Mostly they are all of one set; a few of one that the device was of before.
            if tried.contains(&magic) || tried.len() == SETS_TRIED {
                continue;
            }
            tried.push(magic);
            let Some(sb) = superblock(half_uuid(magic), bucket_sectors, 1, all) else { continue };
            let Some(cache) = opened(device, &sb) else { continue };
            // Larger and smaller buckets begin in the same places: those are right where prio sets are.
            let journal = Journal::read(&cache);
            let Some(newest) = journal.newest() else { continue };
            let first = newest.jset.prio_bucket.first().copied().unwrap_or_default();
            if !PrioChain::read(&cache, first, newest.byte).buckets.is_empty() {
                return Some((magic, bucket_sectors, "its journal entries"));
            }
            // Smaller ones miss the entries behind their middle, larger ones every other bucket.
            let found = journal.scans.iter().map(|scan| scan.entries).sum();
            if is_measure(&cache, journal) && best.is_none_or(|(before, _)| before < (found, bucket_sectors))
            {
                best = Some(((found, bucket_sectors), magic));
            }
        }
    }
    best.map(|((_, bucket_sectors), magic)| (magic, bucket_sectors, "its journal entries"))
}

/// Whether buckets can have this size by all that a journal leads to but prio sets: the uuid table and nodes take what one has
/// of it, they begin with one, and no extent goes beyond one.
fn is_measure(cache: &Cache, journal: Journal) -> bool {
    // Where the device ends is another question: it may have been cut off.
    let geometry = Geometry { nbuckets: u64::from(u32::MAX), ..cache.geometry };
    let Some(newest) = journal.newest() else { return false };
    let (table, root) = (newest.jset.uuid_bucket, newest.jset.btree_root);
    let whole = [u64::from(geometry.bucket_sectors), geometry.meta_bucket_bytes() / SECTOR_SIZE];
    let begins =
        |key: &Bkey| key.ptr().is_some_and(|ptr| ptr.offset().is_multiple_of(geometry.bucket_sectors.into()));
    let fits = whole.contains(&table.size()) && root.size() == geometry.btree_node_bytes() / SECTOR_SIZE;
    let ends = |key: &Bkey| key.ptrs().is_empty() || geometry.ptr_problem(key).is_none();
    if !fits
        || ![table, root].iter().all(begins)
        || !journal.entries.values().flat_map(|entry| &entry.jset.keys).all(ends)
    {
        return false;
    }
    let view = SetView::above_leaves(cache.clone(), journal, &mut |_| {});
    view.leaves.iter().all(|at| begins(&at.key))
}

/// Buckets of a device that was cut off without which nothing is looked for.
const BUCKETS_LEFT: u64 = 4;

/// Sizes that buckets of a device can have of which there are so many at least.
fn bucket_sizes(device: &Device, least: u64) -> impl Iterator<Item = u32> + use<> {
    let most = Sectors::from_bytes(device.size()).0 / least;
    (0..u32::BITS)
        .map(|bit| 1 << bit)
        .filter(move |size| *size >= BUCKET_SECTORS_MIN && u64::from(*size) <= most)
}

/// The magic of the entry at a place.
fn entry_at(device: &Device, byte: u64) -> Option<SetMagic> {
    let mut bytes = vec![0; bcache_format::jset::JSET_MAX_BYTES.try_into().ok()?];
    device.read_at(byte, &mut bytes).ok()?;
    let magic = SetMagic::of_jset(JsetHeader::read(&bytes)?.magic.get());
    Jset::parse(&bytes, magic).is_ok().then_some(magic)
}

/// The same by a prio set, wherever there is one: its checksum is over a whole bucket. Where metadata takes a part of a
/// bucket only, several sizes are possible, and nothing is concluded.
fn by_prios(device: &Device) -> Option<(SetMagic, u32, &'static str)> {
    let mut chunk = vec![0; usize::try_from(CHUNK).ok()?];
    let mut at = 0;
    // An image made to be slow has on each page what looks like a prio set.
    let mut left = device.size().saturating_mul(2);
    loop {
        at = device.next_data(at) / PAGE * PAGE;
        if at >= device.size() {
            return None;
        }
        let here = chunk.get_mut(..usize::try_from(CHUNK.min(device.size() - at)).ok()?)?;
        if device.read_at(at, here).is_ok() {
            for (page, bytes) in (at..).step_by(PAGE as usize).zip(here.chunks(PAGE as usize)) {
                let found = prio_set_at(device, page, bytes, &mut left);
                if found.is_some() {
                    return found;
                }
            }
        }
        at += CHUNK;
    }
}

/// What a prio set at a place says. `left` is how much may still be read to find one.
fn prio_set_at(
    device: &Device,
    byte: u64,
    head: &[u8],
    left: &mut u64,
) -> Option<(SetMagic, u32, &'static str)> {
    let header = PrioHeader::read(head)?;
    let next = header.next_bucket.get();
    // Most of what is no prio set shows by this.
    if header.version.get() != 0
        || header.pad.get() != 0
        || header.seq.get() == 0
        || next == 0
        || next >= device.size() / PAGE
    {
        return None;
    }
    let magic = SetMagic::of_prio_set(header.magic.get());
    let mut sizes = bucket_sizes(device, NBUCKETS_MIN).filter(|size| {
        let geometry = Geometry { block_sectors: 1, bucket_sectors: *size, first_bucket: 1, nbuckets: 1 };
        let bytes = geometry.meta_bucket_bytes();
        if !byte.is_multiple_of(geometry.bucket_bytes()) || *left < bytes {
            return false;
        }
        *left -= bytes;
        let mut bytes = vec![0; usize::try_from(bytes).unwrap_or(0)];
        device.read_at(byte, &mut bytes).is_ok() && PrioSet::parse(&bytes, magic).is_ok()
    });
    match (sizes.next(), sizes.next()) {
        (Some(size), None) => Some((magic, size, "its prio sets")),
        _ => None,
    }
}

/// What the superblock of a backing device of the cache's set said.
fn backing(checked: &Checked, device: &Device) -> Option<(Superblock, String)> {
    let view = checked.set.as_ref().filter(|view| !checked.table_found || is_likely(checked, view))?;
    let cache = &view.cache;
    let there = |uuid: Uuid| checked.backings.iter().any(|backing| backing.sb.uuid == uuid);
    let open = (0u32..).zip(&view.uuids).filter(|(_, entry)| {
        !entry.is_free() && !entry.is_detached() && !entry.is_flash_only() && !there(entry.uuid)
    });
    let all: Vec<(u32, &UuidEntry)> = open.collect();
    let fitting: Vec<(u32, &UuidEntry, Superblock, Fit)> = all
        .iter()
        .filter_map(|(slot, entry)| {
            let used = checked.slots.get(slot).copied().unwrap_or_default();
            let sb = backing_superblock(cache, entry, used.dirty > 0, data_offset(device, used.start));
            let mut devices = Devices::default();
            devices.push_with(Arc::clone(device), sb.clone());
            let fit = fits(view, devices.backings.first()?, *slot, &used, WIPED_SECTORS);
            (fit != Fit::Not).then_some((*slot, *entry, sb, fit))
        })
        .collect();
    let same: Vec<_> = fitting.iter().filter(|(.., fit)| *fit == Fit::Same).collect();
    let (slot, entry, sb, why) = match (same.as_slice(), fitting.as_slice(), all.len()) {
        ([(slot, entry, sb, _)], ..) => (*slot, *entry, sb, "by clean data that is the same"),
        // What is left over, of a device with nothing where a file system has its superblock: nobody else's.
        ([], [(slot, entry, sb, _)], 1) => {
            (*slot, *entry, sb, "because it is the only slot whose device was not named")
        }
        _ => return None,
    };
    let offset = sb.backing()?.data_offset;
    let begins = if offset == DATA_OFFSET_DEFAULT {
        "where nobody chose otherwise"
    } else {
        "where the first is cached"
    };
    let state = if sb.state() == BackingState::Dirty {
        "dirty by that slot's data, unless it ran without its cache since: then that data is older than its own"
    } else {
        "clean by that slot's data"
    };
    let detail = format!(
        "a backing device: slot {slot} of set {}, {} {why}; {state}; its data begins at sector {offset}, {begins}",
        cache.sb.set_uuid, entry.uuid
    );
    Some((sb.clone(), detail))
}

/// Where the data of a device begins of which the first that is cached is at `first`. That is aligned to whole mebibytes of
/// the data, and of the device only where these are the same.
fn data_offset(device: &Device, first: u64) -> Sectors {
    let aligned = first > 0 && first.is_multiple_of(MEBIBYTE_SECTORS) && first <= 8 * MEBIBYTE_SECTORS;
    let before = first.saturating_sub(DATA_OFFSET_DEFAULT.0).saturating_mul(SECTOR_SIZE);
    let mut bytes = vec![1; if aligned { usize::try_from(before).unwrap_or(0) } else { 0 }];
    let empty = device.read_at(DATA_OFFSET_DEFAULT.bytes(), &mut bytes).is_ok()
        && bytes.iter().all(|byte| *byte == 0);
    if aligned && empty { Sectors(first) } else { DATA_OFFSET_DEFAULT }
}

fn backing_superblock(cache: &Cache, entry: &UuidEntry, dirty: bool, data_offset: Sectors) -> Superblock {
    let fields = BackingFields { data_offset, bucket_sectors: BACKING_BUCKET_SECTORS };
    let version =
        if data_offset == DATA_OFFSET_DEFAULT { Version::Backing } else { Version::BackingWithOffset };
    let (set, block) = (cache.sb.set_uuid, cache.sb.block_sectors);
    let mut sb = Superblock::new(version, entry.uuid, set, block, Role::Backing(fields));
    sb.label = entry.label;
    sb.set_cache_mode(if dirty { CacheMode::Writeback } else { CacheMode::Writethrough });
    sb.set_state(if dirty { BackingState::Dirty } else { BackingState::Clean });
    sb
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a test says what went wrong by failing

    use super::super::view::{MemDevice, ReadAt};
    use super::*;
    use std::io;
    use std::sync::atomic::{AtomicU64, Ordering};

    const SIZE: u64 = 32 << 20;

    /// A device that counts what is read of it, in bytes, and the most at a time.
    struct Counted {
        device: MemDevice,
        read: AtomicU64,
        most: AtomicU64,
    }

    impl ReadAt for Counted {
        fn name(&self) -> &str {
            self.device.name()
        }
        fn size(&self) -> u64 {
            self.device.size()
        }
        fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
            self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
            self.most.fetch_max(buf.len() as u64, Ordering::Relaxed);
            self.device.read_at(byte, buf)
        }
    }

    fn counted(bytes: Vec<u8>) -> Arc<Counted> {
        let device = MemDevice::new("cache", bytes);
        Arc::new(Counted { device, read: AtomicU64::new(0), most: AtomicU64::new(0) })
    }

    #[test]
    fn a_search_for_prio_sets_ends_though_each_page_looks_like_one() {
        let head = PrioSet { seq: 1, version: 0, next_bucket: BucketNr(9), entries: Vec::new() };
        let mut page = head.write(SetMagic::of_prio_set(7), PAGE);
        // Under no checksum of any size.
        page[0] ^= 1;
        let device = counted(page.repeat((SIZE / PAGE) as usize));
        assert_eq!(by_prios(&(Arc::clone(&device) as Device)), None);
        // Once to look for them, and what they may be in all.
        let read = device.read.load(Ordering::Relaxed);
        assert!(read > 2 * SIZE, "{read}: the limit was not reached");
        assert!(read <= 3 * SIZE, "{read}");
        assert!(device.most.load(Ordering::Relaxed) <= CHUNK);
    }

    #[test]
    fn a_search_for_journals_ends_though_each_bucket_has_another_sets_entry() {
        let mut bytes = vec![0; SIZE as usize];
        let key = Bkey::new(0, 0, 0);
        for page in 1..SIZE / PAGE {
            let magic = SetMagic::of_jset(page << 32 | 1);
            let jset = Jset {
                seq: 1,
                last_seq: 1,
                version: 1,
                uuid_bucket: key,
                btree_root: key,
                btree_level: 0,
                prio_bucket: [BucketNr(page); 8],
                keys: Vec::new(),
            };
            let entry = jset.write(magic, SECTOR_SIZE).unwrap();
            bytes[(page * PAGE) as usize..][..entry.len()].copy_from_slice(&entry);
        }
        let device = counted(bytes);
        assert_eq!(by_journal(&(Arc::clone(&device) as Device)), None);
        // Of each size of buckets the journal that there would be, once and for each set that is tried.
        let sizes = bucket_sizes(&(Arc::clone(&device) as Device), BUCKETS_LEFT).count() as u64;
        let journal = SIZE / 64;
        let read = device.read.load(Ordering::Relaxed);
        assert!(read <= sizes * (SETS_TRIED as u64 + 1) * journal, "{read}, {sizes} sizes");
        assert!(device.most.load(Ordering::Relaxed) <= CHUNK);
    }
}
