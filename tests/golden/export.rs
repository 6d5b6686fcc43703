//! Reading cached devices: what `bcache export` writes is what Linux showed, and no device is changed by it.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use bcache_tests::golden::Set;
use bcache_tests::{paths, sparse};

fn bcache(args: &[&str], devices: &[PathBuf]) -> Command {
    let mut command = Command::new(paths::program("bcache").unwrap());
    command.args(args).args(devices);
    command
}

fn refused(output: &Output) -> String {
    assert!(matches!(output.status.code(), Some(1 | 8)), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The backing device's path, or `volume:N`.
fn of(set: &Set, of: &str) -> String {
    of.strip_prefix("flash volume ")
        .map_or_else(|| set.path(of).display().to_string(), |number| format!("volume:{number}"))
}

#[test]
fn every_golden_set_reads_as_linux_showed_it() {
    for set in Set::all().unwrap() {
        let before: Vec<_> = set.paths().iter().map(|path| sparse::fingerprint(path).unwrap()).collect();
        for content in &set.entry.content {
            let of = of(&set, &content.of);
            // In either order: the superblocks tell which is which.
            let mut devices = set.paths();
            devices.reverse();
            let mut child =
                bcache(&["export", "-o", "-", "--of", &of], &devices).stdout(Stdio::piped()).spawn().unwrap();
            let (hash, bytes) = sparse::sha256(child.stdout.take().unwrap()).unwrap();
            assert!(child.wait().unwrap().success(), "{} {of}", set.name);
            assert_eq!((hash, bytes), (content.sha256.clone(), content.bytes), "{} {of}", set.name);
        }
        let after: Vec<_> = set.paths().iter().map(|path| sparse::fingerprint(path).unwrap()).collect();
        assert_eq!(before, after, "{}: a device was changed", set.name);
    }
}

#[test]
fn the_crashed_set_has_every_acknowledged_write() {
    let set = Set::open("wb-crash").unwrap();
    let stamp = set.entry.stamp.clone().unwrap();
    let mut child = bcache(&["export", "-o", "-"], &set.paths()).stdout(Stdio::piped()).spawn().unwrap();
    let stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    let report = stamp.load().check(stdout, stamp.acked).unwrap();
    // The rest of the content is not part of the load; the writer ends with a broken pipe.
    child.wait().unwrap();
    assert_eq!(report.bad, 0, "{report}");
    assert_eq!(report.sectors, stamp.range_sectors);
}

#[test]
fn a_file_gets_the_same_content_with_holes() {
    let set = Set::open("block-4k").unwrap();
    let dir = paths::scratch().unwrap();
    let image = dir.path().join("image");
    // Something is there already: it is replaced as a whole.
    sparse::create(&image, 1 << 30).unwrap();
    let output = bcache(&["export", "-o", image.to_str().unwrap()], &set.paths()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!((output.stdout.len(), output.stderr.len()), (0, 0), "{output:?}");
    let (hash, bytes) = sparse::sha256(std::fs::File::open(&image).unwrap()).unwrap();
    let want = &set.entry.content[0];
    assert_eq!((&hash, bytes), (&want.sha256, want.bytes));
    let stored = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&image).unwrap()) * 512;
    assert!(stored < bytes / 2, "{stored} of {bytes} bytes are stored");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something is left beside the image");
}

#[test]
fn what_cannot_be_told_is_refused() {
    let two = Set::open("two-backing-flash").unwrap();
    let said = refused(&bcache(&["export", "-o", "-"], &two.paths()).output().unwrap());
    for choice in ["backing.img", "backing2.img", "volume:0", "lab-bcache0", "lab-bcache2"] {
        assert!(said.contains(choice), "{said}");
    }
    let said = refused(&bcache(&["export", "-o", "-", "--of", "volume:1"], &two.paths()).output().unwrap());
    assert!(said.contains("no volume 1"), "{said}");
    let said = refused(&bcache(&["export", "-o", "-"], &[two.path("backing.img")]).output().unwrap());
    assert!(said.contains("name the cache device too"), "{said}");
    let other = Set::open("wb-dirty").unwrap();
    let mixed = [two.path("cache.img"), other.path("backing.img")];
    let of = mixed[1].display().to_string();
    let said = refused(&bcache(&["export", "-o", "-", "--of", &of], &mixed).output().unwrap());
    assert!(said.contains("is attached to set"), "{said}");
    let caches = [two.path("cache.img"), other.path("cache.img")];
    let said = refused(&bcache(&["export", "-o", "-"], &caches).output().unwrap());
    assert!(said.contains("are both caches"), "{said}");
}

#[test]
fn a_device_to_read_is_never_written_over() {
    let dir = paths::scratch().unwrap();
    let devices = Set::open("block-4k").unwrap().copy_to(dir.path()).unwrap();
    for device in &devices {
        let before = sparse::fingerprint(device).unwrap();
        let output = bcache(&["export", "-o", device.to_str().unwrap()], &devices).output().unwrap();
        assert!(refused(&output).contains("one of the devices to read"), "{output:?}");
        assert_eq!(before, sparse::fingerprint(device).unwrap());
    }
}

#[test]
fn a_backing_device_that_was_detached_or_never_attached_is_its_own_content() {
    let detached = Set::open("detached-fifo").unwrap();
    let output = bcache(&["export", "-o", "-"], &[detached.path("backing.img")]).output().unwrap();
    let (hash, _) = sparse::sha256(output.stdout.as_slice()).unwrap();
    assert_eq!(hash, detached.entry.content[0].sha256);
    let fresh = Set::open("fresh").unwrap();
    let output = bcache(&["export", "-o", "-"], &fresh.paths()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout.len(), (128 << 20) - 8192);
}
