//! How fast a check reads metadata: `cargo run --release --example fsck_speed [EXTENTS]`.
//!
//! Makes a set with so many extents in memory, in a sparse device that exists in memory only, and checks it warm.

use bcache_engine::fsck::repair::{Content, Scratch, rebuild};
use bcache_engine::fsck::view::{Device, Devices, ReadAt};
use bcache_engine::fsck::{Options, check};
use bcache_format::jset::{Jset, VERSION};
use bcache_format::prio::BucketDisk;
use bcache_format::superblock::{CacheFields, Role, SB_BYTES, SB_OFFSET, Version};
use bcache_format::uuid_entry::UuidEntry;
use bcache_format::{Bkey, BucketNr, Ptr, Superblock};
use std::sync::Arc;
use std::time::Instant;

/// Sectors of a bucket: 512 KiB.
const BUCKET: u64 = 1024;
/// Sectors of an extent.
const EXTENT: u64 = 8;

/// Zeros of a size.
struct Zeros(u64);

impl ReadAt for Zeros {
    fn name(&self) -> &str {
        "cache"
    }
    fn size(&self) -> u64 {
        self.0
    }
    fn read_at(&self, _: u64, buf: &mut [u8]) -> std::io::Result<()> {
        buf.fill(0);
        Ok(())
    }
}

fn superblock(nbuckets: u64) -> Superblock {
    Superblock {
        version: Version::CacheWithUuid,
        uuid: uuid::Uuid::from_u128(1),
        set_uuid: uuid::Uuid::from_u128(2),
        label: Default::default(),
        flags: 1,
        seq: 1,
        features: Default::default(),
        block_sectors: 8,
        last_mount: 0,
        role: Role::Cache(CacheFields {
            nbuckets,
            bucket_sectors: BUCKET as u32,
            nr_in_set: 1,
            nr_this_dev: 0,
            first_bucket: 1,
            njournal_buckets: 8,
        }),
    }
}

fn main() {
    let extents: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(10_000_000);
    let per_bucket = BUCKET / EXTENT;
    let data = extents.div_ceil(per_bucket);
    // A node has half a bucket, and is three quarters full.
    let metadata = extents * 24 * 3 / (BUCKET * 512) + 100;
    let nbuckets = 9 + data + metadata;
    let mut device = Scratch::new(Arc::new(Zeros(nbuckets * BUCKET * 512)));
    let mut block = vec![0; SB_BYTES];
    superblock(nbuckets).write_to(&mut block).expect("a superblock");
    device.write(SB_OFFSET, &block).expect("memory");
    let opened: Device = Arc::new(device.clone());
    let cache = Devices::open([opened]).expect("a cache").caches.remove(0);
    // Every other 4 KiB of the device, so that nothing merges.
    let keys: Vec<Bkey> = (0..extents)
        .map(|i| {
            let bucket = 9 + metadata + i / per_bucket;
            let ptr = Ptr::new(0, bucket * BUCKET + i % per_bucket * EXTENT, 1);
            Bkey::extent(0, 16 + i * 2 * EXTENT + EXTENT, EXTENT, ptr, i % 2 == 0)
        })
        .collect();
    let mut buckets = vec![BucketDisk::default(); nbuckets as usize];
    buckets.iter_mut().skip((9 + metadata) as usize).for_each(|bucket| bucket.generation = 1);
    let mut uuids = vec![UuidEntry::EMPTY; cache.geometry.nr_uuids()];
    uuids[0].uuid = uuid::Uuid::from_u128(3);
    let (mut free, mut life) = (9..9 + metadata, 0);
    let content = Content { keys: &keys, uuids: &uuids, buckets, prio_seq: 1 };
    let rebuilt = rebuild(&cache, content, &mut || free.next().map(BucketNr), &mut || {
        life += 1;
        life
    });
    let rebuilt = rebuilt.expect("room");
    let bytes: usize = rebuilt.writes.iter().map(|write| write.bytes.len()).sum();
    for write in &rebuilt.writes {
        device.write(write.byte, &write.bytes).expect("memory");
    }
    let mut prio_bucket = [BucketNr(0); 8];
    prio_bucket[0] = rebuilt.prio_bucket;
    let (uuid_bucket, (btree_root, btree_level)) = (rebuilt.uuids, rebuilt.root);
    let jset = Jset {
        seq: 1,
        last_seq: 1,
        version: VERSION,
        uuid_bucket,
        btree_root,
        btree_level,
        prio_bucket,
        keys: Vec::new(),
    };
    let entry = jset.write(cache.magic, cache.geometry.block_bytes()).expect("an entry");
    device.write(BUCKET * 512, &entry).expect("memory");
    drop(keys);
    let device: Device = Arc::new(device);
    let start = Instant::now();
    let checked = check([device], Options::default());
    let seconds = start.elapsed().as_secs_f64();
    assert!(checked.findings.is_empty(), "{:?}", checked.findings.first());
    let rate = bytes as f64 / seconds / 1e9;
    println!("{extents} extents, {bytes} bytes of metadata: checked in {seconds:.2} s, {rate:.2} GB/s");
}
