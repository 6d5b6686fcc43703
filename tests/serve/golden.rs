//! The golden sets, served.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bcache_format::superblock::{SB_BYTES, SB_OFFSET, Superblock};
use bcache_tests::golden::{Content, Set};
use bcache_tests::nbd::Served;
use bcache_tests::{paths, sparse};

/// The name that `content` is served under: a backing device's is its UUID.
fn export(devices: &[PathBuf], content: &Content) -> String {
    if let Some(number) = content.of.strip_prefix("flash volume ") {
        return format!("volume:{number}");
    }
    let is_it = |path: &&PathBuf| path.file_name().is_some_and(|name| *name == *content.of);
    let path = devices.iter().find(is_it).expect("the set has the device");
    let mut bytes = vec![0; SB_BYTES];
    File::open(path).expect("the device").read_exact_at(&mut bytes, SB_OFFSET).expect("its superblock");
    Superblock::parse(&bytes).expect("a superblock").uuid.to_string()
}

fn check(dir: &Path, options: &[&str], set: &Set, devices: &[PathBuf]) {
    let served = Served::start(dir, options, devices).unwrap_or_else(|error| panic!("{}: {error}", set.name));
    for content in &set.entry.content {
        let mut client = served.client(&export(devices, content)).expect("the export is there");
        let expect = (content.sha256.clone(), content.bytes);
        let found = sparse::sha256(client.content()).expect("a hash");
        assert_eq!(found, expect, "{} {}", set.name, content.of);
    }
    assert!(served.stop().expect("it stops").0.success(), "{}", set.name);
}

#[test]
fn read_only_every_set_reads_as_linux_showed_it_and_nothing_is_written() {
    let dir = paths::scratch().unwrap();
    for set in Set::all().unwrap() {
        let prints = || set.paths().iter().map(|path| sparse::fingerprint(path).unwrap()).collect::<Vec<_>>();
        let before = prints();
        check(dir.path(), &["--read-only"], &set, &set.paths());
        assert_eq!(before, prints(), "{}: a device was changed", set.name);
    }
}

#[test]
fn the_engine_recovers_every_set_to_what_linux_showed() {
    for set in Set::all().unwrap() {
        let dir = paths::scratch().unwrap();
        let devices = set.copy_to(dir.path()).unwrap();
        check(dir.path(), &[], &set, &devices);
        // What the engine left behind reads the same without it, and with it a second time.
        check(dir.path(), &["--read-only"], &set, &devices);
        check(dir.path(), &["--set", "cache_mode=none"], &set, &devices);
    }
}
