//! `bcache serve`: what it serves is what Linux showed, and nothing acknowledged is lost when it is killed.

mod golden;
mod killed;

use std::path::{Path, PathBuf};

use bcache_tests::cmd::ours;
use bcache_tests::nbd::Served;
use bcache_tests::paths;

/// Makes a new set in `dir`: cache and backing device.
fn make(dir: &Path, cache_bytes: u64, backing_bytes: u64) -> [PathBuf; 2] {
    let files = [dir.join("cache.img"), dir.join("disk.img")];
    for (file, bytes) in files.iter().zip([cache_bytes, backing_bytes]) {
        std::fs::File::create(file).expect("a file").set_len(bytes).expect("its size");
    }
    let [cache, disk] = files.each_ref().map(|file| file.to_str().expect("a readable path"));
    let said = ours("make-bcache", ["-b", "64k", "-w", "4k", "-C", cache, "-B", disk]).expect("make-bcache");
    assert_eq!(said.code, 0, "{}", said.stderr);
    files
}

#[test]
fn it_serves_stops_in_order_and_tells_what_it_did() {
    let dir = paths::scratch().unwrap();
    let devices = make(dir.path(), 64 << 20, 64 << 20);
    let stats = dir.path().join("stats.json");
    let options = ["--set", "cache_mode=writeback", "--stats-json", stats.to_str().unwrap()];
    let served = Served::start(dir.path(), &options, &devices).unwrap();
    let mut client = served.client("").unwrap();
    client.write(4096, &[7; 8192], false).unwrap();
    client.flush().unwrap();
    assert_eq!(client.read(0, 16384).unwrap()[4096..12288], [7; 8192]);
    let (status, took) = served.stop().unwrap();
    assert!(status.success(), "{status}");
    assert!(took.as_secs() < 5, "stopping took {took:?}");
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
    assert_eq!((&stats["nbd"]["writes"], &stats["nbd"]["flushes"]), (&1.into(), &1.into()));
    assert!(stats["failure"].is_null());
    // It is there again, by every name.
    let served = Served::start(dir.path(), &[], &devices).unwrap();
    let (name, uuid, bytes) = served.exports[0].clone();
    for name in [name.as_str(), uuid.as_str(), "0", ""] {
        let mut client = served.client(name).unwrap();
        assert_eq!(client.bytes, bytes);
        assert_eq!(client.read(4096, 8192).unwrap(), [7; 8192], "{name}");
    }
    assert!(served.stop().unwrap().0.success());
}

#[test]
fn devices_in_use_and_wrong_ones_are_refused() {
    let dir = paths::scratch().unwrap();
    let devices = make(dir.path(), 64 << 20, 16 << 20);
    let served = Served::start(dir.path(), &[], &devices).unwrap();
    let other = paths::scratch().unwrap();
    let refused = |options: &[&str], devices: &[PathBuf], why: &str| {
        let error = Served::start(other.path(), options, devices).err().expect("it is refused").to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    };
    refused(&[], &devices, "in use");
    assert!(served.stop().unwrap().0.success());
    refused(&[], &devices[1..], "none of the devices named is a cache device");
    refused(&[], &[devices[0].clone(), devices[1].clone(), devices[0].clone()], "in use");
    refused(&["--set", "cache_mode=fast"], &devices, "one of writethrough");
    refused(&["--set", "nothing=1"], &devices, "no setting");
    refused(&[], &[PathBuf::from("/dev/null")], "neither a block device nor a file");
    let garbage = dir.path().join("garbage");
    std::fs::write(&garbage, vec![0x5a; 1 << 20]).unwrap();
    refused(&[], &[garbage], "not a bcache superblock");
}

/// What a backing device's superblock sector holds.
fn superblock(device: &Path) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; 4096];
    let file = std::fs::File::open(device).expect("the device");
    file.read_exact_at(&mut bytes, 4096).expect("its superblock");
    bytes
}

#[test]
fn a_device_of_no_set_is_attached_when_that_is_asked_for() {
    let dir = paths::scratch().unwrap();
    let [cache, own] = make(dir.path(), 64 << 20, 16 << 20);
    let stranger = dir.path().join("stranger.img");
    std::fs::File::create(&stranger).unwrap().set_len(16 << 20).unwrap();
    assert_eq!(
        ours("make-bcache", ["-w".as_ref(), "4k".as_ref(), "-B".as_ref(), stranger.as_os_str()])
            .unwrap()
            .code,
        0
    );
    let before = superblock(&stranger);
    let all = [cache.clone(), own, stranger.clone()];
    let served = Served::start(dir.path(), &["--set", "cache_mode=writeback"], &all).unwrap();
    let mut client = served.client("stranger.img").unwrap();
    client.write(4096, &[9; 4096], false).unwrap();
    client.flush().unwrap();
    assert_eq!(client.read(4096, 4096).unwrap(), [9; 4096]);
    assert!(served.stop().unwrap().0.success());
    assert_eq!(superblock(&stranger), before, "the set has left no trace on it");
    assert_eq!(std::fs::read(&stranger).unwrap()[8192 + 4096..][..4096], [9; 4096]);

    let served = Served::start(dir.path(), &["--attach"], &all).unwrap();
    assert_eq!(served.client("stranger.img").unwrap().read(4096, 4096).unwrap(), [9; 4096]);
    assert!(served.stop().unwrap().0.success());
    assert_ne!(superblock(&stranger), before);

    // Attached by now, and to another set than this one.
    let other = paths::scratch().unwrap();
    let [other, _] = make(other.path(), 64 << 20, 16 << 20);
    let error = Served::start(dir.path(), &["--attach"], &[other, stranger]).err().unwrap().to_string();
    assert!(error.contains("stranger.img: attached to set"), "{error}");
}

