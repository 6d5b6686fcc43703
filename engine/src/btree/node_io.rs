//! Reading and writing nodes.

use super::extent::Extent;
use super::extent_map::ExtentMap;
use super::merge::{Merge, Sets};
use super::node::NodeRef;
use super::node::{Body, Child, Node, PendingWrite};
use crate::dev::Buf;
use crate::error::{Error, Result};
use crate::set::{CacheSet, Device};
use bcache_format::bset::{self, Bset};
use bcache_format::node as format;
use bcache_format::{BucketNr, Pos, Ptr};
use std::collections::HashMap;
use std::rc::Rc;

/// Times that a leaf's keys wait for flushes of backing devices before no more keys may come.
const FLUSHES_BELOW: u32 = 2;

impl CacheSet {
    /// The node, from memory or from the device. Others that want it meanwhile wait for this read, and see the node
    /// only when it has passed all checks.
    pub(crate) async fn node(&self, wanted: NodeRef) -> Result<Rc<Node>> {
        let nr = self.cache.geometry.ptr_bucket(wanted.ptr);
        loop {
            if let Some(node) = self.tree.get(nr) {
                if node.ptr == wanted.ptr && node.level == wanted.level && node.max == wanted.max {
                    return Ok(node);
                }
                let what =
                    format!("two parents name a btree node in bucket {nr}: {} and {}", node.ptr, wanted.ptr);
                return Err(self.cache.untrusted(what));
            }
            if let Some(others) = self.tree.being_read(nr) {
                others.wait().await;
                continue;
            }
            let reading = self.tree.begin_read(nr);
            let began = self.env.now();
            let read = self.read_node(wanted).await;
            self.timings.btree_read.record(began, self.env.now());
            if let Ok(node) = &read {
                self.tree.add(node);
                self.tree.evict();
            }
            drop(reading);
            return read;
        }
    }

    /// Reads the leaf of `pos` from the device once more and drops it: what a lookup pays whose leaf is not in memory.
    /// Answers its extents on the device. For benchmarks.
    ///
    /// # Errors
    /// A node cannot be read or trusted.
    pub async fn reread_leaf(&self, pos: Pos) -> Result<usize> {
        let leaf = self.node_at(pos, 0).await?;
        let read = self.read_node(NodeRef { ptr: leaf.ptr, level: 0, max: leaf.max }).await?;
        let mut count = 0;
        read.for_each_extent(|_| count += 1);
        Ok(count)
    }

    /// Where the leaf of `pos` is. For benchmarks.
    ///
    /// # Errors
    /// A node cannot be read or trusted.
    pub async fn leaf_ptr(&self, pos: Pos) -> Result<Ptr> {
        Ok(self.node_at(pos, 0).await?.ptr)
    }

    /// Reads a node and checks all that can be checked of it.
    async fn read_node(&self, wanted: NodeRef) -> Result<Rc<Node>> {
        let geometry = self.cache.geometry;
        let nr = geometry.ptr_bucket(wanted.ptr);
        if !geometry.is_usable(nr) {
            return Err(self.cache.untrusted(format!("btree node {} lies outside the device", wanted.ptr)));
        }
        let at = wanted.ptr.offset() * bcache_format::SECTOR_SIZE;
        let buf = Buf::recycled(geometry.btree_node_bytes() as usize);
        let bytes = self.cache.dev.read(at, buf).await?;
        self.stats.node_reads.add(1);
        let broken = |what: String| {
            self.cache
                .untrusted(format!("btree node in bucket {nr} (byte {at}, level {}): {what}", wanted.level))
        };
        let parsed = format::parse(&bytes, wanted.ptr, self.cache.magic, geometry.block_bytes())
            .map_err(|bad| broken(bad.error.to_string()))?;
        let Some((_, first)) = parsed.sets.first() else { return Err(broken("empty".to_owned())) };
        let body = if wanted.level == 0 {
            let merge = self.tree.merges.take(parsed.sets.len()).await;
            self.merge_leaf(merge, &parsed.sets, wanted.max)
        } else {
            self.fold_interior(&parsed.sets, wanted.max)
        };
        let body = body.map_err(broken)?;
        let written = parsed.written / geometry.block_bytes();
        let node = Node::new(wanted, &geometry, first.seq(), body, written);
        Ok(Rc::new(node))
    }

