//! What a start reads of the metadata, and what it learns of buckets from it.

use super::super::{CacheDev, CacheSet};
use crate::alloc::BucketPin;
use crate::btree::{Extent, ExtentMap, Node, NodeRef, children_of};
use crate::dev::Buf;
use crate::error::Result;
use bcache_format::prio::{INITIAL_PRIO, PrioSet};
use bcache_format::uuid_entry::{UuidEntry, parse_table};
use bcache_format::{Bkey, BucketNr, Pos, Seq};
use std::collections::BTreeSet;

/// Stale dirty extents that are kept to be looked at again. Of what is wrong one is enough, and more than these are not legal
/// in any number that would matter.
const STALE_DIRTY_MAX: usize = 1 << 16;

impl CacheSet {
    /// The chain of prio sets: counted, because its end points into the chain before.
    pub(super) async fn read_prios(&self, head: BucketNr) -> Result<()> {
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

    pub(super) async fn read_root(&self, key: &Bkey, level: u16) -> Result<()> {
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
    pub(super) async fn walk_tree(&self) -> Result<()> {
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

    fn mark_leaf(&self, leaf: &Node) {
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

    pub(super) fn note_dirty_end(&self, extent: &Extent) {
        let mut ends = self.dirty_ends.borrow_mut();
        let end = ends.entry(extent.inode()).or_default();
        *end = extent.end().max(*end);
    }

    /// Refuses a set of which a bucket's generation is ahead of dirty data in it, though nothing else is there that it could
    /// have been given to. A leaf says that data is clean, durably, before its bucket is given up, so that generation is
    /// wrong. (Of what only the journal says dirty this is no sign: that data was written back is not journaled.)
    pub(super) async fn refuse_stale_dirty(&self, replay: &[(Seq, Vec<Bkey>)]) -> Result<()> {
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
    pub(super) fn replayed(&self, key: &Bkey) -> Result<Option<Extent>> {
        if key.size() == 0 {
            return Ok(None);
        }
        match Extent::from_key(key) {
            Some(extent) if self.cache.geometry.ptr_problem(key).is_none() => Ok(Some(extent)),
            _ => Err(self.cache.untrusted(format!("journal key {key} is impossible"))),
        }
    }

    /// What the journal names is in use until it is replayed: the pins. Generations from its pointers.
    pub(super) fn mark_journal(&self, replay: &[(Seq, Vec<Bkey>)]) -> Result<Vec<BucketPin<'_>>> {
        let mut pins = Vec::new();
        for key in replay.iter().flat_map(|(_, keys)| keys) {
            let Some(extent) = self.replayed(key)?.filter(|extent| !extent.is_hole()) else { continue };
            self.alloc.buckets.borrow_mut().raise(extent.ptr());
            pins.push(self.alloc.pin(self.cache.geometry.ptr_bucket(extent.ptr())));
        }
        Ok(pins)
    }

    pub(super) fn mark_journal_data(&self, replay: &[(Seq, Vec<Bkey>)]) -> Result<()> {
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
    pub(super) fn mark_reserved(&self, journal_buckets: u16) {
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
    pub(super) fn hand_out_unused(&self) {
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
}

pub(super) async fn read_uuids(cache: &CacheDev, key: &Bkey, version: u32) -> Result<Vec<UuidEntry>> {
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
