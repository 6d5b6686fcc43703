//! A rescuer's slips cost nothing: outputs, images, pipes, backups, and undo after use.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bcache_tests::golden::Set;
use bcache_tests::paths;

pub fn bcache(args: &[&str], devices: &[PathBuf]) -> Output {
    let mut command = Command::new(paths::program("bcache").unwrap());
    command.args(args).args(devices).output().unwrap()
}

fn set(dir: &Path) -> (PathBuf, PathBuf) {
    let devices = Set::open("wb-dirty").unwrap().copy_to(dir).unwrap();
    let of = |name: &str| devices.iter().find(|path| path.ends_with(name)).unwrap().clone();
    (of("cache.img"), of("backing.img"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn write(path: &Path, byte: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, byte).unwrap();
}

#[test]
fn outputs_follow_links_and_keep_modes() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    for command in ["export", "salvage"] {
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::write(&target, "").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        symlink("target", &link).unwrap();
        let output = bcache(&[command, "-o", text(&link)], &[cache.clone(), backing.clone()]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let meta = fs::metadata(&target).unwrap();
        assert_eq!((meta.permissions().mode() & 0o777, meta.len() > 0), (0o600, true));
        fs::remove_file(&link).unwrap();
        // Nothing half-made stays, and no device is overwritten.
        let refused = bcache(&[command, "-o", text(&backing)], &[cache.clone(), backing.clone()]);
        assert_eq!(refused.status.code(), Some(1));
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(names.into_iter().all(|name| !name.to_string_lossy().contains("partial")));
    }
}

#[test]
fn metadata_images_are_not_taken_for_data() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    let (image, restored, out) = (dir.path().join("i"), dir.path().join("r"), dir.path().join("o"));
    assert!(bcache(&["image", "-o", text(&image)], std::slice::from_ref(&cache)).status.success());
    let restore = ["image", "--restore", "-o", text(&restored)];
    assert!(bcache(&restore, std::slice::from_ref(&image)).status.success());
    let before = fs::read(&backing).unwrap();
    for no_data in [image, restored] {
        let devices = [no_data.clone(), backing.clone()];
        for args in [&["export", "-o", text(&out)][..], &["salvage", "-o", text(&out)], &["flush"]] {
            let output = bcache(args, &devices);
            assert!(matches!(output.status.code(), Some(1 | 8)), "{args:?}: {output:?}");
        }
        let to = bcache(&["salvage", "--to", text(&backing)], std::slice::from_ref(&no_data));
        assert_eq!(to.status.code(), Some(1), "{to:?}");
        assert_eq!(bcache(&["fsck", "-n"], std::slice::from_ref(&no_data)).status.code(), Some(0));
    }
    assert!(fs::read(&backing).unwrap() == before && !out.exists());
}

#[test]
fn metadata_images_are_not_served() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    let (image, restored) = (dir.path().join("i"), dir.path().join("r"));
    assert!(bcache(&["image", "-o", text(&image)], std::slice::from_ref(&cache)).status.success());
    let restore = ["image", "--restore", "-o", text(&restored)];
    assert!(bcache(&restore, std::slice::from_ref(&image)).status.success());
    let before = (fs::read(&restored).unwrap(), fs::read(&backing).unwrap());
    let socket = dir.path().join("s");
    for args in [&["serve", "--nbd", text(&socket)][..], &["serve", "--read-only", "--nbd", text(&socket)]] {
        let refused = bcache(args, &[restored.clone(), backing.clone()]);
        assert!(matches!(refused.status.code(), Some(1)), "{args:?}: {refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("metadata image"), "{refused:?}");
    }
    assert!(before == (fs::read(&restored).unwrap(), fs::read(&backing).unwrap()));
    // The same through a pipe, which takes it from front to back.
    let piped = bcache(&["image", "--restore", "-o", "-"], std::slice::from_ref(&image));
    assert!(piped.status.success() && piped.stdout == before.0, "it differs");
}

#[test]
fn outputs_replace_no_device_and_no_loop() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    let other = dir.path().join("other.img");
    fs::copy(&backing, &other).unwrap();
    let before = fs::read(&other).unwrap();
    let both = [cache.clone(), backing];
    for args in [&["export", "-o", text(&other)][..], &["salvage", "-o", text(&other)]] {
        let refused = bcache(args, &both);
        assert_eq!(refused.status.code(), Some(1), "{args:?}: {refused:?}");
    }
    for args in [&["image", "-o", text(&other)][..], &["backup", text(&other)]] {
        let refused = bcache(args, std::slice::from_ref(&cache));
        assert_eq!(refused.status.code(), Some(1), "{args:?}: {refused:?}");
    }
    assert!(before == fs::read(&other).unwrap());
    // What is no device is replaced by all of them, and keeps its mode.
    for args in [&["image", "-o"][..], &["backup"]] {
        let file = dir.path().join("old");
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let output = bcache(&[args, &[text(&file)]].concat(), std::slice::from_ref(&cache));
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        let meta = fs::metadata(&file).unwrap();
        assert!(meta.permissions().mode() & 0o777 == 0o640 && fs::read(&file).unwrap() != b"old");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4, "something is left beside them");
}

