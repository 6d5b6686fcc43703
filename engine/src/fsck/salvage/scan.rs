//! The scan for btree nodes, prio sets and uuid tables.

use super::super::ranges::Ranges;
use super::super::view::Cache;
use super::super::view::extent_map::SeenMap;
use super::super::view::node::{SeenNode, place};
use super::super::view::overlay::merge_all;
use super::lives::Leaf;
use bcache_format::bset::{Bset, BsetHeader, VERSION};
use bcache_format::csum::crc64;
use bcache_format::node::parse;
use bcache_format::prio::{BucketDisk, PrioSet};
use bcache_format::uuid_entry::{ENTRY_BYTES, UuidEntry, parse_table};
use bcache_format::{Bkey, BucketNr, Pos, Ptr, SECTOR_SIZE, Structure};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Bytes looked at first of every bucket: enough for every magic number, and for some slots of a uuid table.
const HEAD: u64 = 512;
/// Buckets that the device is told of before they are read.
const READS_AHEAD: u64 = 32;

/// What a scan found.
#[derive(Default)]
pub struct Scanned {
    /// Leaves of all lives, with what they have of the ranges that are looked for.
    pub leaves: Vec<Leaf>,
    /// How many leaves there are in all.
    pub all_leaves: usize,
    /// Where the ranges of nodes are, by their bucket and the generation of the pointer to them, as interior nodes of
    /// all lives say. A node's range never changes.
    pub ranges: HashMap<(BucketNr, u8), (Pos, Pos)>,
    /// The newest whole chain of prio sets.
    pub prios: Chain,
    /// The newest uuid table; empty when there is none.
    pub uuids: Vec<UuidEntry>,
    /// The bucket that it is in.
    pub uuid_bucket: Option<BucketNr>,
    /// Buckets whose beginning cannot be read, and that have nothing else of a node: each may have been one, and newer than
    /// what was found.
    pub unread: Vec<BucketNr>,
    /// The device ends before others that may have been nodes.
    pub cut_off: bool,
    /// Nodes with something that is not sound, some of them: a flipped bit may be why.
    pub broken: Vec<BucketNr>,
}

/// Nodes that are not sound of which the bits are looked at.
const BROKEN_MAX: usize = 1 << 10;

/// A whole chain of prio sets; without entries when there is none.
#[derive(Default)]
pub struct Chain {
    /// Its sequence number.
    pub seq: u64,
    /// Its buckets.
    pub buckets: Vec<BucketNr>,
    /// What it says of all buckets.
    pub entries: Vec<BucketDisk>,
}

/// What a prio set says of its chain: its sequence number, and the next bucket.
type Link = (u64, BucketNr);

/// Scans all buckets, and keeps what leaves have of the ranges `lost`.
pub fn scan(cache: &Cache, lost: &Ranges, progress: &mut dyn FnMut(u64, u64)) -> Scanned {
    let mut scanned = Scanned::default();
    let mut prios: HashMap<BucketNr, Link> = HashMap::new();
    let mut newest_table = (0, 0);
    let geometry = cache.geometry;
    let first = geometry.first_bucket + cache.njournal_buckets();
    let head_bytes = HEAD.min(geometry.bucket_bytes());
    let node_bytes = geometry.btree_node_bytes();
    let announce = |bucket: u64| {
        if bucket < geometry.nbuckets {
            cache.device.will_read(geometry.bucket_start_byte(BucketNr(bucket)), node_bytes);
        }
    };
    (first..first.saturating_add(READS_AHEAD)).for_each(announce);
    // Behind the end of a device that was cut off there is nothing to look at, whatever its superblock says.
    let there = cache.device.size().div_ceil(geometry.bucket_bytes().max(1)).min(geometry.nbuckets);
    scanned.cut_off = cache.is_cut_off();
    for bucket in (first..there).map(BucketNr) {
        progress(bucket.0, there);
        announce(bucket.0.saturating_add(READS_AHEAD));
        let byte = geometry.bucket_start_byte(bucket);
        let Ok(head) = cache.read(Structure::BtreeNode, byte, head_bytes) else {
            if !node(cache, bucket, lost, &mut scanned) {
                scanned.unread.push(bucket);
            }
            continue;
        };
        let magic = head.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        if magic == Some(cache.magic.bset()) {
            if !node(cache, bucket, lost, &mut scanned) && scanned.broken.len() < BROKEN_MAX {
                scanned.broken.push(bucket);
            }
        } else if magic == Some(cache.magic.prio_set()) {
            prios.extend(prio_set(cache, bucket).map(|set| (bucket, (set.seq, set.next_bucket))));
        } else if let Some(table) = uuids(cache, bucket, &head) {
            let age = table_age(&table);
            if scanned.uuids.is_empty() || age > newest_table {
                (scanned.uuids, scanned.uuid_bucket, newest_table) = (table, Some(bucket), age);
            }
        } else if cache.device.next_data(byte) < byte.saturating_add(node_bytes) && may_be_node(cache, bucket)
        {
            // A node of which the first bset is gone.
            node(cache, bucket, lost, &mut scanned);
        }
    }
    scanned.prios = newest_chain(cache, &prios);
    scanned
}

