//! The sets themselves: they unpack, stay sparse, and are what the manifest says.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use bcache_tests::golden::{Set, manifest};

#[test]
fn every_set_unpacks_sparsely() {
    for set in Set::all().unwrap() {
        assert!(set.entry.files.len() >= 2, "{}: a cache and a backing device at least", set.name);
        for path in set.paths() {
            let meta = fs::metadata(&path).unwrap();
            let stored = meta.blocks() * 512;
            assert!(meta.len() >= 64 << 20, "{}", path.display());
            assert!(stored < 256 << 20, "{}: {stored} bytes are stored", path.display());
            let mut magic = [0; 16];
            fs::File::open(&path).unwrap().read_exact_at(&mut magic, 4096 + 24).unwrap();
            assert_eq!(magic[..4], [0xc6, 0x85, 0x73, 0xf6], "{}: no bcache superblock", path.display());
        }
    }
}

#[test]
fn the_longest_cache_is_40_gb_of_holes() {
    let set = Set::open("large-bucket-64m").unwrap();
    let meta = fs::metadata(set.path("cache.img")).unwrap();
    assert_eq!(meta.len(), 40_000 << 20);
    assert!(meta.blocks() * 512 < 128 << 20);
}

#[test]
fn the_manifest_says_what_is_in_every_used_set() {
    for (name, entry) in manifest().unwrap() {
        let known = entry.content.len() + usize::from(entry.stamp.is_some());
        assert_eq!(known == 0, name == "fresh", "{name}");
    }
}
