//! Checking and repairing damaged sets.

use std::collections::BTreeSet;

use bcache_engine::fsck::repair::{Plan, undo};
use bcache_engine::fsck::salvage::{Belief, Salvage};
use bcache_engine::fsck::view::node::NodeView;
use bcache_engine::fsck::view::overlay::Layer;
use bcache_engine::fsck::view::{Device, SetView};
use bcache_engine::fsck::{Checked, Kind, Options, Severity, check, repair};
use bcache_format::prio::PrioSet;
use bcache_format::uuid_entry::ENTRY_BYTES;
use bcache_format::{Bkey, BucketNr, Pos, Ptr};
use bcache_tests::golden::Set;

use crate::cases::{After, CASES, Case, World, change_child};
use crate::mutations::Random;
use crate::patched::Patched;
use crate::regions::{Kind as Holds, Region};

fn run(devices: &[Device]) -> Checked {
    check(devices.iter().cloned(), Options::default())
}

fn plan(devices: &[Device], checked: &Checked) -> Result<Plan, repair::Refused> {
    let mut random = Random::new(7);
    repair::plan(devices, checked, &mut || random.next())
}

/// Sectors that only the cache has: what may not get lost, with where they are.
pub fn dirty(view: &SetView) -> BTreeSet<(u32, u64, u64)> {
    let extents = view.extents(Pos::ZERO, Pos::MAX).flatten();
    let dirty = extents.filter(|extent| extent.live().is_some() && extent.key.dirty());
    dirty
        .flat_map(|extent| {
            let (key, at) = (extent.key, extent.live().unwrap().offset());
            (0..key.size()).map(move |i| (key.inode(), key.start() + i, at + i))
        })
        .collect()
}

fn ids(checked: &Checked) -> Vec<&'static str> {
    checked.findings.counts.keys().map(|kind| kind.id()).collect()
}

/// Whether a sector is in what was reported as lost.
fn is_lost(lost: &[(Pos, Pos)], inode: u32, sector: u64) -> bool {
    lost.iter().any(|(from, to)| *from < Pos::new(inode, sector + 1) && Pos::new(inode, sector + 1) <= *to)
}

#[test]
fn golden_sets_have_no_finding() {
    for set in Set::all().unwrap() {
        let devices: Vec<_> = Patched::all_of(&set.name).iter().map(Patched::device).collect();
        for data in [false, true] {
            let checked = check(devices.iter().cloned(), Options { data, ..Options::default() });
            assert_eq!(*checked.findings, [], "{}", set.name);
            assert!(plan(&devices, &checked).unwrap().is_empty());
        }
        // A cache alone, and each backing device alone.
        for device in devices {
            let alone = check([device], Options::default());
            assert_eq!(*alone.findings, [], "{}", set.name);
        }
    }
}

#[test]
fn every_kind_of_damage_is_named_and_repaired() {
    assert!(CASES.len() >= 60, "{}", CASES.len());
    all_cases(&some_stops);
}

mod long {
    #[test]
    #[ignore = "takes long"]
    fn a_crash_at_any_write_of_any_repair() {
        super::all_cases(&|plan| (0..=plan.writes().count()).collect());
    }
}

/// After how many writes of a plan the machine stops.
type Stops = dyn Fn(&Plan) -> BTreeSet<usize> + std::panic::RefUnwindSafe;

/// At both ends of each step, in its middle, and at each write of a step of few.
fn some_stops(plan: &Plan) -> BTreeSet<usize> {
    let mut stops = BTreeSet::from([0]);
    let mut done = 0;
    for step in &plan.steps {
        let count = step.writes.len();
        let within = if count <= 4 { (1..=count).collect() } else { vec![1, count / 2, count] };
        stops.extend(within.into_iter().map(|stop| done + stop));
        done += count;
    }
    stops
}

fn all_cases(stops: &Stops) {
    let mut failed = Vec::new();
    for case in CASES {
        let ran = std::panic::catch_unwind(|| one(case, stops));
        if ran.is_err() {
            failed.push(case.name);
        }
    }
    assert!(failed.is_empty(), "{} of {}: {failed:?}", failed.len(), CASES.len());
}

