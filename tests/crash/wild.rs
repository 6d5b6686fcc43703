//! Runs in which everything goes on at once: modes and settings change under load, devices come and go, nodes have no room
//! in memory, disks are slow or fail at any moment, the set is stopped while clients are busy.

use bcache_tests::crash::{CachedSet, Campaign, Focus};

/// Runs about `focus` for `cuts` power cuts.
fn survives(test: &str, cuts: u64, focus: Focus) {
    let focus = Focus { wild: true, ..focus };
    match Campaign::of(cuts).about(focus).run::<CachedSet>() {
        Ok((summary, runs)) => println!(
            "{test}: {runs} runs, {} power cuts, {} of them in recovery, {} clean stops",
            summary.cuts, summary.in_recovery, summary.stops
        ),
        Err(failure) => {
            panic!(
                "{failure}\nreplay: SIM_SEED={} cargo test -p bcache-tests --test crash {test}",
                failure.seed
            )
        }
    }
}

const CALM: Focus =
    Focus { mode: None, full: false, spoilt: Some(0), moving: false, wild: true, kept: false };
const MOVING: Focus = Focus { moving: true, ..CALM };
const SPOILT: Focus = Focus { moving: true, spoilt: Some(60), ..CALM };
const KEPT: Focus = Focus { kept: true, ..MOVING };

#[test]
fn a_set_under_every_load_survives() {
    survives("a_set_under_every_load_survives", 8_000, CALM);
}

#[test]
fn a_set_whose_devices_come_and_go_survives() {
    survives("a_set_whose_devices_come_and_go_survives", 4_000, MOVING);
}

#[test]
fn a_set_whose_disks_fail_survives() {
    survives("a_set_whose_disks_fail_survives", 8_000, SPOILT);
}

#[test]
fn what_a_process_acknowledged_survives_it() {
    survives("what_a_process_acknowledged_survives_it", 8_000, KEPT);
}

/// As many cuts as `SIM_CUTS` says, from the seed `SIM_FROM` on.
mod long {
    use super::*;

    #[test]
    #[ignore = "takes hours"]
    fn a_million_cuts() {
        survives("--ignored wild::long::a_million_cuts", 1_000_000, SPOILT);
    }

    #[test]
    #[ignore = "takes hours"]
    fn two_hundred_thousand_deaths() {
        survives("--ignored wild::long::two_hundred_thousand_deaths", 200_000, KEPT);
    }

    #[test]
    #[ignore = "takes hours"]
    fn two_hundred_thousand_cuts_of_good_disks() {
        survives("--ignored wild::long::two_hundred_thousand_cuts_of_good_disks", 200_000, MOVING);
    }
}
