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
