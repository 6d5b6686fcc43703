//! The installed package at work: udev finds parts, systemd runs engines.

use std::fs;
use std::path::Path;
use std::process::Command;

use bcache_tests::package::make;
use bcache_tests::vm::{self, Machine};
use bcache_tests::{cmd, paths};

/// Runs a script of `package/` with an argument, in a Debian that has the package, with a cache and a backing device.
fn run(script: &str, argument: u32, seconds: u32) {
    run_in(&vm::fresh_debian().unwrap(), &[("cache", 300), ("backing", 200)], script, argument, seconds);
}

/// The same in that Debian, with disks of so many MiB.
fn run_in(debian: &Path, disks: &[(&str, u64)], script: &str, argument: u32, seconds: u32) {
    let dir = paths::scratch().unwrap();
    let here = paths::repository().join("tests/kernel");
    let (package, kernel) = (make(dir.path()).unwrap(), vm::kernel("6.12").unwrap());
    let mut root = Command::new(here.join("package/make_root"));
    root.args([&package, debian, &kernel]).arg(dir.path()).arg("--root-only");
    cmd::done(&mut root).unwrap();
    let machine = Machine::new("6.12").root(&dir.path().join("root.ext4")).seconds(seconds);
    let machine = machine.new_disks(dir.path(), disks).unwrap();
    let text = |path: &str| fs::read_to_string(here.join(path)).unwrap();
    let job = format!("{}\nset -- {argument}\n{}", text("system/lib.sh"), text(&format!("package/{script}")));
    println!("{}", machine.succeed(&job).unwrap());
}

#[test]
#[ignore = "boots a kernel"]
fn parts_appear_to_udev_in_any_order() {
    run("udev.sh", 1, 300);
}

#[test]
#[ignore = "boots a kernel"]
fn systemd_keeps_an_engine_alive_and_ends_it() {
    run("systemd.sh", 1, 300);
}

#[test]
#[ignore = "boots a kernel"]
fn whatever_people_put_on_a_device_or_below_it_finds_one() {
    let disks = [("cache", 600), ("one", 400), ("two", 400), ("low", 300)];
    run_in(&vm::debian_to_stack().unwrap(), &disks, "stack.sh", 1, 900);
}

mod long {
    #[test]
    #[ignore = "boots a kernel, takes minutes"]
    fn parts_appear_to_udev_twenty_times_in_each_order() {
        super::run("udev.sh", 20, 2400);
    }

    #[test]
    #[ignore = "boots a kernel, takes minutes"]
    fn systemd_starts_an_engine_that_is_killed_twenty_times() {
        super::run("systemd.sh", 20, 600);
    }
}
