//! Keys that a process that died has left in memory, beside sets whose journal lacks them.

use std::collections::BTreeMap;

use bcache_engine::fsck::flush::Flush;
use bcache_engine::fsck::salvage::Salvage;
use bcache_engine::fsck::view::{Device, SetView};
use bcache_engine::fsck::{Checked, Kind, Options, check, repair};
use bcache_engine::journal::{EntryId, Left, TAIL_MAGIC};
use bcache_format::csum::{SEED_ONES, crc64};
use bcache_format::jset::{HEADER_BYTES, JsetHeader};
use bcache_format::{Bkey, BucketNr, Pos, Ptr};
use uuid::Uuid;

use crate::cases::World;
use crate::regions::Region;

const BOOT: Uuid = Uuid::from_u128(0x626f_6f74);
const SLOTS: u64 = 64;

type Sectors = BTreeMap<(u32, u64), u64>;

/// Where each dirty sector is.
fn dirty(view: &SetView) -> Sectors {
    let live = view.extents(Pos::ZERO, Pos::MAX).flatten().filter(|extent| extent.key.dirty());
    let live = live.filter_map(|extent| Some((extent.key, extent.live()?)));
    live.flat_map(|(key, ptr)| {
        (0..key.size()).map(move |i| ((key.inode(), key.start() + i), ptr.offset() + i))
    })
    .collect()
}

fn sealed(words: &[u64]) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(crc64(SEED_ONES, &bytes).to_le_bytes());
    bytes
}

/// A tail that continues the entry `newest`, with these keys of entries of these numbers.
fn tail(set: Uuid, newest: EntryId, keys: &[(u64, Bkey)]) -> Vec<u8> {
    let mut bytes = vec![0; 4096 + SLOTS as usize * 64];
    let mut header = TAIL_MAGIC.to_vec();
    header.extend(BOOT.as_bytes());
    header.extend(set.as_bytes());
    header.extend([SLOTS, 0, 0, 0].into_iter().flat_map(u64::to_le_bytes));
    header.extend(crc64(SEED_ONES, &header).to_le_bytes());
    bytes[..header.len()].copy_from_slice(&header);
    let note = sealed(&[newest.seq, newest.csum]);
    let at = 512 + (newest.seq % 2) as usize * 512;
    bytes[at..at + note.len()].copy_from_slice(&note);
    for (index, (seq, key)) in keys.iter().enumerate() {
        let mut words = vec![index as u64, *seq, key.u64s() as u64];
        words.extend(key.words());
        words.resize(7, 0);
        bytes[4096 + index * 64..4160 + index * 64].copy_from_slice(&sealed(&words));
    }
    bytes
}

fn id(world: &World, entry: Region) -> EntryId {
    let header = JsetHeader::read(&world.cache.bytes(entry.byte, 512)).unwrap();
    EntryId { seq: header.seq.get(), csum: header.csum.get() }
}

fn run(devices: &[Device], tail: &[u8]) -> Checked {
    let left = |set| Left::parse(tail, BOOT, set).ok();
    check(devices.iter().cloned(), Options { kept: Some(&left), ..Options::default() })
}

fn ids(checked: &Checked) -> Vec<&'static str> {
    checked.findings.iter().map(|finding| finding.kind.id()).collect()
}

fn plan(devices: &[Device], checked: &Checked) -> repair::Plan {
    let mut next = 7;
    repair::plan(devices, checked, &mut || {
        next += 1;
        next
    })
    .unwrap()
}

/// Keys of writes that came later, over a part of some dirty extents, with data where nothing was before.
fn later(world: &World) -> Vec<Bkey> {
    let plain = check(world.devices(), Options::default());
    let geometry = world.view.cache.geometry;
    let first = geometry.first_bucket + world.view.cache.njournal_buckets();
    let free = (first..geometry.nbuckets).map(BucketNr).find(|bucket| plain.is_free(*bucket)).unwrap();
    let generation = world.view.gens.get(free.0).unwrap();
    let extents = world.view.extents(Pos::ZERO, Pos::MAX).flatten().map(|extent| extent.key);
    let extents = extents.filter(Bkey::dirty).take(4);
    let keys = (0..).zip(extents).map(|(index, key)| {
        let ptr = Ptr::new(0, geometry.bucket_start(free).0 + index * 2, generation);
        Bkey::extent(key.inode(), key.offset(), key.size().min(2), ptr, true)
    });
    let keys: Vec<Bkey> = keys.collect();
    assert!(!keys.is_empty());
    keys
}

fn laid(before: &Sectors, keys: &[Bkey]) -> Sectors {
    let mut after = before.clone();
    for key in keys {
        let at = key.ptr().unwrap().offset();
        after.extend((0..key.size()).map(|i| ((key.inode(), key.start() + i), at + i)));
    }
    after
}

const SETS: [&str; 4] = ["wb-dirty", "wb-crash", "deep-btree", "two-backing-flash"];