fn one(case: &Case, stops: &Stops) {
    let name = case.name;
    let mut world = World::of(case.set);
    let before = dirty(&world.view);
    (case.damage)(&mut world);
    let devices = world.devices();
    let data = matches!(case.kind, Kind::DataUnreadable | Kind::DataDiffers);
    let run = |devices: &[Device]| check(devices.iter().cloned(), Options { data, ..Options::default() });
    let checked = run(&devices);
    assert!(checked.has(case.kind), "{name}: found {:?} instead of {}", ids(&checked), case.kind);
    let planned = plan(&devices, &checked);
    if case.after == After::Refused {
        assert!(planned.is_err(), "{name}: repaired");
        return;
    }
    let plan_made = planned.unwrap_or_else(|refused| panic!("{name}: {refused}"));
    let lost = checked.lost();
    if case.after == After::Same {
        assert!(lost.is_empty(), "{name}: {lost:?}");
    }
    let count = plan_made.writes().count();
    assert!(count > 0, "{name}: nothing to do");
    says_what_it_changes(name, &checked, &plan_made, &devices);
    // A crash after any write: a second run ends clean and loses nothing more.
    for stop in stops(&plan_made) {
        let mut now = plan_made.simulate(&devices, stop).unwrap();
        if stop < count {
            let again = run(&now);
            let rest = plan(&now, &again).unwrap_or_else(|refused| {
                panic!("{name} at {stop}: {refused}, after {:?}", again.findings.to_vec())
            });
            now = rest.simulate(&now, usize::MAX).unwrap();
        }
        let last = run(&now);
        assert_eq!(*last.findings, [], "{name} at {stop}");
        let third =
            plan(&now, &last).unwrap_or_else(|refused| panic!("{name} at {stop}, third run: {refused}"));
        assert!(third.is_empty(), "{name} at {stop}: a third run changes something");
        let after = dirty(last.set.as_ref().unwrap());
        for (inode, sector, at) in before.symmetric_difference(&after) {
            assert!(is_lost(&lost, *inode, *sector), "{name} at {stop}: {inode}:{sector} at {at}, {lost:?}");
        }
    }
    // Undo gives the exact bytes, also from the middle.
    let file = undo::save(&plan_made, &devices).unwrap();
    for stop in [count / 2, count] {
        let now = plan_made.simulate(&devices, stop).unwrap();
        let back = undo::plan(&undo::load(&file).unwrap(), &now).unwrap().simulate(&now, usize::MAX).unwrap();
        for write in plan_made.writes() {
            let bytes = |devices: &[Device]| {
                let device = devices.iter().find(|device| device.name() == &*write.device).unwrap();
                let mut bytes = vec![0; write.bytes.len() as usize];
                // Nothing brings back what cannot be read: it is zeros from then on.
                let sectors = (write.byte..).step_by(512).zip(bytes.chunks_mut(512));
                for (at, sector) in sectors {
                    device.read_at(at, sector).unwrap_or_else(|_| sector.fill(0));
                }
                bytes
            };
            assert!(bytes(&back) == bytes(&devices), "{name}: undo at byte {}", write.byte);
        }
    }
}

/// What a plan says that it changes is what a reader finds changed, sector by sector; where it is called lossless that is
/// nothing.
fn says_what_it_changes(name: &str, checked: &Checked, plan: &Plan, devices: &[Device]) {
    let Some(before) = &checked.set else { return };
    let after = run(&plan.simulate(devices, usize::MAX).unwrap());
    let lossless = checked.worst().unwrap() <= Severity::Lossless;
    assert!(!lossless || plan.changed.is_empty(), "{name}: lossless, but changes {:?}", plan.changed);
    let (before, after) = (dirty(before), dirty(after.set.as_ref().unwrap()));
    let changed: BTreeSet<(u32, u64)> =
        before.symmetric_difference(&after).map(|(inode, sector, _)| (*inode, *sector)).collect();
    let said = |(inode, sector): &&(u32, u64)| {
        let range = (Pos::new(*inode, *sector), Pos::new(*inode, sector + 1));
        // Dirty data that only looks stale, and data in buckets of metadata, counts otherwise than a view says.
        plan.changed.cover(range)
            || is_lost(&checked.lost(), *inode, *sector)
            || checked.has(Kind::ExtentDirtyStale)
    };
    let unsaid: Vec<_> = changed.iter().filter(|sector| !said(sector)).take(5).collect();
    assert!(unsaid.is_empty(), "{name}: changed without a word: {unsaid:?}");
}

