//! The power fails in the middle of a repair, an undo or a restore: of what was under way some writes arrived, some did not,
//! and some are torn. Nobody takes the set for one before it is whole, and the same command once more, or `undo`, ends as it
//! would have without that.

use std::collections::BTreeSet;

use bcache_engine::fsck::repair::{Plan, Write, undo};
use bcache_engine::fsck::view::Device;
use bcache_engine::fsck::{Checked, Options, backup, check, repair};
use bcache_format::Superblock;
use bcache_format::superblock::SB_OFFSET;

use crate::cases::{World, flip, rot};
use crate::fsck::dirty;
use crate::mutations::Random;
use crate::regions::Kind as Holds;

const SECTOR: usize = 512;

struct Case {
    name: &'static str,
    set: &'static str,
    damage: fn(&mut World),
}

fn wipe_superblock(world: &mut World) {
    world.cache.write(SB_OFFSET, &[0; 4096]);
}

fn wipe_magic(world: &mut World) {
    world.cache.write(SB_OFFSET + 0x18, &[0; 16]);
}

fn rot_prio(world: &mut World) {
    let prio = world.region(Holds::Prio);
    rot(world, prio, 0x100);
}

/// An entry that is not the newest.
fn rot_journal(world: &mut World) {
    let middle = *world.regions.iter().filter(|region| region.kind == Holds::Jset).nth(5).unwrap();
    rot(world, middle, 0x80);
}

/// The set cannot be registered, and more than that is wrong with it.
const CASES: [Case; 8] = [
    Case {
        name: "superblock and root gone",
        set: "deep-btree",
        damage: |world| {
            world.wipe_root();
            wipe_superblock(world);
        },
    },
    Case {
        name: "magic number gone, a prio set rots",
        set: "wb-dirty",
        damage: |world| {
            rot_prio(world);
            wipe_magic(world);
        },
    },
    Case {
        name: "bits of a superblock and of a leaf, the journal rots",
        set: "wb-crash",
        damage: |world| {
            rot_journal(world);
            let (superblock, leaf) = (world.regions[0], world.leaf()[0]);
            flip(world, superblock, 0x50);
            flip(world, leaf, 40);
        },
    },
    Case {
        name: "no SYNC flag, no magic number, no root",
        set: "deep-btree",
        damage: |world| {
            world.wipe_root();
            world.sb(|bytes| bytes[0x68] &= !1);
            wipe_magic(world);
        },
    },
    Case {
        name: "a backing device's superblock gone, a leaf rots",
        set: "wb-dirty",
        damage: |world| {
            let leaf = world.leaf()[0];
            rot(world, leaf, 40);
            world.backings[0].write(SB_OFFSET, &[0; 4096]);
        },
    },
    Case {
        name: "all superblocks gone, a hole in the journal",
        set: "wb-crash",
        damage: |world| {
            rot_journal(world);
            wipe_superblock(world);
            world.backings.iter_mut().for_each(|backing| backing.write(SB_OFFSET, &[0; 4096]));
        },
    },
    Case {
        name: "superblock gone, a large bucket's prio set rots",
        set: "bucket-2m",
        damage: |world| {
            rot_prio(world);
            wipe_superblock(world);
        },
    },
    Case {
        name: "a volume's set without its superblock, a leaf rots",
        set: "two-backing-flash",
        damage: |world| {
            let leaf = world.leaf()[0];
            rot(world, leaf, 40);
            wipe_superblock(world);
        },
    },
];

fn run(devices: &[Device]) -> Checked {
    check(devices.iter().cloned(), Options::default())
}

fn plan(devices: &[Device], checked: &Checked, random: &mut Random) -> Result<Plan, repair::Refused> {
    repair::plan(devices, checked, &mut || random.next())
}

/// All before a step, and of the step what happened to arrive.
fn cut(plan: &Plan, step: usize, random: &mut Random) -> Plan {
    let mut now = Plan { steps: plan.steps[..step].to_vec(), ..Plan::default() };
    let mut some: Vec<Write> = Vec::new();
    for write in plan.steps.get(step).into_iter().flat_map(|step| &step.writes) {
        let how = random.below(4);
        let sectors = write.bytes.len().div_ceil(SECTOR as u64);
        let until = random.below(sectors);
        for (index, bytes) in write.bytes.pieces(SECTOR).enumerate() {
            let arrived = match how {
                0 => false,
                1 => true,
                2 => (index as u64) < until,
                _ => random.below(2) == 0,
            };
            if arrived {
                let byte = write.byte + (index * SECTOR) as u64;
                some.push(Write { byte, bytes: bytes.to_vec().into(), ..write.clone() });
            }
        }
    }
    now.push("under way", some);
    now
}

fn has_superblock(device: &Device) -> bool {
    let mut bytes = vec![0; 4096];
    device.read_at(SB_OFFSET, &mut bytes).unwrap();
    Superblock::parse(&bytes).is_ok()
}

