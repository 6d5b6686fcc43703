//! The rules that keep data safe, each a test: runs that are about it find nothing, and find the mistake that breaks it.
//! What goes wrong with devices has more tests in `tests/crash/faults.rs`.
//!
//! Power is cut by the harness of `tests/src/crash`, which these unit tests include: only here the mistakes of
//! [`sim_bugs`](crate::sim_bugs) can be switched on.

mod abandoned;
mod arranged;
#[allow(dead_code, unused_imports)]
#[allow(unreachable_pub)] // the tests' crate, too, has it
#[path = "../../tests/src/crash/mod.rs"]
mod crash;
mod kept;
mod lost;
mod recovery;
mod scenes_media;
mod stuck;
mod tree;
mod world;

use crate::sim_bugs::{self, Bug};
use bcache_format::superblock::CacheMode;
use crash::{CachedSet, Campaign, Failure, Focus};
use std::sync::Arc;

/// Cuts within which a mistake has to be found. Most are found within a hundred.
const WITHIN: u64 = 6000;
/// Cuts without a mistake, of each rule's runs.
const HEALTHY: u64 = 200;

const CALM: Focus =
    Focus { mode: None, full: false, spoilt: Some(0), moving: false, wild: false, kept: false };
const MOVING: Focus = Focus { moving: true, ..CALM };
const FULL: Focus = Focus { full: true, ..CALM };
const WRITEBACK: Focus = Focus { mode: Some(CacheMode::Writeback), ..CALM };
const SPOILT: Focus = Focus { spoilt: Some(80), ..WRITEBACK };
/// The process ends as often as the power, and what it acknowledged is there.
const KEPT: Focus = Focus { kept: true, ..WRITEBACK };
const WRITETHROUGH: Focus = Focus { mode: Some(CacheMode::Writethrough), ..CALM };

/// Which mistakes are looked for: those whose names have the environment variable `MISTAKE` in them, and then nothing else is
/// done; all, where it is not set. `tests/mistakes` sets it.
fn filter() -> Option<String> {
    std::env::var("MISTAKE").ok()
}

fn wanted(bug: Bug) -> bool {
    filter().is_none_or(|filter| format!("{bug:?}").contains(&filter))
}

/// Says that a mistake was found, by the test of this thread, in the words that `tests/mistakes` looks for.
fn found(bug: Bug, after: &str, what: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test").trim_start_matches("rules::").replace("played::", "");
    println!("found {bug:?} by {test} after {after}: {}", what.lines().next().unwrap_or_default());
}

/// Runs about `focus` find nothing wrong, and the mistake once it is switched on.
fn rule(test: &str, focus: Focus, bugs: &[Bug]) {
    if filter().is_none()
        && let Err(failure) = Campaign::of(HEALTHY).about(focus).run::<CachedSet>()
    {
        panic!("{failure}\nreplay: SIM_SEED={} cargo test -p bcache-engine rules::{test}", failure.seed);
    }
    for &bug in bugs.iter().filter(|bug| wanted(**bug)) {
        match runs_with(bug, focus, WITHIN) {
            Ok(runs) => panic!("{bug:?} was not found in {runs}"),
            Err(failure) => found(bug, &format!("{} power cuts", failure.cuts), &failure.what),
        }
    }
}

/// Runs with a mistake, until it is found.
fn runs_with(bug: Bug, focus: Focus, cuts: u64) -> Result<String, Failure> {
    let switch = Arc::new(move || sim_bugs::set(Some(bug)));
    let ended = Campaign { prepare: switch, ..Campaign::of(cuts).about(focus) }.run::<CachedSet>();
    sim_bugs::set(None);
    ended.map(|(summary, runs)| format!("{runs} runs with {} power cuts", summary.cuts))
}

/// A scene goes well, and does not once one of the mistakes is switched on.
fn scene(name: &str, mistakes: &[Bug], play: fn()) {
    if filter().is_none() {
        play();
    }
    for &bug in mistakes.iter().filter(|bug| wanted(**bug)) {
        sim_bugs::set(Some(bug));
        let played = std::panic::catch_unwind(play);
        sim_bugs::set(None);
        let harm = played.expect_err(&format!("{name}: {bug:?} was not found"));
        let what = harm.downcast_ref::<String>().map(String::as_str);
        let what = what.or_else(|| harm.downcast_ref::<&str>().copied()).unwrap_or_default();
        found(bug, "1 run", what);
    }
}