/// Bytes of the uuid table.
fn table(world: &World) -> (Region, Vec<u8>) {
    let region = *world.regions.iter().find(|region| region.kind == Holds::Uuids).unwrap();
    let bytes = world.cache.bytes(region.byte, region.len);
    (region, bytes)
}

/// Writes a uuid table where nothing leads to it, and zeros in place of the one that counts.
pub fn only_an_older_table(world: &mut World, change: impl FnOnce(&mut [u8])) {
    let (region, mut bytes) = table(world);
    change(&mut bytes);
    let bucket = world.unused_bucket();
    world.cache.write(bucket * world.view.cache.geometry.bucket_bytes(), &bytes);
    world.cache.write(region.byte, &vec![0; region.len as usize]);
}

#[test]
fn what_is_only_likely_is_left_to_who_says_yes() {
    // A table that nothing leads to may be older than the newest one.
    let mut world = World::of("two-backing-flash");
    let before = dirty(&world.view);
    only_an_older_table(&mut world, |_| {});
    let devices = world.devices();
    let checked = run(&devices);
    assert!(checked.table_found, "{:?}", ids(&checked));
    assert_eq!(checked.worst(), Some(Severity::Lossless), "{:?}", checked.findings.to_vec());
    let made = plan(&devices, &checked).unwrap();
    assert!(made.changed.is_empty(), "{:?}", made.changed);
    // The bucket that the table was found in is not written to.
    let geometry = world.view.cache.geometry;
    let reserved: Vec<_> =
        checked.reserved.iter().map(|bucket| geometry.bucket_start_byte(*bucket)).collect();
    assert!(made.writes().all(|write| !reserved.contains(&write.byte) || &*write.device != "cache"));
    let after = run(&made.simulate(&devices, usize::MAX).unwrap());
    assert_eq!(dirty(after.set.as_ref().unwrap()), before);

    // One without a slot that has keys is older than these; and one slot without anything dirty may have been given up.
    let mut world = World::of("two-backing-flash");
    let last = world.view.uuids.iter().rposition(|entry| !entry.is_free()).unwrap();
    only_an_older_table(&mut world, |bytes| bytes[last * ENTRY_BYTES..][..ENTRY_BYTES].fill(0));
    let checked = run(&world.devices());
    assert!(checked.table_found, "{:?}", ids(&checked));
    assert_eq!(checked.worst(), Some(Severity::Loss), "{:?}", checked.findings.to_vec());
    let mut world = World::of("wt-clean");
    only_an_older_table(&mut world, |_| {});
    let checked = run(&[world.cache.device()]);
    assert!(checked.table_found, "{:?}", ids(&checked));
    assert_eq!(checked.worst(), Some(Severity::Loss), "{:?}", checked.findings.to_vec());

    // A superblock without its magic number, on a device that has since been used for something else.
    for (foreign, worst) in [(false, Severity::Lossless), (true, Severity::Loss)] {
        let mut world = World::of("wb-dirty");
        world.backings[0].write(4096 + 0x18, &[0; 16]);
        if foreign {
            world.backings[0].write(1024 + 0x38, b"\x53\xef");
        }
        let checked = run(&world.devices());
        assert!(checked.has(Kind::SbWiped));
        assert_eq!(checked.worst(), Some(worst), "{:?}", checked.findings.to_vec());
    }
}

#[test]
fn data_in_a_bucket_that_a_wrong_pointer_calls_a_node_is_kept() {
    let mut world = World::of("deep-btree");
    let before = dirty(&world.view);
    let geometry = world.view.cache.geometry;
    let (_, _, key) = world.seen_extent();
    let data = geometry.bucket_start(geometry.ptr_bucket(key.ptr().unwrap())).0;
    change_child(&mut world, |key| key.set_ptrs(&[Ptr::new(0, data, key.ptr().unwrap().generation())]));
    let devices = world.devices();
    let checked = run(&devices);
    let made = plan(&devices, &checked).unwrap();
    let after = run(&made.simulate(&devices, usize::MAX).unwrap());
    let after = dirty(after.set.as_ref().unwrap());
    let differ: Vec<_> = before.symmetric_difference(&after).collect();
    assert!(differ.is_empty(), "{} sectors differ: {:?}", differ.len(), ids(&checked));
}

