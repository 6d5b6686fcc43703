//! Mistakes that random runs meet too seldom: each has a scene in which it cannot but do harm.

use super::crash::{Rig, Shape, Started};
use super::tree::{Expected, LARGE, child_count, grow, leave_on_disk};
use crate::sim::{Fault, FaultOn, Image};
use crate::sim_bugs::{self, Bug};
use crate::volume::Volume;
use bcache_format::superblock::CacheMode;
use std::rc::Rc;
use std::time::Duration;

/// The scene ends well, and badly once the mistake is switched on.
pub(super) fn arranged(bug: Bug, scene: impl Fn() -> Result<(), String>) {
    if super::filter().is_none() {
        assert_eq!(scene(), Ok(()));
    }
    if !super::wanted(bug) {
        return;
    }
    sim_bugs::set(Some(bug));
    let spoilt = scene();
    sim_bugs::set(None);
    match spoilt {
        Ok(()) => panic!("{bug:?} does no harm"),
        Err(what) => super::found(bug, "1 run", &what),
    }
}

/// A set that starts on what a power cut certainly leaves now holds what is expected, and its btree is whole.
pub(super) fn survives(images: [Image; 2], expected: &Expected) -> Result<(), String> {
    let expected = expected.clone();
    Rig::with(&LARGE, images).try_run(|it| async move {
        for (sector, byte) in expected {
            let data = it.read(sector, 8).await.map_err(|errno| format!("sector {sector}: errno {errno}"))?;
            if data.iter().any(|b| *b != byte) {
                return Err(format!("sector {sector} holds {} for {byte}", data[0]));
            }
        }
        let wrong = it.set.audit().await.map_err(|error| error.to_string())?;
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    })?
}

/// Writes of the root take an hour from now on.
fn slow_root(it: &Started) {
    let root = it.set.cache.geometry.bucket_start_byte(it.set.tree.root().bucket);
    it.cache.inject(Fault::slow(FaultOn::Write, root..root + 4096, HOUR));
}

const HOUR: Duration = Duration::from_secs(3600);

/// While the only leaf cannot be written, entries that it pins fill the ring; then flushes wait.
#[test]
fn rule_3_entries_that_the_newest_durable_one_needs_are_not_written_over() {
    arranged(Bug::ReclaimPinnedJournal, || {
        let rig = Rig::new(&LARGE);
        let flushed = rig.run(|it| async move {
            slow_root(&it);
            let mut flushed = Expected::new();
            for i in 0..100u8 {
                let (sector, byte) = (u64::from(i) * 16, i + 1);
                let one = it.clone();
                let task = it.set.env.spawn(async move {
                    one.write(sector, 8, byte).await;
                    one.volume.flush().await.expect("a flush");
                });
                it.wait(1).await;
                if !task.is_finished() {
                    break;
                }
                flushed.push((sector, byte));
            }
            assert!(flushed.len() > 8, "{flushed:?}");
            flushed
        });
        survives(rig.images(), &flushed)
    });
}

/// The power fails whenever there is a new node.
#[test]
fn rule_4_a_child_is_durable_before_its_parent_names_it() {
    arranged(Bug::ChildNotDurable, || {
        let rig = &Rig::new(&LARGE);
        rig.run(|it| async move {
            let expected = grow(&it).await;
            it.set.settings.journal_delay_ms.set(3_600_000);
            let mut nodes = child_count(&it);
            for i in 400..1000 {
                it.write(i * 16, 8, 7).await;
                if child_count(&it) != nodes {
                    nodes = child_count(&it);
                    survives(rig.images(), &expected)?;
                }
            }
            Ok(())
        })
    });
}

/// While what was hit is read its bucket is filled with something else.
#[test]
fn rule_5_a_hit_whose_bucket_was_reused_meanwhile_is_read_again() {
    arranged(Bug::NoGenRecheck, || {
        let rig = Rig::new(&Shape { mode: CacheMode::Writethrough, ..LARGE });
        rig.run(|it| async move {
            it.write(0, 8, 1).await;
            it.cache.inject(Fault::slow(FaultOn::Read, it.cached_at(0).await, HOUR).times(1));
            let reader = it.clone();
            let read = it.set.env.spawn(async move { reader.read(0, 8).await });
            for i in 1..1500 {
                it.write(i * 8, 8, 2).await;
            }
            assert!(!read.is_finished());
            let data = read.await.map_err(|errno| format!("errno {errno}"))?;
            if data.iter().all(|byte| *byte == 1) { Ok(()) } else { Err(format!("it holds {}", data[0])) }
        })
    });
}

/// The parent's write that says that a child was freed takes long; meanwhile prios are to be written.
#[test]
fn btree_io_a_freed_nodes_generation_waits_for_the_parents_write() {
    arranged(Bug::FreeWithoutBlock, || {
        let rig = &Rig::new(&LARGE);
        rig.run(|it| async move {
            let expected = grow(&it).await;
            slow_root(&it);
            let (children, writer) = (child_count(&it), it.clone());
            it.set
                .env
                .spawn(async move {
                    for i in 400..1000 {
                        writer.write(i * 16, 8, 7).await;
                    }
                })
                .detach();
            while child_count(&it) == children {
                it.wait(1).await;
            }
            let set = Rc::clone(&it.set);
            let prios = it.set.env.spawn(async move { set.write_prios().await });
            it.wait(10).await;
            let early = prios.is_finished();
            survives(rig.images(), &expected)?;
            if early { Err("prios were written, and it did no harm".to_owned()) } else { Ok(()) }
        })
    });
}

/// GC may not let generations out that it raises, until it is through.
#[test]
fn btree_io_gc_blocks_prio_writes_from_its_start_to_its_end() {
    arranged(Bug::FreeWithoutBlock, || {
        let rig = Rig::new(&LARGE);
        rig.run(|it| async move {
            grow(&it).await;
            leave_on_disk(&it).await;
            it.cache.inject(Fault::slow(FaultOn::Read, 0..u64::MAX, Duration::from_secs(10)));
            let (collector, writer) = (Rc::clone(&it.set), Rc::clone(&it.set));
            let gc = it.set.env.spawn(async move { collector.gc_pass().await });
            it.wait(1).await;
            let prios = it.set.env.spawn(async move { writer.write_prios().await });
            while !gc.is_finished() {
                if prios.is_finished() {
                    return Err("prios were written while GC was at work".to_owned());
                }
                it.wait(1).await;
            }
            gc.await.map_err(|error| error.to_string())?;
            prios.await.map_err(|error| error.to_string())
        })
    });
}
