//! A cache whose device has become longer gets more buckets, with crashes in the middle.

use std::sync::Arc;

use bcache_engine::fsck::repair::enlarge;
use bcache_engine::fsck::view::Device;
use bcache_engine::fsck::{Kind, Options, check};
use bcache_format::Pos;
use bcache_tests::golden::Set;
use bcache_tests::{cmd, paths, sparse};

/// All extents that a reader is told of.
fn extents(devices: &[Device]) -> Vec<String> {
    let checked = check(devices.iter().cloned(), Options::default());
    let torn = |kind: Kind| kind == Kind::JournalTailTorn;
    assert!(checked.findings.iter().all(|finding| torn(finding.kind)), "{:?}", checked.findings.first());
    let view = checked.set.expect("a set");
    view.extents(Pos::ZERO, Pos::MAX)
        .map(|extent| extent.expect("an extent"))
        .filter(|extent| extent.live().is_some())
        .map(|extent| extent.key.to_string())
        .collect()
}

#[test]
fn a_cache_grows_and_keeps_what_it_has() {
    for name in ["wb-dirty", "wb-crash", "block-4k", "two-backing-flash"] {
        let dir = paths::scratch().unwrap();
        let set = Set::open(name).unwrap();
        let devices = set.copy_to(dir.path()).unwrap();
        let cache = devices.iter().find(|path| path.ends_with("cache.img")).unwrap();
        let old = std::fs::metadata(cache).unwrap().len();
        let open = || -> Vec<Device> {
            let file = |path: &std::path::PathBuf| {
                Arc::new(bcache_engine::fsck::view::FileDevice::open(path).unwrap()) as Device
            };
            devices.iter().map(file).collect()
        };
        assert!(enlarge(&open()).unwrap().is_none(), "{name}: it has all there is room for");
        let before = extents(&open());
        std::fs::OpenOptions::new().write(true).open(cache).unwrap().set_len(old + old / 2).unwrap();
        let larger = enlarge(&open()).unwrap().expect("it is longer");
        assert!(larger.after >= larger.before * 3 / 2 - 1, "{name}: {larger:?}");
        // Wherever it is cut off, a reader sees the same.
        for count in 0..=larger.plan.writes().count() {
            let cut = larger.plan.simulate(&open(), count).unwrap();
            assert_eq!(extents(&cut), before, "{name}: after {count} writes");
        }
        let said = cmd::ours("bcache", ["resize".as_ref(), "--offline".as_ref(), cache.as_os_str()]).unwrap();
        assert_eq!(said.code, 0, "{name}: {said:?}");
        assert!(said.stdout.contains(&format!("has {} buckets, and had {}", larger.after, larger.before)));
        assert_eq!(extents(&open()), before, "{name}");
        let said = cmd::ours("bcache", ["resize".as_ref(), "--offline".as_ref(), cache.as_os_str()]).unwrap();
        assert_eq!(said.code, 1, "{name}: {said:?}");
        assert!(said.stderr.contains("no cache device that has become longer"), "{said:?}");
        for content in set.entry.content.iter().filter(|content| !content.of.starts_with("flash")) {
            let output = dir.path().join("out");
            let mut args = vec!["export".into(), "-o".into(), output.clone().into_os_string()];
            let backing = devices.iter().find(|path| path.ends_with(&*content.of)).unwrap();
            args.extend(["--of".into(), backing.clone().into_os_string()]);
            args.extend([backing.clone().into_os_string(), cache.clone().into_os_string()]);
            assert_eq!(cmd::ours("bcache", args).unwrap().code, 0, "{name}");
            let found = sparse::sha256(std::fs::File::open(&output).unwrap()).unwrap();
            assert_eq!(found, (content.sha256.clone(), content.bytes), "{name} {}", content.of);
        }
    }
}
