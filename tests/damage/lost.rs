//! Superblocks that are gone, and what a repair puts in their place.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bcache_engine::fsck::made::{Shape, make};
use bcache_engine::fsck::repair::Refused;
use bcache_engine::fsck::salvage::Salvage;
use bcache_engine::fsck::view::{Device, MemDevice};
use bcache_engine::fsck::{Checked, Kind, Options, check, repair};
use bcache_format::Superblock;
use bcache_format::superblock::SB_OFFSET;

use crate::cases::World;
use crate::fsck::dirty;
use crate::mutations::Random;
use crate::patched::Patched;

/// Sets with something dirty, with blocks and buckets of several sizes.
const SETS: [&str; 7] =
    ["wb-dirty", "wb-crash", "deep-btree", "two-backing-flash", "reuse-gc", "block-4k", "bucket-2m"];

/// What is destroyed at the beginning of a device: from, bytes.
const DAMAGES: [(u64, usize); 3] = [(SB_OFFSET, 512), (SB_OFFSET, 4096), (0, 1 << 20)];

fn run(devices: &[Device]) -> Checked {
    check(devices.iter().cloned(), Options::default())
}

fn superblock(device: &dyn bcache_engine::fsck::view::ReadAt) -> Superblock {
    let mut bytes = vec![0; 4096];
    device.read_at(SB_OFFSET, &mut bytes).unwrap();
    Superblock::parse(&bytes).unwrap()
}

/// A superblock without what nothing else says.
fn known(device: &dyn bcache_engine::fsck::view::ReadAt, set_known: bool) -> Superblock {
    let mut sb = superblock(device);
    (sb.seq, sb.last_mount) = (0, 0);
    // Nobody looks at what stands behind the first NUL.
    sb.label = bcache_format::superblock::Label::new(&sb.label.to_text()).unwrap();
    if !set_known {
        sb.set_uuid = uuid::Uuid::nil();
    }
    if sb.cache().is_some() {
        (sb.uuid, sb.label) = (uuid::Uuid::nil(), Default::default());
        sb.flags = 0;
    }
    sb
}

fn wipe(device: &mut Patched, (from, bytes): (u64, usize)) {
    device.write(from, &vec![0; bytes]);
}

/// Destroys what is asked for, repairs, and tells whether it was repaired; then it is right.
fn comes_back(set: &str, damage: (u64, usize), cache: bool, backings: usize) -> bool {
    let mut world = World::of(set);
    let at = format!("{set} {damage:?} cache {cache} backings {backings}");
    let (before, whole) = (dirty(&world.view), world.devices());
    let all_backings = backings >= world.backings.len();
    if cache {
        wipe(&mut world.cache, damage);
    }
    world.backings.iter_mut().take(backings).for_each(|backing| wipe(backing, damage));
    let devices = world.devices();
    let checked = run(&devices);
    let mut random = Random::new(11);
    let plan = match repair::plan(&devices, &checked, &mut || random.next()) {
        Ok(plan) => plan,
        Err(refused) => {
            println!("{at}: {refused}");
            return false;
        }
    };
    assert!(checked.has(Kind::SbLost), "{at}: {:?}", checked.findings.counts);
    let after = plan.simulate(&devices, usize::MAX).unwrap();
    for (old, new) in whole.iter().zip(&after) {
        let set_known = !(cache && all_backings);
        let (was, mut is) = (known(&**old, set_known), known(&**new, set_known));
        if cache && damage.1 > 4096 && is.backing().is_some() {
            // The leaf that said where data begins is gone, and what would show it on the device.
            (is.version, is.role) = (was.version, was.role.clone());
        }
        assert_eq!(was, is, "{at}");
    }
    let last = run(&after);
    assert_eq!(*last.findings, [], "{at}");
    let now = dirty(last.set.as_ref().unwrap());
    // In the first mebibyte of a cache with small buckets there are its journal and some of its nodes: what only these
    // held is gone.
    let differ = before.symmetric_difference(&now).count();
    assert!(differ == 0 || (damage.1 > 4096 && cache), "{at}: {differ} of {}", before.len());
    true
}

