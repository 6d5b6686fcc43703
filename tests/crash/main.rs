//! Power cuts by the thousand, and proof that the judge of them can say no.

mod faults;
mod wild;

use bcache_tests::crash::{CachedSet, Campaign, Failure, Passthrough, Subject, Summary};

/// Runs of `S` for `cuts` power cuts. A failure is printed with the command that replays it.
fn survives<S: Subject>(test: &str, cuts: u64) -> Summary {
    match Campaign::of(cuts).run::<S>() {
        Ok((summary, runs)) => {
            println!(
                "{test}: {runs} runs, {} power cuts, {} of them in recovery, {} clean stops",
                summary.cuts, summary.in_recovery, summary.stops
            );
            summary
        }
        Err(failure) => {
            panic!(
                "{failure}\nreplay: SIM_SEED={} cargo test -p bcache-tests --test crash {test}",
                failure.seed
            )
        }
    }
}

/// The failure that runs of a broken subject must end with.
fn found<S: Subject>() -> Failure {
    match Campaign::of(5000).run::<S>() {
        Ok((summary, runs)) => panic!("not found in {runs} runs with {} power cuts", summary.cuts),
        Err(failure) => failure,
    }
}

#[test]
fn a_disk_as_it_is_survives() {
    let summary = survives::<Passthrough<0>>("a_disk_as_it_is_survives", 2000);
    assert!(std::env::var("SIM_SEED").is_ok() || summary.in_recovery > 20, "{summary:?}");
}

#[test]
fn a_cache_set_survives() {
    let summary = survives::<CachedSet>("a_cache_set_survives", 20_000);
    assert!(std::env::var("SIM_SEED").is_ok() || summary.in_recovery > 20, "{summary:?}");
}

#[test]
fn a_flush_that_lies_is_found() {
    assert!(found::<Passthrough<1>>().what.contains("sector"));
}

#[test]
fn dropped_fua_is_found() {
    assert!(found::<Passthrough<2>>().what.contains("sector"));
}

#[test]
fn an_early_acknowledgement_is_found() {
    assert!(found::<Passthrough<3>>().what.contains("sector"));
}

#[test]
fn a_misplaced_write_is_found() {
    assert!(found::<Passthrough<4>>().what.contains("sector"));
}

#[test]
fn a_recovery_that_undoes_is_found() {
    assert!(found::<Passthrough<5>>().what.contains("sector"));
}

#[test]
fn a_request_that_never_ends_is_found() {
    let failure = found::<Passthrough<6>>();
    // Others go on meanwhile, until that is too long, or too much.
    let told = ["deadlock", "never rests"].iter().any(|what| failure.what.contains(what));
    assert!(told, "{failure}");
}

#[test]
fn a_failure_is_found_again_from_its_seed() {
    let (first, second) = (found::<Passthrough<1>>(), found::<Passthrough<1>>());
    assert_eq!((first.seed, first.what), (second.seed, second.what));
}

mod long {
    use super::*;

    #[test]
    #[ignore = "takes long"]
    fn two_hundred_thousand_cuts() {
        survives::<CachedSet>("--ignored long::two_hundred_thousand_cuts", 200_000);
    }
}
