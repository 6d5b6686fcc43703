//! Looking at golden sets with `bcache dump`, `map` and `doctor`.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bcache_tests::golden::Set;
use bcache_tests::{paths, sparse};
use serde_json::Value;

const DUMPS: [&str; 6] = ["super", "journal", "btree", "extents", "uuids", "prios"];

fn bcache(args: &[&str], devices: &[PathBuf]) -> (Option<i32>, String) {
    let mut command = Command::new(paths::program("bcache").unwrap());
    let output = command.args(args).args(devices).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn every_dump_of_every_cache_fits_the_terminal_and_changes_nothing() {
    for set in Set::all().unwrap() {
        let cache = [set.path("cache.img")];
        let before = sparse::fingerprint(&cache[0]).unwrap();
        for what in DUMPS {
            let (code, text) = bcache(&["dump", what], &cache);
            assert_eq!(code, Some(0), "{} {what}", set.name);
            assert!(!text.contains("\n!"), "{} {what}: {text}", set.name);
            let wide = text.lines().find(|line| line.chars().count() > 100);
            assert_eq!(wide, None, "{} {what}", set.name);
        }
        assert_eq!(before, sparse::fingerprint(&cache[0]).unwrap(), "{}", set.name);
    }
}

#[test]
fn json_is_one_object_a_line_with_its_kind() {
    let set = Set::open("two-backing-flash").unwrap();
    for what in DUMPS {
        let (code, text) = bcache(&["dump", what, "--json"], &[set.path("cache.img")]);
        assert_eq!(code, Some(0));
        assert!(!text.is_empty());
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            assert!(value["kind"].is_string(), "{line}");
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let set = Set::open("deep-btree").unwrap();
    let mut command = Command::new(paths::program("bcache").unwrap());
    command.args(["dump", "extents"]).arg(set.path("cache.img"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut start = [0; 64];
    child.stdout.take().unwrap().read_exact(&mut start).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn what_is_damaged_is_named_and_the_rest_printed() {
    let dir = paths::scratch().unwrap();
    let devices = Set::open("two-backing-flash").unwrap().copy_to(dir.path()).unwrap();
    let cache = devices.iter().find(|path| path.ends_with("cache.img")).unwrap();
    let (_, whole) = bcache(&["dump", "btree"], std::slice::from_ref(cache));
    assert_eq!(whole.matches("leaf").count(), 2);
    // The first leaf is in bucket 10 of 64 KiB.
    let file = std::fs::File::options().write(true).open(cache).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"gone", 10 * (64 << 10) + 16).unwrap();
    let (code, text) = bcache(&["dump", "btree"], std::slice::from_ref(cache));
    assert_eq!(code, Some(1));
    assert!(text.contains("\n! ") && text.contains("at byte 655360"), "{text}");
    assert!(text.contains("1221 extents"), "{text}");
}

#[test]
fn a_sector_is_found_where_its_extent_says() {
    let set = Set::open("wb-dirty").unwrap();
    let (_, text) = bcache(&["dump", "extents", "--json"], &[set.path("cache.img")]);
    let extents: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for extent in [&extents[0], &extents[extents.len() / 2], &extents[extents.len() - 1]] {
        let sector = extent["start"].as_u64().unwrap() - 16 + extent["sectors"].as_u64().unwrap() - 1;
        let (code, text) = bcache(&["map", "--json", &sector.to_string()], &set.paths());
        assert_eq!(code, Some(0));
        let found: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(found["in"], "cache");
        assert_eq!(found["dirty"], extent["dirty"]);
        let last = extent["sector"].as_u64().unwrap() + extent["sectors"].as_u64().unwrap() - 1;
        assert_eq!(found["byte"].as_u64().unwrap(), last * 512);
        assert_eq!(found["key"]["sectors"], extent["sectors"]);
    }
    let (code, text) = bcache(&["map", "2048"], &set.paths());
    assert_eq!(code, Some(0));
    assert!(text.contains("is not in the cache") && text.contains("sector 2064"), "{text}");
}

#[test]
fn the_doctor_knows_who_may_be_used_alone() {
    let doctor = |set: &str, files: &[&str]| {
        let set = Set::open(set).unwrap();
        let files: Vec<_> = files.iter().map(|file| set.path(file)).collect();
        bcache(&["doctor"], &files)
    };
    let (code, text) = doctor("wb-dirty", &["backing.img", "cache.img"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("NOT safe alone") && text.contains("next: bcache export"), "{text}");
    let (code, text) = doctor("wb-dirty", &["backing.img"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("Do NOT use it alone"), "{text}");
    let (code, text) = doctor("detached-fifo", &["backing.img", "cache.img"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("safe to use alone"), "{text}");
    let (code, text) = doctor("fresh", &["cache.img"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("never been used"), "{text}");
}
