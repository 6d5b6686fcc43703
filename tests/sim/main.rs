//! Lives of cache sets in the simulator, with power cuts.

use bcache_tests::crash::{Report, live};

/// `COUNT` lives from seed `FROM` on; the environment may ask for more.
fn lives(from: u64, count: u64) -> Report {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let count = number("CRASH_LIVES").unwrap_or(count);
    let mut all = Report::default();
    for seed in from..from + count {
        match live(seed) {
            Ok(report) => {
                all.crashes += report.crashes;
                all.stops += report.stops;
            }
            Err(wrong) => panic!(
                "seed {seed}: {wrong}\nreplay: cargo run --release -p bcache-tests --bin crash -- --seed {seed}"
            ),
        }
    }
    println!("{count} lives, {} crashes, {} clean stops", all.crashes, all.stops);
    all
}

#[test]
fn nothing_acknowledged_is_lost_in_a_power_cut() {
    assert!(lives(0, 60).crashes > 50);
}

#[test]
fn nor_in_other_lives() {
    assert!(lives(1_000_000, 60).crashes > 50);
}

#[test]
fn one_seed_is_one_life() {
    let traces = [(); 2].map(|()| live(7).map(|report| report.trace));
    assert_eq!(traces[0], traces[1]);
}
