//! Kernel and engine take turns on one set with dirty data: clean stops, and crashes on both sides.
//!
//! The kernel works in the emulated machine on two disks, the engine here on the same two files. Whoever takes over must
//! read exactly what the other had made durable.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use bcache_tests::cmd::run;
use bcache_tests::nbd::{Client, Served};
use bcache_tests::stamp::{Load, Mode};
use bcache_tests::vm::{DIED, Machine};
use bcache_tests::{paths, sparse};

const CACHE_MIB: u64 = 160;
const BACKING_MIB: u64 = 64;
/// Sectors of the cached device.
const SECTORS: u64 = (BACKING_MIB << 11) - 16;
/// Options of the engine: what is dirty stays dirty, so that there is something to hand over.
const DIRTY: [&str; 6] =
    ["--set", "cache_mode=writeback", "--set", "writeback_running=0", "--set", "sequential_cutoff=0"];

/// What the kernel does first: it takes the set, and what is dirty stays dirty.
const TAKE: &str = "load_bcache\n\
    register /dev/vda /dev/vdb\n\
    readable() { head -c 4096 /dev/bcache0 > /dev/null 2>&1; }\n\
    await readable\n\
    echo 0 > /sys/block/bcache0/bcache/writeback_running\n\
    echo 0 > /sys/block/bcache0/bcache/sequential_cutoff\n\
    echo writeback > /sys/block/bcache0/bcache/cache_mode\n";

/// Ends the machine as a loss of power does, but for what disks have in their caches.
const RESET: &str = "touch /share/came; sync /share/came; echo b > /proc/sysrq-trigger; sleep 60";

/// A set whose content both sides change.
struct Shared {
    dir: tempfile::TempDir,
    cache: PathBuf,
    backing: PathBuf,
}

impl Shared {
    fn new() -> Shared {
        let dir = paths::scratch().unwrap();
        let (cache, backing) = (dir.path().join("cache"), dir.path().join("backing"));
        sparse::create(&cache, CACHE_MIB << 20).unwrap();
        sparse::create(&backing, BACKING_MIB << 20).unwrap();
        let made = run(Command::new(paths::program("make-bcache").unwrap())
            .args(["--writeback", "-b", "64k", "-C"])
            .arg(&cache)
            .arg("-B")
            .arg(&backing))
        .unwrap();
        assert_eq!(made.code, 0, "{}", made.stderr);
        Shared { dir, cache, backing }
    }

    fn machine(&self) -> Machine {
        Machine::new("6.12").disk(&self.cache).disk(&self.backing).share(self.dir.path())
    }

    /// The kernel takes the set, and `work` is done to /dev/bcache0. Answers what the job printed.
    fn in_kernel(&self, work: &str) -> String {
        let stamp = paths::program("stamp").unwrap();
        let script = format!("{TAKE}stamp={}\n{work}\n", stamp.display());
        let _ = std::fs::remove_file(self.dir.path().join("came"));
        let finished = self.machine().run(&script).unwrap();
        let all = || format!("{}\n{}\n{}", finished.status, finished.output, finished.console);
        // A machine that died of something else than its reset did not come so far.
        let reset = self.dir.path().join("came").exists();
        assert!(finished.status == 0 || (reset && finished.status == DIED), "{}", all());
        finished.output
    }

    fn serve(&self) -> Served {
        Served::start(self.dir.path(), &DIRTY, &[&self.cache, &self.backing]).unwrap()
    }

    fn is_dirty(&self) -> bool {
        let said =
            run(Command::new(paths::program("bcache-super-show").unwrap()).arg(&self.backing)).unwrap();
        said.stdout.contains("[dirty]")
    }
}

fn hash(client: &mut Client) -> String {
    sparse::sha256(client.content()).unwrap().0
}

/// Writes a load through the engine, with a flush at the end.
fn write(client: &mut Client, round: u64) {
    for i in 0..400 {
        let block = (i * 7919 + round * 104_729) % (SECTORS / 8);
        let byte = (i + round * 31) as u8;
        client.write(block * 4096, &[byte; 4096], false).unwrap();
    }
    client.flush().unwrap();
}

