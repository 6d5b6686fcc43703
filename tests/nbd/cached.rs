//! fio against `bcache serve`, in every cache mode. The cache is smaller than what is written, so that buckets are
//! reused and dirty data is written back meanwhile.

#![allow(clippy::unwrap_used)] // a test says what went wrong by failing

use std::process::Command;
use std::time::{Duration, Instant};

use bcache_tests::cmd::{done, run};
use bcache_tests::nbd::Served;
use bcache_tests::{paths, sparse};

use super::clients::fio_verify;

pub const MODES: [&str; 4] = ["writethrough", "writeback", "writearound", "none"];

/// One pass of fio after the other, each over all of the device, until the time is over; at least one.
fn verify(mode: &str, size: &str, time: Duration) {
    let scratch = paths::scratch().unwrap();
    let (cache, backing) = (scratch.path().join("cache"), scratch.path().join("backing"));
    sparse::create(&cache, 96 << 20).unwrap();
    sparse::create(&backing, (256 << 20) + 8192).unwrap();
    let mut make = Command::new(paths::program("make-bcache").unwrap());
    done(make.args(["-b", "64k", "-C"]).arg(&cache).arg("-B").arg(&backing)).unwrap();
    let setting = format!("cache_mode={mode}");
    let options = ["--set", &setting, "--set", "sequential_cutoff=0", "--set", "writeback_delay=0"];
    let served = Served::start(scratch.path(), &options, &[&cache, &backing]).unwrap();
    let uri = format!("--uri={}", served.uri());
    let end = Instant::now() + time;
    let mut seed = 1;
    loop {
        let said = run(Command::new("fio").args(fio_verify(&uri, size, seed))).unwrap();
        assert_eq!(said.code, 0, "{mode}, seed {seed}:\n{}\n{}", said.stdout, said.stderr);
        if Instant::now() > end {
            break;
        }
        seed += 1;
    }
    println!("{mode}: {seed} passes");
    assert!(served.stop().unwrap().0.success());
    let checked =
        run(Command::new(paths::program("bcache-fsck").unwrap()).arg("-n").arg(&cache).arg(&backing))
            .unwrap();
    assert_eq!(checked.code, 0, "{mode}: {}", checked.stdout);
}

mod clients {
    #[test]
    #[ignore = "needs fio"]
    fn fio_verifies_every_cache_mode() {
        for mode in super::MODES {
            super::verify(mode, "128M", std::time::Duration::ZERO);
        }
    }
}

mod long {
    #[test]
    #[ignore = "takes ten minutes, needs fio"]
    fn ten_minutes_of_fio() {
        for mode in super::MODES {
            super::verify(mode, "256M", std::time::Duration::from_secs(150));
        }
    }
}
