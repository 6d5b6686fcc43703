//! Whose a slot is when the uuid table does not say: what proves it, what is a guess, and what is nobody's.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use bcache_engine::fsck::view::Device;
use bcache_engine::fsck::{Checked, Kind, Options, Severity, check, repair};
use bcache_format::superblock::{BackingState, Role, SB_OFFSET};
use bcache_format::uuid_entry::UuidEntry;
use bcache_format::{Pos, Superblock};
use bcache_tests::golden::Set;
use bcache_tests::paths;

use crate::cases::World;
use crate::fsck::only_an_older_table;
use crate::patched::Patched;
use crate::programs::run_within;
use crate::regions::Kind as Holds;

fn run(devices: &[Device]) -> Checked {
    check(devices.iter().cloned(), Options::default())
}

/// The table that a repair leaves.
fn table_after(devices: &[Device]) -> Vec<UuidEntry> {
    let mut life = 1 << 60;
    let mut random = || {
        life += 1;
        life
    };
    let plan = repair::plan(devices, &run(devices), &mut random).unwrap();
    let last = run(&plan.simulate(devices, usize::MAX).unwrap());
    assert_eq!(*last.findings, []);
    last.set.unwrap().uuids
}

/// Changes what a backing device says.
fn change(device: &mut Patched, change: impl FnOnce(&mut Superblock)) {
    let mut block = device.bytes(SB_OFFSET, 4096);
    let mut sb = Superblock::parse(&block).unwrap();
    change(&mut sb);
    sb.write_to(&mut block).unwrap();
    device.write(SB_OFFSET, &block);
}

fn superblock(device: &Patched) -> Superblock {
    Superblock::parse(&device.bytes(SB_OFFSET, 4096)).unwrap()
}

/// The slots of a device in a table.
fn slots_of(table: &[UuidEntry], device: &Patched) -> Vec<usize> {
    let uuid = superblock(device).uuid;
    table.iter().enumerate().filter(|(_, entry)| entry.uuid == uuid).map(|(slot, _)| slot).collect()
}

/// No slot has an owner any more, and no older table says one.
fn forget_owners(world: &mut World) {
    let table = world.region(Holds::Uuids);
    world.cache.write(table.byte, &vec![0; table.len as usize]);
    let checked = run(&world.devices());
    assert!(!checked.table_found, "{:?}", checked.findings.to_vec());
}

#[test]
fn clean_data_that_is_the_same_proves_whose_a_slot_is_unless_two_have_it() {
    let mut world = World::of("wt-clean");
    forget_owners(&mut world);
    let devices = world.devices();
    assert_eq!(slots_of(&table_after(&devices), &world.backings[0]), [0]);
    // A device that began as a copy of it has the same data. Which was cached nobody knows.
    let mut copy = world.backings[0].clone();
    copy.rename("copy");
    change(&mut copy, |sb| sb.uuid = uuid::Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef));
    world.backings.push(copy);
    let table = table_after(&world.devices());
    for backing in &world.backings {
        assert_eq!(slots_of(&table, backing), [0; 0]);
    }
    // And the slot is kept from whoever comes next.
    assert!(!table[0].is_free() && !table[0].is_detached() && !table[0].is_flash_only());
    // A copy that has changed where data is cached is not it.
    let view = &world.view;
    let sector = view.extents(Pos::ZERO, Pos::MAX).flatten().next().unwrap().key.start();
    let byte = world.backings[1].bytes(sector * 512, 1)[0];
    world.backings[1].write(sector * 512, &[!byte]);
    let table = table_after(&world.devices());
    assert_eq!(slots_of(&table, &world.backings[0]), [0]);
    assert_eq!(slots_of(&table, &world.backings[1]), [0; 0]);
}

#[test]
fn zeros_prove_nothing() {
    let mut world = World::of("wt-clean");
    forget_owners(&mut world);
    let keys: Vec<_> = world.view.extents(Pos::ZERO, Pos::MAX).flatten().collect();
    for extent in keys {
        let zeros = vec![0; (extent.key.size() * 512) as usize];
        world.backings[0].write(extent.key.start() * 512, &zeros);
        if let Some(ptr) = extent.live() {
            world.cache.write(ptr.offset() * 512, &zeros);
        }
    }
    assert_eq!(slots_of(&table_after(&world.devices()), &world.backings[0]), [0; 0]);
}