/// Where a plan writes, what is there.
fn written(plan: &Plan, devices: &[Device]) -> Vec<Vec<u8>> {
    let bytes = |write: &Write| {
        let device = devices.iter().find(|device| device.name() == &*write.device).unwrap();
        let mut bytes = vec![0; write.bytes.len() as usize];
        device.read_at(write.byte, &mut bytes).unwrap();
        bytes
    };
    plan.writes().map(bytes).collect()
}

/// Cuts the repair of a case, so many times at each step, and then the undo of what there is.
fn cut_repair(case: &Case, times: u64) -> usize {
    let mut world = World::of(case.set);
    (case.damage)(&mut world);
    let devices = world.devices();
    let checked = run(&devices);
    let mut random = Random::new(17);
    let whole =
        plan(&devices, &checked, &mut random).unwrap_or_else(|refused| panic!("{}: {refused}", case.name));
    let after = whole.simulate(&devices, usize::MAX).unwrap();
    let content = dirty(run(&after).set.as_ref().unwrap());
    let before = written(&whole, &devices);
    let file = undo::load(&undo::save(&whole, &devices).unwrap()).unwrap();
    let mut cuts = 0;
    for step in 0..=whole.steps.len() {
        for time in 0..times {
            cuts += 1;
            let place = format!("{}: step {step} of {}, time {time}", case.name, whole.steps.len());
            let now = cut(&whole, step, &mut random).simulate(&devices, usize::MAX).unwrap();
            let again = run(&now);
            // A device that had no superblock has one only when what it leads to is in order.
            let back =
                devices.iter().zip(&now).filter(|(old, new)| !has_superblock(old) && has_superblock(new));
            if back.count() > 0 {
                let none: BTreeSet<&str> =
                    now.iter().filter(|device| !has_superblock(device)).map(|device| device.name()).collect();
                let wrong: Vec<_> =
                    again.findings.iter().filter(|finding| !none.contains(&*finding.device)).collect();
                assert!(wrong.is_empty(), "{place}: it can be registered with {wrong:#?}");
            }
            let rest = plan(&now, &again, &mut random);
            let rest = rest.unwrap_or_else(|refused| panic!("{place}: {refused}"));
            let last = run(&rest.simulate(&now, usize::MAX).unwrap());
            assert_eq!(*last.findings, [], "{place}");
            let differ = dirty(last.set.as_ref().unwrap()).symmetric_difference(&content).count();
            assert_eq!(differ, 0, "{place}: of {}", content.len());
            // Undo, with the power failing in that, too.
            let back = undo::plan(&file, &now).unwrap_or_else(|error| panic!("{place}: {error}"));
            let at = random.below(back.steps.len() as u64 + 1) as usize;
            let half = cut(&back, at, &mut random).simulate(&now, usize::MAX).unwrap();
            let rest = undo::plan(&file, &half).unwrap_or_else(|error| panic!("{place}: undo {at}: {error}"));
            let end = rest.simulate(&half, usize::MAX).unwrap();
            assert!(written(&whole, &end) == before, "{place}: undo {at}");
        }
    }
    cuts
}

fn cut_all(times: u64) {
    let mut failed = Vec::new();
    for case in &CASES {
        match std::panic::catch_unwind(|| cut_repair(case, times)) {
            Ok(cuts) => println!("{}: {cuts} cuts", case.name),
            Err(_) => failed.push(case.name),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_repair_that_was_cut_off_is_no_set_yet_and_goes_on() {
    cut_all(2);
}

#[test]
fn a_restore_that_was_cut_off_goes_on() {
    for set in ["wb-dirty", "bucket-2m", "two-backing-flash"] {
        let mut world = World::of(set);
        let sound = world.devices();
        let kept = backup::load(&backup::save(&sound).unwrap()).unwrap();
        wipe_superblock(&mut world);
        let devices = world.devices();
        let mut random = Random::new(5);
        let whole = backup::restore(&kept, &devices[0], None, &devices[1..]).unwrap();
        for step in 0..=whole.steps.len() {
            for time in 0..8 {
                let now = cut(&whole, step, &mut random).simulate(&devices, usize::MAX).unwrap();
                let place = format!("{set}: step {step}, time {time}");
                if has_superblock(&now[0]) {
                    assert_eq!(*run(&now).findings, [], "{place}");
                    continue;
                }
                let rest = backup::restore(&kept, &now[0], None, &now[1..]);
                let end = rest
                    .unwrap_or_else(|error| panic!("{place}: {error}"))
                    .simulate(&now, usize::MAX)
                    .unwrap();
                assert!(written(&whole, &end) == written(&whole, &sound), "{place}");
            }
        }
    }
}

mod long {
    #[test]
    #[ignore = "takes long"]
    fn a_repair_that_was_cut_off_is_no_set_yet_and_goes_on() {
        super::cut_all(40);
    }
}
