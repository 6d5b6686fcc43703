//! Checks and repairs of a small set that the input damages.
//!
//! The input is a list of changes, twelve bytes each: number of the structure, how to change it, where in it (two
//! bytes), and a value of eight bytes. Checksums are put right where the change asks for it.

#![allow(dead_code)] // each target is one of the functions

use std::sync::{Arc, OnceLock};

use bcache_engine::fsck::made::{Shape, make};
use bcache_engine::fsck::repair::{self, Scratch};
use bcache_engine::fsck::view::tree::{Step, Walk};
use bcache_engine::fsck::view::{Device, Devices, MemDevice, SetView};
use bcache_engine::fsck::{Options, check};
use bcache_format::superblock::{RawSuperblock, SB_BYTES, SB_OFFSET};
use bcache_format::{Bkey, Pos, Ptr, bset, jset, prio};

/// Extents of the set: three leaves.
const EXTENTS: u64 = 300;
/// Bytes of a change.
const RECORD: usize = 12;
/// Changes of one input; more of them only bury each other.
const RECORDS: usize = 16;

/// What a structure holds, and with that its checksum.
#[derive(Clone, Copy)]
enum Holds {
    Superblock,
    Jset,
    Prio,
    Uuids,
    Bset(Ptr),
}

/// One structure: on which device, where, how long.
struct Region {
    device: usize,
    holds: Holds,
    byte: u64,
    len: usize,
}

struct Base {
    devices: Vec<Device>,
    regions: Vec<Region>,
}

/// The undamaged set: a root, leaves of which two have a second bset, and a journal of two entries with keys.
fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let shape = Shape::of(EXTENTS, 8, 8);
        let mut bytes = vec![0; shape.bytes() as usize];
        let mut keys = (0..EXTENTS).map(|i| shape.extent(i, EXTENTS, 8));
        make(shape, &mut keys, &mut |at, from| {
            bytes[at as usize..][..from.len()].copy_from_slice(from);
            Ok(())
        })
        .expect("a set");
        let view = view_of(&bytes);
        for (byte, from) in additions(&view, shape) {
            bytes[byte as usize..][..from.len()].copy_from_slice(&from);
        }
        let view = view_of(&bytes);
        let devices: Vec<Device> = vec![Arc::new(MemDevice::new("cache", bytes)), Arc::new(backing(shape))];
        let checked = check(devices.iter().cloned(), Options::default());
        assert!(checked.findings.is_empty(), "{:?}", &*checked.findings);
        Base { devices, regions: regions(&view) }
    })
}

fn view_of(bytes: &[u8]) -> SetView {
    let device: Device = Arc::new(MemDevice::new("cache", bytes.to_vec()));
    SetView::open(Devices::open([device]).expect("a superblock").caches.remove(0)).expect("a set")
}

/// A second bset for two leaves, and a second journal entry with keys.
fn additions(view: &SetView, shape: Shape) -> Vec<(u64, Vec<u8>)> {
    let spare = |i: u64| Ptr::new(0, (shape.first_data().0 + EXTENTS + i) * 8, 1);
    let over = |i: u64, key: Bkey| Bkey::extent(0, key.offset() + 2, 4, spare(i), i.is_multiple_of(2));
    let mut added = Vec::new();
    let mut walk = Walk::new(&view.cache, view.root.expect("a root"), Pos::ZERO, Pos::MAX);
    let mut journal = Vec::new();
    while let Some(Step::Node(node)) = walk.step_settled(&view.gens) {
        if node.at.level > 0 {
            continue;
        }
        let i = added.len() as u64;
        journal.push(over(100 + i, node.keys[9]));
        if i < 2 {
            let keys = [over(i, node.keys[3]), over(10 + i, node.keys[7])];
            let set =
                bset::write(&keys, node.seq, bset::VERSION, node.ptr, view.cache.magic).expect("a bset");
            added.push((node.byte + node.written, set));
        }
    }
    let newest = view.journal.newest().expect("an entry");
    let mut second = newest.jset.clone();
    (second.seq, second.keys) = (newest.jset.seq + 1, journal);
    let block = view.cache.geometry.block_bytes();
    added.push((newest.byte + newest.bytes, second.write(view.cache.magic, block).expect("an entry")));
    added
}

/// A backing device of the set, dirty.
fn backing(shape: Shape) -> MemDevice {
    let mut bytes = vec![0; 4 << 20];
    shape.backing().write_to(&mut bytes[SB_OFFSET as usize..][..SB_BYTES]).expect("a superblock");
    MemDevice::new("backing", bytes)
}

