//! What the rules of btree I/O say of nodes that are read and written.

use super::crash::{Rig, Shape, Started, USUAL};
use crate::btree::children_of;
use crate::sim::{Fault, FaultOn};
use crate::volume::Volume;
use bcache_format::Pos;
use std::rc::Rc;
use std::time::Duration;

/// Children of the root.
pub(super) fn child_count(it: &Started) -> usize {
    children_of(&it.set.tree.root()).len()
}

pub(super) const LARGE: Shape = Shape { backing_sectors: 16 * 1024, ..USUAL };

/// What sectors should hold: the first of eight, and the byte.
pub(super) type Expected = Vec<(u64, u8)>;

/// Makes leaves under one root, all of them written and durable. Answers what they hold.
pub(super) async fn grow(it: &Started) -> Expected {
    let expected: Expected = (0..400).map(|i| (i * 16, 1 + (i % 200) as u8)).collect();
    for (sector, byte) in &expected {
        it.write(*sector, 8, *byte).await;
    }
    for node in it.set.tree.dirty_nodes() {
        it.set.node_write(&node).await.expect("the node is written");
    }
    it.volume.flush().await.expect("a flush");
    assert!(it.set.tree.root().level == 1 && child_count(it) > 1);
    expected
}

/// Puts all of them out of memory.
pub(super) async fn leave_on_disk(it: &Started) {
    // Whoever has a node in hand keeps it.
    it.wait(1).await;
    it.set.tree.prune();
    assert_eq!(it.set.tree.len(), 1);
}

/// A set whose root has some leaves, none of them in memory.
fn with_leaves_on_disk<F: Future<Output = ()>>(test: impl FnOnce(Started) -> F) {
    Rig::new(&LARGE).run(|it| async move {
        grow(&it).await;
        leave_on_disk(&it).await;
        test(it).await;
    });
}

/// Where the leaf of a sector of the cached device is on the cache.
fn leaf_at(it: &Started, sector: u64) -> std::ops::Range<u64> {
    let pos = pos(it, sector);
    let children = children_of(&it.set.tree.root());
    let child = children.iter().find(|child| child.max > pos).expect("the last child is behind everything");
    let at = child.ptr.offset() * 512;
    at..at + 4096
}

fn pos(it: &Started, sector: u64) -> Pos {
    Pos::new(it.device.inode.get().expect("it is attached"), sector + super::crash::DATA_OFFSET)
}

#[test]
fn btree_io_nobody_sees_a_node_before_it_was_read_and_checked() {
    with_leaves_on_disk(|it| async move {
        it.cache.inject(Fault::slow(FaultOn::Read, leaf_at(&it, 0), Duration::from_secs(10)));
        let before = it.set.stats.node_reads.get();
        let look = || {
            let (set, pos) = (Rc::clone(&it.set), pos(&it, 0));
            it.set.env.spawn(async move { set.node_at(pos, 0).await })
        };
        let (first, second) = (look(), look());
        it.wait(5).await;
        assert_eq!(it.set.tree.len(), 1, "a node is there that was not read yet");
        assert!(!first.is_finished() && !second.is_finished());
        let (first, second) = (first.await.expect("it is read"), second.await.expect("it is read"));
        assert!(Rc::ptr_eq(&first, &second));
        assert_eq!(it.set.stats.node_reads.get() - before, 1, "one read for both");
    });
}

#[test]
fn btree_io_nobody_sees_a_node_that_is_broken() {
    with_leaves_on_disk(|it| async move {
        let at = leaf_at(&it, 0).start;
        it.cache.dev().write(at, crate::dev::Buf::zeroed(512).freeze(), false).await.expect("a write");
        for _ in 0..2 {
            let error = it.set.node_at(pos(&it, 0), 0).await.err().expect("it is refused").to_string();
            assert!(it.set.tree.merges_are_whole(), "the cursors are back in their pool");
            assert!(error.contains("btree node in bucket"), "{error}");
            assert_eq!(it.set.tree.len(), 1);
        }
    });
}

#[test]
fn btree_io_a_lookup_that_has_to_read_stalls_nobody_else() {
    with_leaves_on_disk(|it| async move {
        let far = 399 * 16;
        assert_ne!(leaf_at(&it, 0), leaf_at(&it, far));
        it.cache.inject(Fault::slow(FaultOn::Read, leaf_at(&it, 0), Duration::from_secs(3600)));
        let reader = it.clone();
        let waits = it.set.env.spawn(async move { reader.read(0, 8).await });
        it.wait(1).await;
        it.holds(far, 8, 200).await;
        it.write(far, 8, 5).await;
        it.holds(far, 8, 5).await;
        it.volume.flush().await.expect("a flush");
        assert!(!waits.is_finished());
        assert_eq!(waits.await, Ok(vec![1; 4096]));
    });
}

#[test]
fn btree_io_a_dirty_leaf_is_noted_and_written_when_somebody_says_so() {
    Rig::new(&USUAL).run(|it| async move {
        let leaf = it.set.tree.root();
        let before = it.set.stats.node_writes.get();
        it.write(0, 8, 1).await;
        it.volume.flush().await.expect("a flush");
        // The journal has the key; the leaf says which entry that is, and is not written.
        assert!(leaf.is_dirty() && leaf.state().write.pin.is_some());
        assert_eq!(it.set.stats.node_writes.get(), before);
        it.set.node_write(&leaf).await.expect("the node is written");
        assert!(!leaf.is_dirty() && leaf.state().write.pin.is_none());
        assert_eq!(it.set.stats.node_writes.get(), before + 1);
        let extents = it.set.reread_leaf(pos(&it, 0)).await.expect("it is read");
        assert_eq!(extents, 1, "it is durable when the write is over");
    });
}

/// The iterator that merges a node's bsets has room for all of them, and is back in its pool after each read.
#[test]
fn btree_io_a_node_of_as_many_bsets_as_blocks_is_read() {
    Rig::new(&USUAL).run(|it| async move {
        let leaf = it.set.tree.root();
        let blocks = it.set.cache.geometry.btree_node_blocks();
        for i in 0.. {
            // The root of a new set has a block with an empty bset.
            let written = leaf.state().written;
            assert_eq!(written, 1 + i);
            if written == blocks {
                break;
            }
            it.write(i * 16, 8, 1).await;
            it.set.node_write(&leaf).await.expect("the node is written");
            let extents = it.set.reread_leaf(pos(&it, 0)).await.expect("it is read");
            assert_eq!(extents as u64, i + 1);
            assert!(it.set.tree.merges_are_whole(), "the cursors are back in their pool");
        }
        assert!(!leaf.is_dead());
    });
}

#[test]
fn btree_io_a_stop_after_an_error_writes_no_node() {
    with_leaves_on_disk(|it| async move {
        it.write(0, 8, 9).await;
        it.cache.inject(Fault::eio(FaultOn::Flush, 0..u64::MAX).times(1));
        assert!(it.volume.flush().await.is_err());
        assert!(it.set.failure().is_some() && !it.set.tree.dirty_nodes().is_empty());
        let before = it.cache.stats().writes;
        assert!(it.set.stop().await.is_err(), "it says that something went wrong");
        assert_eq!(it.cache.stats().writes, before);
    });
}
