//! All leaves, once, in the order of the device and on all cores.
//!
//! Threads, one a core, take the next leaf, read it, check it and hand its extents to a [`Pass`]; the device is told of
//! leaves long before, so that many reads are under way. What they find is put in the order of the device again, so
//! that a sweep tells the same however the threads ran. A leaf that is one bset of extents without anything special
//! about them is not even decoded: [`Packed`] is looked over in place.
//!
//! Whether a pointer is stale depends on all pointers, since newer ones raise generations. Nearly always none does:
//! generations are durable before buckets are used again. A sweep goes by what is known when it starts, notes what
//! would have to be raised, and says whether it was right or has to be repeated.

use super::descend::{bucket_of, twice};
use super::devices::Cache;
use super::extent_map::SeenMap;
use super::fault::{Fault, What};
use super::gens::{DataGens, Gens};
use super::node::{NodeView, SeenNode, place};
use super::overlay::{Layer, Overlay};
use super::packed::{Bounds, Packed};
use bcache_format::bkey::gen_after;
use bcache_format::node::parse;
use bcache_format::{Bkey, BucketNr, SECTOR_SIZE, Structure};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// Leaves for which a thread is worth starting.
const LEAVES_A_THREAD: usize = 16;
/// Leaves that the device is told of before they are read.
const READS_AHEAD: usize = 64;
/// Threads at most.
const THREADS_MAX: usize = 64;
/// Buckets of leaves that a thread does before it hands over what came out: each time wakes who takes it.
const BATCH: usize = 16;
/// How many batches threads may run ahead of the one that comes next.
const AHEAD: usize = 64;

/// What is done with the extents of every leaf that could be read whole.
pub(crate) trait Pass: Sync {
    /// What a thread keeps from leaf to leaf.
    type Worker: Default;
    /// What comes out for one leaf.
    type Out: Default + Send;
    /// A leaf's extents, if nothing is special about them.
    fn packed(&self, extents: Packed<'_>, worker: &mut Self::Worker, out: &mut Self::Out);
    /// One extent of a leaf, cut to what the journal leaves of it.
    fn extent(&self, key: Bkey, worker: &mut Self::Worker, out: &mut Self::Out);
    /// A thread has done its last leaf.
    fn finish(&self, worker: Self::Worker);
}

/// Nothing is done with them.
pub(crate) struct Look;

impl Pass for Look {
    type Worker = ();
    type Out = ();
    fn packed(&self, _: Packed<'_>, (): &mut (), (): &mut ()) {}
    fn extent(&self, _: Bkey, (): &mut (), (): &mut ()) {}
    fn finish(&self, (): ()) {}
}

/// What all threads work with.
pub(crate) struct Sweep<'s, P> {
    /// The cache.
    pub cache: &'s Cache,
    /// Generations, as far as they are known.
    pub gens: &'s Gens,
    /// The same of buckets that hold no metadata.
    pub data_gens: &'s DataGens,
    /// The journal's extents: where they are, the leaves' are hidden.
    pub journal: &'s SeenMap,
    /// Buckets of interior nodes.
    pub interior: &'s HashSet<BucketNr>,
    /// What to do.
    pub pass: &'s P,
}

/// What a thread has of its own.
struct Thread<P: Pass> {
    /// A node's bytes.
    buffer: Vec<u8>,
    worker: P::Worker,
}

impl<P: Pass> Default for Thread<P> {
    fn default() -> Self {
        Self { buffer: Vec::new(), worker: P::Worker::default() }
    }
}

/// Leaves as threads take them.
struct Batches<'b> {
    /// All of them.
    groups: &'b [Vec<SeenNode>],
    /// How many a thread takes.
    size: usize,
    /// How many before it is read the device is told of one: nobody may be reading it yet.
    ahead: usize,
}

/// Says that all is taken when its thread panics.
struct Release<'t>(&'t AtomicUsize);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(usize::MAX, Ordering::Relaxed);
        }
    }
}

/// What came out of one leaf.
pub(crate) struct Swept<Out> {
    /// Its place.
    pub at: SeenNode,
    /// It could be read, and is nobody else's.
    pub is_leaf: bool,
    /// Extents, and bytes of bsets.
    pub extents: u64,
    /// Bytes of bsets.
    pub bytes: u64,
    /// What is wrong with it.
    pub faults: Vec<Fault>,
    /// What the pass made of it.
    pub out: Out,
    raises: Vec<(BucketNr, u8)>,
}

