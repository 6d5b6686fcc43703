//! The memory that a repair takes, against what it is reckoned to take before it starts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bcache_engine::fsck::made::{Shape, make};
use bcache_engine::fsck::repair::{Bytes, Refused, memory, plan, undo};
use bcache_engine::fsck::view::{Device, FileDevice, ReadAt};
use bcache_engine::fsck::{Kind, Options, check};
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

/// A large device that has zeros where nothing was written, and sectors that cannot be read.
struct Large {
    size: u64,
    /// What was written, by its end.
    written: BTreeMap<u64, (u64, Vec<u8>)>,
    bad: Range<u64>,
    /// Of the bad ones every so many-th sector is bad.
    every: u64,
}

impl Large {
    /// A set of few extents in buckets of so many sectors, of which all journal buckets but the first are bad.
    fn new(bucket_sectors: u32, every: u64) -> Self {
        let shape = Shape::of(100, 8, bucket_sectors);
        let mut written = BTreeMap::new();
        let mut keys = (0..100).map(|i| shape.extent(i, 100, 8));
        make(shape, &mut keys, &mut |at, bytes| {
            written.insert(at + bytes.len() as u64, (at, bytes.to_vec()));
            Ok(())
        })
        .unwrap();
        let geometry = shape.geometry();
        let first = (geometry.first_bucket + 1) * geometry.bucket_bytes();
        let bad = first..first + 7 * geometry.bucket_bytes();
        Self { size: shape.bytes(), written, bad, every }
    }
}

impl ReadAt for Large {
    fn name(&self) -> &str {
        "large"
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = byte + buf.len() as u64;
        let (from, to) = (byte.max(self.bad.start), end.min(self.bad.end));
        if from < to && from.next_multiple_of(512 * self.every) < to {
            return Err(io::ErrorKind::InvalidData.into());
        }
        buf.fill(0);
        for (at, bytes) in self.written.range(byte + 1..).map(|(_, written)| written) {
            if *at >= end {
                break;
            }
            let (from, to) = (byte.max(*at), end.min(*at + bytes.len() as u64));
            buf[(from - byte) as usize..(to - byte) as usize]
                .copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
        }
        Ok(())
    }
}

#[test]
fn unreadable_journal_buckets_take_no_memory() {
    let bytes_each = 256 << 20;
    let devices = [Arc::new(Large::new((bytes_each / 512) as u32, 1)) as Device];
    let checked = check(devices.iter().cloned(), Options::default());
    assert!(checked.has(Kind::JournalUnreadable));
    let mut seed = 1u64;
    let plan = plan(&devices, &checked, &mut || {
        seed += 1;
        seed
    });
    let plan = plan.unwrap();
    let cleared: u64 = plan
        .writes()
        .filter(|write| write.what.contains("cannot be read"))
        .map(|write| write.bytes.len())
        .sum();
    assert_eq!(cleared, 7 * bytes_each);
    let held =
        plan.writes().filter(|write| matches!(write.bytes, Bytes::These(_))).map(|write| write.bytes.len());
    let held = held.sum::<u64>();
    assert!(held < 64 << 20, "{held} bytes");
    // Nor does what puts the rest back, and it knows its own work, also where that was cut off.
    let file = undo::save(&plan, &devices).unwrap();
    assert!(file.len() < 64 << 20, "{} bytes", file.len());
    let file = undo::load(&file).unwrap();
    let count = plan.writes().count();
    for done in [count / 2, count] {
        let after = plan.simulate(&devices, done).unwrap();
        let back = undo::plan(&file, &after).unwrap().simulate(&after, usize::MAX).unwrap();
        let checked = check(back, Options::default());
        assert!(
            checked.set.unwrap().extents(bcache_format::Pos::ZERO, bcache_format::Pos::MAX).count() == 100
        );
    }
}

#[test]
fn bad_sectors_without_number_are_refused() {
    let devices = [Arc::new(Large::new(1 << 15, 2)) as Device];
    let checked = check(devices.iter().cloned(), Options::default());
    assert!(checked.has(Kind::JournalUnreadable));
    let refused = plan(&devices, &checked, &mut || 7).map(|_| ());
    assert_eq!(refused, Err(Refused::TooManyBad { cache: "large".into() }));
}