/// Programs that take several devices, and what cannot be one set: named, and nothing is written.
#[test]
fn devices_that_cannot_be_meant_are_named_and_nothing_is_written() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    let (twin, clone) = (dir.path().join("twin"), dir.path().join("clone"));
    symlink("cache.img", &twin).unwrap();
    fs::copy(&cache, &clone).unwrap();
    let two = Set::open("two-backing-flash").unwrap();
    let foreign = dir.path().join("foreign");
    fs::copy(two.path("cache.img"), &foreign).unwrap();
    let out = dir.path().join("out");
    let before = (fs::read(&cache).unwrap(), fs::read(&backing).unwrap());
    let missing = dir.path().join("missing");
    let folder = dir.path().to_owned();
    for (what, devices) in [
        ("twice", vec![cache.clone(), twin, backing.clone()]),
        ("a clone", vec![cache.clone(), clone, backing.clone()]),
        ("of another set", vec![foreign, backing.clone()]),
        ("not there", vec![missing, backing.clone()]),
        ("a folder", vec![folder, backing.clone()]),
    ] {
        for args in [
            &["fsck", "-n"][..],
            &["fsck", "-y"],
            &["flush"],
            &["export", "-o", text(&out)],
            &["salvage", "-o", text(&out)],
        ] {
            let output = bcache(args, &devices);
            assert_eq!(output.status.code(), Some(8), "{what}: {args:?}: {output:?}");
            assert!(!output.stderr.is_empty(), "{what}: {args:?}");
        }
    }
    assert!(before == (fs::read(&cache).unwrap(), fs::read(&backing).unwrap()) && !out.exists());
    // Files that are no undo file, or not all of one.
    write(&cache, 4096 + 200, &[0xff; 4]);
    let undo = dir.path().join("undo");
    let devices = [cache.clone(), backing.clone()];
    assert_eq!(bcache(&["fsck", "-y", "--undo", text(&undo)], &devices).status.code(), Some(1));
    let whole = fs::read(&undo).unwrap();
    let repaired = fs::read(&cache).unwrap();
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    for bytes in [&b"no undo file"[..], b"", &whole[..whole.len() - 9], &changed] {
        fs::write(&undo, bytes).unwrap();
        let output = bcache(&["undo", text(&undo)], &[]);
        assert_eq!(output.status.code(), Some(8), "{output:?}");
        let output = bcache(&["restore", text(&undo)], std::slice::from_ref(&cache));
        assert_eq!(output.status.code(), Some(8), "{output:?}");
    }
    fs::write(&undo, &whole).unwrap();
    let twice = bcache(&["undo", text(&undo)], &[cache.clone(), cache.clone(), backing]);
    assert_eq!(twice.status.code(), Some(8), "{twice:?}");
    assert!(fs::read(&cache).unwrap() == repaired);
    assert_eq!(bcache(&["undo", text(&undo)], &[]).status.code(), Some(0));
}

