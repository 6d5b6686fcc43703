//! The installed package at work: udev finds parts, systemd runs engines.

use std::fs;
use std::process::Command;

use bcache_tests::package::make;
use bcache_tests::vm::{self, Machine};
use bcache_tests::{cmd, paths};

/// Runs a script of `package/` with an argument, in a Debian that has the package, with a cache and a backing device.
fn run(script: &str, argument: u32, seconds: u32) {
    let dir = paths::scratch().unwrap();
    let here = paths::repository().join("tests/kernel");
    let (package, fresh, kernel) =
        (make(dir.path()).unwrap(), vm::fresh_debian().unwrap(), vm::kernel("6.12").unwrap());
    let mut root = Command::new(here.join("package/make_root"));
    root.args([&package, &fresh, &kernel]).arg(dir.path()).arg("--root-only");
    cmd::done(&mut root).unwrap();
    let machine = Machine::new("6.12").root(&dir.path().join("root.ext4")).seconds(seconds);
    let machine = machine.new_disks(dir.path(), &[("cache", 300), ("backing", 200)]).unwrap();
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
