//! The memory that a repair takes, against what it is reckoned to take before it starts.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bcache_engine::fsck::made::{Shape, make};
use bcache_engine::fsck::repair::memory;
use bcache_engine::fsck::view::{Device, FileDevice};
use bcache_engine::fsck::{Options, check};
use bcache_format::Sectors;
use bcache_tests::paths;

use crate::programs::run_within;

/// Bytes that a program takes whatever it repairs.
const OF_A_PROGRAM: u64 = 32 << 20;

#[test]
fn a_repair_takes_about_what_was_reckoned() {
    let extents = 1_000_000;
    let shape = Shape::of(extents, 8, 1024);
    let dir = paths::scratch().unwrap();
    let path = dir.path().join("cache");
    let file = File::create_new(&path).unwrap();
    file.set_len(shape.bytes()).unwrap();
    let mut keys = (0..extents).map(|i| shape.extent(i, extents, 8));
    make(shape, &mut keys, &mut |at, bytes| file.write_all_at(bytes, at)).unwrap();
    let checked = || check([Arc::new(FileDevice::open(&path).unwrap()) as Device], Options::default());
    let leaf = checked().set.unwrap().leaves[3].key.ptr().unwrap();
    file.write_all_at(b"rot", Sectors(leaf.offset()).bytes() + 1000).unwrap();
    let reckoned = memory(&checked());
    assert!(reckoned > 0);

    let undo = dir.path().join("undo");
    let args = ["fsck", "-y", "--undo", undo.to_str().unwrap()];
    let repair = |bytes: u64| run_within(bytes / 1024, "bcache", &args, std::slice::from_ref(&path));
    let code = repair(reckoned / 2);
    assert!(![0, 1].contains(&code), "{code}: half of the {reckoned} bytes suffice");
    assert_eq!(repair(reckoned + OF_A_PROGRAM), 1, "{reckoned} bytes do not suffice");
}