#[test]
fn keys_that_only_memory_has_become_part_of_the_set() {
    for set in SETS {
        let world = World::of(set);
        let devices = world.devices();
        let newest = id(&world, world.newest());
        let keys = later(&world);
        let records: Vec<_> = keys.iter().map(|key| (newest.seq + 1, *key)).collect();
        let tail = tail(world.view.cache.sb.set_uuid, newest, &records);
        let expected = laid(&dirty(&world.view), &keys);
        assert_ne!(expected, dirty(&world.view), "{set}");

        let checked = run(&devices, &tail);
        assert!(checked.has(Kind::JournalKept) && checked.lost().is_empty(), "{set}: {:?}", ids(&checked));
        assert_eq!(dirty(checked.set.as_ref().unwrap()), expected, "{set}");
        let salvaged = Salvage::of(&checked).unwrap().slots;
        let salvaged = salvaged.values().flatten().flat_map(|(key, _)| {
            let (inode, start, at) = (key.inode(), key.start(), key.ptr().unwrap().offset());
            (0..key.size()).map(move |i| ((inode, start + i), at + i))
        });
        assert_eq!(salvaged.collect::<Sectors>(), expected, "{set}: salvage");

        let made = plan(&devices, &checked);
        assert!(made.changed.is_empty(), "{set}: it changes what is read");
        for stop in 0..=made.writes().count() {
            let now = made.simulate(&devices, stop).unwrap();
            // The tail is still there: it is laid over what it continues, and over nothing else.
            let again = run(&now, &tail);
            assert_eq!(dirty(again.set.as_ref().unwrap()), expected, "{set} after {stop} writes");
        }
        let last = made.simulate(&devices, usize::MAX).unwrap();
        assert_eq!(ids(&run(&last, &tail)), Vec::<&str>::new(), "{set}");

        let left = |set| Left::parse(&tail, BOOT, set).ok();
        let flush = Flush::with(&devices, Options { kept: Some(&left), ..Options::default() }).unwrap();
        assert_eq!(flush.kept(), Some(world.view.cache.sb.set_uuid), "{set}");
    }
}

#[test]
fn a_tail_of_something_else_is_not_laid() {
    let world = World::of("wb-dirty");
    let devices = world.devices();
    let newest = id(&world, world.newest());
    let keys: Vec<_> = later(&world).into_iter().map(|key| (newest.seq + 1, key)).collect();
    let set = world.view.cache.sb.set_uuid;
    let others = [
        tail(Uuid::from_u128(1), newest, &keys),
        tail(set, EntryId { csum: !newest.csum, ..newest }, &keys),
        tail(set, EntryId { seq: newest.seq - 1, ..newest }, &keys),
        tail(set, EntryId { seq: newest.seq + 1, ..newest }, &keys),
    ];
    for other in others {
        let checked = run(&devices, &other);
        assert!(checked.kept.is_empty() && !checked.has(Kind::JournalKept), "{:?}", ids(&checked));
        assert_eq!(dirty(checked.set.as_ref().unwrap()), dirty(&world.view));
    }
}

#[test]
fn a_damaged_record_is_a_loss_and_the_others_are_laid() {
    let world = World::of("wb-dirty");
    let devices = world.devices();
    let newest = id(&world, world.newest());
    let keys = later(&world);
    let records: Vec<_> = keys.iter().map(|key| (newest.seq + 1, *key)).collect();
    let mut tail = tail(world.view.cache.sb.set_uuid, newest, &records);
    tail[4096 + 64 + 30] ^= 1;
    let checked = run(&devices, &tail);
    assert_eq!(ids(&checked), ["journal-kept", "journal-kept-damaged"]);
    let others = [&keys[..1], &keys[2..]].concat();
    let expected = laid(&dirty(&world.view), &others);
    let after = run(&plan(&devices, &checked).simulate(&devices, usize::MAX).unwrap(), &tail);
    assert_eq!(*after.findings, []);
    assert_eq!(dirty(after.set.as_ref().unwrap()), expected);
}

#[test]
fn what_memory_has_of_an_entry_that_is_damaged_is_laid() {
    let mut world = World::of("wb-crash");
    let lost = id(&world, world.newest());
    let entry = world.view.journal.newest().unwrap().jset.clone();
    let keys = later(&world);
    // The entry's own keys are there once more, and then those of the one that was to follow.
    let records =
        entry.keys.iter().map(|key| (lost.seq, *key)).chain(keys.iter().map(|key| (lost.seq + 1, *key)));
    let records: Vec<_> = records.collect();
    assert!(records.len() < SLOTS as usize && !entry.keys.is_empty());
    let tail = tail(world.view.cache.sb.set_uuid, lost, &records);
    let at = world.newest().byte + HEADER_BYTES as u64;
    let bad: Vec<u8> = world.cache.bytes(at, 24).iter().map(|byte| !byte).collect();
    world.cache.write(at, &bad);
    let devices = world.devices();
    let checked = run(&devices, &tail);
    // Whether it had more nobody knows.
    assert!(checked.has(Kind::JournalMissing) && checked.has(Kind::JournalKept), "{:?}", ids(&checked));
    let expected = laid(&dirty(&world.view), &keys);
    assert_eq!(dirty(checked.set.as_ref().unwrap()), expected);
    let after = run(&plan(&devices, &checked).simulate(&devices, usize::MAX).unwrap(), &tail);
    assert_eq!(*after.findings, []);
    assert_eq!(dirty(after.set.as_ref().unwrap()), expected);
}
