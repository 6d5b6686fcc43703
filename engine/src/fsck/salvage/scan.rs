//! The scan for btree nodes, prio sets and uuid tables.

use super::super::view::Cache;
use super::super::view::node::{NodeRef, NodeView};
use super::lives::Leaf;
use bcache_format::bset::{BsetHeader, HEADER_BYTES, VERSION};
use bcache_format::csum::crc64;
use bcache_format::prio::PrioSet;
use bcache_format::uuid_entry::{ENTRY_BYTES, parse_table};
use bcache_format::{Bkey, BucketNr, Pos, Ptr, SECTOR_SIZE, Structure};
use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

/// Bytes looked at of every bucket.
const HEAD: u64 = 4096;

/// What a scan found.
#[derive(Default)]
pub struct Scanned {
    /// Leaves of all lives.
    pub leaves: Vec<Leaf>,
    /// Generations of the newest whole chain of prio sets; empty when there is none.
    pub gens: Vec<u8>,
    /// Slots of UUIDs, from what looks like a uuid table.
    pub uuids: BTreeMap<Uuid, u32>,
}

/// Scans all buckets.
pub fn scan(cache: &Cache, progress: &mut dyn FnMut(u64, u64)) -> Scanned {
    let mut scanned = Scanned::default();
    let mut prios: HashMap<BucketNr, PrioSet> = HashMap::new();
    let geometry = cache.geometry;
    let first = geometry.first_bucket + cache.njournal_buckets();
    for bucket in (first..geometry.nbuckets).map(BucketNr) {
        progress(bucket.0, geometry.nbuckets);
        let byte = geometry.bucket_start_byte(bucket);
        let Ok(head) = cache.read(Structure::BtreeNode, byte, HEAD.min(geometry.bucket_bytes())) else {
            continue;
        };
        let magic = head.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        if magic == Some(cache.magic.bset()) {
            scanned.leaves.extend(leaf(cache, bucket));
        } else if magic == Some(cache.magic.prio_set()) {
            let bytes = cache.read(Structure::PrioSet, byte, geometry.meta_bucket_bytes());
            let set = bytes.ok().and_then(|bytes| PrioSet::parse(&bytes, cache.magic).ok());
            prios.extend(set.map(|set| (bucket, set)));
        } else {
            uuids(&head, &mut scanned.uuids);
        }
    }
    scanned.gens = newest_chain(cache, &prios);
    scanned
}

/// The node in a bucket, if it is a leaf. Which generation its pointer has follows from the checksum.
fn leaf(cache: &Cache, bucket: BucketNr) -> Option<Leaf> {
    let geometry = cache.geometry;
    let byte = geometry.bucket_start_byte(bucket);
    let bytes = cache.read(Structure::BtreeNode, byte, geometry.btree_node_bytes()).ok()?;
    let generation = generation(&bytes, geometry.bucket_start(bucket).0)?;
    let ptr = Ptr::new(0, geometry.bucket_start(bucket).0, generation);
    let mut key = Bkey::new(Pos::MAX.inode, Pos::MAX.offset, geometry.btree_node_bytes() / SECTOR_SIZE);
    key.set_ptrs(&[ptr]);
    let view = NodeView::read(cache, NodeRef { key, level: 0, lower: Pos::ZERO, named_at: byte }).ok()?;
    let node_sectors = geometry.btree_node_bytes() / SECTOR_SIZE;
    let interior = |key: &Bkey| {
        let at_start = key.ptr().is_some_and(|ptr| ptr.offset() % u64::from(geometry.bucket_sectors) == 0);
        key.size() == node_sectors && !key.dirty() && at_start
    };
    // Keys of interior nodes all point at whole nodes, and the end of everything is among them.
    if view.keys.is_empty() || view.keys.iter().all(interior) {
        return None;
    }
    let first = first_set(&bytes);
    Some(Leaf { bucket, generation, first, keys: view.keys, whole: view.whole })
}