#[test]
fn what_cannot_be_written_is_told_before_a_device_is() {
    let dir = paths::scratch().unwrap();
    let devices = make(dir.path(), 64 << 20, 16 << 20);
    let before = devices.each_ref().map(|device| std::fs::read(device).unwrap());
    let precious = dir.path().join("precious");
    std::fs::write(&precious, "text").unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (nbd, stats, why) in [
        (at("disk.img"), None, "disk.img: there already, and no socket"),
        (at("precious"), None, "precious: there already, and no socket"),
        (at("nowhere/socket"), None, "nowhere/socket: No such file"),
        (at("socket"), Some(at("disk.img")), "disk.img: a device of the set"),
        (at("socket"), Some(at("precious")), "precious: there already, and no report"),
        (at("socket"), Some(at("nowhere/stats")), "nowhere/stats: No such file"),
        (at("socket"), Some(dir.path().to_str().unwrap().to_owned()), "not a file"),
        (at("socket"), Some("-".to_owned()), "-: statistics go to a file"),
    ] {
        let mut args = vec!["serve".to_owned(), "--nbd".to_owned(), nbd];
        args.extend(stats.into_iter().flat_map(|stats| ["--stats-json".to_owned(), stats]));
        args.extend(devices.iter().map(|device| device.to_str().unwrap().to_owned()));
        let said = ours("bcache", &args).unwrap();
        assert_eq!(said.code, 1, "{args:?}: {said:?}");
        assert!(said.stderr.contains(why), "{args:?}: {said:?}");
    }
    for (device, before) in devices.iter().zip(before) {
        assert!(std::fs::read(device).unwrap() == before, "{} was written", device.display());
    }
    assert_eq!(std::fs::read(&precious).unwrap(), b"text");
    let mut left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["cache.img", "disk.img", "precious"], "nothing is left behind");
}

#[test]
fn a_device_that_is_too_short_for_its_dirty_data_is_told() {
    let dir = paths::scratch().unwrap();
    let devices = make(dir.path(), 64 << 20, 64 << 20);
    let options =
        ["--set", "cache_mode=writeback", "--set", "writeback_running=0", "--set", "sequential_cutoff=0"];
    let served = Served::start(dir.path(), &options, &devices).unwrap();
    let mut client = served.client("").unwrap();
    client.write(0, &[7; 4096], false).unwrap();
    client.write(48 << 20, &[9; 4096], true).unwrap();
    assert!(served.stop().unwrap().0.success());
    std::fs::OpenOptions::new().write(true).open(&devices[1]).unwrap().set_len(32 << 20).unwrap();
    let [cache, disk] = devices.each_ref().map(|device| device.to_str().unwrap());
    let missing = (16 << 20) / 512 + 16 + 8;
    for options in [&["--read-only"][..], &[]] {
        let socket = dir.path().join("short");
        let mut limited = std::process::Command::new("timeout");
        limited.args(["-s", "TERM", "3"]).arg(paths::program("bcache").unwrap());
        limited.arg("serve").arg("--nbd").arg(socket).args(options).args([cache, disk]);
        let said = bcache_tests::cmd::run(&mut limited).unwrap();
        let told = format!("disk.img: {missing} sectors too short for its dirty data");
        assert!(said.stderr.contains(&told), "{options:?}: {said:?}");
        assert!(said.stdout.contains("serving at"), "{said:?}");
    }
    for program in [&["fsck", "-n"][..], &["doctor"], &["flush", "--dry-run"]] {
        let said = ours("bcache", program.iter().copied().chain([cache, disk])).unwrap();
        assert!(said.stdout.contains("extent-beyond") || said.stderr.contains("extent-beyond"), "{said:?}");
    }
}

#[test]
fn labels_are_escaped_in_what_is_told() {
    let dir = paths::scratch().unwrap();
    let [cache, disk] = make(dir.path(), 64 << 20, 16 << 20);
    let label = "a\nexport:b\u{1b}[2J";
    let args = [
        "--wipe-bcache",
        "-l",
        label,
        "-b",
        "64k",
        "-C",
        cache.to_str().unwrap(),
        "-B",
        disk.to_str().unwrap(),
    ];
    assert_eq!(ours("make-bcache", args).unwrap().code, 0);
    let served = Served::start(dir.path(), &[], &[cache.clone(), disk.clone()]).unwrap();
    assert_eq!(served.exports.len(), 1);
    assert_eq!(served.exports[0].0, "a\\nexport:b\\u{1b}[2J");
    assert_eq!(served.client(label).unwrap().bytes, served.exports[0].2, "its name is the label itself");
    assert!(served.stop().unwrap().0.success());
    let (cache, disk) = (cache.to_str().unwrap(), disk.to_str().unwrap());
    for args in [
        &["doctor", cache, disk][..],
        &["dump", "uuids", cache],
        &["dump", "super", disk],
        &["fsck", "-n", cache, disk],
        &["show", disk],
        &["show", "--json", disk],
        &["flush", "--dry-run", cache],
        &["export", "-o", "-", cache],
    ] {
        let said = ours("bcache", args).unwrap();
        let wild =
            |text: &str| text.contains('\u{1b}') || text.lines().any(|line| line.starts_with("export:b"));
        assert!(!wild(&said.stdout) && !wild(&said.stderr), "{args:?}: {said:?}");
    }
}
