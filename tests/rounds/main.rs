//! Rounds with the real programs: a set is started in some mode with some settings, several clients load two cached devices
//! and a volume whose cache is far too small for them, and the server is killed at any moment or stopped. After each round
//! all who can read the set have to agree with what was acknowledged and flushed: `bcache export`, `map`, `fsck -n`,
//! sometimes after `fsck -p` or an offline `flush`, and the next start.
//!
//! `ROUNDS` is how many, `ROUNDS_SEED` what is drawn from. The seed says what is asked for, not when the kernel answers: a
//! failure may need some more tries to be seen again.

mod kernel;
mod load;
mod readers;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bcache_engine::dev;
use bcache_engine::env::{Rng, Runtime};
use bcache_engine::set::CacheSet;
use bcache_engine::settings::SetSettings;
use bcache_format::Sectors;
use bcache_format::uuid_entry::UuidEntry;
use bcache_tests::cmd::ours;
use bcache_tests::crash::Model;
use bcache_tests::nbd::Served;
use bcache_tests::paths;
use uuid::Uuid;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Sectors of a backing device before its data.
const DATA_OFFSET: u64 = 16;
/// Sectors of each cached device.
const CACHED: u64 = 24 << 10;
/// Sectors of the flash-only volume.
const VOLUME: u64 = 2 << 10;
/// UUID of the flash-only volume.
const VOLUME_UUID: Uuid = Uuid::from_u128(0xf1a5);
/// Rounds with one set.
const ROUNDS_OF_A_SET: u64 = 12;

/// What one export may hold, for all clients.
type Shared = Mutex<Model>;

