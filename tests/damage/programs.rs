//! Random damage and the programs: what they answer, what they leave on the devices, and the memory they take.
//!
//! `UBCACHE_SEED=N cargo test --test damage programs` replays one.

use std::fs::{File, FileTimes};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use bcache_tests::golden::Set;
use bcache_tests::{paths, sparse};

use crate::cases::World;
use crate::mutations::{Random, damage, seeds};
use crate::patched::Patched;

/// KiB that a program may have.
const MEMORY: u64 = 262_144;
/// Seconds of computing that a program may take: more is a hang, however busy the machine is.
const SECONDS: &str = "10";
/// No program waits for longer than this.
const STUCK: Duration = Duration::from_secs(300);
/// Of so many runs one compares every byte of the devices.
const WHOLE: u64 = 25;

fn run(program: &str, args: &[&str], devices: &[PathBuf]) -> i32 {
    run_within(MEMORY, program, args, devices)
}

/// Runs a program with so many KiB of memory, so much time and no more. What it needs beyond that ends it with neither
/// 0, 1, 4 nor 8.
pub fn run_within(memory: u64, program: &str, args: &[&str], devices: &[PathBuf]) -> i32 {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -d {memory} && ulimit -t {SECONDS} && exec \"$0\" \"$@\"")]);
    command.arg(paths::program(program).unwrap()).args(args).args(devices);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    let status: ExitStatus = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > STUCK {
            child.kill().unwrap();
            panic!("{program} {args:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    status.code().unwrap_or(-1)
}

/// Files that whoever writes to them betrays himself.
struct Watched(Vec<PathBuf>);

impl Watched {
    fn new(devices: &[PathBuf]) -> Self {
        for path in devices {
            let file = File::options().write(true).open(path).unwrap();
            file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH)).unwrap();
        }
        Self(devices.to_vec())
    }
    fn are_unchanged(&self) -> bool {
        self.0.iter().all(|path| path.metadata().unwrap().modified().unwrap() == SystemTime::UNIX_EPOCH)
    }
}

fn prints(devices: &[PathBuf]) -> Vec<String> {
    devices.iter().map(|path| sparse::sha256(File::open(path).unwrap()).unwrap().0).collect()
}

/// Writes the changes of a device to its file, or what was there before.
fn write_changes(path: &Path, device: &Patched, undo: bool) {
    let file = File::options().write(true).open(path).unwrap();
    for (byte, bytes) in device.changes() {
        let mut old = vec![0; bytes.len()];
        device.base().read_at(byte, &mut old).unwrap();
        file.write_all_at(if undo { &old } else { bytes }, byte).unwrap();
    }
}

fn runs_on(set: &str, runs: u64) {
    let world = World::of(set);
    let dir = paths::scratch().unwrap();
    let devices = Set::open(set).unwrap().copy_to(dir.path()).unwrap();
    let cache = devices.iter().find(|path| path.ends_with("cache.img")).unwrap();
    let undo = dir.path().join("undo");
    let undo_arg = undo.to_str().unwrap();
    let (mut repaired, mut refused) = (0, 0);
    for seed in seeds(runs) {
        let name = format!("{set}: UBCACHE_SEED={seed}");
        let mut damaged = world.cache.clone();
        damage(&mut damaged, &world.regions, &mut Random::new(seed ^ 0x5eed));
        write_changes(cache, &damaged, false);
        let before = (seed % WHOLE == 0).then(|| prints(&devices));
        let watched = Watched::new(&devices);
        let found = run("bcache-fsck", &["-n"], &devices);
        assert!(matches!(found, 0 | 4 | 8), "{name}: -n ends with {found}");
        assert!(watched.are_unchanged(), "{name}: -n writes");
        match run("bcache-fsck", &["-y", "--undo", undo_arg], &devices) {
            0 => assert_eq!(found, 0, "{name}: -y and -n do not agree"),
            1 => {
                repaired += 1;
                assert_eq!(run("bcache-fsck", &["-n"], &devices), 0, "{name}: not clean after -y");
                assert_eq!(run("bcache", &["undo", undo_arg], &[]), 0, "{name}: undo");
                std::fs::remove_file(&undo).unwrap();
            }
            8 => {
                refused += 1;
                assert!(watched.are_unchanged() && !undo.exists(), "{name}: a refused -y writes");
            }
            code => panic!("{name}: -y ends with {code}"),
        }
        if let Some(before) = before {
            assert!(before == prints(&devices), "{name}: the bytes are not those from before");
        }
        write_changes(cache, &damaged, true);
    }
    println!("{set}: {repaired} repaired, {refused} refused");
}

#[test]
fn wb_dirty() {
    runs_on("wb-dirty", 125);
}

#[test]
fn wb_crash() {
    runs_on("wb-crash", 125);
}

#[test]
fn two_backing_flash() {
    runs_on("two-backing-flash", 125);
}

#[test]
fn deep_btree() {
    runs_on("deep-btree", 125);
}

mod long {
    #[test]
    #[ignore = "takes long"]
    fn ten_thousand_damages() {
        for set in ["wb-dirty", "wb-crash", "two-backing-flash", "deep-btree"] {
            super::runs_on(set, 2500);
        }
    }
}
