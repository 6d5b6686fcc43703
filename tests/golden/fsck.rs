//! The checker as a program: exit codes, the device's bytes, undo files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bcache_tests::golden::Set;
use bcache_tests::nbd::Served;
use bcache_tests::{paths, sparse};
use serde_json::Value;

use crate::rescue::bcache;

pub fn fsck(args: &[&str], devices: &[PathBuf]) -> Output {
    let mut command = Command::new(paths::program("bcache-fsck").unwrap());
    command.args(args).args(devices).output().unwrap()
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub fn prints(devices: &[PathBuf]) -> Vec<String> {
    devices.iter().map(|path| sparse::fingerprint(path).unwrap()).collect()
}

pub fn write(path: &Path, byte: u64, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, byte).unwrap();
}

/// The content's hash as `bcache export` reads it.
fn content(devices: &[PathBuf]) -> String {
    let mut command = Command::new(paths::program("bcache").unwrap());
    let output = command.args(["export", "-o", "-"]).args(devices).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    sparse::sha256(output.stdout.as_slice()).unwrap().0
}

#[test]
fn golden_sets_are_clean_and_stay_as_they_are() {
    for set in Set::all().unwrap() {
        let before = prints(&set.paths());
        for args in [&["-n"][..], &["-n", "--data"], &["-n", "--json"], &[]] {
            let output = fsck(args, &set.paths());
            assert_eq!(code(&output), 0, "{} {args:?}: {output:?}", set.name);
        }
        assert_eq!(before, prints(&set.paths()), "{}", set.name);
    }
}