impl<P: Pass> Sweep<'_, P> {
    /// Sweeps; `take` is told of every leaf, in the order of the device. Comes back with the generations that have to
    /// be raised: if there are any, what the pass did was done with wrong ones.
    pub(crate) fn run(&self, leaves: &[SeenNode], take: &mut dyn FnMut(Swept<P::Out>)) -> HashMap<u64, u8> {
        let groups = self.groups(leaves);
        let mut raises: HashMap<u64, u8> = HashMap::new();
        let mut take = |swept: Swept<P::Out>| {
            for (bucket, generation) in &swept.raises {
                let known = raises.entry(bucket.0).or_insert(*generation);
                if gen_after(*generation, *known) > 0 {
                    *known = *generation;
                }
            }
            take(swept);
        };
        let threads = threads(groups.len());
        // Some for each thread, as the last ones done are waited for.
        let size = (groups.len() / (threads.max(1) * 4)).clamp(1, BATCH);
        let batches = Batches { groups: &groups, size, ahead: READS_AHEAD.max(threads * size) };
        groups.iter().take(batches.ahead).for_each(|group| self.announce(Some(group)));
        if threads <= 1 {
            let mut thread = Thread::<P>::default();
            for (index, group) in groups.iter().enumerate() {
                self.announce(groups.get(index + batches.ahead));
                self.group(group, &mut thread).into_iter().for_each(&mut take);
            }
            self.pass.finish(thread.worker);
        } else {
            self.on_threads(threads, &batches, &mut take);
        }
        raises
    }

    /// The leaves in the order of the device; those in one bucket together, in key order.
    fn groups(&self, leaves: &[SeenNode]) -> Vec<Vec<SeenNode>> {
        let mut sorted: Vec<(u64, SeenNode)> =
            leaves.iter().map(|at| (bucket_of(self.cache, at).map_or(0, |bucket| bucket.0), *at)).collect();
        sorted.sort_by_key(|(bucket, _)| *bucket);
        sorted
            .chunk_by(|(a, _), (b, _)| a == b)
            .map(|group| group.iter().map(|(_, at)| *at).collect())
            .collect()
    }

    fn on_threads(&self, threads: usize, batches: &Batches<'_>, take: &mut dyn FnMut(Swept<P::Out>)) {
        let (next, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            // Whoever waits for what this thread takes must not do so for ever when it panics.
            let _release = Release(&taken);
            let (send, receive) = mpsc::channel();
            for _ in 0..threads {
                let (send, next, taken) = (send.clone(), &next, &taken);
                let work = move || self.work(batches, next, taken, &send);
                // Fewer threads are slower and no reason to stop.
                if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            let mut early = BTreeMap::new();
            let mut in_order = |(index, swept): (usize, Vec<Swept<P::Out>>)| {
                early.insert(index, swept);
                while let Some(swept) = early.remove(&taken.load(Ordering::Relaxed)) {
                    swept.into_iter().for_each(&mut *take);
                    taken.fetch_add(1, Ordering::Relaxed);
                }
            };
            drop(send);
            receive.into_iter().for_each(&mut in_order);
            // Where no thread could be started at all nothing was taken yet.
            let left = batches.groups.get(taken.load(Ordering::Relaxed) * batches.size..).unwrap_or_default();
            let mut thread = Thread::<P>::default();
            for group in left {
                self.group(group, &mut thread).into_iter().for_each(&mut *take);
            }
            self.pass.finish(thread.worker);
        });
    }

    /// What a thread does: takes the next batch of leaves until there are none.
    fn work(
        &self,
        batches: &Batches<'_>,
        next: &AtomicUsize,
        taken: &AtomicUsize,
        send: &mpsc::Sender<(usize, Vec<Swept<P::Out>>)>,
    ) {
        let _release = Release(taken);
        let mut thread = Thread::<P>::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(batch) = batches.groups.chunks(batches.size).nth(index) else { break };
            // One slow read must not let the others' results pile up.
            while index > taken.load(Ordering::Relaxed).saturating_add(AHEAD) {
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
            let mut swept = Vec::with_capacity(batch.len());
            for (i, group) in (index * batches.size..).zip(batch) {
                self.announce(batches.groups.get(i + batches.ahead));
                swept.extend(self.group(group, &mut thread));
            }
            if send.send((index, swept)).is_err() {
                break;
            }
        }
        self.pass.finish(thread.worker);
    }

    /// Tells the device of leaves that will be read.
    fn announce(&self, group: Option<&Vec<SeenNode>>) {
        for at in group.into_iter().flatten() {
            if let Ok(ptr) = place(self.cache, at) {
                let (byte, bytes) = (ptr.offset() * SECTOR_SIZE, at.key.size() * SECTOR_SIZE);
                self.cache.device.will_read(byte, bytes);
            }
        }
    }

    /// The leaves of one bucket: the first that fits its place has it.
    fn group(&self, group: &[SeenNode], thread: &mut Thread<P>) -> Vec<Swept<P::Out>> {
        let mut taken = group
            .first()
            .and_then(|at| bucket_of(self.cache, at))
            .is_some_and(|b| self.interior.contains(&b));
        let mut all = Vec::with_capacity(group.len());
        for at in group {
            let mut swept = Swept {
                at: *at,
                is_leaf: false,
                extents: 0,
                bytes: 0,
                faults: Vec::new(),
                out: P::Out::default(),
                raises: Vec::new(),
            };
            let hidden = |fault: Fault| fault.hiding(at.lower, at.key.pos());
            if taken && bucket_of(self.cache, at).is_some() {
                swept.faults.push(hidden(twice(self.cache, at)));
            } else {
                match self.leaf(at, thread, &mut swept) {
                    Ok(elsewhere) => {
                        swept.is_leaf = true;
                        taken = !elsewhere;
                    }
                    Err(fault) => {
                        swept.faults.push(hidden(fault));
                        taken = true;
                    }
                }
            }
            all.push(swept);
        }
        all
    }

    /// Reads a leaf. Tells whether it belongs elsewhere.
    fn leaf(&self, at: &SeenNode, thread: &mut Thread<P>, swept: &mut Swept<P::Out>) -> Result<bool, Fault> {
        let cache = self.cache;
        let ptr = place(cache, at)?;
        let byte = ptr.offset().saturating_mul(SECTOR_SIZE);
        let len = at.key.size().saturating_mul(SECTOR_SIZE);
        if let Err(fault) = cache.read_into(Structure::BtreeNode, byte, len, &mut thread.buffer) {
            let What::Io { .. } = fault.what else { return Err(fault) };
            return Ok(self.take(NodeView::read(cache, *at)?, thread, swept));
        }
        let parsed = parse(&thread.buffer, ptr, cache.magic, cache.geometry.block_bytes());
        let alone = !self.journal.overlaps(at.lower, at.key.pos());
        if let Ok(node) = &parsed
            && let [(0, set)] = node.sets.as_slice()
            && alone
        {
            let bounds = Bounds { lower: at.lower, upper: at.key.pos() };
            if let Some(packed) = Packed::look(set.key_bytes(), bounds, &cache.geometry, self.data_gens) {
                (swept.extents, swept.bytes) = (packed.count(), set.header().bytes());
                self.raise(&at.key, &mut swept.raises);
                self.pass.packed(packed, &mut thread.worker, &mut swept.out);
                return Ok(false);
            }
        }
        let node = NodeView::of(cache, *at, ptr, parsed);
        Ok(self.take(node, thread, swept))
    }

    /// Hands a leaf's extents to the pass. Tells whether it belongs elsewhere.
    fn take(&self, node: NodeView, thread: &mut Thread<P>, swept: &mut Swept<P::Out>) -> bool {
        let (at, worker) = (node.at, &mut thread.worker);
        let alone = !self.journal.overlaps(at.lower, at.key.pos());
        swept.bytes = node.sets.iter().map(|set| set.bytes).sum();
        swept.extents = node.keys.len() as u64;
        node.keys.iter().chain([&at.key]).for_each(|key| self.raise(key, &mut swept.raises));
        let elsewhere = node.is_elsewhere();
        if node.usable && alone {
            node.keys.into_iter().for_each(|key| self.pass.extent(key, worker, &mut swept.out));
        } else if node.usable {
            let newer = self.journal.between(at.lower, at.key.pos());
            let older = node.keys.into_iter().map(Ok::<_, Infallible>);
            for (key, layer) in Overlay::new(older, newer).flatten() {
                if layer == Layer::Older {
                    self.pass.extent(key, worker, &mut swept.out);
                }
            }
        }
        swept.faults = node.faults;
        elsewhere
    }

    /// Notes pointers that are newer than what is known of their buckets.
    fn raise(&self, key: &Bkey, raises: &mut Vec<(BucketNr, u8)>) {
        for ptr in key.ptrs().iter().filter(|ptr| ptr.is_device()) {
            let bucket = self.cache.geometry.ptr_bucket(*ptr);
            let newer = self
                .gens
                .get(bucket.0)
                .is_none_or(|known| known != ptr.generation() && gen_after(known, ptr.generation()) == 0);
            if newer {
                raises.push((bucket, ptr.generation()));
            }
        }
    }
}

fn threads(leaves: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cores.min(THREADS_MAX).min(leaves / LEAVES_A_THREAD)
}