fn regions(view: &SetView) -> Vec<Region> {
    let of_cache = |holds, byte, len: u64| Region { device: 0, holds, byte, len: len as usize };
    let meta = view.cache.geometry.meta_bucket_bytes();
    let mut regions = vec![
        of_cache(Holds::Superblock, SB_OFFSET, SB_BYTES as u64),
        Region { device: 1, holds: Holds::Superblock, byte: SB_OFFSET, len: SB_BYTES },
    ];
    regions.extend(view.journal.entries.values().map(|entry| of_cache(Holds::Jset, entry.byte, entry.bytes)));
    for (bucket, _) in &view.prios.buckets {
        regions.push(of_cache(Holds::Prio, view.cache.geometry.bucket_start_byte(*bucket), meta));
    }
    let uuids = view.journal.newest().and_then(|newest| newest.jset.uuid_bucket.ptr()).expect("a table");
    regions.push(of_cache(Holds::Uuids, uuids.offset() * 512, meta));
    let mut walk = Walk::new(&view.cache, view.root.expect("a root"), Pos::ZERO, Pos::MAX);
    while let Some(Step::Node(node)) = walk.step_settled(&view.gens) {
        let of_set = |set: &bcache_engine::fsck::view::node::SetSummary| {
            of_cache(Holds::Bset(node.ptr), node.byte + set.offset, set.bytes)
        };
        regions.extend(node.sets.iter().map(of_set));
    }
    regions
}

/// The devices with the input's changes.
fn damaged(data: &[u8]) -> Vec<Device> {
    let base = base();
    let mut devices: Vec<Scratch> = base.devices.iter().map(|device| Scratch::new(device.clone())).collect();
    for record in data.chunks_exact(RECORD).take(RECORDS) {
        let region = &base.regions[usize::from(record[0]) % base.regions.len()];
        let (how, at) = (record[1], u16::from_le_bytes([record[2], record[3]]));
        let device = &mut devices[region.device];
        let mut bytes = vec![0; region.len];
        bcache_engine::fsck::view::ReadAt::read_at(device, region.byte, &mut bytes).expect("memory");
        let at = usize::from(at) % region.len;
        let width = (1 << (how >> 1 & 3)).min(region.len - at);
        for (byte, value) in bytes[at..at + width].iter_mut().zip(&record[4..]) {
            *byte = if how & 8 == 0 { *byte ^ value } else { *value };
        }
        if how & 1 == 0 {
            seal(region.holds, &mut bytes);
        }
        device.write(region.byte, &bytes).expect("memory");
    }
    devices.into_iter().map(|device| Arc::new(device) as Device).collect()
}

fn seal(holds: Holds, bytes: &mut [u8]) {
    match holds {
        Holds::Superblock => {
            let csum = RawSuperblock::read(bytes).map_or(0, |raw| raw.expected_csum());
            bytes[..8].copy_from_slice(&csum.to_le_bytes());
        }
        Holds::Jset => jset::seal(bytes),
        Holds::Prio => prio::seal(bytes),
        Holds::Uuids => {}
        Holds::Bset(ptr) => {
            let size = bset::BsetHeader::read(bytes).map_or(0, |header| header.bytes());
            if let Some(whole) = bytes.get_mut(..usize::try_from(size).unwrap_or(usize::MAX)) {
                bset::seal(whole, ptr);
            }
        }
    }
}

/// The view of a damaged set: it ends, and gives no more than there is.
pub fn view(data: &[u8]) {
    let Ok(mut devices) = Devices::open(damaged(data)) else { return };
    let Some(cache) = devices.caches.pop() else { return };
    let mut faults = 0;
    let view = SetView::read(cache, &mut |fault| {
        assert!(!fault.to_string().is_empty());
        faults += 1;
    });
    let extents = view.extents(Pos::ZERO, Pos::MAX).count();
    assert!(extents + faults < 100 * EXTENTS as usize, "{extents} extents, {faults} faults");
}

/// The repair of a damaged set: it is refused, or ends clean, also when it was cut off after any of its writes.
pub fn planner(data: &[u8]) {
    let devices = damaged(data);
    let checked = check(devices.iter().cloned(), Options::default());
    let mut life = 1 << 40;
    let mut random = || {
        life += 1;
        life
    };
    let Ok(plan) = repair::plan(&devices, &checked, &mut random) else { return };
    assert_eq!(plan.is_empty(), checked.findings.is_empty(), "{:?}", &*checked.findings);
    let count = plan.writes().count();
    if count == 0 {
        return;
    }
    // The input says where the machine stops.
    let stop = data.iter().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let now = plan.simulate(&devices, stop % count).expect("memory");
    let again = check(now.iter().cloned(), Options::default());
    let rest = repair::plan(&now, &again, &mut random).unwrap_or_else(|refused| panic!("{refused}"));
    let last = rest.simulate(&now, usize::MAX).expect("memory");
    assert_eq!(*check(last, Options::default()).findings, []);
}
