//! Where the metadata of a set is, and how to put its checksums right after a change.

use bcache_engine::fsck::view::tree::{Step, Walk};
use bcache_engine::fsck::view::{Cache, SetView};
use bcache_format::superblock::{RawSuperblock, SB_BYTES, SB_OFFSET};
use bcache_format::{Pos, Ptr, bset, jset, prio};

use crate::patched::Patched;

/// What a region holds, and with that its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Superblock,
    Jset,
    Prio,
    Uuids,
    Bset(Ptr),
}

/// One structure on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub kind: Kind,
    pub byte: u64,
    pub len: u64,
}

/// All metadata of an undamaged set that a reader needs: in the order superblock, journal, prios, uuids, nodes from
/// the root on.
pub fn of(view: &SetView) -> Vec<Region> {
    let cache = &view.cache;
    let meta = cache.geometry.meta_bucket_bytes();
    let mut regions = vec![Region { kind: Kind::Superblock, byte: SB_OFFSET, len: SB_BYTES as u64 }];
    let entries = view.journal.entries.values();
    regions.extend(entries.map(|entry| Region { kind: Kind::Jset, byte: entry.byte, len: entry.bytes }));
    let prios = view.prios.buckets.iter().map(|(bucket, _)| cache.geometry.bucket_start_byte(*bucket));
    regions.extend(prios.map(|byte| Region { kind: Kind::Prio, byte, len: meta }));
    let uuids = view.journal.newest().unwrap().jset.uuid_bucket.ptr().unwrap();
    regions.push(Region { kind: Kind::Uuids, byte: uuids.offset() * 512, len: meta });
    let mut walk = Walk::new(cache, view.root.unwrap(), Pos::ZERO, Pos::MAX);
    while let Some(Step::Node(node)) = walk.step_settled(&view.gens) {
        for set in &node.sets {
            let (byte, len) = (node.byte + set.offset, set.bytes);
            regions.push(Region { kind: Kind::Bset(node.ptr), byte, len });
        }
    }
    regions
}

/// The undamaged view of a golden cache.
pub fn view(cache: Cache) -> SetView {
    SetView::open(cache).unwrap()
}

/// Changes a region's bytes and puts its checksum right, so that what comes behind the checksum is tested.
pub fn change(device: &mut Patched, region: &Region, change: impl FnOnce(&mut [u8])) {
    let mut bytes = device.bytes(region.byte, region.len);
    change(&mut bytes);
    match region.kind {
        Kind::Superblock => {
            let csum = RawSuperblock::read(&bytes).unwrap().expected_csum();
            bytes[..8].copy_from_slice(&csum.to_le_bytes());
        }
        Kind::Jset => jset::seal(&mut bytes),
        Kind::Prio => prio::seal(&mut bytes),
        Kind::Uuids => {}
        Kind::Bset(ptr) => reseal_bset(&mut bytes, ptr),
    }
    device.write(region.byte, &bytes);
}

/// The checksum covers as many keys as the header says, which may have been changed.
fn reseal_bset(bytes: &mut [u8], ptr: Ptr) {
    let size = bset::BsetHeader::read(bytes).map_or(0, |header| header.bytes());
    if let Some(whole) = usize::try_from(size).ok().and_then(|size| bytes.get_mut(..size)) {
        bset::seal(whole, ptr);
    }
}