#[test]
fn no_device_gets_a_slot_whose_data_is_not_its() {
    // A table so old that the device has since been given up, changed, and attached anew: its slot has old data.
    let mut world = World::of("wt-clean");
    only_an_older_table(&mut world, |_| {});
    let clean: Vec<Bkey> =
        world.view.extents(Pos::ZERO, Pos::MAX).flatten().map(|extent| extent.key).collect();
    for key in clean {
        let byte = world.backings[0].bytes(key.start() * 512, 1)[0];
        world.backings[0].write(key.start() * 512, &[!byte]);
    }
    let devices = world.devices();
    let checked = run(&devices);
    assert!(checked.table_found, "{:?}", ids(&checked));
    assert_eq!(checked.worst(), Some(Severity::Loss), "{:?}", checked.findings.to_vec());
    let uuid = world.backings[0].bytes(4096 + 0x28, 16);
    let its = |view: &SetView| view.uuids.iter().any(|entry| entry.uuid.as_bytes()[..] == uuid[..]);
    assert!(its(&world.view) && !its(checked.set.as_ref().unwrap()));
    let made = plan(&devices, &checked).unwrap();
    let after = run(&made.simulate(&devices, usize::MAX).unwrap());
    assert!(!its(after.set.as_ref().unwrap()));
}

#[test]
fn every_kind_has_a_case() {
    // What memory has beside a set is not in it, and an entry that is not whole has tests of its own.
    let elsewhere = [Kind::JournalKept, Kind::JournalKeptDamaged, Kind::JournalTailKept];
    for kind in Kind::ALL.iter().filter(|kind| !elsewhere.contains(kind)) {
        assert!(CASES.iter().any(|case| case.kind == *kind), "{kind}");
    }
}

/// An extent that only the cache has, as the journal tells it: the clean extent `key` made dirty.
fn journal_says_dirty(world: &mut World, mut key: Bkey) {
    key.set_dirty(true);
    let newest = world.view.journal.newest().unwrap();
    let mut jset = newest.jset.clone();
    jset.seq += 1;
    jset.keys = vec![key];
    let bytes = jset.write(world.view.cache.magic, world.view.cache.geometry.block_bytes()).unwrap();
    world.cache.write(newest.byte + newest.bytes, &bytes);
}

#[test]
fn dirty_data_that_was_written_back_is_not_missed_when_its_bucket_is_given_up() {
    let clean = |world: &World| {
        let mut extents = world.view.extents(Pos::ZERO, Pos::MAX).flatten();
        extents.find(|extent| extent.live().is_some() && extent.layer == Layer::Older).unwrap().key
    };
    let bucket = |world: &World, key: &Bkey| world.view.cache.geometry.ptr_bucket(key.ptr().unwrap()).0;
    // The leaf says clean, the journal still says dirty, as Linux leaves it.
    let mut world = World::of("wt-clean");
    let key = clean(&world);
    journal_says_dirty(&mut world, key);
    world.bump(bucket(&world, &key), 1);
    assert_eq!(ids(&run(&world.devices())), [""; 0]);
    // Only the journal knows it: nobody has written it back.
    let mut world = World::of("wt-clean");
    let mut elsewhere = clean(&world);
    let at = bucket(&world, &elsewhere);
    elsewhere.set_offset(1 << 30);
    journal_says_dirty(&mut world, elsewhere);
    world.bump(at, 1);
    assert!(run(&world.devices()).has(Kind::ExtentDirtyStale));
}

