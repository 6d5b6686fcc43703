//! Lives of simulated cache sets: `crash --seed N` replays one, `crash --from N --count M` lives many.

use bcache_tests::crash::{Life, Report, live};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1)?.parse::<u64>().ok()
    };
    let (from, count) = match number("--seed") {
        Some(seed) => (seed, 1),
        None => (number("--from").unwrap_or(0), number("--count").unwrap_or(1000)),
    };
    if count == 1 {
        println!("{:#?}", Life::new(from));
    }
    let mut all = Report::default();
    let mut failures = 0;
    for seed in from..from + count {
        match live(seed) {
            Ok(report) => {
                all.crashes += report.crashes;
                all.in_recovery += report.in_recovery;
                all.stops += report.stops;
            }
            Err(wrong) => {
                failures += 1;
                println!(
                    "seed {seed}: {wrong}\n  replay: cargo run --release -p bcache-tests --bin crash -- --seed {seed}"
                );
                if failures > 9 {
                    break;
                }
            }
        }
    }
    println!(
        "{} lives, {} crashes ({} during recovery), {} clean stops, {failures} failed",
        count, all.crashes, all.in_recovery, all.stops
    );
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
