//! One kind of damage each: the error names the device, the structure and the byte.

use bcache_engine::fsck::view::{Devices, Fault, Refusal, SetView, What};
use bcache_format::superblock::SB_OFFSET;
use bcache_format::{Bkey, Pos, Problem, Ptr, Structure};

use crate::patched::Patched;
use crate::regions::{Kind, Region, change, of, view};

/// A set with an interior root and a journal of several entries.
const SET: &str = "deep-btree";

/// Damages the set and tells the first fault that opening it gives.
fn first_fault(damage: impl FnOnce(&mut Patched, &[Region])) -> Fault {
    let mut device = Patched::cache_of(SET);
    let regions = of(&view(device.cache()));
    damage(&mut device, &regions);
    let fault = match Devices::open([device.device()]) {
        Err(fault) => fault,
        Ok(mut devices) => match SetView::open(devices.caches.remove(0)) {
            Err(Refusal::Fault(fault)) => fault,
            other => panic!("not refused: {:?}", other.map(|_| ())),
        },
    };
    let said = fault.to_string();
    assert!(said.starts_with("cache: ") && said.contains(" at byte "), "{said}");
    fault
}

fn find(regions: &[Region], is: impl Fn(&Kind) -> bool) -> Region {
    *regions.iter().find(|region| is(&region.kind)).unwrap()
}

fn newest(regions: &[Region]) -> Region {
    *regions.iter().rfind(|region| region.kind == Kind::Jset).unwrap()
}

fn root(regions: &[Region]) -> Region {
    find(regions, |kind| matches!(kind, Kind::Bset(_)))
}

/// A bset of the last leaf, and with it the node.
fn leaf(regions: &[Region]) -> Region {
    let last = regions.last().unwrap();
    *regions.iter().find(|region| region.kind == last.kind).unwrap()
}

fn put_key(bytes: &mut [u8], at: usize, key: &Bkey) {
    for (i, word) in key.words().enumerate() {
        bytes[at + 8 * i..][..8].copy_from_slice(&word.to_le_bytes());
    }
}

/// The first key of a bset.
fn key_of(device: &Patched, region: &Region) -> Bkey {
    Bkey::from_bytes(&device.bytes(region.byte + 32, 64)).unwrap()
}

#[test]
fn truncated_devices() {
    for size in [0, 4096, 5000, 8191] {
        let fault = first_fault(|device, _| device.truncate(size));
        assert_eq!((fault.structure, fault.byte), (Structure::Superblock, SB_OFFSET));
        assert!(matches!(fault.what, What::Format(Problem::Truncated { .. })));
    }
    let fault = first_fault(|device, _| device.truncate(1 << 20));
    assert_eq!((fault.structure, fault.byte), (Structure::Superblock, SB_OFFSET + 0xb8));
}

#[test]
fn huge_and_zero_counts() {
    for count in [0u32, 1, u32::MAX, 0x7fff_ffff] {
        let fault = first_fault(|device, regions| {
            let region = leaf(regions);
            change(device, &region, |bytes| bytes[0x1c..0x20].copy_from_slice(&count.to_le_bytes()));
        });
        assert!(matches!(fault.structure, Structure::Bset | Structure::BtreeNode), "{fault}");
    }
    for nbuckets in [0u64, 127, 1 << 40, u64::MAX] {
        let fault = first_fault(|device, regions| {
            change(device, &regions[0], |bytes| bytes[0xb8..0xc0].copy_from_slice(&nbuckets.to_le_bytes()));
        });
        assert_eq!((fault.structure, fault.byte), (Structure::Superblock, SB_OFFSET + 0xb8), "{fault}");
    }
    let fault = first_fault(|device, regions| {
        change(device, &regions[0], |bytes| bytes[0xce..0xd0].copy_from_slice(&u16::MAX.to_le_bytes()));
    });
    assert_eq!(fault.byte, SB_OFFSET + 0xce, "{fault}");
}

#[test]
fn a_prio_chain_that_comes_back() {
    let mut at = 0;
    let fault = first_fault(|device, regions| {
        let prio = find(regions, |kind| *kind == Kind::Prio);
        at = prio.byte;
        let own = prio.byte / device.cache().geometry.bucket_bytes();
        change(device, &prio, |bytes| bytes[0x20..0x28].copy_from_slice(&own.to_le_bytes()));
    });
    assert_eq!((fault.structure, fault.byte), (Structure::PrioSet, at), "{fault}");
    assert!(matches!(fault.what, What::PrioLoop(_)), "{fault}");
}

#[test]
fn a_prio_chain_that_leaves_the_device() {
    for bucket in [0, 1, u64::MAX, 1 << 30] {
        let fault = first_fault(|device, regions| {
            let newest = newest(regions);
            change(device, &newest, |bytes| bytes[0xb0..0xb8].copy_from_slice(&bucket.to_le_bytes()));
        });
        assert!(matches!(fault.what, What::PrioBucket(_)), "{fault}");
    }
}

