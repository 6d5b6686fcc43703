//! What must hold of a set at any moment when nothing is under way: for tests, and for whoever doubts.

use super::CacheSet;
use crate::alloc::Mark;
use crate::btree::{Body, Node, NodeRef, children_of};
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
        let mut seen = Seen::default();
        let mut missing = Vec::new();
        self.claim_metadata(&mut seen);
        let root = self.tree.root();
        let mut todo = vec![(NodeRef { ptr: root.ptr, level: root.level, max: Pos::MAX }, Pos::ZERO)];
        drop(root);
        while let Some((wanted, min)) = todo.pop() {
            let Some(node) = self.tree.get(self.cache.geometry.ptr_bucket(wanted.ptr)) else {
                missing.push(wanted);
                continue;
            };
            seen.claim(node.bucket, "btree node");
            let leaf = matches!(node.state().body, Body::Leaf { .. });
            if leaf {
                self.audit_leaf(&node, min, &mut seen);
            } else {
                audit_interior(&node, min, &mut todo, &mut seen.wrong);
            }
        }
        if !missing.is_empty() {
            return Err(missing);
        }
        self.audit_buckets(&seen.metadata, &seen.data, &mut seen.wrong);
        self.audit_dirty(seen.dirty, &mut seen.wrong);
        Ok(seen.wrong)
    }

    /// Buckets of metadata other than nodes: nothing else is in them.
    fn claim_metadata(&self, seen: &mut Seen) {
        seen.metadata = self.journal.bucket_numbers().into_iter().map(BucketNr).collect();
        for nr in &self.alloc.prio.borrow().buckets {
            seen.claim(*nr, "prio set");
        }
        if let Some(ptr) = self.uuids.borrow().key.ptr() {
            seen.claim(self.cache.geometry.ptr_bucket(ptr), "uuid table");
        }
    }

    /// A leaf's extents lie in it, in order, and it is dirty when it has keys to write.
    fn audit_leaf(&self, node: &Node, min: Pos, seen: &mut Seen) {
        let state = node.state();
        let Body::Leaf { map, pending, .. } = &state.body else { return };
        if pending.is_empty() != (state.write.since == 0) || (pending.is_empty() && state.write.pin.is_some())
        {
            seen.wrong.push(format!(
                "leaf {} has {} keys to write since {}, pinned: {}",
                node.ptr,
                pending.len(),
                state.write.since,
                state.write.pin.is_some()
            ));
        }
        let mut from = min;
        for extent in map.iter() {
            if extent.start_pos() < from || extent.pos() > node.max {
                seen.wrong
                    .push(format!("{extent:?} overlaps others or leaves its node {}..{}", min, node.max));
            }
            from = extent.pos();
            if self.counts_as_dirty(extent) {
                *seen.dirty.entry(extent.inode()).or_default() += extent.size().0 as i64;
            }
            let buckets = self.alloc.buckets.borrow();
            if buckets.staleness(extent.ptr()) == 0 {
                let bucket = self.cache.geometry.ptr_bucket(extent.ptr());
                *seen.data.entry(bucket).or_default() |= extent.dirty();
            } else if extent.dirty() {
                seen.wrong.push(format!("{extent:?} is stale and dirty"));
            }
        }
    }

    /// What is counted as dirty is what the tree has.
    fn audit_dirty(&self, mut dirty: BTreeMap<u32, i64>, wrong: &mut Vec<String>) {
        for (inode, sectors) in self.dirty_inodes() {
            if dirty.remove(&inode) != Some(sectors as i64) {
                wrong
                    .push(format!("inode {inode}: {sectors} dirty sectors are counted, the tree has others"));
            }
        }
        for (inode, sectors) in dirty {
            wrong.push(format!("inode {inode}: {sectors} dirty sectors are not counted"));
        }
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

/// What a walk over the tree saw.
#[derive(Default)]
struct Seen {
    metadata: BTreeSet<BucketNr>,
    /// Buckets with data, and whether any of it is dirty.
    data: BTreeMap<BucketNr, bool>,
    /// Dirty sectors of each inode.
    dirty: BTreeMap<u32, i64>,
    wrong: Vec<String>,
}

impl Seen {
    fn claim(&mut self, nr: BucketNr, what: &str) {
        if !self.metadata.insert(nr) {
            self.wrong.push(format!("bucket {nr} is used twice, now as {what}"));
        }
    }
}

/// The children of a node share its range, in order and without gaps.
fn audit_interior(node: &Node, min: Pos, todo: &mut Vec<(NodeRef, Pos)>, wrong: &mut Vec<String>) {
    let mut from = min;
    for child in children_of(node) {
        if child.max <= from {
            wrong
                .push(format!("child {} of {} ends at {}, before it begins", child.ptr, node.ptr, child.max));
        }
        todo.push((NodeRef { ptr: child.ptr, level: node.level - 1, max: child.max }, from));
        from = child.max;
    }
    if from != node.max {
        wrong.push(format!("node {} ends at {}, its last child at {from}", node.ptr, node.max));
    }
}