#[test]
fn an_export_of_a_damaged_set_is_what_a_repair_would_leave() {
    // A flipped bit of the superblock, the journal gone, the first leaf lost.
    for damage in ["bit", "journal", "leaf"] {
        let dir = paths::scratch().unwrap();
        let (cache, backing) = set(dir.path());
        let devices = [cache.clone(), backing];
        let nodes = bcache(&["dump", "btree"], std::slice::from_ref(&cache));
        let nodes = String::from_utf8(nodes.stdout).unwrap();
        let leaf = nodes.lines().find(|line| line.contains("leaf")).unwrap();
        let leaf: u64 =
            leaf.split("bucket ").nth(1).unwrap().split([',', ':', ' ']).next().unwrap().parse().unwrap();
        match damage {
            "bit" => {
                let byte = fs::read(&cache).unwrap()[4096 + 200];
                write(&cache, 4096 + 200, &[byte ^ 4]);
            }
            "journal" => write(&cache, 65536, &vec![0; 8 * 65536]),
            _ => write(&cache, leaf * 65536, &vec![0xff; 65536]),
        }
        let before = fs::read(&cache).unwrap();
        let (direct, repaired) = (dir.path().join("direct"), dir.path().join("repaired"));
        let export = bcache(&["export", "-o", text(&direct)], &devices);
        let said = String::from_utf8_lossy(&export.stderr).into_owned();
        let lost = said.contains("lost, or not in its newest state");
        assert!(!said.contains("partial:"), "{damage}: {said}");
        // Whatever the journal alone knew is gone, wherever it was.
        let code = i32::from(lost || damage == "journal");
        assert_eq!(export.status.code(), Some(code), "{damage}: {said}");
        assert!(lost == (damage == "leaf") || damage == "journal", "{damage}: {said}");
        assert!(fs::read(&cache).unwrap() == before);
        let undo = dir.path().join("undo");
        let repair = bcache(&["fsck", "-y", "--undo", text(&undo)], &devices);
        assert_eq!(repair.status.code(), Some(1), "{repair:?}");
        assert!(bcache(&["export", "-o", text(&repaired)], &devices).status.success());
        assert!(fs::read(&direct).unwrap() == fs::read(&repaired).unwrap(), "{damage}: it differs");
    }
}

#[test]
fn exit_codes_stay_when_the_reader_goes_away() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    write(&cache, 4096 + 200, &[0xff; 4]);
    let gone = |args: &[&str]| {
        let mut command = Command::new(paths::program("bcache").unwrap());
        let mut child = command.args(args).args([&cache, &backing]).stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        child.wait().unwrap().code()
    };
    assert_eq!(gone(&["fsck", "-n"]), Some(4));
    assert_eq!(gone(&["doctor"]), Some(1));
    assert_eq!(gone(&["fsck", "-y", "--undo", text(&dir.path().join("undo"))]), Some(1));
    assert_eq!(gone(&["fsck", "-n"]), Some(0));
    assert_eq!(gone(&["export", "-o", "-"]), Some(1), "a part of an export is none");
    let closed = |args: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec \"$0\" {args} \"$@\" >&-")]);
        shell.arg(paths::program("bcache").unwrap()).args([&cache, &backing]);
        shell.status().unwrap().code()
    };
    assert_eq!(closed("export -o -"), Some(1), "nobody has it");
    assert_eq!(closed("backup -"), Some(1), "nobody has it");
    assert_eq!(closed("fsck -n"), Some(0));
}

#[test]
fn undo_refuses_a_set_that_was_used_and_goes_on_after_a_crash() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    let devices = [cache.clone(), backing.clone()];
    write(&cache, 4096 + 200, &[0xff; 4]);
    let broken = fs::read(&cache).unwrap();
    let undo = dir.path().join("undo");
    assert_eq!(bcache(&["fsck", "-y", "--undo", text(&undo)], &devices).status.code(), Some(1));
    let repaired = fs::read(&cache).unwrap();
    // Whatever uses a set writes a journal entry: here somewhere in a journal bucket that the repair did not touch.
    write(&cache, 3 * 65536 + 40_000, b"an entry");
    let refused = bcache(&["undo", text(&undo)], &[]);
    assert_eq!(refused.status.code(), Some(8), "{refused:?}");
    fs::write(&cache, &repaired).unwrap();
    // Under other names, in any order.
    let (c, b) = (dir.path().join("c"), dir.path().join("b"));
    fs::rename(&cache, &c).unwrap();
    fs::rename(&backing, &b).unwrap();
    let done = bcache(&["undo", text(&undo)], &[b.clone(), c.clone()]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(fs::read(&c).unwrap() == broken);
    assert_eq!(
        bcache(&["undo", text(&undo)], &[b.clone(), c]).status.code(),
        Some(0),
        "once more is no harm"
    );
    let none = bcache(&["undo", text(&b)], &[]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("not an undo file"), "{none:?}");
}