#[test]
fn pointers_outside_the_device() {
    for sector in [0, (1 << 43) - 1, 1 << 33] {
        let fault = first_fault(|device, regions| {
            let leaf = leaf(regions);
            let mut key = key_of(device, &leaf);
            key.set_ptrs(&[Ptr::new(0, sector, key.ptr().unwrap().generation())]);
            change(device, &leaf, |bytes| put_key(bytes, 32, &key));
        });
        assert_eq!(fault.structure, Structure::Bkey, "{fault}");
        assert!(matches!(fault.what, What::Pointer { .. }), "{fault}");
    }
}

#[test]
fn a_btree_that_is_a_cycle() {
    // The root's last child is the root: a level lower, the same node again.
    let fault = first_fault(|device, regions| {
        let root = root(regions);
        let Kind::Bset(ptr) = root.kind else { panic!("no root") };
        let Kind::Bset(child) = regions.last().unwrap().kind else { panic!("no leaf") };
        let sets = regions.iter().filter(|region| region.kind == root.kind);
        for set in sets {
            change(device, set, |bytes| {
                for word in bytes[32..].as_chunks_mut::<8>().0 {
                    if u64::from_le_bytes(*word) == child.0 {
                        *word = ptr.0.to_le_bytes();
                    }
                }
            });
        }
    });
    assert_eq!(fault.structure, Structure::BtreeNode, "{fault}");
    assert!(matches!(fault.what, What::NodeTwice(_)), "{fault}");
}

#[test]
fn levels_that_do_not_descend() {
    // Leaves taken for interior nodes: their keys point at data.
    let fault = first_fault(|device, regions| {
        let newest = newest(regions);
        change(device, &newest, |bytes| bytes[0xa8] += 1);
    });
    assert!(matches!(fault.structure, Structure::Bkey | Structure::BtreeNode), "{fault}");
    // And a root that claims more levels than there can be.
    let fault = first_fault(|device, regions| {
        let newest = newest(regions);
        change(device, &newest, |bytes| bytes[0xa8..0xaa].copy_from_slice(&u16::MAX.to_le_bytes()));
    });
    assert_eq!(fault.what, What::TooDeep(u16::MAX));
    // An interior root read as a leaf: its keys end where nodes do, and the journal's level is what counts.
    let fault = first_fault(|device, regions| {
        let newest = newest(regions);
        change(device, &newest, |bytes| bytes[0xa8] = 0);
    });
    assert!(matches!(fault.structure, Structure::Bkey | Structure::BtreeNode), "{fault}");
}

#[test]
fn keys_out_of_order() {
    let fault = first_fault(|device, regions| {
        let leaf = leaf(regions);
        change(device, &leaf, |bytes| {
            let (first, second) = (bytes[32..56].to_vec(), bytes[56..80].to_vec());
            bytes[32..56].copy_from_slice(&second);
            bytes[56..80].copy_from_slice(&first);
        });
    });
    assert!(matches!(fault.what, What::KeyOrder { .. }), "{fault}");
}

#[test]
fn a_leaf_key_beyond_its_node() {
    let fault = first_fault(|device, regions| {
        let first_leaf = regions.iter().filter(|region| matches!(region.kind, Kind::Bset(_)));
        let root = root(regions);
        let leaf = *first_leaf.into_iter().find(|region| region.kind != root.kind).unwrap();
        let last = (leaf.len - 24) as usize;
        let key = Bkey::from_bytes(&device.bytes(leaf.byte + last as u64, 24)).unwrap();
        let far = Bkey::extent(500, 1 << 40, key.size(), key.ptr().unwrap(), key.dirty());
        change(device, &leaf, |bytes| put_key(bytes, last, &far));
    });
    assert!(matches!(fault.what, What::KeyRange { .. }), "{fault}");
}

#[test]
fn a_gap_in_the_journal() {
    let device = Patched::cache_of("wb-crash");
    let regions = of(&view(device.cache()));
    let middle = regions.iter().filter(|region| region.kind == Kind::Jset).nth(3).unwrap();
    let mut device = device;
    device.write(middle.byte + 8, &[0; 8]);
    let Err(Refusal::Fault(fault)) = SetView::open(device.cache()) else { panic!("not refused") };
    // The kernel would go back to the entry before it and say nothing.
    assert!(matches!(fault.what, What::JournalHole { .. }), "{fault}");
}

#[test]
fn an_empty_journal() {
    let fault = first_fault(|device, regions| {
        let geometry = device.cache().geometry;
        assert!(regions.iter().any(|region| region.kind == Kind::Jset));
        for bucket in geometry.first_bucket..geometry.first_bucket + device.cache().njournal_buckets() {
            device.write(bucket * geometry.bucket_bytes() + 8, &[0; 8]);
        }
    });
    assert_eq!(fault.what, What::JournalEmpty);
}

#[test]
fn a_damaged_set_is_still_read_as_far_as_it_goes() {
    let whole = view(Patched::cache_of(SET).cache());
    let all = whole.extents(Pos::ZERO, Pos::MAX).count();
    let mut device = Patched::cache_of(SET);
    let leaf = leaf(&of(&whole));
    device.write(leaf.byte + 40, b"broken");
    let mut faults = Vec::new();
    let damaged = SetView::read(device.cache(), &mut |fault| faults.push(fault));
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(faults[0].byte, leaf.byte);
    let left = damaged.extents(Pos::ZERO, Pos::MAX).filter(Result::is_ok).count();
    assert!(left < all && left > all * 9 / 10, "{left} of {all}");
}