#[test]
fn clean_data_survives_the_loss_of_all_generations_where_it_can_be_told_from_stale() {
    for set in ["wb-dirty", "two-backing-flash"] {
        let mut world = World::of(set);
        let live = |view: &SetView| {
            let extents =
                view.extents(Pos::ZERO, Pos::MAX).flatten().filter(|extent| extent.live().is_some());
            extents.map(|extent| extent.key).collect::<Vec<_>>()
        };
        let geometry = world.view.cache.geometry;
        let bucket = |key: &Bkey| geometry.ptr_bucket(key.ptr().unwrap());
        let before = live(&world.view);
        let dirty: BTreeSet<_> = before.iter().filter(|key| key.dirty()).map(bucket).collect();
        let (kept, clean): (Vec<&Bkey>, Vec<&Bkey>) =
            before.iter().partition(|key| dirty.contains(&bucket(key)));
        assert!(kept.iter().any(|key| !key.dirty()) || set == "wb-dirty", "{set}: nothing to look at");
        for region in world.regions.clone().iter().filter(|region| region.kind == Holds::Prio) {
            world.cache.spoil(region.byte);
        }
        let devices = world.devices();
        let plan = plan(&devices, &run(&devices)).unwrap();
        let after = run(&plan.simulate(&devices, usize::MAX).unwrap());
        assert_eq!(*after.findings, []);
        let after = live(after.set.as_ref().unwrap());
        println!("{set}: {} of {} extents kept", after.len(), kept.len() + clean.len());
        assert_eq!(after.iter().collect::<Vec<_>>(), kept, "{set}");
    }
}

/// A cache without free buckets: every bucket that nothing uses gets clean data by a journal entry.
fn fill(world: &mut World, spare: usize) {
    let checked = run(&world.devices());
    let (cache, view) = (world.view.cache.clone(), &world.view);
    let (geometry, newest) = (cache.geometry, view.journal.newest().unwrap());
    let first = geometry.first_bucket + cache.njournal_buckets();
    let free = (first..geometry.nbuckets).map(BucketNr);
    let free = free.filter(|bucket| checked.is_free(*bucket));
    let size = u64::from(geometry.bucket_sectors);
    let mut end = 1 << 30;
    let mut jset = newest.jset.clone();
    jset.seq += 1;
    jset.keys = free
        .skip(spare)
        .map(|bucket| {
            end += size;
            let ptr = Ptr::new(0, geometry.bucket_start(bucket).0, view.gens.get(bucket.0).unwrap());
            Bkey::extent(0, end, size, ptr, false)
        })
        .collect();
    assert!(jset.keys.len() > 100);
    let bytes = jset.write(cache.magic, geometry.block_bytes()).unwrap();
    world.cache.write(newest.byte + newest.bytes, &bytes);
}

#[test]
fn a_full_cache_is_repaired_by_giving_up_clean_data() {
    // One bucket is free: for the prio sets that make room.
    for (spare, repaired) in [(0, false), (1, true), (4, true)] {
        let mut world = World::of("wb-dirty");
        let before = dirty(&world.view);
        fill(&mut world, spare);
        let entry = world.regions.iter().find(|region| region.kind == Holds::Uuids).unwrap().byte;
        world.cache.write(entry + 0x38, &[1]);
        let devices = world.devices();
        let checked = run(&devices);
        assert_eq!(ids(&checked), ["uuid-invalidated"]);
        let planned = plan(&devices, &checked);
        assert_eq!(planned.is_ok(), repaired, "{:?}", planned.err());
        let Ok(made) = planned else { continue };
        assert_eq!(made.steps.len(), 5, "room first, then the repair");
        for stop in 0..=made.writes().count() {
            let now = made.simulate(&devices, stop).unwrap();
            let again = run(&now);
            let rest = plan(&now, &again).unwrap();
            let last = run(&rest.simulate(&now, usize::MAX).unwrap());
            assert_eq!(*last.findings, [], "after {stop} writes");
            assert_eq!(dirty(last.set.as_ref().unwrap()), before, "after {stop} writes");
        }
    }
}

/// Writes the newest entry anew with `older` among its keys, and behind it one that is not whole, with `keys` in the sector
/// of its head and `behind` in those that follow.
fn with_broken_entry(
    world: &mut World,
    older: &[Bkey],
    keys: &[Bkey],
    behind: &[Bkey],
    prios: Option<BucketNr>,
) {
    let (magic, block) = (world.view.cache.magic, world.view.cache.geometry.block_bytes());
    let newest = world.view.journal.newest().unwrap().clone();
    let mut jset = newest.jset.clone();
    jset.keys.extend_from_slice(older);
    let bytes = jset.write(magic, block).unwrap();
    world.cache.write(newest.byte, &bytes);
    let at = newest.byte + bytes.len() as u64;
    (jset.seq, jset.keys) = (jset.seq + 1, keys.to_vec());
    jset.prio_bucket[0] = prios.unwrap_or(jset.prio_bucket[0]);
    // The first sector has room for 34 words; these keys without a pointer have two.
    let words: usize = keys.iter().map(Bkey::u64s).sum();
    jset.keys.extend(std::iter::repeat_n(Bkey::new(0, 1 << 30, 0), (34 - words) / 2));
    jset.keys.extend_from_slice(behind);
    let mut bytes = jset.write(magic, block).unwrap();
    bytes.resize(bytes.len().max(1024), 0);
    *bytes.last_mut().unwrap() ^= 0x55;
    bytes[0] ^= 0x55;
    bytes[7] ^= 0x55;
    world.cache.write(at, &bytes);
}

