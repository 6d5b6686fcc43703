//! What must hold of a set at any moment when nothing is under way: for tests, and for whoever doubts.

use super::CacheSet;
use crate::alloc::Mark;
use crate::btree::{Body, NodeRef, children_of};
use crate::error::Result;
use bcache_format::{BucketNr, Pos};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

impl CacheSet {
    /// Walks the whole tree and all accounts. Answers what is wrong, in words; nothing when all is well.
    ///
    /// # Errors
    /// A node that cannot be read.
    pub async fn audit(self: &Rc<Self>) -> Result<Vec<String>> {
        let _structure = self.tree.structure.lock().await;
        // In hand until all are in memory: what is judged must be of one moment.
        let mut held = Vec::new();
        loop {
            match self.audit_resident() {
                Ok(wrong) => return Ok(wrong),
                Err(missing) => {
                    for wanted in missing {
                        held.push(self.node(wanted).await?);
                    }
                }
            }
        }
    }

    /// The same of a tree that is in memory; the nodes that are not.
    fn audit_resident(&self) -> std::result::Result<Vec<String>, Vec<NodeRef>> {
        let mut missing = Vec::new();
        let mut wrong = Vec::new();
        let mut metadata: BTreeSet<BucketNr> =
            self.journal.bucket_numbers().into_iter().map(BucketNr).collect();
        let mut claim = |nr: BucketNr, what: &str, wrong: &mut Vec<String>| {
            if !metadata.insert(nr) {
                wrong.push(format!("bucket {nr} is used twice, now as {what}"));
            }
        };
        for nr in &self.alloc.prio.borrow().buckets {
            claim(*nr, "prio set", &mut wrong);
        }
        if let Some(ptr) = self.uuids.borrow().key.ptr() {
            claim(self.cache.geometry.ptr_bucket(ptr), "uuid table", &mut wrong);
        }
        let mut dirty: BTreeMap<u32, i64> = BTreeMap::new();
        let mut data: BTreeMap<BucketNr, bool> = BTreeMap::new();
        let root = self.tree.root();
        let mut todo = vec![(NodeRef { ptr: root.ptr, level: root.level, max: Pos::MAX }, Pos::ZERO)];
        drop(root);
        while let Some((wanted, min)) = todo.pop() {
            let Some(node) = self.tree.get(self.cache.geometry.ptr_bucket(wanted.ptr)) else {
                missing.push(wanted);
                continue;
            };
            claim(node.bucket, "btree node", &mut wrong);
            let mut from = min;
            for child in children_of(&node) {
                if child.max <= from {
                    wrong.push(format!(
                        "child {} of {} ends at {}, before it begins",
                        child.ptr, node.ptr, child.max
                    ));
                }
                todo.push((NodeRef { ptr: child.ptr, level: wanted.level - 1, max: child.max }, from));
                from = child.max;
            }
            let state = node.state();
            let Body::Leaf { map, pending, .. } = &state.body else {
                if from != node.max {
                    wrong.push(format!("node {} ends at {}, its last child at {from}", node.ptr, node.max));
                }
                continue;
            };
            if pending.is_empty() != (state.write.since == 0)
                || (pending.is_empty() && state.write.pin.is_some())
            {
                wrong.push(format!(
                    "leaf {} has {} keys to write since {}, pinned: {}",
                    node.ptr,
                    pending.len(),
                    state.write.since,
                    state.write.pin.is_some()
                ));
            }
            for extent in map.iter() {
                if extent.start_pos() < from || extent.pos() > node.max {
                    wrong
                        .push(format!("{extent:?} overlaps others or leaves its node {}..{}", min, node.max));
                }
                from = extent.pos();
                if self.counts_as_dirty(extent) {
                    *dirty.entry(extent.inode()).or_default() += extent.size().0 as i64;
                }
                let buckets = self.alloc.buckets.borrow();
                if buckets.staleness(extent.ptr()) == 0 {
                    *data.entry(self.cache.geometry.ptr_bucket(extent.ptr())).or_default() |= extent.dirty();
                } else if extent.dirty() {
                    wrong.push(format!("{extent:?} is stale and dirty"));
                }
            }
        }
        if !missing.is_empty() {
            return Err(missing);
        }
        self.audit_buckets(&metadata, &data, &mut wrong);
        for (inode, sectors) in self.dirty_inodes() {
            if dirty.remove(&inode) != Some(sectors as i64) {
                wrong
                    .push(format!("inode {inode}: {sectors} dirty sectors are counted, the tree has others"));
            }
        }
        for (inode, sectors) in dirty {
            wrong.push(format!("inode {inode}: {sectors} dirty sectors are not counted"));
        }
        Ok(wrong)
    }

    fn audit_buckets(
        &self,
        metadata: &BTreeSet<BucketNr>,
        data: &BTreeMap<BucketNr, bool>,
        wrong: &mut Vec<String>,
    ) {
        let free: BTreeSet<BucketNr> = self.alloc.free_buckets().into_iter().collect();
        let buckets = self.alloc.buckets.borrow();
        for nr in metadata {
            if buckets.marks_valid && buckets.get(*nr).mark != Mark::Metadata {
                wrong.push(format!("bucket {nr} holds metadata but is marked {:?}", buckets.get(*nr).mark));
            }
        }
        for (nr, dirty) in data {
            if metadata.contains(nr) || free.contains(nr) {
                wrong.push(format!("bucket {nr} holds data and is metadata or free"));
            }
            let mark = buckets.get(*nr).mark;
            let right =
                if *dirty { mark == Mark::Dirty } else { matches!(mark, Mark::Dirty | Mark::Reclaimable) };
            if buckets.marks_valid && !right {
                wrong.push(format!("bucket {nr} holds data (dirty: {dirty}) but is marked {mark:?}"));
            }
        }
        if let Some(nr) = metadata.iter().find(|nr| free.contains(nr)) {
            wrong.push(format!("bucket {nr} holds metadata and is free"));
        }
    }
}
