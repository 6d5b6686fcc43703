//! A rescuer's slips cost nothing: outputs, images, pipes, backups, and undo after use.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bcache_tests::golden::Set;
use bcache_tests::paths;

fn bcache(args: &[&str], devices: &[PathBuf]) -> Output {
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
            assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        }
        let to = bcache(&["salvage", "--to", text(&backing)], std::slice::from_ref(&no_data));
        assert_eq!(to.status.code(), Some(1), "{to:?}");
        assert_eq!(bcache(&["fsck", "-n"], std::slice::from_ref(&no_data)).status.code(), Some(0));
    }
    assert!(fs::read(&backing).unwrap() == before && !out.exists());
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
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
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
fn a_superblock_comes_back_from_a_backup() {
    let dir = paths::scratch().unwrap();
    let (cache, backing) = set(dir.path());
    let kept = dir.path().join("kept");
    assert!(bcache(&["backup", text(&kept)], &[cache.clone(), backing.clone()]).status.success());
    let whole = fs::read(&cache).unwrap();
    let refused = bcache(&["restore", text(&kept)], std::slice::from_ref(&cache));
    assert_eq!(refused.status.code(), Some(1), "a sound one stays: {refused:?}");
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
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("swap"), "{refused:?}");
    assert!(fs::read(&cache).unwrap() == other);
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