#[test]
fn a_superblock_is_put_together_from_what_is_left() {
    let mut refused = Vec::new();
    for set in SETS {
        for damage in DAMAGES {
            for (cache, backings) in [(true, 0), (false, 1), (true, usize::MAX)] {
                // Of two dirty devices without superblocks nothing tells which is which; and the one leaf of that set
                // is in the first mebibyte, so that nothing is left.
                let too_little = set == "two-backing-flash" && cache && (backings > 0 || damage.1 > 4096);
                if comes_back(set, damage, cache, backings) == too_little {
                    refused.push((set, damage, cache, backings));
                }
            }
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn devices_of_two_sets_are_not_put_together() {
    // The cache of one set with the backing device of another, one of them without its superblock.
    for (lost, set) in [(0, "wb-dirty"), (1, "wt-clean"), (1, "reuse-gc")] {
        let (mut cache, mut backing) = (Patched::cache_of(set), Patched::all_of("wb-crash").pop().unwrap());
        wipe(if lost == 0 { &mut cache } else { &mut backing }, DAMAGES[1]);
        let devices = [cache.device(), backing.device()];
        let checked = run(&devices);
        assert!(!checked.has(Kind::SbLost), "{:?}", checked.findings.to_vec());
        assert!(repair::plan(&devices, &checked, &mut || 1).is_err());
    }
    // A disk of something else that is named with a cache.
    let world = World::of("wb-dirty");
    let mut other = world.backings[0].clone();
    other.write(0, &vec![0; 8192]);
    other.write(1080, b"\x53\xef");
    let checked = run(&[world.cache.device(), other.device()]);
    assert!(!checked.has(Kind::SbLost), "{:?}", checked.findings.to_vec());
}

#[test]
fn a_cache_alone_gets_no_uuid_that_its_devices_do_not_know() {
    for set in ["wb-dirty", "wt-clean", "two-backing-flash"] {
        let mut world = World::of(set);
        wipe(&mut world.cache, DAMAGES[1]);
        // With one of the devices of which the superblocks are gone as well there may be others.
        let mut backing = world.backings[0].clone();
        wipe(&mut backing, DAMAGES[1]);
        let alone = vec![world.cache.device()];
        let with_one = vec![world.cache.device(), backing.device()];
        for devices in [alone, with_one].iter().take(world.backings.len()) {
            let checked = run(devices);
            assert!(!checked.has(Kind::SbLost), "{set}: {:?}", checked.findings.to_vec());
            let said = checked.findings.iter().any(|finding| finding.detail.contains("name one of them too"));
            assert!(said, "{set}: {:?}", checked.findings.to_vec());
            assert!(repair::plan(devices, &checked, &mut || 1).is_err());
        }
    }
}

#[test]
fn a_copy_on_a_larger_device_keeps_its_journal() {
    for set in SETS {
        for times in [2, 3, 16] {
            let mut world = World::of(set);
            let at = format!("{set}, {times} times as large");
            let (before, old) = (dirty(&world.view), superblock(&world.cache));
            let size = bcache_engine::fsck::view::ReadAt::size(&world.cache);
            world.cache.grow(size * times);
            assert_eq!(*run(&world.devices()).findings, [], "{at}");
            wipe(&mut world.cache, DAMAGES[1]);
            let devices = world.devices();
            let checked = run(&devices);
            let mut random = Random::new(11);
            let plan = repair::plan(&devices, &checked, &mut || random.next());
            let plan = plan.unwrap_or_else(|refused| panic!("{at}: {refused}"));
            let after = plan.simulate(&devices, usize::MAX).unwrap();
            let new = superblock(&*after[0]);
            let (old, new) = (old.cache().unwrap(), new.cache().unwrap());
            println!(
                "{at}: {} of {} buckets, journal {} of {}",
                new.nbuckets, old.nbuckets, new.njournal_buckets, old.njournal_buckets
            );
            assert!(new.nbuckets >= old.nbuckets, "{at}");
            // What was the journal is, and nothing else was taken for it.
            let last = run(&after);
            assert_eq!(*last.findings, [], "{at}");
            assert!(dirty(last.set.as_ref().unwrap()) == before, "{at}");
            // Nothing but the superblock had to be written.
            assert!(plan.writes().all(|write| write.byte < 8192), "{at}: {:?}", checked.findings.to_vec());
        }
    }
}

#[test]
fn a_cache_that_was_cut_off_is_not_taken_for_a_smaller_one() {
    for (set, percents) in [("deep-btree", [5, 30, 60]), ("wb-crash", [5, 20, 50]), ("wb-dirty", [2, 2, 2])] {
        for percent in percents {
            let mut world = World::of(set);
            let at = format!("{set}, {percent} %");
            let size = bcache_engine::fsck::view::ReadAt::size(&world.cache);
            world.cache.truncate(size * percent / 100);
            let whole = run(&world.devices());
            wipe(&mut world.cache, DAMAGES[0]);
            let devices = world.devices();
            let checked = run(&devices);
            // It is what it was with its superblock: partial, and nothing is written.
            assert!(
                checked.has(Kind::SbLost) && checked.has(Kind::SbTooBig),
                "{at}: {:?}",
                checked.findings.to_vec()
            );
            assert!(matches!(repair::plan(&devices, &checked, &mut || 1), Err(Refused::Fatal(..))), "{at}");
            let (was, is) = (Salvage::of(&whole).unwrap(), Salvage::of(&checked).unwrap());
            assert!(was.slots == is.slots && was.lost == is.lost, "{at}: {:?}", checked.findings.counts);
        }
    }
}

#[test]
fn the_chain_of_prio_sets_tells_how_many_buckets_there_were() {
    // What is used is behind what the journal could be of, so that it tells nothing.
    let shape = Shape::of(40_000, 8, 8);
    let (geometry, size) = (shape.geometry(), shape.bytes());
    let mut bytes = vec![0; usize::try_from(2 * size).unwrap()];
    let mut keys = (0..40_000).map(|i| shape.extent(i, 40_000, 8));
    make(shape, &mut keys, &mut |at, part| {
        bytes[at as usize..][..part.len()].copy_from_slice(part);
        Ok(())
    })
    .unwrap();
    let mut backing = vec![0; 400 << 20];
    shape.backing().write_to(&mut backing[SB_OFFSET as usize..][..4096]).unwrap();
    bytes[SB_OFFSET as usize..][..4096].fill(0);
    let devices = |bytes: &[u8]| {
        let cache = Arc::new(MemDevice::new("cache", bytes.to_vec())) as Device;
        [cache, Arc::new(MemDevice::new("backing", backing.clone())) as Device]
    };
    let sets = geometry.nbuckets.div_ceil(geometry.prios_per_bucket());
    let most = sets * geometry.prios_per_bucket();
    for (part, buckets) in [(2 * size, most), (size, geometry.nbuckets), (size / 10, most)] {
        let checked = run(&devices(&bytes[..part as usize]));
        assert!(checked.has(Kind::SbLost), "{part}: {:?}", checked.findings.to_vec());
        let sb = checked.superblock().unwrap().cache().unwrap().clone();
        assert_eq!(sb.nbuckets, buckets, "{part} of {size} bytes: {:?}", checked.findings.to_vec());
        assert_eq!(checked.has(Kind::SbTooBig), part < size);
        let whole = 20_000 * 8;
        let dirty: u64 = checked.slots.values().map(|used| used.dirty).sum();
        assert_eq!(dirty, whole, "{part} of {size} bytes: {:?}", checked.findings.to_vec());
    }
}

/// Takes the cache's superblock and its prio sets away, and expects the size of its buckets and its dirty data to be found.
fn is_measured(cache: &mut Patched, backings: &[Device], at: &str) {
    let view = crate::regions::view(cache.cache());
    let (before, geometry) = (dirty(&view), view.cache.geometry);
    wipe(cache, DAMAGES[1]);
    for (bucket, _) in &view.prios.buckets {
        wipe(cache, (geometry.bucket_start_byte(*bucket), geometry.meta_bucket_bytes() as usize));
    }
    let devices: Vec<Device> = std::iter::once(cache.device()).chain(backings.iter().cloned()).collect();
    let checked = run(&devices);
    assert!(checked.has(Kind::SbLost), "{at}: {:?}", checked.findings.to_vec());
    let sb = checked.superblock().unwrap().cache().unwrap().clone();
    assert_eq!(sb.bucket_sectors, geometry.bucket_sectors, "{at}: {:?}", checked.findings.to_vec());
    let mut random = Random::new(11);
    let plan = repair::plan(&devices, &checked, &mut || random.next());
    let after =
        plan.unwrap_or_else(|refused| panic!("{at}: {refused}")).simulate(&devices, usize::MAX).unwrap();
    let last = run(&after);
    assert_eq!(*last.findings, [], "{at}");
    assert!(dirty(last.set.as_ref().unwrap()) == before, "{at}");
}

#[test]
fn buckets_are_measured_though_the_prio_sets_are_gone_too() {
    for set in SETS {
        let mut world = World::of(set);
        let backings: Vec<Device> = world.backings.iter().map(Patched::device).collect();
        is_measured(&mut world.cache, &backings, set);
    }
    // Nodes of buckets of several sizes are of one size.
    for bucket_sectors in [512, 1024, 2048, 4096, 8192, 16384, 65536] {
        let shape = Shape::of(4000, 8, bucket_sectors);
        let dir = bcache_tests::paths::scratch().unwrap();
        let open = |name: &str, bytes: u64| {
            let file = std::fs::File::create(dir.path().join(name)).unwrap();
            file.set_len(bytes).unwrap();
            file
        };
        let (cache, backing) = (open("cache.img", shape.bytes()), open("backing.img", 64 << 20));
        let mut keys = (0..4000).map(|i| shape.extent(i, 4000, 8));
        make(shape, &mut keys, &mut |at, part| cache.write_all_at(part, at)).unwrap();
        let mut block = vec![0; 4096];
        shape.backing().write_to(&mut block).unwrap();
        backing.write_all_at(&block, SB_OFFSET).unwrap();
        let mut cache = Patched::open(&dir.path().join("cache.img"));
        let backing = Patched::open(&dir.path().join("backing.img")).device();
        is_measured(&mut cache, &[backing], &format!("buckets of {bucket_sectors} sectors"));
    }
}
