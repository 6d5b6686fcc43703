//! Single bits of every structure of a set: put back byte for byte, or of no meaning.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bcache_engine::fsck::view::{Device, ReadAt};
use bcache_engine::fsck::{Checked, Kind, Options, Severity, check};
use bcache_format::BucketNr;
use bcache_format::mend::{Sealed, flip, flipped_bit};

use crate::cases::World;
use crate::fsck::dirty;
use crate::mutations::Random;
use crate::patched::Patched;
use crate::regions::{Kind as Holds, Region};

/// The sets: one whose journal is needed, one with interior nodes.
const SETS: [&str; 2] = ["wb-crash", "deep-btree"];
/// Bits of which the function that puts them back is asked.
const ASKED: u64 = 10_000;
/// Bits that are flipped on the device, which then is checked.
const CHECKED: u64 = 300;

fn sealed(world: &World, region: &Region) -> Option<Sealed> {
    let magic = world.view.cache.magic;
    match region.kind {
        Holds::Superblock => Some(Sealed::Superblock),
        Holds::Jset => Some(Sealed::Jset(magic)),
        Holds::Prio => Some(Sealed::Prio(magic)),
        Holds::Bset(ptr) => Some(Sealed::Bset(magic, ptr)),
        // A uuid table has no checksum.
        Holds::Uuids => None,
    }
}

/// A bit of a region, each kind of region as often as any other.
fn draw(world: &World, random: &mut Random) -> (Region, usize) {
    let mut kinds: BTreeMap<u8, Vec<Region>> = BTreeMap::new();
    for region in &world.regions {
        let kind = match region.kind {
            Holds::Superblock => 0,
            Holds::Jset => 1,
            Holds::Prio => 2,
            Holds::Uuids => 3,
            Holds::Bset(_) => 4,
        };
        kinds.entry(kind).or_default().push(*region);
    }
    let kind = kinds.values().nth(random.below(kinds.len() as u64) as usize).unwrap();
    let region = kind[random.below(kind.len() as u64) as usize];
    // Headers are small and matter most.
    let span = if random.below(2) == 0 { region.len.min(256) } else { region.len };
    (region, random.below(span * 8) as usize)
}

/// Flips a bit of a structure in memory and asks which it was.
fn ask(world: &World, region: &Region, bit: usize) {
    let Some(sealed) = sealed(world, region) else { return };
    let mut bytes = world.cache.bytes(region.byte, region.len);
    flip(&mut bytes, bit).unwrap();
    // What the checksum does not cover is nothing that anybody reads.
    let want = (!sealed.is_sound(&bytes)).then_some(bit);
    assert_eq!(flipped_bit(&bytes, sealed), want, "bit {bit} of {region:?}");
}

fn run(devices: &[Device]) -> Checked {
    check(devices.iter().cloned(), Options::default())
}

/// Flips a bit on the device. Tells what is wrong with what came of it.
fn judge(world: &World, region: &Region, bit: usize) -> Option<String> {
    let mut cache = world.cache.clone();
    let mut bytes = cache.bytes(region.byte, region.len);
    flip(&mut bytes, bit).unwrap();
    cache.write(region.byte, &bytes);
    let covered = sealed(world, region).is_some_and(|sealed| !sealed.is_sound(&bytes));
    let mut devices = vec![cache.device()];
    devices.extend(world.backings.iter().map(Patched::device));
    let checked = run(&devices);
    let ids: Vec<_> = checked.findings.counts.keys().map(|kind| kind.id()).collect();
    let now = checked.set.as_ref().map(dirty);
    let same = now.as_ref() == Some(&dirty(&world.view));
    let at = format!("bit {bit} of {region:?}: {ids:?}");
    if region.kind == Holds::Uuids || !covered {
        // Of the table nothing tells; what is concluded from it changes no data.
        return (!same).then(|| format!("other data by {at}"));
    }
    let after = checked.bits.simulate(&devices, usize::MAX).unwrap();
    let mut mended = vec![0; region.len as usize];
    after[0].read_at(region.byte, &mut mended).unwrap();
    let put_back = mended == world.cache.bytes(region.byte, region.len);
    let lossless = checked.worst().is_some_and(|worst| worst <= Severity::Lossless);
    let right = put_back && same && lossless && checked.has(Kind::BitFlipped);
    (!right).then(|| format!("put back: {put_back}, same: {same}, lossless: {lossless}, {at}"))
}

#[test]
fn a_flipped_bit_is_found() {
    for set in SETS {
        let world = World::of(set);
        let mut random = Random::new(3);
        for _ in 0..ASKED / 2 {
            let (region, bit) = draw(&world, &mut random);
            ask(&world, &region, bit);
        }
    }
}

#[test]
fn a_flipped_bit_is_put_back() {
    let mut wrong = Vec::new();
    for set in SETS {
        let world = World::of(set);
        let mut random = Random::new(5);
        for _ in 0..CHECKED / 2 {
            let (region, bit) = draw(&world, &mut random);
            wrong.extend(judge(&world, &region, bit).map(|why| format!("{set}: {why}")));
        }
    }
    assert!(wrong.is_empty(), "{} of {CHECKED}: {wrong:#?}", wrong.len());
}

/// A device that counts how often it is read.
struct Counted(Device, AtomicUsize);

impl ReadAt for Counted {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.read_at(byte, buf)
    }
}

#[test]
fn a_journal_full_of_bad_entries_is_not_tried_without_end() {
    // Buckets of 64 MiB have 131,072 blocks, and each of them may begin an entry of 32 KiB.
    let world = World::of("large-bucket-64m");
    let newest = world.view.journal.newest().unwrap();
    let geometry = world.view.cache.geometry;
    let from = newest.byte + newest.bytes;
    let end = geometry.bucket_start_byte(BucketNr(newest.bucket.0 + 1));
    let block = geometry.block_bytes();
    let head = |seq: u64| {
        let mut head = world.cache.bytes(newest.byte, 256);
        head[0x10..0x18].copy_from_slice(&seq.to_le_bytes());
        head[0x1c..0x20].copy_from_slice(&4000u32.to_le_bytes());
        head
    };
    let read = |heads: u64| {
        let mut cache = world.cache.clone();
        for (place, byte) in (0..heads).zip((from..end).step_by(block as usize)) {
            cache.write(byte, &head(newest.jset.seq + 1 + place));
        }
        let counted = Arc::new(Counted(cache.device(), AtomicUsize::new(0)));
        let device: Device = Arc::<Counted>::clone(&counted);
        let checked = run(&[device]);
        assert!(!checked.findings.is_empty());
        counted.1.load(Ordering::Relaxed)
    };
    let (few, many) = (read(100), read((end - from) / block));
    assert!(many < few + 10_000, "{few} reads with 100 of them, {many} with all");
}

mod long {
    use super::{SETS, World, ask, judge};

    #[test]
    #[ignore = "takes long"]
    fn every_bit_is_found() {
        for set in SETS {
            let world = World::of(set);
            for region in &world.regions {
                (0..region.len as usize * 8).for_each(|bit| ask(&world, region, bit));
            }
        }
    }

    #[test]
    #[ignore = "takes long"]
    fn every_bit_of_every_header_is_put_back() {
        let mut wrong = Vec::new();
        for set in SETS {
            let world = World::of(set);
            for region in &world.regions {
                let bits = region.len.min(32) as usize * 8;
                wrong.extend((0..bits).filter_map(|bit| judge(&world, region, bit)));
            }
        }
        assert!(wrong.is_empty(), "{}: {:#?}", wrong.len(), wrong.iter().take(50).collect::<Vec<_>>());
    }
}
