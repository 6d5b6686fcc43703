//! A root file system on a cached device, reached through the package's hooks.

use std::fs;
use std::path::Path;
use std::process::Command;

use bcache_tests::nbd::Served;
use bcache_tests::package::make;
use bcache_tests::vm::{self, Machine};
use bcache_tests::{cmd, paths, sparse};

fn done(command: &mut Command) {
    cmd::done(command).unwrap();
}

/// Makes a cached device of `dir/cache` and `dir/backing`, and copies a file system to it. Most of it is in the cache alone,
/// so that nothing else than the cached device is a root file system.
fn fill(dir: &Path, image: &Path, mode: &str) {
    let (cache, backing) = (dir.join("cache"), dir.join("backing"));
    sparse::create(&cache, 600 << 20).unwrap();
    sparse::create(&backing, 401 << 20).unwrap();
    let mut make = Command::new(paths::program("make-bcache").unwrap());
    done(make.args(["-l", "system", "-C"]).arg(&cache).arg("-B").arg(&backing));
    let mode = format!("cache_mode={mode}");
    let options = ["--set", &mode, "--set", "sequential_cutoff=0", "--set", "writeback_running=0"];
    let served = Served::start(dir, &options, &[&cache, &backing]).unwrap();
    done(Command::new("nbdcopy").arg("--flush").arg(image).arg(served.uri()));
    assert!(served.stop().unwrap().0.success());
}

#[test]
#[ignore = "boots a kernel"]
fn a_root_file_system_is_reached_through_initramfs_tools_and_through_dracut() {
    let dir = paths::scratch().unwrap();
    let package = make(dir.path()).unwrap();
    let here = paths::repository().join("tests/kernel/package");
    let (fresh, kernel) = (vm::fresh_debian().unwrap(), vm::kernel("6.12").unwrap());
    done(Command::new(here.join("make_root")).args([&package, &fresh, &kernel]).arg(dir.path()));
    let text = |path: &str| fs::read_to_string(here.join(path)).unwrap();
    let script = text("../system/lib.sh") + &text("booted.sh");
    for by in ["initramfs-tools", "dracut"] {
        fill(dir.path(), &dir.path().join("root.ext4"), "writeback");
        let (cache, backing) = (dir.path().join("cache"), dir.path().join("backing"));
        let line = "root=/dev/mapper/system rw systemd.show_status=false";
        let machine = Machine::new("6.12").disk(&cache).disk(&backing).boot(&dir.path().join(by), line);
        println!("{by}\n{}", machine.succeed(&script).unwrap());
        // Whatever state the set was left in, the file system was left in order.
        done(Command::new(paths::program("bcache").unwrap()).args(["fsck", "-n"]).args([&cache, &backing]));
        let whole = dir.path().join("whole");
        let export = ["export", "-o"];
        done(Command::new(paths::program("bcache").unwrap()).args(export).args([&whole, &backing, &cache]));
        done(Command::new("e2fsck").arg("-fn").arg(&whole));
        fs::remove_file(whole).unwrap();
        // The cache is pulled, and had nothing that the backing device has not: the machine starts without it.
        fill(dir.path(), &dir.path().join("root.ext4"), "writethrough");
        let machine = Machine::new("6.12").disk(&backing).boot(&dir.path().join(by), line);
        println!("{by}, without the cache\n{}", machine.succeed(&text("pulled.sh")).unwrap());
        let show =
            Command::new(paths::program("bcache").unwrap()).arg("show").arg(&backing).output().unwrap();
        assert!(String::from_utf8_lossy(&show.stdout).contains("[inconsistent]"));
    }
}