#[test]
fn an_entry_whose_keys_leaves_have_was_not_torn() {
    let world = World::of("wb-crash");
    let view = &world.view;
    let nodes = view.leaves.iter().flat_map(|at| NodeView::read(&view.cache, *at).unwrap().keys);
    let unknown = |key: &Bkey| {
        key.dirty() && !view.sure.journal.from(key.start_pos()).any(|other| other.start_pos() < key.pos())
    };
    let in_leaves: Vec<Bkey> = nodes.filter(unknown).take(20).collect();
    let (first, rest) = in_leaves.split_at(4);
    let elsewhere = |key: &Bkey| {
        let mut key = *key;
        key.set_ptrs(&[in_leaves[19].ptr().unwrap()]);
        key
    };
    let before = dirty(view);
    let judge = |older: &[Bkey], keys: &[Bkey], behind: &[Bkey]| {
        let mut world = World::of("wb-crash");
        with_broken_entry(&mut world, older, keys, behind, None);
        let devices = world.devices();
        let checked = run(&devices);
        let rot = checked.has(Kind::JournalMissing);
        let what = format!("{:?}", checked.findings.to_vec());
        assert!(rot != checked.has(Kind::JournalTailTorn), "{what}");
        let after = run(&plan(&devices, &checked).unwrap().simulate(&devices, usize::MAX).unwrap());
        assert_eq!(*after.findings, [], "{what}");
        (rot, dirty(after.set.as_ref().unwrap()) == before)
    };
    assert_eq!(judge(&[], first, &[]), (true, true), "leaves have its keys");
    // What an older entry says of the same place does not come back over what leaves have.
    let older: Vec<Bkey> = first.iter().map(elsewhere).collect();
    assert_eq!(judge(&older, first, &[]), (true, true), "an older entry says otherwise");
    // A crash leaves the head of a new entry before what is left of an old one.
    let new: Vec<Bkey> = first.iter().map(elsewhere).collect();
    assert_eq!(judge(&[], &new, rest), (false, true), "only what stands behind is in leaves");
    assert_eq!(judge(&[], &[], rest), (false, true), "only what stands behind is in leaves");
}

#[test]
fn an_entry_that_leaves_have_all_of_loses_nothing() {
    let view = World::of("wb-crash").view;
    let nodes = view.leaves.iter().flat_map(|at| NodeView::read(&view.cache, *at).unwrap().keys);
    let unknown = |key: &Bkey| {
        key.dirty() && !view.sure.journal.from(key.start_pos()).any(|other| other.start_pos() < key.pos())
    };
    let in_leaves: Vec<Bkey> = nodes.filter(unknown).take(61).collect();
    let before = dirty(&view);
    // With more than a sector of keys; an older entry says otherwise of the same places.
    let judge = |spoil: &dyn Fn(&mut Vec<u8>)| {
        let mut world = World::of("wb-crash");
        let newest = world.view.journal.newest().unwrap().clone();
        let block = view.cache.geometry.block_bytes();
        let mut jset = newest.jset.clone();
        jset.keys.extend(in_leaves[..60].iter().map(|key| {
            let mut key = *key;
            key.set_ptrs(&[in_leaves[60].ptr().unwrap()]);
            key
        }));
        let older = jset.write(view.cache.magic, block).unwrap();
        world.cache.write(newest.byte, &older);
        (jset.seq, jset.keys) = (jset.seq + 1, in_leaves[..60].to_vec());
        let mut bytes = jset.write(view.cache.magic, block).unwrap();
        spoil(&mut bytes);
        world.cache.write(newest.byte + older.len() as u64, &bytes);
        let devices = world.devices();
        let checked = run(&devices);
        let plan = plan(&devices, &checked).unwrap();
        let after = run(&plan.simulate(&devices, usize::MAX).unwrap());
        assert_eq!(*after.findings, [], "{:?}", checked.findings.to_vec());
        let same = dirty(after.set.as_ref().unwrap()) == before;
        (ids(&checked), plan.changed.is_empty(), same)
    };
    let lossless = (vec!["journal-tail-in-leaves"], true, true);
    // More than a bit, which would be put back.
    assert_eq!(judge(&|bytes| bytes[0] ^= 0x55), lossless);
    // What it names may have been something else.
    assert_eq!(judge(&|bytes| bytes[0x78] ^= 0x55).0[0], "journal-missing");
    // A key that is no more what it was.
    assert_eq!(judge(&|bytes| bytes[1300..1308].fill(0x55)).0[0], "journal-missing");
    assert_eq!(judge(&|bytes| bytes[1024..].fill(0)).0[0], "journal-missing");
}