#[test]
fn undo_refuses_another_set() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    let (whole, undo) = (fs::read(&cache).unwrap(), dir.path().join("undo"));
    write(&cache, 4096 + 200, &[0xff; 4]);
    let repair = ["fsck", "-y", "--undo", text(&undo)];
    assert_eq!(bcache(&repair, &[cache.clone(), backing.clone()]).status.code(), Some(1));
    let repaired = (fs::read(&cache).unwrap(), fs::read(&backing).unwrap());
    // Another set of the same shape, with something else repaired; and one with all UUIDs of the first.
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let devices = Set::open("wb-crash").unwrap().copy_to(&other).unwrap();
    let of = |name: &str| fs::read(devices.iter().find(|path| path.ends_with(name)).unwrap()).unwrap();
    let remade = (of("cache.img"), of("backing.img"));
    let with_uuids = |mut bytes: Vec<u8>, from: &[u8]| {
        bytes[4096 + 0x28..4096 + 0x48].copy_from_slice(&from[4096 + 0x28..4096 + 0x48]);
        bytes
    };
    let twin = (with_uuids(remade.0.clone(), &whole), with_uuids(remade.1.clone(), &repaired.1));
    let refused = |cache_now: &[u8], backing_now: &[u8], what: &str| {
        fs::write(&cache, cache_now).unwrap();
        fs::write(&backing, backing_now).unwrap();
        // By the names that the file knows, and by names that are given.
        for devices in [vec![], vec![backing.clone(), cache.clone()]] {
            let output = bcache(&["undo", text(&undo)], &devices);
            assert_eq!(output.status.code(), Some(8), "{what}: {output:?}");
            assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{what}: {output:?}");
            let now = (fs::read(&cache).unwrap(), fs::read(&backing).unwrap());
            assert!(now.0 == cache_now && now.1 == backing_now, "{what}: something was written");
        }
    };
    refused(&remade.0, &remade.1, "another set");
    refused(&remade.0, &repaired.1, "another cache");
    refused(&repaired.0, &remade.1, "another backing device");
    refused(&twin.0, &twin.1, "another set with the same UUIDs");
    refused(&twin.0, &repaired.1, "another cache with the same UUID");
    fs::write(&cache, &repaired.0).unwrap();
    fs::write(&backing, &repaired.1).unwrap();
    let done = bcache(&["undo", text(&undo)], &[]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
}

#[test]
fn a_superblock_comes_back_from_a_backup() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    let kept = dir.path().join("kept");
    assert!(bcache(&["backup", text(&kept)], &[cache.clone(), backing.clone()]).status.success());
    let whole = fs::read(&cache).unwrap();
    let refused = bcache(&["restore", text(&kept)], std::slice::from_ref(&cache));
    assert_eq!(refused.status.code(), Some(8), "a sound one stays: {refused:?}");
    write(&cache, 4096, &[0; 4096]);
    let done = bcache(&["restore", text(&kept)], &[cache.clone(), backing.clone()]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(fs::read(&cache).unwrap() == whole);
    // Another disk of the same size, which swaps.
    let mut other = whole;
    other[4096..8192].fill(0);
    other[1024..1032].copy_from_slice(&[1, 0, 0, 0, 10, 0, 0, 0]);
    other[4086..4096].copy_from_slice(b"SWAPSPACE2");
    fs::write(&cache, &other).unwrap();
    let refused = bcache(&["restore", text(&kept)], &[cache.clone(), backing]);
    assert_eq!(refused.status.code(), Some(8), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("swap"), "{refused:?}");
    assert!(fs::read(&cache).unwrap() == other);
}