fn with<R>(model: &Shared, act: impl FnOnce(&mut Model) -> R) -> R {
    act(&mut model.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Something of the programs that must not be. The round that it was in is put in front.
type Outcome<T = ()> = Result<T, String>;

/// A set of files, and what its exports may hold.
struct World {
    dir: tempfile::TempDir,
    /// Cache, then backing devices.
    devices: Vec<PathBuf>,
    /// Of the backing devices, then of the volume.
    models: Vec<Shared>,
    /// Sectors of a block.
    block: u64,
}

/// How a round ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Kill,
    KillWhileStarting,
    Stop,
}

fn said<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Outcome<T> {
    result.map_err(|error| format!("{what}: {error:#}"))
}

impl World {
    fn new(rng: &mut Rng) -> Outcome<World> {
        Self::within(said("a directory", paths::scratch())?, rng)
    }

    fn within(dir: tempfile::TempDir, rng: &mut Rng) -> Outcome<World> {
        let block = [1, 8][rng.below(2) as usize];
        let bucket = [8, 16, 32][rng.below(3) as usize];
        let sizes = [bucket * 1024 * 640, (CACHED + DATA_OFFSET) * SECTOR, (CACHED + DATA_OFFSET) * SECTOR];
        let mut devices = Vec::new();
        for (name, bytes) in ["cache.img", "one.img", "two.img"].iter().zip(sizes) {
            let path = dir.path().join(name);
            said(name, std::fs::File::create(&path).and_then(|file| file.set_len(bytes)))?;
            devices.push(path);
        }
        let paths: Vec<&str> = devices.iter().filter_map(|path| path.to_str()).collect();
        let (bucket, block_size) = (format!("{bucket}k"), (block * SECTOR).to_string());
        let args = ["-b", &bucket, "-w", &block_size, "-C", paths[0], "-B", paths[1], "-B", paths[2]];
        let made = said("make-bcache", ours("make-bcache", args))?;
        if made.code != 0 {
            return Err(format!("make-bcache: {}", made.stderr));
        }
        let models = [CACHED, CACHED, VOLUME].map(|sectors| Mutex::new(Model::new(sectors, false)));
        let world = World { dir, devices, models: models.into(), block };
        world.add_volume()?;
        Ok(world)
    }

    /// Only a running set gets volumes.
    fn add_volume(&self) -> Outcome {
        let runtime = said("a runtime", Runtime::new())?;
        let env = runtime.env();
        runtime.block_on(async {
            let cache = said("cache", dev::open(&env, &self.devices[0], dev::OpenMode::READ_WRITE))?;
            let set = said("a new set", CacheSet::start(env.clone(), cache, SetSettings::default()).await)?;
            let entry = UuidEntry { sectors: Sectors(VOLUME), ..UuidEntry::EMPTY };
            said("a volume", set.create_volume(VOLUME_UUID, entry).await)?;
            said("the stop", set.stop().await)
        })
    }

    /// Starts serving with settings drawn at random.
    fn start(&self, rng: &mut Rng) -> Outcome<Served> {
        let settings = settings(rng);
        let options: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        said(&format!("a start with {settings:?}"), Served::start(self.dir.path(), &options, &self.devices))
    }

    /// A server that is killed before it is known to serve.
    fn kill_a_start(&self, rng: &mut Rng) -> Outcome {
        let program = said("bcache", paths::program("bcache"))?;
        let mut command = std::process::Command::new(program);
        command.arg("serve").arg("--nbd").arg(self.dir.path().join("early")).args(&self.devices);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = said("bcache serve", quiet.spawn())?;
        std::thread::sleep(Duration::from_micros(rng.below(60_000)));
        said("a kill", child.kill().and_then(|()| child.wait()))?;
        Ok(())
    }

    /// Names that `bcache export --of` and `serve` know the volumes by.
    fn names(&self) -> Vec<(String, String)> {
        let backing = |path: &PathBuf| path.to_string_lossy().into_owned();
        let mut names: Vec<(String, String)> =
            self.devices[1..].iter().enumerate().map(|(i, path)| (backing(path), i.to_string())).collect();
        names.push(("volume:0".to_owned(), VOLUME_UUID.to_string()));
        names
    }

    /// One round, whatever it does in the end. What it did is told.
    fn round(&self, rng: &mut Rng) -> Outcome<End> {
        let end = match rng.below(12) {
            0 => End::KillWhileStarting,
            1..=3 => End::Stop,
            _ => End::Kill,
        };
        if end == End::KillWhileStarting {
            self.kill_a_start(rng)?;
        } else {
            let served = self.start(rng)?;
            load::read_all(self, &served)?;
            load::run(self, served, end, rng)?;
        }
        for model in &self.models {
            // A client over NBD learns that its server died, as it would of a lost power: what it did not flush may be gone.
            with(model, |model| if end == End::Stop { model.stopped() } else { model.cut() });
        }
        readers::agree(self, end, rng)?;
        match rng.below(8) {
            0 => readers::repair(self, rng)?,
            1 => readers::flush(self)?,
            _ => {}
        }
        Ok(end)
    }
}

/// Settings for all devices and the set. Everything is cached and little of it fits.
fn settings(rng: &mut Rng) -> Vec<String> {
    let mut of = |name: &str, values: &[&str]| {
        let value = values[rng.below(values.len() as u64) as usize];
        format!("{name}={value}")
    };
    vec![
        of("cache_mode", &["writeback", "writeback", "writethrough", "writearound", "none"]),
        of("sequential_cutoff", &["0", "0", "64k"]),
        of("journal_delay_ms", &["1", "5", "100"]),
        of("writeback_percent", &["0", "10", "40"]),
        of("writeback_delay", &["0", "0", "30"]),
        of("writeback_running", &["1", "1", "0"]),
        of("btree_cache_bytes", &["1", "16k", "1G"]),
        of("copy_gc_enabled", &["0", "1"]),
        of("cache_replacement_policy", &["lru", "fifo", "random"]),
        of("bypass_torture_test", &["0", "0", "0", "1"]),
    ]
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn rounds(test: &str, count: u64) {
    let count = number("ROUNDS").unwrap_or(count);
    let seed = number("ROUNDS_SEED").unwrap_or(1);
    let replay = |seed: u64| {
        format!(
            "replay: ROUNDS_SEED={seed} ROUNDS={ROUNDS_OF_A_SET} cargo test -p bcache-tests --test rounds {test}"
        )
    };
    let (mut kills, mut stops) = (0, 0);
    // Each set has a seed of its own, so that one that went wrong is made again without those before it.
    for set in 0..count.div_ceil(ROUNDS_OF_A_SET) {
        let seed = seed + set;
        let mut rng = Rng::new(seed);
        let world = World::new(&mut rng).unwrap_or_else(|what| panic!("{what}\n{}", replay(seed)));
        for round in 0..ROUNDS_OF_A_SET.min(count - set * ROUNDS_OF_A_SET) {
            match world.round(&mut rng) {
                Ok(End::Stop) => stops += 1,
                Ok(_) => kills += 1,
                Err(what) => {
                    let kept = world.dir.keep();
                    panic!(
                        "round {round} of set {seed}: {what}\nfiles in {}\n{}",
                        kept.display(),
                        replay(seed)
                    )
                }
            }
        }
    }
    println!("{test}: {count} rounds, {kills} kills, {stops} stops, ROUNDS_SEED={seed}");
}

#[test]
fn a_hundred_rounds() {
    rounds("a_hundred_rounds", 100);
}

mod long {
    #[test]
    #[ignore = "takes long"]
    fn a_thousand_rounds() {
        super::rounds("--ignored long::a_thousand_rounds", 1000);
    }
}