/// Whether a bucket that does not begin as a node does has bsets of one, or cannot be read. Mostly it has data.
fn may_be_node(cache: &Cache, bucket: BucketNr) -> bool {
    let geometry = cache.geometry;
    let mut bytes = vec![0; usize::try_from(geometry.btree_node_bytes()).unwrap_or(0)];
    let read = cache.device.peek_at(geometry.bucket_start_byte(bucket), &mut bytes);
    read.is_err() || generation(cache, &bytes, geometry.bucket_start(bucket).0).is_some()
}

/// Notes the node in a bucket. Which generation its pointer has follows from a checksum. False when nothing of one is there.
fn node(cache: &Cache, bucket: BucketNr, lost: &Ranges, scanned: &mut Scanned) -> bool {
    let geometry = cache.geometry;
    let byte = geometry.bucket_start_byte(bucket);
    let Ok((bytes, fault)) = cache.read_around(Structure::BtreeNode, byte, geometry.btree_node_bytes())
    else {
        return false;
    };
    let sector = geometry.bucket_start(bucket).0;
    let Some(generation) = generation(cache, &bytes, sector) else { return false };
    let parsed = parse(&bytes, Ptr::new(0, sector, generation), cache.magic, geometry.block_bytes());
    let whole = parsed.is_ok() && fault.is_none();
    let (before, sets) = match parsed {
        Ok(node) => (node.sets.len(), node.sets),
        Err(broken) => {
            let before = broken.readable.sets.len();
            (before, broken.readable.sets.into_iter().chain(broken.behind).collect())
        }
    };
    if !whole && scanned.broken.len() < BROKEN_MAX {
        scanned.broken.push(bucket);
    }
    let first_is_there = before > 0;
    let sets: Vec<Vec<Bkey>> =
        sets.iter().map(|(_, set)| set.keys().map_while(Result::ok).collect()).collect();
    if sets.iter().all(Vec::is_empty) {
        return true;
    }
    if is_interior(cache, &sets) {
        // Behind a bset that is lost nobody knows which children it had added and freed.
        let sound = sets.get(..before).unwrap_or_default();
        children(cache, sound, &mut scanned.ranges);
        return true;
    }
    let sound = |key: &Bkey| key.size() > 0 && key.size() <= key.offset();
    let sets: Vec<Vec<Bkey>> =
        sets.into_iter().map(|set| in_order(set.into_iter().filter(sound).collect())).collect();
    scanned.all_leaves += 1;
    let mut first = sets.first().filter(|_| first_is_there).cloned().unwrap_or_default();
    let mut keys = merge_all(sets);
    let (Some(start), Some(end)) = (keys.first().map(Bkey::start_pos), keys.last().map(Bkey::pos)) else {
        return true;
    };
    let wanted = |key: &Bkey| lost.touch((key.start_pos(), key.pos()));
    first.retain(wanted);
    keys.retain(wanted);
    if !keys.is_empty() {
        first.shrink_to_fit();
        keys.shrink_to_fit();
        scanned.leaves.push(Leaf { bucket, generation, first, keys, hull: (start, end), whole });
    }
    true
}

/// The keys of a bset in their order, whatever order they were in.
fn in_order(keys: Vec<Bkey>) -> Vec<Bkey> {
    if keys.is_sorted_by(|a, b| a.pos() <= b.start_pos()) {
        return keys;
    }
    let mut map = SeenMap::default();
    keys.into_iter().for_each(|key| map.insert(key));
    map.into_keys()
}

