//! A root file system on a cached device, reached through the package's hooks.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use bcache_tests::vm::{self, Machine};
use bcache_tests::{cmd, paths, sparse};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::make;

fn done(command: &mut Command) -> String {
    let said = cmd::run(command).unwrap();
    assert_eq!(said.code, 0, "{command:?}: {said:?}");
    said.stdout
}

/// Ends `bcache serve` in order.
fn end(mut serving: Child) {
    kill(Pid::from_raw(serving.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(serving.wait().unwrap().success());
}

/// Makes a cached device of `dir/cache` and `dir/backing`, and copies a file system to it. Most of it is in the cache alone,
/// so that nothing else than the cached device is a root file system.
fn fill(dir: &Path, image: &Path) {
    let (cache, backing, socket) = (dir.join("cache"), dir.join("backing"), dir.join("socket"));
    sparse::create(&cache, 600 << 20).unwrap();
    sparse::create(&backing, 401 << 20).unwrap();
    let program = |name| Command::new(paths::program(name).unwrap());
    done(
        program("make-bcache")
            .args(["--writeback", "-l", "system", "-C"])
            .arg(&cache)
            .arg("-B")
            .arg(&backing),
    );
    let serving = program("bcache")
        .args(["serve", "--set", "sequential_cutoff=0", "--set", "writeback_running=0", "--nbd"])
        .args([&socket, &cache, &backing])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..100 {
        if socket.exists() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    done(Command::new("nbdcopy").arg("--flush").arg(image).arg(uri));
    end(serving);
}

#[test]
#[ignore = "boots a kernel"]
fn a_root_file_system_is_reached_through_initramfs_tools_and_through_dracut() {
    let dir = paths::scratch().unwrap();
    let package = make(dir.path());
    let here = paths::repository().join("tests/kernel/package");
    let (fresh, kernel) = (vm::fresh_debian().unwrap(), vm::kernel("6.12").unwrap());
    done(Command::new(here.join("make_root")).args([&package, &fresh, &kernel]).arg(dir.path()));
    let script = fs::read_to_string(here.join("booted.sh")).unwrap();
    for by in ["initramfs-tools", "dracut"] {
        fill(dir.path(), &dir.path().join("root.ext4"));
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
    }
}
