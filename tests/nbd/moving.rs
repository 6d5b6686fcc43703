//! fio that verifies two cached devices and a volume at once while cache modes, replacement, garbage collection and the
//! room for btree nodes change under it.

#![allow(clippy::unwrap_used)] // a test says what went wrong by failing

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc::{self, TryRecvError};
use std::time::{Duration, Instant};

use bcache_engine::env::{Env, Rng, Runtime};
use bcache_engine::net::Listener;
use bcache_engine::request::DeviceVolume;
use bcache_engine::set::CacheSet;
use bcache_engine::volume::Volume;
use bcache_format::Sectors;
use bcache_format::uuid_entry::UuidEntry;
use bcache_tests::cmd::{done, run};
use bcache_tests::{paths, sparse};
use bcache_tools::frontend::nbd::{ExportTable, Limits, Server};
use bcache_tools::serve::{Request, Service};
use uuid::Uuid;

use super::cached::MODES;
use super::clients::fio_verify;

/// Bytes of each cached device, more than twice what the cache has.
const CACHED: u64 = 256 << 20;
/// Bytes of the volume, which the cache has to keep whole.
const VOLUME: u64 = 16 << 20;
/// UUID of the volume, which it is exported as.
const VOLUME_UUID: Uuid = Uuid::from_u128(0xf1a5);

/// What is changed under load, and to what.
const OF_THE_SET: [(&str, &[&str]); 8] = [
    ("cache_replacement_policy", &["lru", "fifo", "random"]),
    ("btree_cache_bytes", &["1", "16k", "1G"]),
    ("prune_cache", &["1"]),
    ("trigger_gc", &["1"]),
    ("copy_gc_enabled", &["1", "1", "0"]),
    ("journal_delay_ms", &["1", "5", "100"]),
    ("congested_read_threshold_us", &["0", "2000"]),
    ("discard", &["0", "1"]),
];
const OF_A_DEVICE: [(&str, &[&str]); 6] = [
    ("cache_mode", &MODES),
    ("cache_mode", &MODES),
    ("sequential_cutoff", &["0", "64k", "4M"]),
    ("writeback_percent", &["0", "10", "40"]),
    ("writeback_running", &["1", "1", "0"]),
    ("bypass_torture_test", &["0", "0", "1"]),
];

/// A pair of `table`, and one of its values.
fn drawn(rng: &mut Rng, table: &[(&'static str, &[&'static str])]) -> (&'static str, &'static str) {
    let (name, values) = table[rng.below(table.len() as u64) as usize];
    (name, values[rng.below(values.len() as u64) as usize])
}

/// Changes one thing after the other until it is dropped. Returns only if something is refused.
async fn change(env: &Env, set: &Rc<CacheSet>, mut rng: Rng) {
    loop {
        env.sleep(Duration::from_millis(rng.below(100))).await;
        if rng.chance(1, 2) {
            let (name, value) = drawn(&mut rng, &OF_THE_SET);
            set.set_attribute(name, value).await.unwrap();
        } else {
            let devices = set.devices();
            let device = &devices[rng.below(devices.len() as u64) as usize];
            if device.backing().is_some() {
                let (name, value) = drawn(&mut rng, &OF_A_DEVICE);
                set.set_device_attribute(device, name, value).await.unwrap();
            }
        }
    }
}