/// Keys of interior nodes all point at whole nodes; only they have freeing markers, and the end of everything.
fn is_interior(cache: &Cache, sets: &[Vec<Bkey>]) -> bool {
    let node_sectors = cache.geometry.btree_node_bytes() / SECTOR_SIZE;
    let mut keys = sets.iter().flatten().filter(|key| key.size() > 0).peekable();
    if keys.clone().any(|key| key.pos() == Pos::ZERO || key.pos() == Pos::MAX) {
        return true;
    }
    let like = |key: &Bkey| {
        let at_start =
            key.ptr().is_some_and(|ptr| ptr.offset() % u64::from(cache.geometry.bucket_sectors) == 0);
        key.size() == node_sectors && !key.dirty() && at_start
    };
    // Clean data may happen to be in pieces of that size, but it does not begin like a node.
    keys.peek().is_some() && keys.clone().all(like) && keys.any(|key| is_node(cache, key))
}

/// Whether there is an interior node at a place.
pub(in super::super) fn is_interior_node(cache: &Cache, at: &SeenNode) -> bool {
    let Ok(ptr) = place(cache, at) else { return false };
    let byte = ptr.offset().saturating_mul(SECTOR_SIZE);
    let len = at.key.size().saturating_mul(SECTOR_SIZE);
    let Ok((bytes, _)) = cache.read_around(Structure::BtreeNode, byte, len) else { return false };
    let Ok(node) = parse(&bytes, ptr, cache.magic, cache.geometry.block_bytes()) else { return false };
    let keys = |set: &Bset<'_>| set.keys().map_while(Result::ok).collect();
    let sets: Vec<Vec<Bkey>> = node.sets.iter().map(|(_, set)| keys(set)).collect();
    is_interior(cache, &sets)
}

/// Whether a key points at the beginning of a node.
fn is_node(cache: &Cache, key: &Bkey) -> bool {
    let Some(ptr) = key.ptr().filter(|ptr| ptr.is_device()) else { return false };
    let byte = ptr.offset().saturating_mul(SECTOR_SIZE);
    let bytes = cache.read(Structure::BtreeNode, byte, cache.geometry.btree_node_bytes());
    bytes.is_ok_and(|bytes| Bset::parse(&bytes, ptr, cache.magic).is_ok())
}

/// Notes the ranges of an interior node's children: each was known when its bset was written.
fn children(cache: &Cache, sets: &[Vec<Bkey>], ranges: &mut HashMap<(BucketNr, u8), (Pos, Pos)>) {
    let mut live: BTreeMap<Pos, Bkey> = BTreeMap::new();
    let place = |key: &Bkey| {
        let ptr = key.ptr().filter(|ptr| ptr.is_device())?;
        Some((cache.geometry.ptr_bucket(ptr), ptr.generation()))
    };
    for set in sets {
        let (freed, added): (Vec<_>, Vec<_>) = set.iter().partition(|key| key.pos() == Pos::ZERO);
        let freed: Vec<BucketNr> = freed.into_iter().filter_map(place).map(|(bucket, _)| bucket).collect();
        live.retain(|_, key| place(key).is_some_and(|(bucket, _)| !freed.contains(&bucket)));
        live.extend(added.iter().map(|key| (key.pos(), **key)));
        for key in added {
            let lower = live.range(..key.pos()).next_back().map(|(pos, _)| *pos);
            if let (Some(place), Some(lower)) = (place(key), lower) {
                ranges.insert(place, (lower, key.pos()));
            }
        }
    }
}

/// The generation of the pointer with which a node was written; nothing when no generation gives the checksum of any
/// of its bsets.
fn generation(cache: &Cache, bytes: &[u8], sector: u64) -> Option<u8> {
    let block = usize::try_from(cache.geometry.block_bytes()).ok()?;
    let sets = (0..bytes.len()).step_by(block.max(1)).filter_map(|at| bytes.get(at..));
    let ours =
        |set: &&[u8]| BsetHeader::read(set).is_some_and(|header| header.magic.get() == cache.magic.bset());
    sets.filter(ours).find_map(|set| generation_of_set(set, sector))
}