/// The hash that the kernel's job left.
fn kernel_hash(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("hash")).unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

/// In the machine: check, write, make durable, say what is there now.
fn turn(expect: Option<&str>, round: u64, end: &str) -> String {
    let check = expect.map_or(String::new(), |hash| {
        format!("[[ $(sha256sum < /dev/bcache0) == '{hash}  -' ]] || {{ echo 'other content'; exit 3; }}\n")
    });
    format!(
        "{check}$stamp write /dev/bcache0 8 {SECTORS} 500 {} rand 0\n\
        sync\n\
        [[ $(cat /sys/block/bcache0/bcache/dirty_data) != 0 ]]\n\
        sha256sum < /dev/bcache0 > /share/hash.new\n\
        sync /share/hash.new; mv /share/hash.new /share/hash; sync\n\
        no_kernel_complaints\n\
        {end}",
        round + 1
    )
}

#[test]
#[ignore = "boots a kernel"]
fn by_clean_stops() {
    let shared = Shared::new();
    let mut expect = None;
    for round in 0..3 {
        shared.in_kernel(&turn(expect.as_deref(), round, "stop_bcache"));
        let served = shared.serve();
        let mut client = served.client("").unwrap();
        assert_eq!(hash(&mut client), kernel_hash(shared.dir.path()), "round {round}: engine after kernel");
        write(&mut client, round);
        expect = Some(hash(&mut client));
        drop(client);
        assert!(served.stop().unwrap().0.success());
        assert!(shared.is_dirty());
    }
    shared.in_kernel(&turn(expect.as_deref(), 3, "stop_bcache"));
}

#[test]
#[ignore = "boots a kernel"]
fn by_crashes() {
    let shared = Shared::new();
    let mut expect = None;
    for round in 0..3 {
        shared.in_kernel(&turn(expect.as_deref(), round, RESET));
        let served = shared.serve();
        let mut client = served.client("").unwrap();
        assert_eq!(hash(&mut client), kernel_hash(shared.dir.path()), "round {round}: engine after reset");
        write(&mut client, round);
        expect = Some(hash(&mut client));
        drop(client);
        served.kill().unwrap();
        assert!(shared.is_dirty());
    }
    shared.in_kernel(&turn(expect.as_deref(), 3, "stop_bcache"));
}

/// The machine is reset in the middle of writes that are flushed every 16: the engine finds each flushed one.
#[test]
#[ignore = "boots a kernel"]
fn in_the_middle_of_writes() {
    let shared = Shared::new();
    let load = Load { block_sectors: 8, range_sectors: SECTORS, count: 100_000, seed: 5, mode: Mode::Rand };
    shared.in_kernel(&format!(
        "$stamp write /dev/bcache0 8 {SECTORS} {} {} rand 16 /share/ack &\n\
        await eval '[[ -s /share/ack && $(cat /share/ack) > 00000000000000001000 ]]'\n\
        {RESET}",
        load.count, load.seed
    ));
    let acked: u64 = std::fs::read_to_string(shared.dir.path().join("ack")).unwrap().trim().parse().unwrap();
    let served = shared.serve();
    let mut client = served.client("").unwrap();
    let report = load.check(client.content(), acked).unwrap();
    assert_eq!(report.bad, 0, "{acked} were acknowledged\n{report}");
    drop(client);
    served.kill().unwrap();
    // And the kernel reads after the engine what the engine read.
    let file = File::open(&shared.cache).unwrap();
    file.sync_all().unwrap();
    let checked = shared.in_kernel(&format!(
        "$stamp check /dev/bcache0 8 {SECTORS} {} {} rand {acked}\nno_kernel_complaints\nstop_bcache",
        load.count, load.seed
    ));
    assert!(checked.contains("bad 0 "), "{checked}");
}