#[test]
fn an_entry_that_newer_prio_sets_followed_was_not_torn() {
    let world = World::of("wb-crash");
    let view = &world.view;
    let (geometry, magic) = (view.cache.geometry, view.cache.magic);
    let (bucket, named) = (BucketNr(geometry.nbuckets - 1), view.prios.buckets[0].1);
    assert_eq!(geometry.prio_buckets(), 1);
    // Sets are written before the entry that names them, and the next ones only after it.
    for (ahead, rot) in [(0, false), (1, false), (2, true), (9, true)] {
        let mut world = World::of("wb-crash");
        let set = PrioSet {
            seq: named + ahead,
            version: 0,
            next_bucket: bucket,
            entries: view.prios.entries.clone(),
        };
        world
            .cache
            .write(geometry.bucket_start_byte(bucket), &set.write(magic, geometry.meta_bucket_bytes()));
        with_broken_entry(&mut world, &[], &[], &[], Some(bucket));
        let checked = run(&world.devices());
        assert_eq!(checked.has(Kind::JournalMissing), rot, "{ahead}: {:?}", checked.findings.to_vec());
        assert_eq!(checked.has(Kind::JournalTailTorn), !rot, "{ahead}: {:?}", checked.findings.to_vec());
    }
}

#[test]
fn keys_out_of_order_are_told_by_their_sectors() {
    let mut world = World::of("deep-btree");
    let leaf = world.view.leaves[1];
    let node = NodeView::read(&world.view.cache, leaf).unwrap();
    let at = node.byte + node.sets[0].offset;
    let mut bytes = world.cache.bytes(at, node.sets[0].bytes);
    // The fourth and the fifth change places.
    let place = |index: usize| 32 + 24 * index..56 + 24 * index;
    let keys: Vec<Bkey> = (2..7).map(|index| Bkey::from_bytes(&bytes[place(index)]).unwrap()).collect();
    let (fourth, fifth) = (bytes[place(3)].to_vec(), bytes[place(4)].to_vec());
    bytes[place(3)].copy_from_slice(&fifth);
    bytes[place(4)].copy_from_slice(&fourth);
    let ptr = leaf.key.ptr().unwrap();
    let csum = bcache_format::csum::crc64(ptr.0, &bytes[8..]);
    bytes[..8].copy_from_slice(&csum.to_le_bytes());
    world.cache.write(at, &bytes);
    let checked = run(&world.devices());
    assert_eq!(ids(&checked), ["key-order"]);
    let lost = checked.lost();
    assert!(
        is_lost(&lost, keys[1].inode(), keys[1].start())
            && is_lost(&lost, keys[2].inode(), keys[2].offset() - 1)
    );
    // Between their neighbours, and nowhere else.
    assert!(!is_lost(&lost, keys[0].inode(), keys[0].offset() - 1), "{lost:?}");
    assert!(!is_lost(&lost, keys[3].inode(), keys[3].start()), "{lost:?}");
    // What cannot be trusted is not called sure.
    let doubtful = Salvage::of(&checked).unwrap().slots.into_values().flatten();
    let doubtful: Vec<Bkey> =
        doubtful.filter(|(_, belief)| *belief == Belief::Doubtful).map(|(key, _)| key).collect();
    let between = |key: &Bkey| key.start_pos() >= keys[0].pos() && key.pos() <= keys[3].start_pos();
    assert!(!doubtful.is_empty() && doubtful.iter().all(between), "{doubtful:?}");
}