/// A check of a set without all of its devices goes as far as it can, and says which were not there.
#[test]
fn devices_that_were_not_named_are() {
    let set = Set::open("two-backing-flash").unwrap();
    let paths = set.paths();
    let (cache, backings): (Vec<PathBuf>, Vec<PathBuf>) =
        paths.iter().cloned().partition(|path| path.ends_with("cache.img"));
    let said = |devices: &[PathBuf]| {
        let text = fsck(&["-n"], devices);
        assert_eq!(code(&text), 0, "{text:?}");
        let text = String::from_utf8(text.stdout).unwrap();
        let json = fsck(&["-n", "--json"], devices);
        let json = String::from_utf8(json.stdout).unwrap();
        let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let (summary, absent) = lines.split_last().unwrap();
        assert_eq!(summary["partial"], !absent.is_empty(), "{json}");
        assert_eq!(text.contains("as far as it was checked"), !absent.is_empty(), "{text}");
        assert_eq!(text.matches("partial:").count(), absent.len(), "{text}");
        absent.to_vec()
    };
    assert_eq!(said(&paths), [] as [Value; 0]);
    let alone = said(&cache);
    assert_eq!(alone.len(), 2, "{alone:?}");
    assert!(alone.iter().any(|absent| absent["dirty_sectors"].as_u64() > Some(0)), "{alone:?}");
    let mut rescued = 0;
    for (index, backing) in backings.iter().enumerate() {
        let with_one = said(&[cache[0].clone(), backing.clone()]);
        assert_eq!(with_one.len(), 1, "{with_one:?}");
        assert!(alone.contains(&with_one[0]), "{with_one:?} is not of {alone:?}");
        let without_cache = said(&backings[index..=index]);
        assert_eq!(without_cache.len(), 1, "{without_cache:?}");
        assert_eq!(without_cache[0]["role"], "cache");
        // What is rescued with one of them is rescued without the other.
        for (json, word) in [(true, "\"absent\""), (false, "partial:")] {
            let dir = paths::scratch().unwrap();
            let output = dir.path().join("image");
            let mut args = vec!["salvage", "-o", output.to_str().unwrap()];
            args.extend(json.then_some("--json"));
            let salvaged = bcache(&args, &[cache[0].clone(), backing.clone()]);
            if code(&salvaged) == 1 && salvaged.stdout.is_empty() {
                // It has nothing dirty.
                continue;
            }
            let text = String::from_utf8(salvaged.stdout).unwrap();
            assert_eq!(text.matches(word).count(), 1, "{text}");
            assert!(text.contains(with_one[0]["uuid"].as_str().unwrap()), "{text}");
            rescued += 1;
        }
    }
    assert!(rescued >= 2, "{rescued}");
    // A cache that was named and cannot be read is none of those that could be.
    let dir = paths::scratch().unwrap();
    let wiped = dir.path().join("wiped");
    sparse::copy(&cache[0], &wiped).unwrap();
    std::fs::OpenOptions::new().write(true).open(&wiped).unwrap().set_len(5000).unwrap();
    let output = fsck(&["-n", "--json"], &[wiped, backings[0].clone()]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let absent: Vec<&Value> = lines.iter().filter(|line| line["kind"] == "absent").collect();
    assert!(absent.len() == 1 && absent[0]["role"] == "cache", "{text}");
    assert_eq!(lines.last().unwrap()["partial"], true, "{text}");
    // What was detached is of no set any more.
    let set = Set::open("detached-fifo").unwrap();
    let cache: Vec<PathBuf> = set.paths().into_iter().filter(|path| path.ends_with("cache.img")).collect();
    assert_eq!(said(&cache).len(), said(&set.paths()).len());
}

#[test]
fn damage_is_found_repaired_and_undone() {
    let dir = paths::scratch().unwrap();
    let set = Set::open("wb-dirty").unwrap();
    let devices = set.copy_to(dir.path()).unwrap();
    let cache = devices.iter().find(|path| path.ends_with("cache.img")).unwrap().clone();
    let undo = dir.path().join("undo");
    let undo_arg = undo.to_str().unwrap();
    // The first prio set is in bucket 28 of 64 KiB; the superblock's checksum at byte 4096.
    write(&cache, 28 * (64 << 10) + 100, b"rot");
    write(&cache, 4096, &[7; 8]);
    let damaged = prints(&devices);

    for args in [&["-n"][..], &[], &["-n", "--json"], &["-y", "--dry-run"]] {
        let output = fsck(args, &devices);
        assert_eq!(code(&output), 4, "{args:?} {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("prio-checksum") && text.contains("superblock-checksum"), "{text}");
        assert_eq!(damaged, prints(&devices), "{args:?}");
    }
    let output = fsck(&["-p", "--undo", undo_arg], &devices);
    assert_eq!(code(&output), 1, "{output:?}");
    assert_eq!(code(&fsck(&["-n"], &devices)), 0);
    assert_eq!(content(&devices), set.entry.content[0].sha256);
    let repaired = prints(&devices);
    assert_eq!(code(&fsck(&["-y"], &devices)), 0, "a second run repairs again");
    assert_eq!(repaired, prints(&devices));

    let mut command = Command::new(paths::program("bcache").unwrap());
    assert!(command.arg("undo").arg(&undo).status().unwrap().success());
    assert_eq!(damaged, prints(&devices));
    // Once the set was used again, old bytes would destroy it.
    write(&cache, 28 * (64 << 10), b"used");
    write(&cache, 4096, b"used");
    let before = prints(&devices);
    let output = Command::new(paths::program("bcache").unwrap()).arg("undo").arg(&undo).output().unwrap();
    assert_eq!(code(&output), 8, "{output:?}");
    assert_eq!(before, prints(&devices));
}

#[test]
fn preen_leaves_what_costs_something_and_yes_tells_it() {
    let dir = paths::scratch().unwrap();
    let devices = Set::open("deep-btree").unwrap().copy_to(dir.path()).unwrap();
    let cache = devices.iter().find(|path| path.ends_with("cache.img")).unwrap().clone();
    // A leaf is in bucket 952 of 16 KiB.
    write(&cache, 952 * (16 << 10) + 64, b"rot");
    let damaged = prints(&devices);
    assert_eq!(code(&fsck(&["-p"], &devices)), 4);
    assert_eq!(damaged, prints(&devices));
    let undo = dir.path().join("undo");
    let output = fsck(&["-y", "--json", "--undo", undo.to_str().unwrap()], &devices);
    assert_eq!(code(&output), 1, "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let finding: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(finding["id"], "bset-checksum");
    assert_eq!(finding["bucket"], 952);
    assert_eq!(finding["lost"][0]["from"], 0);
    assert_eq!(finding["lost"][0]["to"], 8199);
    assert_eq!(code(&fsck(&["-n"], &devices)), 0);
}

#[test]
fn exit_codes_are_those_of_fsck() {
    assert_eq!(code(&fsck(&[], &[])), 16);
    assert_eq!(code(&fsck(&["--nonsense"], &[])), 16);
    assert_eq!(code(&fsck(&["-n", "-y"], &["/dev/null".into()])), 16);
    assert_eq!(code(&fsck(&["-n"], &["/nonexistent".into()])), 8);
    let output = fsck(&["--explain", "all"], &[]);
    assert_eq!(code(&output), 0);
    assert!(output.stdout.len() > 4000);
    // No superblock: nothing can be repaired, and nothing is written.
    let dir = paths::scratch().unwrap();
    let empty = dir.path().join("empty");
    sparse::create(&empty, 1 << 20).unwrap();
    assert_eq!(code(&fsck(&["-n"], std::slice::from_ref(&empty))), 4);
    assert_eq!(code(&fsck(&["-y"], &[empty])), 8);
}

/// Gives a cache the UUID of another's set, as a set has it that was made anew under its old name.
fn take_set_uuid(cache: &Path, of: &Path) {
    use bcache_format::superblock::{SB_BYTES, SB_OFFSET, Superblock};
    let read = |path: &Path| {
        let mut bytes = vec![0; SB_BYTES];
        let file = std::fs::File::open(path).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, SB_OFFSET).unwrap();
        bytes
    };
    let mut bytes = read(cache);
    let mut sb = Superblock::parse(&bytes).unwrap();
    sb.set_uuid = Superblock::parse(&read(of)).unwrap().set_uuid;
    sb.write_to(&mut bytes).unwrap();
    write(cache, SB_OFFSET, &bytes);
}

#[test]
fn devices_that_do_not_belong_together_are_a_mistake_and_not_damage() {
    let dir = paths::scratch().unwrap();
    let devices = Set::open("wb-dirty").unwrap().copy_to(dir.path()).unwrap();
    let cache = devices.iter().find(|path| path.ends_with("cache.img")).unwrap().clone();
    let other = Set::open("wt-clean").unwrap();
    let copy = dir.path().join("copy");
    std::fs::copy(other.path("backing.img"), &copy).unwrap();
    let twice = dir.path().join("twice");
    sparse::copy(&cache, &twice).unwrap();
    let cut_off = dir.path().join("cut_off");
    std::fs::copy(Set::open("wb-dirty").unwrap().path("backing.img"), &cut_off).unwrap();
    std::fs::OpenOptions::new().write(true).open(&cut_off).unwrap().set_len(10 << 20).unwrap();
    let (cut_cache, backing) = (dir.path().join("cut_cache"), dir.path().join("backing.img"));
    sparse::copy(&cache, &cut_cache).unwrap();
    std::fs::OpenOptions::new().write(true).open(&cut_cache).unwrap().set_len(32 << 20).unwrap();
    // Two sets with one UUID: what one of them has of the device is as likely as what the other has.
    let remade = dir.path().join("remade");
    sparse::copy(&other.path("cache.img"), &remade).unwrap();
    take_set_uuid(&remade, &cache);
    let same_backing = dir.path().join("same_backing");
    sparse::copy(&backing, &same_backing).unwrap();
    for (devices, id) in [
        (vec![cache.clone(), copy], "backing-other-set"),
        (vec![cache.clone(), twice], "two-caches"),
        (vec![cache.clone(), remade, backing.clone()], "two-caches"),
        (vec![cache.clone(), backing.clone(), same_backing], "backing-twice"),
        (vec![cache.clone(), cut_off], "backing-too-short"),
        (vec![cut_cache.clone(), backing], "superblock-too-big"),
        (vec![cut_cache.clone()], "superblock-too-big"),
    ] {
        let before = prints(&devices);
        for option in ["-n", "-p", "-y"] {
            let output = fsck(&[option, "--json"], &devices);
            assert_eq!(code(&output), 8, "{output:?}");
            let text = String::from_utf8(output.stdout).unwrap();
            let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let findings: Vec<_> = lines.iter().filter_map(|line| line["id"].as_str()).collect();
            assert_eq!(findings, [id], "{text}");
            assert!(String::from_utf8(output.stderr).unwrap().contains("not the devices of one set"));
        }
        assert_eq!(before, prints(&devices));
    }
    // What there is of the one that was cut off can be had all the same.
    let output = dir.path().join("output");
    let args = ["salvage", "-o", output.to_str().unwrap()];
    assert_eq!(code(&bcache(&args, &[cache, dir.path().join("cut_off")])), 1);
    assert_eq!(output.metadata().unwrap().len(), (10 << 20) - 8192);
    // Of a cache as well: it is read as far as it goes, and said to be partial.
    std::fs::OpenOptions::new().write(true).open(&cut_cache).unwrap().set_len(13 << 20).unwrap();
    let backing = dir.path().join("backing.img");
    for args in [&["fsck", "-n"][..], &["salvage", "-o", output.to_str().unwrap()]] {
        let told = bcache(args, &[cut_cache.clone(), backing.clone()]);
        assert_eq!(code(&told), if args[0] == "fsck" { 8 } else { 1 }, "{told:?}");
        let text = String::from_utf8(told.stdout).unwrap();
        let partial = format!("partial: {} ends at byte {}; ", cut_cache.display(), 13 << 20);
        assert!(text.contains(&partial) && text.contains("newest state: sectors "), "{text}");
    }
    assert_eq!(output.metadata().unwrap().len(), backing.metadata().unwrap().len() - 8192);
    // Detached for good, a device belongs to no set, and its old cache has nothing against it.
    let detached = Set::open("detached-fifo").unwrap();
    assert_eq!(code(&fsck(&["-n"], &detached.paths())), 0);
}

#[test]
fn what_salvage_saves_is_the_content_when_the_set_was_stopped() {
    let dir = paths::scratch().unwrap();
    let set = Set::open("wb-dirty").unwrap();
    let devices = set.copy_to(dir.path()).unwrap();
    let cache = devices.iter().find(|path| path.ends_with("cache.img")).unwrap().clone();
    let backing = devices.iter().find(|path| path.ends_with("backing.img")).unwrap().clone();
    // The journal is in buckets 1 to 8 of 64 KiB, the root in bucket 12.
    for bucket in 1..=8 {
        write(&cache, bucket * 65536, &[0; 65536]);
    }
    write(&cache, 12 * 65536, &[0; 65536]);
    let bcache = |args: &[&str]| {
        let mut command = Command::new(paths::program("bcache").unwrap());
        let output = command.args(args).output().unwrap();
        // 1: without journal and root nothing says how far the leaves go.
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let name = |path: &Path| path.to_str().unwrap().to_owned();
    let image = dir.path().join("image");
    let text = bcache(&["salvage", "-o", &name(&image), &name(&cache), &name(&backing)]);
    assert!(text.contains("11.0 MiB sure, 0 B doubtful, 0 B lost"), "{text}");
    let want = &set.entry.content[0];
    let (hash, bytes) = sparse::sha256(std::fs::File::open(&image).unwrap()).unwrap();
    assert_eq!((&hash, bytes), (&want.sha256, want.bytes));
    bcache(&["salvage", "--to", &name(&backing), &name(&cache)]);
    let mut content = std::fs::File::open(&backing).unwrap();
    std::io::Seek::seek(&mut content, std::io::SeekFrom::Start(8192)).unwrap();
    assert_eq!(sparse::sha256(content).unwrap().0, want.sha256);
}

#[test]
fn a_metadata_image_gives_the_findings_of_its_device() {
    let dir = paths::scratch().unwrap();
    let devices = Set::open("deep-btree").unwrap().copy_to(dir.path()).unwrap();
    let cache = devices.iter().find(|path| path.ends_with("cache.img")).unwrap().clone();
    write(&cache, 952 * (16 << 10) + 64, b"rot");
    write(&cache, 4096, b"wrong");
    let (packed, restored) = (dir.path().join("image"), dir.path().join("restored"));
    let bcache = |args: &[&str]| {
        let output = Command::new(paths::program("bcache").unwrap()).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let name = |path: &Path| path.to_str().unwrap().to_owned();
    bcache(&["image", "-o", &name(&packed), &name(&cache)]);
    bcache(&["image", "--restore", "-o", &name(&restored), &name(&packed)]);
    assert!(packed.metadata().unwrap().len() < 1 << 20);
    // All but the name of the device.
    let findings = |path: &PathBuf| {
        let output = fsck(&["-n", "--json"], std::slice::from_ref(path));
        assert_eq!(code(&output), 4);
        String::from_utf8(output.stdout).unwrap().replace(&name(path), "DEV")
    };
    let want = findings(&cache);
    assert!(want.contains("bset-checksum") && want.contains("superblock-checksum"), "{want}");
    assert_eq!(findings(&packed), want);
    assert_eq!(findings(&restored), want);
    let dump = |path: &Path| {
        let mut command = Command::new(paths::program("bcache").unwrap());
        let output = command.args(["dump", "extents"]).arg(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap().replace(&name(path), "DEV")
    };
    assert!(dump(&cache).lines().count() > 10_000);
    assert_eq!(dump(&packed), dump(&cache));
    assert_eq!(code(&fsck(&["-y"], &[packed])), 8);
}

#[test]
fn damage_that_linux_would_serve_as_wrong_content_is_exported_right_and_told() {
    let dir = paths::scratch().unwrap();
    let devices = Set::open("wb-dirty").unwrap().copy_to(dir.path()).unwrap();
    let cache = devices.iter().find(|path| path.ends_with("cache.img")).unwrap().clone();
    let bcache = |args: &[&str]| {
        let mut command = Command::new(paths::program("bcache").unwrap());
        command.args(args).args(&devices).output().unwrap()
    };
    // The generation of a bucket with dirty data, in the prio set of bucket 28, under a right checksum.
    let extents = Command::new(paths::program("bcache").unwrap())
        .args(["dump", "extents", "--json"])
        .arg(&cache)
        .output()
        .unwrap();
    let extents = String::from_utf8(extents.stdout).unwrap();
    let mut extents = extents.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let bucket = extents.find(|extent| extent["state"] == "dirty").unwrap()["bucket"].as_u64().unwrap();
    let file = std::fs::File::options().read(true).write(true).open(&cache).unwrap();
    let mut prio = vec![0; 65536];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut prio, 28 * 65536).unwrap();
    prio[0x28 + 3 * bucket as usize + 2] += 1;
    bcache_format::prio::seal(&mut prio);
    write(&cache, 28 * 65536, &prio);
    let output = bcache(&["export", "-o", "-"]);
    let hash = bcache_tests::sparse::sha256(output.stdout.as_slice()).unwrap().0;
    assert_eq!((code(&output), &hash), (0, &Set::open("wb-dirty").unwrap().entry.content[0].sha256));
    assert!(String::from_utf8(output.stderr).unwrap().contains("extent-dirty-stale"));
    let output = bcache(&["doctor"]);
    assert_eq!(code(&output), 1);
    assert!(String::from_utf8(output.stdout).unwrap().contains("extent-dirty-stale"));
}

#[test]
fn image_files_that_an_engine_works_on_are_left_alone() {
    let dir = paths::scratch().unwrap();
    let devices = Set::open("wb-dirty").unwrap().copy_to(dir.path()).unwrap();
    let name = |path: &Path| path.to_str().unwrap().to_owned();
    let served = Served::start(dir.path(), &[], &devices).unwrap();
    let undo = dir.path().join("undo");
    std::fs::write(&undo, undo_file(&devices)).unwrap();
    let programs: [&[&str]; 6] = [
        &["fsck", "-n"],
        &["fsck", "-p"],
        &["fsck", "-y"],
        &["flush"],
        &["salvage", "-o", "/nonexistent/image"],
        &["undo", &name(&undo)],
    ];
    for args in programs {
        let mut command = Command::new(paths::program("bcache").unwrap());
        let output =
            command.args(args).args(if args[0] == "undo" { &[][..] } else { &devices }).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("in use"), "{args:?}: {said}");
        assert_eq!(output.status.code(), Some(8), "{args:?}");
    }
    assert!(served.stop().unwrap().0.success());
    assert_eq!(code(&fsck(&["-n"], &devices)), 0);
    // Another check is no harm, another repair is.
    let cache = std::fs::File::open(&devices[0]).unwrap();
    cache.try_lock_shared().unwrap();
    assert_eq!(code(&fsck(&["-n"], &devices)), 0);
    assert_eq!(code(&fsck(&["-y"], &devices)), 8);
}

/// An undo file that would put the first device's first byte back.
fn undo_file(devices: &[PathBuf]) -> Vec<u8> {
    use bcache_engine::fsck::repair::{Plan, Write, undo};
    use bcache_engine::fsck::view::{Device, FileDevice};
    let device: Device = std::sync::Arc::new(FileDevice::open(&devices[0]).unwrap());
    let mut plan = Plan::default();
    let write = Write { device: device.name().into(), byte: 0, bytes: vec![1].into(), what: String::new() };
    plan.push("a write", vec![write]);
    undo::save(&plan, &[device]).unwrap()
}