/// The scenes of a module, each with the mistakes that it must find.
macro_rules! scenes {
    ($($name:ident $(: $($bug:ident),+)?;)*) => {
        mod played {
            $(#[test] fn $name() {
                $crate::rules::scene(stringify!($name), &[$($($crate::sim_bugs::Bug::$bug),+)?], super::$name);
            })*
        }
    };
}
use scenes;

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident: $focus:expr => $($bug:ident),+;)*) => {
        $($(#[$doc])* #[test] fn $name() { rule(stringify!($name), $focus, &[$(Bug::$bug),+]); })*
    };
}

rules! {
    /// Data is durable before anything durable names it: the journal's flush, and one before a leaf's FUA.
    rule_1_data_is_durable_before_a_journal_entry_names_it: WRITEBACK => JournalWithoutFlush;
    rule_1_data_is_durable_before_a_leaf_names_it: CALM => LeafWithoutFlush;
    /// A flush is acknowledged when the journal holds all keys, and the backing device was flushed.
    rule_2_a_flush_waits_for_the_journal: WRITEBACK => FlushWithoutJournal;
    rule_2_a_flush_reaches_the_backing_device: WRITETHROUGH => FlushWithoutBacking;
    /// A leaf pins the oldest journal entry it has keys of; a pinned entry is not written over.
    rule_3_a_pinned_journal_entry_is_not_reclaimed: FULL => LeafWithoutPin;
    /// Interior nodes are not journaled: children, roots and replacing inserts are durable in time.
    rule_4_a_new_set_is_durable_before_it_is_called_one: CALM => NewSetSyncFirst;
    rule_4_gc_writes_leaves_before_it_frees_what_they_replaced: FULL => GcWithoutLeaves;
    /// A generation is durable before its bucket is reused; dirty data is never invalidated; a hit is checked again.
    rule_5_a_generation_is_durable_before_the_bucket_is_reused: FULL => ReuseBeforeGen;
    rule_5_dirty_data_is_never_invalidated: FULL => InvalidateDirty;
    /// A miss never overwrites a write that came in between.
    rule_6_a_miss_gives_way_to_a_write: WRITETHROUGH => MissOverwritesWrite;
    /// The backing superblock says dirty before, and clean after.
    rule_7_dirty_is_said_before_the_first_dirty_write: MOVING => DirtyWithoutSuperblock;
    rule_7_clean_is_said_after_the_last_is_written_back: MOVING => CleanTooEarly;
    rule_7_written_back_data_is_flushed_before_its_keys_say_clean: WRITEBACK => CleanWithoutFlush;
    /// Where dirty data cannot be read, nothing older is served for it.
    rule_8_what_is_below_lost_dirty_data_is_never_served: SPOILT => OldForLostDirty;
    /// Without its cache a device says stale, and what is stale gets a new slot.
    rule_9_a_device_without_its_cache_says_stale: MOVING => AloneWithoutStale;
    rule_9_the_keys_of_a_stale_device_are_never_served: MOVING => AttachKeepsSlot;
    /// What the cache holds is forgotten durably before the backing device gets something newer.
    a_clean_copy_is_forgotten_before_the_write_below: WRITETHROUGH => StaleCleanCopy;
    a_dirty_key_is_durable_before_it_is_written_back: WRITEBACK => WritebackBeforeJournal;
    /// What is acknowledged outlives the process: its keys are in the journal, or in memory that is read by the next one.
    a_key_is_kept_when_its_data_is_in_the_cache: KEPT => TailBeforeData;
    what_is_kept_is_taken_over: KEPT => TailForgotten, TailWithoutNotes, TailOfAnotherBoot;
    what_is_kept_is_taken_over_once_and_in_order: KEPT =>
        TailReplayedTwice, TailInTheWrongOrder, TailOverNewer;
    nothing_is_acknowledged_that_is_neither_journaled_nor_kept: KEPT => TailWithGaps, TailReusedEarly;
    /// An audit once found metadata in a bucket that was marked free: GC began while a new node had no parent yet.
    btree_io_a_new_node_is_pinned_until_the_tree_leads_to_it: FULL => NewNodeUnpinned;
    btree_io_a_clean_stop_writes_every_dirty_node: WRITEBACK => StopLeavesNodes;
}

mod long {
    use super::*;

    /// Tells which mistakes runs under every load find, and which have to have a scene.
    #[test]
    #[ignore = "takes long"]
    fn mistakes_under_every_load() {
        let calm = Focus { wild: true, ..CALM };
        let spoilt = Focus { moving: true, spoilt: Some(60), ..calm };
        for bug in Bug::ALL.iter().copied().filter(|bug| wanted(*bug)) {
            for (name, focus) in [("calm", calm), ("spoilt", spoilt)] {
                match runs_with(bug, focus, 1500) {
                    Ok(runs) => println!("{bug:?}: {name}: not found in {runs}"),
                    Err(failure) => {
                        found(bug, &format!("{} power cuts ({name})", failure.cuts), &failure.what)
                    }
                }
            }
        }
    }
}
