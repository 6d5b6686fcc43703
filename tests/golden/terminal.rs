//! The checker as people, boot and fsck(8) start it: at a terminal, without one, under its other name, told to report
//! its progress, interrupted.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bcache_tests::golden::Set;
use bcache_tests::paths;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::fsck::{code, fsck, prints, write};

/// Devices of a set whose cache has a wrong superblock checksum: repaired without loss.
fn harmed() -> (TempDir, Vec<PathBuf>) {
    let (dir, devices) = whole("wb-dirty");
    write(&devices[0], 4096, &[7; 8]);
    (dir, devices)
}

/// Devices of a set that has lost a leaf: repaired with the loss of what was in it.
fn robbed() -> (TempDir, Vec<PathBuf>) {
    let (dir, devices) = whole("deep-btree");
    write(&devices[0], 952 * (16 << 10) + 64, b"rot");
    (dir, devices)
}

fn whole(set: &str) -> (TempDir, Vec<PathBuf>) {
    let dir = paths::scratch().unwrap();
    let mut devices = Set::open(set).unwrap().copy_to(dir.path()).unwrap();
    devices.sort_by_key(|path| !path.ends_with("cache.img"));
    (dir, devices)
}

/// What a person does when asked.
#[derive(Clone, Copy)]
enum Answer {
    Types(&'static [u8]),
    Interrupts,
}

/// Runs the checker on a terminal. Tells its exit code and what the terminal showed.
fn at_terminal(args: &[&str], devices: &[PathBuf], answer: Answer) -> (i32, String) {
    let pty = openpty(None, None).unwrap();
    let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    let mut child = Command::new(paths::program("bcache-fsck").unwrap())
        .args(args)
        .args(devices)
        .env("TERM", "xterm")
        .stdin(end(&pty.slave))
        .stdout(end(&pty.slave))
        .stderr(end(&pty.slave))
        .spawn()
        .unwrap();
    drop(pty.slave);
    let mut terminal = File::from(pty.master);
    let (mut shown, mut bytes, mut answered) = (Vec::new(), [0; 4096], false);
    // The last process that leaves a terminal makes reading it an error.
    while let Ok(count) = terminal.read(&mut bytes) {
        shown.extend_from_slice(&bytes[..count]);
        if !answered && shown.ends_with(b"[y/N] ") {
            answered = true;
            match answer {
                Answer::Types(text) => terminal.write_all(text).unwrap(),
                Answer::Interrupts => kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap(),
            }
        }
    }
    (child.wait().unwrap().code().unwrap(), String::from_utf8(shown).unwrap())
}

#[test]
fn at_a_terminal_it_asks_and_does_what_is_answered() {
    for (answer, exit) in [
        (Answer::Types(b"n\n"), 36),
        (Answer::Types(b"\n"), 36),
        (Answer::Types(b"sure\n"), 36),
        (Answer::Types(b"\x04"), 36),
        (Answer::Interrupts, 32),
    ] {
        let (dir, devices) = robbed();
        let before = prints(&devices);
        let undo = dir.path().join("undo");
        let (code, shown) = at_terminal(&["--undo", undo.to_str().unwrap()], &devices, answer);
        assert_eq!(code, exit, "{shown}");
        assert!(shown.contains("bset-checksum") && shown.contains("lost"), "{shown}");
        assert_eq!(before, prints(&devices));
        assert!(!undo.exists());
    }
    for yes in [&b"y\n"[..], b"Y\n", b"yes\n"] {
        let (dir, devices) = harmed();
        let undo = dir.path().join("undo");
        let (code, shown) = at_terminal(&["--undo", undo.to_str().unwrap()], &devices, Answer::Types(yes));
        assert_eq!(code, 1, "{shown}");
        assert_eq!(undo.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(super::fsck::code(&fsck(&["-n"], &devices)), 0);
    }
}

#[test]
fn at_a_terminal_it_asks_nothing_when_told_what_to_do_or_when_nothing_is_wrong() {
    let none = Answer::Types(b"");
    let (_dir, devices) = whole("wb-dirty");
    let (code, shown) = at_terminal(&[], &devices, none);
    assert_eq!((code, shown.contains("[y/N]")), (0, false), "{shown}");
    let (_dir, devices) = robbed();
    for (args, exit) in [(&["-n"][..], 4), (&["-p"], 4), (&["--json"], 4), (&["-y", "--dry-run"], 4)] {
        let before = prints(&devices);
        let (code, shown) = at_terminal(args, &devices, none);
        assert_eq!((code, shown.contains("[y/N]")), (exit, false), "{args:?}: {shown}");
        assert_eq!(before, prints(&devices));
    }
    // What the check does is on the screen, in words and as a bar.
    let (_, shown) = at_terminal(&["-n"], &devices, none);
    assert!(shown.contains("superblock") && shown.contains('%'), "{shown}");
}

#[test]
fn without_a_terminal_only_options_make_it_write() {
    for (devices, args, exit) in [
        (harmed as fn() -> _, &[][..], 4),
        (harmed, &["-n"], 4),
        (harmed, &["-p"], 1),
        (harmed, &["-a"], 1),
        (harmed, &["-y"], 1),
        (harmed, &["-f", "-p"], 1),
        (robbed, &[], 4),
        (robbed, &["-n"], 4),
        (robbed, &["-p"], 4),
        (robbed, &["-y"], 1),
    ] {
        let (dir, devices) = devices();
        let before = prints(&devices);
        let undo = dir.path().join("undo");
        let output = fsck(&[args, &["--undo", undo.to_str().unwrap()]].concat(), &devices);
        assert_eq!(code(&output), exit, "{args:?}: {output:?}");
        assert_eq!(before == prints(&devices), exit == 4, "{args:?}");
        assert_eq!(undo.exists(), exit == 1, "{args:?}");
        assert_eq!(code(&fsck(&["-n"], &devices)), if exit == 1 { 0 } else { 4 }, "{args:?}");
    }
}

/// The undo file that a repair names when nobody has said where it should be.
#[test]
fn a_repair_keeps_what_it_overwrites_and_says_where() {
    let (dir, devices) = harmed();
    let harm = prints(&devices);
    let run = |args: &[&str]| {
        let mut command = Command::new(paths::program("bcache-fsck").unwrap());
        command.current_dir(dir.path()).args(args).args(&devices).output().unwrap()
    };
    let undo = |file: &str| {
        assert!(file.contains("bcache-undo-"), "{file}");
        let file = dir.path().join(file);
        let mut command = Command::new(paths::program("bcache").unwrap());
        assert!(command.arg("undo").arg(&file).status().unwrap().success());
        assert_eq!(harm, prints(&devices));
        // Beside the log where that may be written, else where the person is.
        assert!(file.parent() == Some(Path::new("/var/log")) || file.parent() == Some(dir.path()));
        std::fs::remove_file(file).unwrap();
    };
    let output = run(&["-p"]);
    assert_eq!(code(&output), 1, "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let file = text.split("what was overwritten is in ").nth(1).unwrap().split(';').next().unwrap();
    undo(file);
    let output = run(&["-y", "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let values = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let kept: Vec<_> = values.filter(|value| value["kind"] == "undo").collect();
    undo(kept[0]["file"].as_str().unwrap());
}

#[test]
fn an_undo_file_that_exists_or_cannot_be_made_stops_the_repair() {
    let (dir, devices) = harmed();
    let before = prints(&devices);
    let there = dir.path().join("there");
    std::fs::write(&there, "mine").unwrap();
    for path in [&there, &dir.path().join("no/such/directory")] {
        let output = fsck(&["-y", "--undo", path.to_str().unwrap()], &devices);
        assert_eq!(code(&output), 8, "{output:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains(path.to_str().unwrap()));
        assert_eq!(before, prints(&devices));
    }
    assert_eq!(std::fs::read(there).unwrap(), b"mine");
}

#[test]
fn progress_goes_to_the_descriptor_that_was_named() {
    let (dir, devices) = whole("deep-btree");
    let told = dir.path().join("progress");
    let program = paths::program("bcache-fsck").unwrap();
    let shell = |line: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", line]).arg(&program).args(&devices).env("TOLD", &told).output().unwrap()
    };
    // What is in the file already stays, and what comes after is behind it.
    let output = shell(r#"exec 9> "$TOLD"; echo before >&9; "$0" -n -C 9 "$@"; echo "after $?" >&9"#);
    assert_eq!(output.stderr, b"");
    let text = std::fs::read_to_string(&told).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.first(), lines.last()), (Some(&"before"), Some(&"after 0")));
    let progress: Vec<Vec<u64>> = lines[1..lines.len() - 1]
        .iter()
        .map(|line| {
            let (numbers, device) = line.rsplit_once(' ').unwrap();
            assert_eq!(device, devices[0].to_str().unwrap());
            numbers.split(' ').map(|number| number.parse().unwrap()).collect()
        })
        .collect();
    assert!(progress.is_sorted_by_key(|line| (line[0], line[1])), "{text}");
    assert!(progress.iter().all(|line| (1..=8).contains(&line[0]) && line[1] <= line[2]), "{text}");
    assert_eq!(progress.last().unwrap()[..], [8, 1, 1]);
    assert!(progress.len() >= 8, "{text}");
    // A pipe whose reader has gone does not matter to the check, a descriptor that is not there does.
    let output = shell(r#""$0" -n -C 9 "$@" 9>&1 >&2 | true"#);
    assert!(String::from_utf8_lossy(&output.stderr).contains("clean"), "{output:?}");
    let output = shell(r#""$0" -n -C 9 "$@""#);
    assert_eq!(code(&output), 8);
    assert!(String::from_utf8(output.stderr).unwrap().contains("-C 9"));
    // To fsck(8) 0 is the bar, of which there is none without a terminal.
    let output = shell(r#""$0" -n -C 0 "$@" 2>&1"#);
    assert_eq!((code(&output), String::from_utf8(output.stdout).unwrap().lines().count()), (0, 1));
}

#[test]
fn fsck_finds_it_as_the_checker_of_bcache() {
    let (dir, devices) = harmed();
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    symlink(paths::program("bcache-fsck").unwrap(), bin.join("fsck.bcache")).unwrap();
    let path = std::env::join_paths([bin.clone(), "/sbin".into(), "/usr/sbin".into()]).unwrap();
    let alone = Command::new(bin.join("fsck.bcache")).arg("-n").args(&devices).output().unwrap();
    assert_eq!(code(&alone), 4);
    let alone = Command::new(bin.join("fsck.bcache")).arg("--nonsense").output().unwrap();
    assert_eq!(code(&alone), 16);
    // As boot does: the cache alone, by its type, with -a.
    let front = |option: &str| {
        let mut command = Command::new("fsck");
        command.env("PATH", &path).args(["-t", "bcache", option]).arg(&devices[0]).current_dir(dir.path());
        command.output().unwrap()
    };
    for (option, exit) in [("-n", 4), ("-a", 1), ("-n", 0)] {
        let output = front(option);
        assert_eq!(code(&output), exit, "{option}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some(kept) = text.split("what was overwritten is in ").nth(1) {
            std::fs::remove_file(dir.path().join(kept.split(';').next().unwrap())).unwrap();
        }
    }
}
