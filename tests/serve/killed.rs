//! The end under load. `kill -9`: nothing acknowledged and flushed is lost; a stop: nothing acknowledged is.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bcache_engine::env::Rng;
use bcache_tests::crash::Model;
use bcache_tests::nbd::{Client, Served};
use bcache_tests::paths;

/// Sectors that the load writes to.
const SECTORS: u64 = 8192;
/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Clients at once.
const CLIENTS: u64 = 4;

type Shared = Mutex<Model>;

fn with<R>(model: &Shared, act: impl FnOnce(&mut Model) -> R) -> R {
    act(&mut model.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Reads and judges; false once the server is gone.
fn read(client: &mut Client, model: &Shared, sector: u64, count: u64) -> bool {
    let start = with(model, Model::tick);
    let Ok(bytes) = client.read(sector * SECTOR, (count * SECTOR) as u32) else { return false };
    with(model, |model| model.judge(sector, &bytes, start)).unwrap_or_else(|violation| panic!("{violation}"));
    true
}

/// One request of the load; false once the server is gone.
fn step(client: &mut Client, model: &Shared, rng: &mut Rng) -> bool {
    let count = if rng.chance(9, 10) { 8 } else { 8 * rng.between(1, 16) };
    let sector = rng.below((SECTORS - count) / 8) * 8;
    match rng.below(100) {
        0..50 => {
            let fua = rng.chance(1, 10);
            let (number, bytes) = with(model, |model| model.begin_write(sector, count));
            let written = client.write(sector * SECTOR, &bytes, fua).is_ok();
            if written {
                with(model, |model| model.end_write(number, fua));
            }
            written
        }
        50..55 => {
            let start = with(model, Model::tick);
            let flushed = client.flush().is_ok();
            if flushed {
                with(model, |model| model.end_flush(start));
            }
            flushed
        }
        _ => read(client, model, sector, count),
    }
}

/// How a server ends.
#[derive(Clone, Copy)]
enum End {
    Kill,
    Stop,
}

/// Runs the load until the server ends.
fn live(
    dir: &Path,
    devices: &[impl AsRef<std::ffi::OsStr>],
    model: &Shared,
    rng: &mut Rng,
    mode: &str,
    end: End,
) {
    let mode = format!("cache_mode={mode}");
    // Journal entries come often, so that a kill falls between all kinds of steps.
    let options = ["--set", &mode, "--set", "journal_delay_ms=5", "--set", "sequential_cutoff=0"];
    let served = Served::start(dir, &options, devices).expect("a server");
    let mut client = served.client("").expect("a client");
    for sector in (0..SECTORS).step_by(1024) {
        assert!(read(&mut client, model, sector, 1024), "the server went away");
    }
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let (mut client, mut rng) = (served.client("").expect("a client"), rng.fork());
            scope.spawn(move || while step(&mut client, model, &mut rng) {});
        }
        std::thread::sleep(Duration::from_millis(rng.between(20, 300)));
        match end {
            End::Kill => served.kill().expect("a kill"),
            End::Stop => {
                let (status, took) = served.stop().expect("an end");
                assert!(status.success(), "{status}");
                println!("stopped in {} ms", took.as_millis());
            }
        }
    });
    with(model, |model| {
        if let End::Stop = end {
            // Whatever was answered is there; the rest is judged as after a kill.
            let now = model.tick();
            model.end_flush(now);
        }
        model.cut();
    });
}

fn survive(ends: u64, end: End) {
    let seed = std::env::var("KILL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("KILL_SEED={seed}");
    let mut rng = Rng::new(seed);
    for mode in ["writeback", "writethrough"] {
        let dir = paths::scratch().expect("a directory");
        let devices = super::make(dir.path(), 64 << 20, 32 << 20);
        let model = Mutex::new(Model::new(SECTORS, false));
        for _ in 0..ends / 2 {
            live(dir.path(), &devices, &model, &mut rng, mode, end);
        }
        // In the end it is whole, and in order.
        let served = Served::start(dir.path(), &[], &devices).expect("a server");
        let mut client = served.client("").expect("a client");
        for sector in (0..SECTORS).step_by(1024) {
            assert!(read(&mut client, &model, sector, 1024));
        }
        assert!(served.stop().expect("an end").0.success());
    }
}

#[test]
fn twenty_kills() {
    survive(20, End::Kill);
}

#[test]
fn stops_under_load() {
    survive(6, End::Stop);
}

mod long {
    #[test]
    #[ignore = "takes minutes"]
    fn two_hundred_kills() {
        super::survive(200, super::End::Kill);
    }
}
