//! A set's metadata written anew: btree, uuid table, prio sets, in buckets that nothing uses.
//!
//! Until a journal entry names it, none of this is seen by anybody, so a crash while it is written changes nothing.

use super::super::view::Cache;
use super::plan::Write;
use bcache_format::prio::{BTREE_PRIO, BucketDisk, INITIAL_PRIO, PrioSet};
use bcache_format::uuid_entry::{UuidEntry, write_table};
use bcache_format::{Bkey, BucketNr, Pos, Ptr, SECTOR_SIZE, bset};
use std::sync::Arc;

/// What writes of prio sets are called.
pub(super) const PRIO_SET: &str = "prio set";

/// What is written of a set.
pub struct Content<'c> {
    /// Extents in order, without overlaps, all with data.
    pub keys: &'c mut dyn Iterator<Item = Bkey>,
    /// The uuid table.
    pub uuids: &'c [UuidEntry],
    /// Priority and generation of every bucket, bucket 0 first. Those of buckets taken here are changed.
    pub buckets: Vec<BucketDisk>,
    /// Sequence number of the prio sets.
    pub prio_seq: u64,
}

/// The new metadata: what a journal entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// The root's key, and its level.
    pub root: (Bkey, u16),
    /// The uuid table's key.
    pub uuids: Bkey,
    /// The first prio bucket.
    pub prio_bucket: BucketNr,
}

/// Where new metadata comes from and goes to.
pub struct Sink<'s> {
    /// Free buckets.
    pub free: &'s mut dyn FnMut() -> Option<BucketNr>,
    /// Names of nodes' lives: one that a bucket's old content has would make that content part of the node.
    pub random: &'s mut dyn FnMut() -> u64,
    /// Takes the writes. Until all others are durable those of prio sets must wait: only with them do new nodes count
    /// where a search has to find them.
    pub write: &'s mut dyn FnMut(Write),
}

/// Builds new metadata. Nothing when the free buckets do not suffice.
pub fn rebuild(cache: &Cache, content: Content<'_>, sink: Sink<'_>) -> Option<Rebuilt> {
    let mut builder = Builder { cache, sink, buckets: content.buckets };
    let root = builder.tree(content.keys)?;
    let uuids = builder.uuids(content.uuids)?;
    let prio_bucket = builder.prios(content.prio_seq)?;
    Some(Rebuilt { root, uuids, prio_bucket })
}

/// Prio sets alone, with these priorities and generations; tells the first one's bucket.
pub(super) fn prios(cache: &Cache, buckets: Vec<BucketDisk>, seq: u64, sink: Sink<'_>) -> Option<BucketNr> {
    Builder { cache, sink, buckets }.prios(seq)
}

struct Builder<'b, 's> {
    cache: &'b Cache,
    sink: Sink<'s>,
    buckets: Vec<BucketDisk>,
}

impl Builder<'_, '_> {
    /// Takes a bucket for metadata: its generation goes up, so that no old pointer to it is valid.
    fn take(&mut self, prio: u16) -> Option<(BucketNr, Ptr)> {
        let bucket = (self.sink.free)()?;
        let entry = self.buckets.get_mut(usize::try_from(bucket.0).ok()?)?;
        entry.generation = entry.generation.wrapping_add(1);
        entry.prio = prio.into();
        let generation = entry.generation;
        Some((bucket, Ptr::new(0, self.cache.geometry.bucket_start(bucket).0, generation)))
    }
    fn write(&mut self, bucket: BucketNr, bytes: Vec<u8>, what: String) {
        let byte = self.cache.geometry.bucket_start_byte(bucket);
        (self.sink.write)(Write { device: Arc::clone(&self.cache.name), byte, bytes: bytes.into(), what });
    }

    /// Levels from the leaves up, until one node holds all.
    fn tree(&mut self, keys: &mut dyn Iterator<Item = Bkey>) -> Option<(Bkey, u16)> {
        let mut level = 0;
        let mut nodes = self.level(keys, level)?;
        while nodes.len() > 1 {
            level += 1;
            nodes = self.level(&mut nodes.into_iter(), level)?;
        }
        Some((nodes.first().copied()?, level))
    }

    /// The nodes of one level. The last one's range is open to the end.
    fn level(&mut self, keys: &mut dyn Iterator<Item = Bkey>, level: u16) -> Option<Vec<Bkey>> {
        let node_bytes = self.cache.geometry.btree_node_bytes();
        // Three quarters full: the next insert should find room for its own bset.
        let room = (node_bytes * 3 / 4).saturating_sub(bset::HEADER_BYTES as u64) / 8;
        let mut nodes = Vec::new();
        let mut keys = keys.peekable();
        loop {
            let (mut now, mut words) = (Vec::new(), 0);
            while let Some(key) = keys.next_if(|key| words + key.u64s() as u64 <= room) {
                words += key.u64s() as u64;
                now.push(key);
            }
            let last = keys.peek().is_none();
            let (bucket, ptr) = self.take(BTREE_PRIO)?;
            let seq = (self.sink.random)().max(1);
            let mut bytes = bset::write(&now, seq, bset::VERSION, ptr, self.cache.magic).ok()?;
            pad(&mut bytes, self.cache.geometry.block_bytes());
            let upper = if last { Pos::MAX } else { now.last()?.pos() };
            self.write(
                bucket,
                bytes,
                format!("btree node, level {level}, up to {upper}, {} keys", now.len()),
            );
            let mut node = Bkey::new(upper.inode, upper.offset, node_bytes / SECTOR_SIZE);
            node.set_ptrs(&[ptr]);
            nodes.push(node);
            if last {
                return Some(nodes);
            }
        }
    }

    fn uuids(&mut self, entries: &[UuidEntry]) -> Option<Bkey> {
        let (bucket, ptr) = self.take(BTREE_PRIO)?;
        let bytes = self.cache.geometry.meta_bucket_bytes();
        self.write(bucket, write_table(entries, bytes), format!("uuid table, {} slots", entries.len()));
        let mut key = Bkey::new(0, 0, bytes / SECTOR_SIZE);
        key.set_ptrs(&[ptr]);
        Some(key)
    }

    fn prios(&mut self, seq: u64) -> Option<BucketNr> {
        let geometry = self.cache.geometry;
        let count = usize::try_from(geometry.prio_buckets()).ok()?;
        // All are taken first: the sets say what generation their own buckets have.
        let taken: Option<Vec<_>> = (0..count).map(|_| Some(self.take(INITIAL_PRIO)?.0)).collect();
        let taken = taken?;
        let entries = std::mem::take(&mut self.buckets);
        let per_set = usize::try_from(geometry.prios_per_bucket()).ok()?;
        for (i, (bucket, part)) in taken.iter().zip(entries.chunks(per_set)).enumerate() {
            // The last one's successor is never followed.
            let next_bucket = taken.get(i + 1).or(taken.first()).copied()?;
            let set = PrioSet { seq, version: 0, next_bucket, entries: part.to_vec() };
            let bytes = set.write(self.cache.magic, geometry.meta_bucket_bytes());
            self.write(*bucket, bytes, format!("{PRIO_SET} {} of {count}", i + 1));
        }
        taken.first().copied()
    }
}

fn pad(bytes: &mut Vec<u8>, block: u64) {
    let block = usize::try_from(block).unwrap_or(512).max(1);
    bytes.resize(bytes.len().next_multiple_of(block), 0);
}