/// Serves the devices and a volume at `socket`, changing things, until `stopped` has something; says how many times
/// buckets were moved.
fn serve(
    devices: &[PathBuf],
    socket: &Path,
    seed: u64,
    ready: &mpsc::Sender<()>,
    stopped: mpsc::Receiver<()>,
) {
    let runtime = Runtime::new().unwrap();
    let env = runtime.env();
    runtime.block_on(async {
        let request = Request { devices, settings: &[], backing_delay: None, attach: true };
        let service = Service::start(&env, request).await.unwrap();
        let set = Rc::clone(&service.set);
        let mut volumes: Vec<Rc<dyn Volume>> =
            service.exports.iter().map(|export| Rc::clone(&export.volume)).collect();
        let entry = UuidEntry { sectors: Sectors(VOLUME >> 9), ..UuidEntry::EMPTY };
        let device = set.create_volume(VOLUME_UUID, entry).await.unwrap();
        volumes.push(Rc::new(DeviceVolume::new(Rc::clone(&set), device, "volume".to_owned())));
        let listener = Listener::bind(&env, socket).unwrap();
        let server = Server::new(&env, Rc::new(ExportTable::new(volumes)), Limits::default());
        let listening = server.clone();
        env.spawn(async move { listening.listen(&listener).await }).detach();
        let changing = env.clone();
        let changed = Rc::clone(&set);
        let changes = env.spawn(async move { change(&changing, &changed, Rng::new(seed)).await });
        ready.send(()).unwrap();
        while let Err(TryRecvError::Empty) = stopped.try_recv() {
            assert!(set.failure().is_none(), "seed {seed}: {:?}", set.failure());
            env.sleep(Duration::from_millis(100)).await;
        }
        drop(changes);
        server.stop().await;
        set.stop().await.unwrap();
    });
}

/// One pass of fio over each device after the other until `time` is over, all of them at once; at least one.
fn verify(time: Duration) {
    let seed = std::env::var("MOVING_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let scratch = paths::scratch().unwrap();
    let devices: Vec<PathBuf> =
        ["cache", "one", "two"].iter().map(|name| scratch.path().join(name)).collect();
    sparse::create(&devices[0], 96 << 20).unwrap();
    let mut make = Command::new(paths::program("make-bcache").unwrap());
    make.args(["-b", "64k", "-C"]).arg(&devices[0]);
    for backing in &devices[1..] {
        sparse::create(backing, CACHED + 8192).unwrap();
        make.arg("-B").arg(backing);
    }
    done(&mut make).unwrap();
    let (stop, stopped) = mpsc::channel();
    let (ready, is_ready) = mpsc::channel();
    let socket = scratch.path().join("socket");
    std::thread::scope(|scope| {
        let (devices, socket) = (&devices, &socket);
        let server = scope.spawn(move || serve(devices, socket, seed, &ready, stopped));
        is_ready.recv().expect("it serves");
        let end = Instant::now() + time;
        // Exports by their index: the cached devices, then the volume.
        let loads = [("0", "256M"), ("1", "256M"), ("2", "16M")].map(|(name, size)| {
            scope.spawn(move || {
                let uri = format!("--uri=nbd+unix:///{name}?socket={}", socket.display());
                let mut passes = 0;
                loop {
                    passes += 1;
                    let said = run(Command::new("fio").args(fio_verify(&uri, size, seed + passes))).unwrap();
                    assert_eq!(
                        said.code, 0,
                        "{name}, MOVING_SEED={seed}, pass {passes}:\n{}\n{}",
                        said.stdout, said.stderr
                    );
                    if Instant::now() > end {
                        return format!("{name}: {passes} passes");
                    }
                }
            })
        });
        let said: Vec<String> = loads.into_iter().map(|load| load.join().expect("fio verifies")).collect();
        println!("{}, MOVING_SEED={seed}", said.join(", "));
        stop.send(()).expect("it serves");
        server.join().expect("it stops");
    });
    let mut fsck = Command::new(paths::program("bcache-fsck").unwrap());
    let checked = run(fsck.arg("-n").args(&devices)).unwrap();
    assert_eq!(checked.code, 0, "MOVING_SEED={seed}: {}", checked.stdout);
}

mod clients {
    #[test]
    #[ignore = "needs fio"]
    fn fio_verifies_while_everything_changes() {
        super::verify(std::time::Duration::ZERO);
    }
}

mod long {
    #[test]
    #[ignore = "takes ten minutes, needs fio"]
    fn ten_minutes_of_fio_while_everything_changes() {
        super::verify(std::time::Duration::from_secs(600));
    }
}
