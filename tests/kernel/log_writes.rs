//! Every write to the devices is logged by the kernel in the order in which it became durable. The devices are made as
//! they were at the moment when each flush was answered: what the flush promised must be there.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use bcache_tests::log_writes::Log;
use bcache_tests::nbd::Served;
use bcache_tests::stamp::{Load, Mode};
use bcache_tests::vm::Machine;
use bcache_tests::{cmd, paths, sparse};

use crate::system;

/// The cache, the backing device, and their logs, with their lengths in MiB.
const DISKS: [(&str, u64); 4] = [("cache", 160), ("backing", 64), ("cache.log", 1024), ("backing.log", 1024)];
/// Told to the script, too.
const LOAD: Load = Load { block_sectors: 8, range_sectors: 16_384, count: 640, seed: 11, mode: Mode::Rand };

/// What the kernel marks the end with.
const END: &str = "dm-log-writes-end";

#[test]
#[ignore = "boots a kernel"]
fn at_every_flush_what_it_promised_is_on_the_devices() {
    let dir = paths::scratch().unwrap();
    let image = |name: &str| dir.path().join(name);
    let machine = Machine::new("6.12").seconds(600).new_disks(dir.path(), &DISKS).unwrap();
    let mut make = Command::new(paths::program("make-bcache").unwrap());
    make.args(["--writeback", "-b", "64k", "-C"]).arg(image("cache")).arg("-B").arg(image("backing"));
    cmd::done(&mut make).unwrap();
    // What is on the devices before anything is logged.
    let replayed = ["cache.at", "backing.at"].map(image);
    for (name, at) in ["cache", "backing"].into_iter().zip(&replayed) {
        sparse::copy(&image(name), at).unwrap();
    }
    println!("{}", machine.succeed(&system::job("log_writes.sh", LOAD.count as u32)).unwrap());

    let targets = replayed.each_ref().map(|path| File::options().write(true).open(path).unwrap());
    let mut logs = ["cache.log", "backing.log"].map(|name| Log::open(&image(name)).unwrap());
    let mut flushes = 0;
    loop {
        let marks = [0, 1].map(|index| logs[index].replay(&targets[index]).unwrap());
        assert_eq!(marks[0], marks[1], "both devices are marked alike");
        let Some(mark) = marks[0].as_deref().filter(|&mark| mark != END) else { break };
        let acked: u64 = mark.parse().unwrap();
        exported(&replayed, acked);
        flushes += 1;
        if flushes % 8 == 0 {
            recovered(dir.path(), &replayed, acked);
        }
    }
    assert!(flushes >= 40, "{flushes} flushes only");
}

/// The content as the check's own view has it.
fn exported(devices: &[impl AsRef<Path>; 2], acked: u64) {
    let mut command = Command::new(paths::program("bcache").unwrap());
    command.args(["export", "-o", "-"]).args(devices.each_ref().map(AsRef::as_ref));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let report = LOAD.check(child.stdout.take().unwrap(), acked).unwrap();
    // What is after the load was not read.
    child.wait().unwrap();
    assert_eq!(report.bad, 0, "export, {acked} writes are durable\n{report}");
}

/// The content as an engine has it that starts from there.
fn recovered(dir: &Path, devices: &[impl AsRef<Path>; 2], acked: u64) {
    let copies = ["cache.copy", "backing.copy"].map(|name| dir.join(name));
    for (device, copy) in devices.iter().zip(&copies) {
        sparse::copy(device.as_ref(), copy).unwrap();
    }
    let served = Served::start(dir, &[], &copies).unwrap();
    let report = LOAD.check(served.client("").unwrap().content(), acked).unwrap();
    assert_eq!(report.bad, 0, "engine, {acked} writes are durable\n{report}");
    assert!(served.stop().unwrap().0.success());
}