#[test]
fn metadata_comes_back_from_an_image_unless_the_set_was_used_since() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    let image = dir.path().join("image");
    assert!(bcache(&["image", "-o", text(&image)], std::slice::from_ref(&cache)).status.success());
    let (whole, devices) = (fs::read(&cache).unwrap(), [cache.clone(), backing.clone()]);
    let restore = || bcache(&["restore", text(&image)], &devices);
    assert_eq!(restore().status.code(), Some(8), "what is in order stays");
    // Superblock, journal, and one leaf: everything comes back, and once more does nothing.
    let damages = [(4096, 4096), (1 << 16, 8 << 16), (28 << 16, 1 << 16)];
    for (at, bytes) in damages {
        write(&cache, at, &vec![0; bytes]);
        let done = restore();
        assert_eq!(done.status.code(), Some(0), "{at}: {done:?}");
        assert!(fs::read(&cache).unwrap() == whole, "{at}");
    }
    for (at, bytes) in damages {
        write(&cache, at, &vec![0; bytes]);
    }
    assert_eq!(restore().status.code(), Some(0));
    assert!(fs::read(&cache).unwrap() == whole);
    // Another device, a part of one, and what is none.
    for wrong in [&backing, &image] {
        let refused = bcache(&["restore", text(&image)], std::slice::from_ref(wrong));
        assert_eq!(refused.status.code(), Some(8), "{refused:?}");
    }
    // It was used since: not even with its superblock and its journal gone is it brought back.
    assert!(bcache(&["flush"], &devices).status.success());
    for with_journal in [true, false] {
        write(&cache, 4096, &[0; 4096]);
        if !with_journal {
            write(&cache, 1 << 16, &vec![0; 8 << 16]);
        }
        let before = fs::read(&cache).unwrap();
        let refused = restore();
        assert_eq!(refused.status.code(), Some(8), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("used since"), "{refused:?}");
        assert!(fs::read(&cache).unwrap() == before);
    }
}

#[test]
fn salvage_writes_the_same_to_a_file_and_to_a_pipe() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    // Something is lost: a leaf.
    write(&cache, (28 << 16) + 100, b"rot");
    let devices = [cache, backing];
    let file = dir.path().join("file");
    let to_file = bcache(&["salvage", "-o", text(&file)], &devices);
    let to_pipe = bcache(&["salvage", "-o", "-"], &devices);
    assert_eq!(to_file.status.code(), to_pipe.status.code());
    assert!(fs::read(&file).unwrap() == to_pipe.stdout);
    assert_eq!(to_file.stdout, to_pipe.stderr, "what is told goes beside it");
    assert!(!to_file.stdout.is_empty());
}

#[test]
fn a_journal_that_is_gone_is_called_gone_and_its_set_comes_back() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    let devices = [cache.clone(), backing];
    for bucket in 1..=8 {
        write(&cache, bucket * 65536, &[0; 65536]);
    }
    let doctor = bcache(&["doctor"], &devices);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("its journal is gone") && !said.contains("never"), "{said}");
    assert_eq!(doctor.status.code(), Some(1));
    let undo = dir.path().join("undo");
    let repair = bcache(&["fsck", "-y", "--undo", text(&undo)], &devices);
    assert_eq!(repair.status.code(), Some(1), "{repair:?}");
    let image = dir.path().join("image");
    assert!(bcache(&["export", "-o", text(&image)], &devices).status.success());
    let want = &Set::open("wb-dirty").unwrap().entry.content[0];
    let (hash, bytes) = bcache_tests::sparse::sha256(fs::File::open(&image).unwrap()).unwrap();
    assert_eq!((&hash, bytes), (&want.sha256, want.bytes));
}