#[test]
fn a_slot_given_to_the_only_dirty_device_is_a_guess_where_no_table_is() {
    let mut world = World::of("wb-dirty");
    let table = world.region(Holds::Uuids);
    world.cache.spoil(table.byte);
    let devices = world.devices();
    let checked = run(&devices);
    assert!(!checked.table_found && checked.has(Kind::UuidUnreadable), "{:?}", checked.findings.to_vec());
    assert_eq!(checked.worst(), Some(Severity::Loss), "a guess asks for -y: {:?}", checked.findings.to_vec());
    assert!(checked.findings.iter().any(|finding| finding.guess));
    assert_eq!(slots_of(&table_after(&devices), &world.backings[0]), [0]);
    // Two that are dirty: neither gets it.
    let mut other = world.backings[0].clone();
    other.rename("other");
    change(&mut other, |sb| sb.uuid = uuid::Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef));
    world.backings.push(other);
    let checked = run(&world.devices());
    let mut life = 1 << 60;
    let plan = repair::plan(&world.devices(), &checked, &mut || {
        life += 1;
        life
    });
    if let Ok(plan) = plan {
        let last = run(&plan.simulate(&world.devices(), usize::MAX).unwrap());
        let table = last.set.unwrap().uuids;
        assert!(world.backings.iter().all(|backing| slots_of(&table, backing).is_empty()));
    }
    // One that is clean has nothing dirty, and a slot with dirty data is not its.
    world.backings.truncate(1);
    change(&mut world.backings[0], |sb| sb.set_state(BackingState::Clean));
    assert_eq!(slots_of(&table_after(&world.devices()), &world.backings[0]), [0; 0]);
}

#[test]
fn a_device_with_nothing_in_the_cache_is_exported_whole_whatever_is_guessed_of_others() {
    let mut world = World::of("two-backing-flash");
    // The only table that is found is older than the second device, which says that all its data is on it.
    let uuid = superblock(&world.backings[1]).uuid;
    only_an_older_table(&mut world, |table| {
        let at = table.windows(16).position(|bytes| bytes == uuid.as_bytes()).unwrap();
        table[at..at + 128].fill(0);
    });
    change(&mut world.backings[1], |sb| sb.set_state(BackingState::Clean));
    let dir = paths::scratch().unwrap();
    let devices = Set::open("two-backing-flash").unwrap().copy_to(dir.path()).unwrap();
    let at = |device: &Patched| {
        let path = devices.iter().find(|path| path.file_stem().unwrap() == device.device().name()).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        device.changes().for_each(|(byte, bytes)| file.write_all_at(bytes, byte).unwrap());
        (path.clone(), file)
    };
    let (cache, _) = at(&world.cache);
    let export = |device: &Patched| {
        let (path, file) = at(device);
        let output = dir.path().join("output");
        let args = ["export", "-o", output.to_str().unwrap(), "--of", path.to_str().unwrap()];
        let code = run_within(4 << 20, "bcache", &args, &[cache.clone(), path.clone()]);
        (code, File::open(output).unwrap(), file)
    };
    let (code, output, file) = export(&world.backings[1]);
    assert_eq!(code, 0, "all of it is on the device");
    let Role::Backing(fields) = superblock(&world.backings[1]).role else { panic!("a backing device") };
    let mut got = vec![0; output.metadata().unwrap().len() as usize];
    let mut want = got.clone();
    output.read_exact_at(&mut got, 0).unwrap();
    file.read_exact_at(&mut want, fields.data_offset.bytes()).unwrap();
    assert!(got == want);
    // What is the first's is read by a table that may be out of date.
    assert_eq!(export(&world.backings[0]).0, 1);
}

#[test]
fn dirty_keys_do_not_prove_that_an_older_table_is_right() {
    let cases = [
        (BackingState::Dirty, Severity::Lossless),
        // It ran without its cache since, or has nothing dirty: whose the keys are only the lost table said.
        (BackingState::Stale, Severity::Loss),
        (BackingState::Clean, Severity::Loss),
    ];
    for (state, worst) in cases {
        let mut world = World::of("wb-dirty");
        only_an_older_table(&mut world, |_| {});
        change(&mut world.backings[0], |sb| sb.set_state(state));
        let checked = run(&world.devices());
        assert!(checked.table_found);
        assert_eq!(checked.worst(), Some(worst), "{state:?}: {:?}", checked.findings.to_vec());
    }
    // A device that was not named says nothing.
    let mut world = World::of("wb-dirty");
    only_an_older_table(&mut world, |_| {});
    assert_eq!(run(&[world.cache.device()]).worst(), Some(Severity::Loss));
}