    /// Lays the bsets of a leaf over each other. From here to the return nothing is awaited: the cursors are back in their
    /// pool before anybody else can want them.
    fn merge_leaf(&self, mut merge: Merge<'_>, sets: &[(u64, Bset<'_>)], max: Pos) -> Result<Body, String> {
        let geometry = &self.cache.geometry;
        let bucket_sectors = u64::from(geometry.bucket_sectors);
        let mut sets = Sets { sets, max, has_holes: false };
        let mut map = ExtentMap::new();
        let mut last: Option<Extent> = None;
        merge.run(&mut sets, |extent| {
            if extent.is_hole() {
                return Ok(());
            }
            // A bad pointer may have been covered by a newer key; only what is left counts.
            if let Some(problem) = geometry.place_problem(extent.ptr(), extent.size().0) {
                return Err(format!("key {extent:?}: {problem}"));
            }
            let joined = last.and_then(|last| last.joined(&extent, bucket_sectors));
            if joined.is_none() {
                last.into_iter().for_each(|last| map.push(last));
            }
            last = joined.or(Some(extent));
            Ok(())
        })?;
        last.into_iter().for_each(|last| map.push(last));
        Ok(Body::Leaf { map, pending: ExtentMap::new(), hides_holes: sets.has_holes })
    }

    /// The live children of an interior node: those whose bucket has not moved on.
    fn fold_interior(&self, sets: &[(u64, Bset<'_>)], max: Pos) -> Result<Body, String> {
        let geometry = &self.cache.geometry;
        let mut keys = Vec::new();
        for (byte, set) in sets {
            for key in set.keys() {
                let key = key.map_err(|error| error.at(*byte).to_string())?;
                let Some(ptr) = key.ptr().filter(|ptr| key.n_ptrs() == 1 && ptr.is_device() && !key.dirty())
                else {
                    return Err(format!("bset at byte {byte}: {key} does not point at a node"));
                };
                if let Some(problem) = geometry.ptr_problem(&key) {
                    return Err(format!("bset at byte {byte}: {key}: {problem}"));
                }
                if key.pos() > max {
                    return Err(format!("bset at byte {byte}: {key} lies behind the node's end"));
                }
                keys.push((key.pos(), ptr));
            }
        }
        // Freeing markers, and pointers the prio sets do not know of yet, raise generations before anything is judged.
        let mut buckets = self.alloc.buckets.borrow_mut();
        for (_, ptr) in &keys {
            buckets.raise(*ptr);
        }
        let mut stale = Vec::new();
        // A bucket used twice for children of this node stands here twice; the newer pointer is the live one.
        let mut live: HashMap<BucketNr, Child> = HashMap::new();
        for (pos, ptr) in keys {
            if pos == Pos::ZERO || buckets.staleness(ptr) > 0 {
                stale.push(ptr);
            } else {
                live.insert(geometry.ptr_bucket(ptr), Child { max: pos, ptr });
            }
        }
        let mut children: Vec<Child> = live.into_values().collect();
        children.sort_unstable_by_key(|child| child.max);
        if children.last().is_none_or(|last| last.max != max) {
            return Err("no live child at the node's end".to_owned());
        }
        if let Some(pair) = children.windows(2).find(|pair| pair[0].max == pair[1].max) {
            return Err(format!("two live children end at {}", pair[0].max));
        }
        Ok(Body::Interior { children, stale, pending: Vec::new() })
    }

    /// Writes the keys that `node` has gathered as one bset, now, and waits until it is durable. Nothing to do when
    /// there are none.
    ///
    /// Data that the keys name is made durable first: FUA speaks only for the bset itself, and a bset may not say where
    /// data is that a power cut can still take.
    pub(crate) async fn node_write(&self, node: &Rc<Node>) -> Result<()> {
        let _ordered = node.io.lock().await;
        node.write_queued.set(false);
        if node.is_dead() || !node.is_dirty() {
            return Ok(());
        }
        self.check()?;
        let frozen = self.flush_below(node).await;
        let taken = self.take_pending(node);
        if frozen {
            node.thaw();
        }
        // The keys are in nobody's hands any more: the journal has them, and nothing may be written behind them.
        let (image, at_block, write) = taken.inspect_err(|error| self.fail(error.clone()))?;
        let written = self.write_bset(node, at_block, image, write.epoch).await;
        written.inspect_err(|error| self.fail(error.clone()))?;
        drop(write);
        node.writing.set(false);
        Ok(())
    }

    /// Turns the gathered keys into a bset; they count as written from here on.
    fn take_pending(&self, node: &Node) -> Result<(Vec<u8>, u64, PendingWrite)> {
        let geometry = &self.cache.geometry;
        let mut state = node.state_mut();
        let keys: Vec<_> = match &mut state.body {
            Body::Leaf { pending, .. } => std::mem::take(pending).iter().map(Extent::key).collect(),
            Body::Interior { pending, .. } => {
                let mut keys = std::mem::take(pending);
                keys.sort_by_key(bcache_format::Bkey::pos);
                keys
            }
        };
        let image = bset::write(&keys, node.seq, bset::VERSION, node.ptr, self.cache.magic)
            .map_err(|error| self.format_error(error))?;
        node.writing.set(true);
        let at_block = state.written;
        state.written += (image.len() as u64).div_ceil(geometry.block_bytes());
        debug_assert!(state.written <= geometry.btree_node_blocks());
        Ok((image, at_block, std::mem::take(&mut state.write)))
    }

    /// Writes a bset and waits until it, and the data it names on the cache device at `epoch`, is durable.
    pub(super) async fn write_bset(
        &self,
        node: &Node,
        at_block: u64,
        image: Vec<u8>,
        epoch: u64,
    ) -> Result<()> {
        // Who writes many nodes to a device that answers at once would otherwise let nobody else run.
        self.env.yield_now().await;
        let geometry = &self.cache.geometry;
        let block = geometry.block_bytes();
        let mut padded = Buf::zeroed((image.len() as u64).next_multiple_of(block) as usize);
        padded[..image.len()].copy_from_slice(&image);
        let flush = node.level > 0 || !seeded_bug!(LeafWithoutFlush);
        if flush {
            self.metadata(self.cache.ensure_flushed(epoch).await)?;
        }
        self.check()?;
        let at = node.ptr.offset() * bcache_format::SECTOR_SIZE + at_block * block;
        let padded = padded.freeze();
        let first = self.cache.dev.geometry().logical_block as usize;
        if at_block > 0 && padded.len() > first {
            // A node that is in use grows. Its log ends at the first block that does not begin with its seq, so the
            // header comes last: a write that a power cut tears must not look like a bset that went bad.
            let rest = padded.slice(first..padded.len());
            self.metadata(self.cache.write_fua(at + first as u64, rest).await)?;
            self.metadata(self.cache.write_fua(at, padded.slice(0..first)).await)?;
        } else if at_block == 0 && seeded_bug!(ChildNotDurable) {
            self.metadata(self.cache.write(at, padded).await)?;
        } else {
            self.metadata(self.cache.write_fua(at, padded).await)?;
        }
        self.stats.node_writes.add(1);
        self.stats.node_sectors_written.add(image.len() as u64 / bcache_format::SECTOR_SIZE);
        Ok(())
    }

    /// Flushes the backing devices that clean keys of `node` wait for, until there is none, so that its keys may be taken
    /// in the same breath. A flush that fails leaves fewer keys to write, and is no end of all writing. Whoever keeps
    /// adding keys is kept out in the end: true then, and the node is to be thawed when its keys were taken.
    pub(super) async fn flush_below(&self, node: &Node) -> bool {
        for round in 0.. {
            let due = self.due_below(node);
            if due.is_empty() {
                return round > FLUSHES_BELOW;
            }
            if round == FLUSHES_BELOW {
                node.freeze();
            }
            for (device, epoch) in due {
                // What failed is not in the node any more.
                let _ = self.flush_backing(&device, epoch).await;
            }
        }
        false
    }

    fn due_below(&self, node: &Node) -> Vec<(Rc<Device>, u64)> {
        if seeded_bug!(CleanWithoutFlush) {
            return Vec::new();
        }
        let (devices, state) = (self.devices.borrow(), node.state());
        let due = |(inode, epoch): &(u32, u64)| {
            let device = devices.get(inode)?;
            let flushed = device.backing().is_none_or(|backing| backing.dev.is_flushed(*epoch));
            (!flushed).then(|| (Rc::clone(device), *epoch))
        };
        state.write.below.iter().filter_map(due).collect()
    }

    /// Turns a failed read or write of metadata into the end of all writing.
    pub(crate) fn metadata<T>(&self, result: std::result::Result<T, crate::dev::DevError>) -> Result<T> {
        result.map_err(|error| {
            let error = Error::from(error);
            self.fail(error.clone());
            error
        })
    }
}