#[test]
fn doctor_tells_who_uses_a_device_and_what_is_in_it() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    let devices = [cache.clone(), backing.clone()];
    let doctor = |devices: &[PathBuf]| {
        let output = bcache(&["doctor"], devices);
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    };
    // Somebody has both, as a server would.
    let held: Vec<fs::File> = devices.iter().map(|path| fs::File::open(path).unwrap()).collect();
    held.iter().for_each(|file| file.lock().unwrap());
    let (said, _) = doctor(&devices);
    assert_eq!(said.matches("in use by").count(), 2, "{said}");
    assert!(!said.contains("mount -o"), "{said}");
    drop(held);
    // The superblock of the backing device says that it is attached to nothing: the cache knows better.
    let mut sb = fs::read(&backing).unwrap()[4096..8192].to_vec();
    let mut parsed = bcache_format::Superblock::parse(&sb).unwrap();
    parsed.set_state(bcache_format::superblock::BackingState::None);
    parsed.write_to(&mut sb).unwrap();
    write(&backing, 4096, &sb);
    let (said, code) = doctor(&devices);
    assert!(said.contains("attached to no cache, but") && said.contains("dirty of it"), "{said}");
    assert_eq!(code, Some(1));
    // What is on it when it is alone.
    for (byte, magic, word) in [
        (0, &b"LUKS\xba\xbe"[..], "cryptsetup"),
        (512, b"LABELONE", "LVM"),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "mdadm"),
    ] {
        let (backing_alone, _) = (dir.path().join(word), ());
        fs::copy(&backing, &backing_alone).unwrap();
        write(&backing_alone, 8192 + byte, magic);
        let (said, _) = doctor(std::slice::from_ref(&backing_alone));
        assert!(said.contains(word) && !said.contains("mount -o"), "{said}");
    }
    let clone = dir.path().join("clone");
    fs::copy(&cache, &clone).unwrap();
    let (said, code) = doctor(&[cache, clone]);
    assert!(said.contains("are both caches of set") && code == Some(1), "{said}");
}

/// Every next command that begins with `bcache` is one that can be typed as it stands, and the others are shell.
#[test]
fn what_doctor_says_to_do_next_can_be_typed() {
    let dir = paths::scratch().unwrap();
    let two = Set::open("two-backing-flash").unwrap();
    let spaced = dir.path().join("it's a \"folder\"");
    fs::create_dir(&spaced).unwrap();
    let (one, other) = (set(dir.path()), two.copy_to(&spaced).unwrap());
    let (cut, luks) = (dir.path().join("cut"), dir.path().join("luks"));
    fs::copy(&one.0, &cut).unwrap();
    fs::File::options().write(true).open(&cut).unwrap().set_len(32 << 20).unwrap();
    fs::write(&luks, [&b"LUKS\xba\xbe"[..], &[0; 1 << 20]].concat()).unwrap();
    let gone = dir.path().join("gone");
    fs::create_dir(&gone).unwrap();
    let gone = two.copy_to(&gone).unwrap();
    let lost = gone.iter().find(|path| path.ends_with("cache.img")).unwrap();
    let geometry = bcache_engine::fsck::view::Devices::open([std::sync::Arc::new(
        bcache_engine::fsck::view::FileDevice::open(lost).unwrap(),
    ) as bcache_engine::fsck::view::Device])
    .unwrap()
    .caches[0]
        .clone();
    let (first, count) = (geometry.geometry.first_bucket, geometry.njournal_buckets());
    let bucket = geometry.geometry.bucket_bytes();
    write(lost, first * bucket, &vec![0; (count * bucket) as usize]);

    // Two sets at once, a damaged one, one device of a set alone, and what is not usable.
    let both: Vec<PathBuf> = [one.0.clone(), one.1.clone()].into_iter().chain(other.clone()).collect();
    let cases = [both, gone.clone(), vec![one.1.clone()], vec![cut], vec![luks], vec![other[0].clone()]];
    let programs = paths::program("bcache").unwrap().parent().unwrap().to_owned();
    let (mut typed, mut only_parsed) = (0, 0);
    for devices in cases {
        let output = bcache(&["doctor"], &devices);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.is_empty(), "{devices:?}: {:?}", String::from_utf8_lossy(&output.stderr));
        let next = said.lines().filter_map(|line| line.trim_start().strip_prefix("next: "));
        for command in
            next.filter(|command| !command.starts_with("find the") && !command.starts_with("attach a"))
        {
            let run = command.starts_with("bcache ");
            let shell = if run { &["-c", command][..] } else { &["-n", "-c", command] };
            let place = dir.path().join(format!("run-{typed}"));
            fs::create_dir_all(&place).unwrap();
            let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
            let ran = Command::new("sh").args(shell).current_dir(&place).env("PATH", path).output().unwrap();
            let code = ran.status.code().unwrap();
            // A check or a rescue of something damaged says so; what cannot be understood ends with 2, 8 or 16.
            let fine: &[i32] = if command.contains("fsck") { &[0, 4] } else { &[0, 1] };
            assert!(fine.contains(&code), "{command}: {ran:?}");
            assert!(!ran.stderr.starts_with(b"bcache: name one"), "{command}: {ran:?}");
            if run && command.contains(" -o ") {
                assert!(fs::read_dir(&place).unwrap().count() == 1, "{command} writes nothing: {ran:?}");
            }
            typed += usize::from(run);
            only_parsed += usize::from(!run);
        }
    }
    assert!(typed >= 10 && only_parsed >= 1, "{typed}, {only_parsed}");
}