/// Buckets that nothing uses.
fn free_buckets(world: &World) -> Vec<BucketNr> {
    let checked = run(&world.devices());
    let (geometry, journal) = (world.view.cache.geometry, world.view.cache.njournal_buckets());
    let all = (geometry.first_bucket + journal..geometry.nbuckets).map(BucketNr);
    all.filter(|bucket| checked.is_free(*bucket)).collect()
}

/// Writes a node of one bset to a free bucket.
fn put_node(world: &mut World, bucket: BucketNr, seq: u64, keys: &[Bkey]) -> Ptr {
    let geometry = world.view.cache.geometry;
    let ptr = Ptr::new(0, geometry.bucket_start(bucket).0, world.view.gens.get(bucket.0).unwrap());
    let bytes = bcache_format::bset::write(keys, seq, 1, ptr, world.view.cache.magic).unwrap();
    world.cache.write(ptr.offset() * 512, &vec![0; geometry.btree_node_bytes() as usize]);
    world.cache.write(ptr.offset() * 512, &bytes);
    ptr
}

#[test]
fn what_only_an_older_root_leads_to_is_evidence() {
    // A leaf is written anew with one extent elsewhere, and a root that names it, which one more entry names: the root before
    // it, which older entries name, still leads to the old leaf.
    let build = || {
        let mut world = World::of("deep-btree");
        let (view, free) = (world.view.clone(), free_buckets(&world));
        let geometry = view.cache.geometry;
        let root = NodeView::read(&view.cache, view.root.unwrap()).unwrap();
        assert_eq!(root.at.level, 1);
        let leaf = view.leaves[1];
        let mut keys = NodeView::read(&view.cache, leaf).unwrap().keys;
        let journal = |key: &Bkey| view.sure.journal.overlaps(key.start_pos(), key.pos());
        let index = keys.iter().position(|key| key.dirty() && !journal(key)).unwrap();
        let data = Ptr::new(0, geometry.bucket_start(free[0]).0, view.gens.get(free[0].0).unwrap());
        keys[index].set_ptrs(&[data]);
        let new_leaf = put_node(&mut world, free[1], 0x1eaf, &keys);
        let mut children: Vec<Bkey> = root.keys.clone();
        children.retain(|key| view.gens.stale_key(key) == 0 && key.ptr().is_some_and(Ptr::is_device));
        let place = children.iter().position(|key| key.ptr() == leaf.key.ptr()).unwrap();
        children[place].set_ptrs(&[new_leaf]);
        let new_root = put_node(&mut world, free[2], 0x2007, &children);
        let newest = view.journal.newest().unwrap();
        let mut jset = newest.jset.clone();
        (jset.seq, jset.keys) = (jset.seq + 1, Vec::new());
        jset.btree_root.set_ptrs(&[new_root]);
        let bytes = jset.write(view.cache.magic, geometry.block_bytes()).unwrap();
        world.cache.write(newest.byte + newest.bytes, &bytes);
        (world, new_leaf, new_root)
    };
    let (world, ..) = build();
    let sound = run(&world.devices());
    assert_eq!(*sound.findings, []);
    let (new, old) = (dirty(sound.set.as_ref().unwrap()), dirty(&world.view));
    assert_ne!(new, old);
    for leaf_lost in [false, true] {
        let (mut world, new_leaf, new_root) = build();
        world.cache.write(new_root.offset() * 512, &[0; 4096]);
        if leaf_lost {
            world.cache.write(new_leaf.offset() * 512, &[0; 4096]);
        }
        let devices = world.devices();
        let checked = run(&devices);
        let what = format!("leaf lost {leaf_lost}: {:?}", checked.findings.to_vec());
        let after = run(&plan(&devices, &checked).unwrap().simulate(&devices, usize::MAX).unwrap());
        assert_eq!(*after.findings, [], "{what}");
        let now = dirty(after.set.as_ref().unwrap());
        if !leaf_lost {
            assert!(now == new, "{what}");
            continue;
        }
        // The leaf before it has all but what was written since. That it is not the newest, nothing says any more.
        assert!(now == old, "{} of {}: {what}", now.len(), old.len());
        assert!(checked.worst() == Some(Severity::Loss), "{what}");
    }
}