/// The extents of a node's first bset.
fn first_set(bytes: &[u8]) -> Vec<Bkey> {
    let size = BsetHeader::read(bytes).map_or(0, |header| header.bytes());
    let keys = usize::try_from(size).ok().and_then(|size| bytes.get(HEADER_BYTES..size)).unwrap_or_default();
    let keys =
        bcache_format::bset::Keys::new(keys, HEADER_BYTES as u64, Structure::Bset).map_while(Result::ok);
    keys.filter(|key| key.size() > 0 && key.size() <= key.offset()).collect()
}

/// The generation of the pointer with which a node's first bset was written; nothing when no generation gives its
/// checksum.
///
/// A checksum is linear in its initial value, so eight of them, one a bit of the generation, tell all 256.
fn generation(bytes: &[u8], sector: u64) -> Option<u8> {
    let header = BsetHeader::read(bytes)?;
    let covered = bytes.get(8..usize::try_from(header.bytes()).ok()?)?;
    if header.version.get() != VERSION {
        return Some(0);
    }
    let csum = |generation: u8| crc64(Ptr::new(0, sector, generation).0, covered);
    let base = csum(0);
    let bits: Vec<u64> = (0..8).map(|bit| csum(1 << bit) ^ base).collect();
    (0..=u8::MAX).find(|generation| {
        let set = bits.iter().enumerate().filter(|(bit, _)| generation >> bit & 1 == 1);
        set.fold(base, |sum, (_, part)| sum ^ part) == header.csum.get()
    })
}

/// The generations of the newest chain that is whole.
fn newest_chain(cache: &Cache, sets: &HashMap<BucketNr, PrioSet>) -> Vec<u8> {
    let want = usize::try_from(cache.geometry.nbuckets).unwrap_or(usize::MAX);
    let per_set = usize::try_from(cache.geometry.prios_per_bucket()).unwrap_or(usize::MAX);
    let count = want.div_ceil(per_set.max(1));
    let mut starts: Vec<_> = sets.iter().map(|(bucket, set)| (set.seq, *bucket)).collect();
    starts.sort_unstable_by(|a, b| b.cmp(a));
    let named: Vec<_> = sets.values().map(|set| (set.seq, set.next_bucket)).collect();
    starts
        .into_iter()
        // The first of a chain is named by none of its own.
        .filter(|(seq, bucket)| count == 1 || !named.contains(&(*seq, *bucket)))
        .find_map(|(seq, start)| {
            let mut gens = Vec::new();
            let mut bucket = start;
            for _ in 0..count {
                let set = sets.get(&bucket).filter(|set| set.seq == seq)?;
                let take = per_set.min(want - gens.len());
                gens.extend(set.entries.iter().take(take).map(|entry| entry.generation));
                bucket = set.next_bucket;
            }
            Some(gens)
        })
        .unwrap_or_default()
}

/// Entries of what looks like a uuid table: a used slot with a sensible time, and all slots of the block either used
/// or empty.
fn uuids(head: &[u8], found: &mut BTreeMap<Uuid, u32>) {
    let Ok(table) = parse_table(head, bcache_format::jset::VERSION, head.len() / ENTRY_BYTES) else { return };
    let sensible = |entry: &bcache_format::uuid_entry::UuidEntry| {
        entry.is_free()
            || (entry.flags <= 1 && entry.first_reg <= entry.last_reg && entry.pad.iter().all(|b| *b == 0))
    };
    let random = |uuid: &Uuid| uuid.get_version_num() == 4;
    if !table.iter().all(sensible)
        || !table.first().is_some_and(|entry| entry.is_detached() || random(&entry.uuid))
    {
        return;
    }
    let named = (0u32..).zip(&table).filter(|(_, entry)| !entry.is_free() && !entry.is_detached());
    found.extend(named.map(|(slot, entry)| (entry.uuid, slot)));
}