#[test]
fn what_is_older_than_the_device_is_not_salvaged_onto_it() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    // It ran without its cache since.
    let mut block = vec![0; 4096];
    fs::File::open(&backing).unwrap().read_exact_at(&mut block, 4096).unwrap();
    let mut superblock = bcache_format::Superblock::parse(&block).unwrap();
    superblock.set_state(bcache_format::superblock::BackingState::Stale);
    superblock.write_to(&mut block).unwrap();
    write(&backing, 4096, &block);
    let (before, out) = (fs::read(&backing).unwrap(), dir.path().join("out"));
    let to = bcache(&["salvage", "--to", text(&backing)], std::slice::from_ref(&cache));
    assert_eq!(to.status.code(), Some(1), "{to:?}");
    assert!(String::from_utf8_lossy(&to.stderr).contains("is older"), "{to:?}");
    let image = bcache(&["salvage", "-o", text(&out)], &[cache, backing.clone()]);
    assert!(image.status.code() == Some(1) && !out.exists(), "{image:?}");
    assert!(fs::read(&backing).unwrap() == before);
}

#[test]
fn no_superblock_is_put_over_what_a_device_was_given_to() {
    if Command::new("wipefs").arg("--version").output().is_err() {
        return;
    }
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    // Where the superblock was there is one of md now.
    write(&cache, 4096, &[0; 4096]);
    write(&cache, 4096, &[0xfc, 0x4e, 0x2b, 0xa9, 1]);
    write(&cache, 0x10040, b"_BHRfS_M");
    let before = fs::read(&cache).unwrap();
    let repair = bcache(&["fsck", "-y"], &[cache.clone(), backing]);
    assert_eq!(repair.status.code(), Some(8), "{repair:?}");
    assert!(fs::read(&cache).unwrap() == before, "{repair:?}");
}

#[test]
fn an_export_of_a_damaged_set_names_devices_that_were_not_there() {
    let dir = paths::scratch().unwrap();
    let devices = Set::open("two-backing-flash").unwrap().copy_to(dir.path()).unwrap();
    let (caches, backings): (Vec<_>, Vec<_>) =
        devices.into_iter().partition(|path| path.ends_with("cache.img"));
    let byte = fs::read(&caches[0]).unwrap()[4096 + 200];
    write(&caches[0], 4096 + 200, &[byte ^ 4]);
    let uuid = |path: &Path| {
        let shown = bcache(&["show", "--json"], &[path.to_owned()]);
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        shown.to_string()
    };
    let output = dir.path().join("out");
    for (here, gone) in [(0, 1), (1, 0)] {
        let export = bcache(&["export", "-o", text(&output)], &[caches[0].clone(), backings[here].clone()]);
        let said = String::from_utf8_lossy(&export.stderr).into_owned();
        let partial: Vec<&str> = said.lines().filter(|line| line.starts_with("partial: ")).collect();
        assert_eq!(partial.len(), 1, "{said}");
        let named = partial[0].split_whitespace().find(|word| word.len() >= 36).unwrap().trim_matches(',');
        assert!(uuid(&backings[gone]).contains(named) && !uuid(&backings[here]).contains(named), "{said}");
    }
}