/// The same for one bset.
///
/// A checksum is linear in its initial value, so eight of them, one a bit of the generation, tell all 256. That of the
/// version before, which nobody has written for longer than there were tools for it, says nothing of its pointer: a copy
/// of it would pass in any bucket.
fn generation_of_set(bytes: &[u8], sector: u64) -> Option<u8> {
    let header = BsetHeader::read(bytes)?;
    let covered = bytes.get(8..usize::try_from(header.bytes()).ok()?)?;
    if header.version.get() != VERSION {
        return None;
    }
    let csum = |generation: u8| crc64(Ptr::new(0, sector, generation).0, covered);
    let base = csum(0);
    let bits: Vec<u64> = (0..8).map(|bit| csum(1 << bit) ^ base).collect();
    (0..=u8::MAX).find(|generation| {
        let set = bits.iter().enumerate().filter(|(bit, _)| generation >> bit & 1 == 1);
        set.fold(base, |sum, (_, part)| sum ^ part) == header.csum.get()
    })
}

/// The prio set in a bucket.
fn prio_set(cache: &Cache, bucket: BucketNr) -> Option<PrioSet> {
    let byte = cache.geometry.bucket_start_byte(bucket);
    let bytes = cache.read(Structure::PrioSet, byte, cache.geometry.meta_bucket_bytes()).ok()?;
    PrioSet::parse(&bytes, cache.magic).ok()
}

/// Sets that are tried as the first of a chain: an image made to be slow has none that is whole.
const STARTS_MAX: usize = 4096;

/// The newest chain that is whole.
fn newest_chain(cache: &Cache, sets: &HashMap<BucketNr, Link>) -> Chain {
    let want = usize::try_from(cache.geometry.nbuckets).unwrap_or(usize::MAX);
    let per_set = usize::try_from(cache.geometry.prios_per_bucket()).unwrap_or(usize::MAX);
    let count = want.div_ceil(per_set.max(1));
    let mut starts: Vec<_> = sets.iter().map(|(bucket, (seq, _))| (*seq, *bucket)).collect();
    starts.sort_unstable_by(|a, b| b.cmp(a));
    let named: HashSet<_> = sets.values().collect();
    let whole = |(seq, start): (u64, BucketNr)| {
        let mut buckets = vec![start];
        while buckets.len() < count {
            let (_, next) = buckets.last().and_then(|last| sets.get(last))?;
            sets.get(next).filter(|(of, _)| *of == seq)?;
            buckets.push(*next);
        }
        let mut entries = Vec::new();
        for bucket in &buckets {
            let set = prio_set(cache, *bucket)?;
            entries.extend(set.entries.iter().take(per_set.min(want - entries.len())));
        }
        Some(Chain { seq, buckets, entries })
    };
    // The first of a chain is named by none of its own.
    let first = |start: &(u64, BucketNr)| count == 1 || !named.contains(start);
    starts.into_iter().filter(first).take(STARTS_MAX).find_map(whole).unwrap_or_default()
}

/// What looks like a uuid table: a used slot with a sensible time, and all slots either used or empty.
fn uuids(cache: &Cache, bucket: BucketNr, head: &[u8]) -> Option<Vec<UuidEntry>> {
    let looks_like_one = |bytes: &[u8]| {
        let table = parse_table(bytes, bcache_format::jset::VERSION, bytes.len() / ENTRY_BYTES).ok()?;
        let sensible = |entry: &UuidEntry| {
            entry.is_free()
                || (entry.flags <= 1
                    && entry.first_reg <= entry.last_reg
                    && entry.pad.iter().all(|b| *b == 0))
        };
        let named = |entry: &UuidEntry| entry.is_detached() || entry.uuid.get_version_num() == 4;
        let used = |table: &[UuidEntry]| table.iter().find(|entry| !entry.is_free()).is_some_and(named);
        (table.iter().all(sensible) && used(&table)).then_some(table)
    };
    looks_like_one(head)?;
    let byte = cache.geometry.bucket_start_byte(bucket);
    let bytes = cache.read(Structure::UuidTable, byte, cache.geometry.meta_bucket_bytes()).ok()?;
    let mut table = looks_like_one(&bytes)?;
    table.truncate(cache.geometry.nr_uuids());
    Some(table)
}

/// How old a table is: the newest time in it, then how many slots it has. Slots are only ever added.
fn table_age(table: &[UuidEntry]) -> (u32, usize) {
    let times = table.iter().map(|entry| entry.first_reg.max(entry.last_reg).max(entry.invalidated));
    (times.max().unwrap_or(0), table.iter().filter(|entry| !entry.is_free()).count())
}
