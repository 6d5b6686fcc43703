//! The Debian package in a fresh Debian: what is in it, and that the README's own commands lead to a mounted device.

mod boot;
mod service;

use std::fs;
use std::process::Command;

use bcache_tests::package::{installing, make};
use bcache_tests::vm::{self, Machine};
use bcache_tests::{cmd, paths, sparse};

/// Names of files, without `.gz`, in a directory of the package.
fn names(list: &str, dir: &str) -> Vec<String> {
    let name = |line: &str| line.split(&format!(" ./{dir}/")).nth(1)?.split(' ').next().map(str::to_owned);
    let mut names: Vec<String> = list.lines().filter_map(name).collect();
    names.retain(|name| !name.is_empty());
    names.iter_mut().for_each(|name| *name = name.trim_end_matches(".gz").to_owned());
    names.sort();
    names
}

/// Files in a directory of the repository, by the ends of their names.
fn files(dir: &str, end: &str) -> Vec<String> {
    let entries = fs::read_dir(paths::repository().join(dir)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.ends_with(end));
    names.sort();
    names
}

#[test]
#[ignore = "makes a package, with cargo-deb"]
fn the_package_has_all_that_there_is() {
    let dir = paths::scratch().unwrap();
    let package = make(dir.path()).unwrap();
    let said = cmd::run(Command::new("dpkg-deb").arg("--contents").arg(&package)).unwrap();
    let list = said.stdout;
    let mut programs = files("tools/src/bin", ".rs");
    programs.iter_mut().for_each(|name| *name = name.trim_end_matches(".rs").to_owned());
    programs.push("fsck.bcache".to_owned());
    programs.sort();
    assert_eq!(names(&list, "usr/sbin"), programs);
    for section in ["5", "7", "8"] {
        let pages = files("man", &format!(".{section}"));
        assert!(!pages.is_empty());
        assert_eq!(names(&list, &format!("usr/share/man/man{section}")), pages);
    }
    for (shell, dir) in [
        ("bash", "usr/share/bash-completion/completions"),
        ("zsh", "usr/share/zsh/vendor-completions"),
        ("fish", "usr/share/fish/vendor_completions.d"),
    ] {
        assert_eq!(names(&list, dir), files(&format!("completions/{shell}"), ""));
    }
    assert_eq!(
        names(&list, "usr/share/doc/ubcache"),
        ["README.md", "changelog", "changelog.Debian", "copyright"]
    );
    for file in [
        "usr/lib/udev/rules.d/69-bcache.rules",
        "usr/lib/udev/bcache-register",
        "usr/lib/udev/probe-bcache",
        "usr/lib/systemd/system/bcache.target",
        "usr/lib/initcpio/install/bcache",
        "usr/lib/systemd/system/bcache@.service",
        "usr/lib/systemd/system-shutdown/bcache",
        "usr/share/initramfs-tools/hooks/bcache",
        "usr/lib/dracut/modules.d/90bcache/module-setup.sh",
    ] {
        assert!(list.contains(&format!(" ./{file}\n")), "{file} is missing");
    }
    let said = cmd::run(Command::new("dpkg-deb").arg("--field").arg(&package)).unwrap();
    for field in ["Conflicts: bcache-tools", "Replaces: bcache-tools", "Provides: bcache-tools (= 1.1)"] {
        assert!(said.stdout.contains(field), "{}", said.stdout);
    }
}

/// Lines of a script that tell each command before it runs. Devices are what the machine has.
fn told(commands: &[String]) -> String {
    let tell = |command: &String| match command.split_once(" BACKING=") {
        Some(_) => "CACHE=/dev/vda BACKING=/dev/vdb\n".to_owned(),
        None => format!("echo '# {}'\n{command}\n", command.replace('\'', "")),
    };
    commands.iter().map(tell).collect()
}

#[test]
#[ignore = "boots a kernel"]
fn the_readme_leads_from_a_fresh_debian_to_a_device_that_is_mounted_at_every_start() {
    let dir = paths::scratch().unwrap();
    let share = dir.path().join("share");
    fs::create_dir(&share).unwrap();
    let package = make(dir.path()).unwrap();
    fs::copy(&package, share.join(package.file_name().unwrap())).unwrap();
    let root = dir.path().join("root");
    sparse::copy(&vm::fresh_debian().unwrap().join("root.ext4"), &root).unwrap();
    let [_, install, using] = installing().unwrap();
    let scripts = paths::repository().join("tests/kernel/system");
    let script = |name: &str| fs::read_to_string(scripts.join(name)).unwrap();
    let machine = Machine::new("6.12").root_kept(&root).share(&share);
    let machine = machine.new_disks(dir.path(), &[("cache", 300), ("backing", 200)]).unwrap();
    let first = format!("{}{}{}", told(&install), told(&using), script("installed.sh"));
    println!("{}", machine.succeed(&first).unwrap());
    // Shutting down ended the set in order.
    let [cache, backing] = ["cache", "backing"].map(|name| dir.path().join(name));
    let said = cmd::ours("bcache", ["doctor".as_ref(), cache.as_os_str(), backing.as_os_str()]).unwrap();
    assert!(said.stdout.contains("  journal: 1 entries to replay,"), "{said:?}");
    println!("{}", machine.succeed(&script("restarted.sh")).unwrap());
}
