//! Sets that were damaged and repaired: the kernel registers them and shows the content from before.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use bcache_engine::fsck::view::ReadAt;
use bcache_engine::fsck::{Kind, Options, check, repair};
use bcache_tests::golden::Set;
use bcache_tests::vm::Machine;
use bcache_tests::{paths, sparse};

use crate::cases::{self, After, World};

/// A set, what is written over its cache and its backing devices, and the options of the repair.
struct Case {
    set: &'static str,
    damage: &'static [(u64, &'static [u8])],
    backings: &'static [(u64, &'static [u8])],
    option: &'static str,
    /// Whether nothing is lost by it.
    same: bool,
    /// Whether the set is flushed as well.
    flush: bool,
}

/// A superblock that is gone.
const GONE: (u64, &[u8]) = (4096, &[0; 4096]);

const CASES: &[Case] = &[
    // Prio set in bucket 28 of 64 KiB, and the superblock's checksum.
    Case {
        set: "wb-dirty",
        damage: &[(28 * 65536 + 100, b"rot"), (4096, b"checksum")],
        backings: &[],
        option: "-p",
        same: true,
        flush: false,
    },
    // Prio set.
    Case {
        set: "two-backing-flash",
        damage: &[(17 * 65536 + 100, b"rot")],
        backings: &[],
        option: "-p",
        same: true,
        flush: false,
    },
    // The superblock's checksum alone; then all dirty data goes to the backing device.
    Case {
        set: "block-4k",
        damage: &[(4096, b"checksum")],
        backings: &[],
        option: "-p",
        same: true,
        flush: true,
    },
    // A leaf.
    Case {
        set: "deep-btree",
        damage: &[(952 * 16384 + 64, b"rot")],
        backings: &[],
        option: "-y",
        same: false,
        flush: false,
    },
    // Superblocks put together from what is left: the cache's, the backing device's, and all of them.
    Case { set: "reuse-gc", damage: &[GONE], backings: &[], option: "-y", same: true, flush: false },
    Case { set: "wt-clean", damage: &[], backings: &[GONE], option: "-y", same: true, flush: false },
    Case { set: "bucket-2m", damage: &[GONE], backings: &[GONE], option: "-y", same: true, flush: false },
];

fn damage(device: &Path, damage: &[(u64, &[u8])]) {
    let file = std::fs::File::options().write(true).open(device).unwrap();
    for (byte, bytes) in damage {
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, *byte).unwrap();
    }
}

#[test]
#[ignore = "boots a kernel"]
fn the_kernel_takes_repaired_sets_and_shows_their_content() {
    let dir = paths::scratch().unwrap();
    let mut machine = Machine::new("6.12");
    let (mut disks, mut volumes, mut wanted) = (0, 0, Vec::new());
    for case in CASES {
        let set = Set::open(case.set).unwrap();
        let own = dir.path().join(case.set);
        std::fs::create_dir(&own).unwrap();
        let devices = set.copy_to(&own).unwrap();
        for device in &devices {
            damage(device, if device.ends_with("cache.img") { case.damage } else { case.backings });
        }
        let mut fsck = Command::new(paths::program("bcache-fsck").unwrap());
        let output =
            fsck.arg(case.option).arg("--undo").arg(own.join("undo")).args(&devices).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}: {output:?}", case.set);
        if case.flush {
            let mut flush = Command::new(paths::program("bcache").unwrap());
            let output = flush.arg("flush").args(&devices).output().unwrap();
            assert!(output.status.success(), "{}: {output:?}", case.set);
        }
        for device in &devices {
            machine = machine.disk(device);
            disks += 1;
        }
        if case.same {
            wanted.extend(set.entry.content.iter().map(|content| content.sha256.clone()));
        }
        volumes += set.entry.content.len();
    }
    let last = (b'a' + disks - 1) as char;
    let script = format!(
        "load_bcache\nregister /dev/vd[a-{last}]\nawait test -e /dev/bcache{}\n\
         for d in /dev/bcache[0-9]; do sha256sum < $d; done\nno_kernel_complaints\n\
         for d in /dev/bcache[0-9]; do dd if=/dev/urandom of=$d bs=64k count=20 seek=3 oflag=direct status=none; done\n\
         stop_bcache\nno_kernel_complaints\n",
        volumes - 1
    );
    let output = machine.succeed(&script).unwrap();
    for sha256 in wanted {
        assert!(output.contains(&sha256), "{sha256} is not in\n{output}");
    }
    // What the kernel wrote on top is consistent too.
    for case in CASES {
        let own = dir.path().join(case.set);
        let images = ["cache.img", "backing.img", "backing2.img"].map(|file| own.join(file));
        let images: Vec<_> = images.into_iter().filter(|path| path.exists()).collect();
        let mut fsck = Command::new(paths::program("bcache-fsck").unwrap());
        let output = fsck.arg("-n").args(&images).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}: {output:?}", case.set);
    }
}

/// Devices one after the other in one file, which the machine takes apart again.
struct Pile {
    file: File,
    end: u64,
}

impl Pile {
    /// Adds a device: what Linux wrote, with what was changed of it since. Tells `losetup`'s options for it.
    fn add(&mut self, before: &Path, now: &dyn ReadAt, changed: &BTreeSet<(u64, u64)>) -> String {
        let start = self.end;
        let from = File::open(before).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut copy = |from: &dyn Fn(u64, &mut [u8]), range: Range<u64>| {
            for at in range.clone().step_by(buffer.len()) {
                let len = (range.end - at).min(buffer.len() as u64) as usize;
                from(at, &mut buffer[..len]);
                self.file.write_all_at(&buffer[..len], start + at).unwrap();
            }
        };
        for range in sparse::extents(&from).unwrap() {
            copy(&|at, bytes| from.read_exact_at(bytes, at).unwrap(), range.start..range.end.min(now.size()));
        }
        for (from, to) in changed {
            copy(&|at, bytes| now.read_at(at, bytes).unwrap(), *from..*to);
        }
        self.end = (start + now.size()).next_multiple_of(1 << 20);
        self.file.set_len(self.end).unwrap();
        format!("-o {start} --sizelimit {}", now.size())
    }
}

/// Damages a set, repairs it, and adds its devices to the pile. Tells `losetup`'s options for each.
fn repaired(case: &cases::Case, pile: &mut Pile) -> Vec<String> {
    let mut world = World::of(case.set);
    (case.damage)(&mut world);
    let devices = world.devices();
    let data = matches!(case.kind, Kind::DataUnreadable | Kind::DataDiffers);
    let checked = check(devices.iter().cloned(), Options { data, ..Options::default() });
    let mut life = 1 << 60;
    let mut random = || {
        life += 1;
        life
    };
    let plan = repair::plan(&devices, &checked, &mut random).unwrap();
    let after = plan.simulate(&devices, usize::MAX).unwrap();
    let set = Set::open(case.set).unwrap();
    let patched = std::iter::once(&world.cache).chain(&world.backings);
    let each = after.iter().zip(patched).map(|(now, before)| {
        let name = now.name();
        let damaged = before.changes().map(|(at, bytes)| (at, at + bytes.len() as u64));
        let written = plan.writes().filter(|write| *write.device == *name);
        let written = written.map(|write| (write.byte, write.byte + write.bytes.len()));
        pile.add(&set.path(&format!("{name}.img")), now.as_ref(), &damaged.chain(written).collect())
    });
    each.collect()
}

/// One case of every kind of finding that can be repaired, one set after the other, in one machine.
#[test]
#[ignore = "boots a kernel"]
fn the_kernel_registers_a_repaired_set_of_every_kind() {
    let dir = paths::scratch().unwrap();
    let path = dir.path().join("pile");
    let mut pile = Pile { file: File::create_new(&path).unwrap(), end: 0 };
    let mut kinds = BTreeSet::new();
    // What is left of damaged journal entries is none of the complaints: nobody needs them any more.
    let mut script = "load_bcache\nmodprobe loop\n\
         quiet() { dmesg | grep -v 'journal_read_bucket()' > /tmp/said; dmesg() { cat /tmp/said; }; no_kernel_complaints; \
         unset -f dmesg; }\n"
        .to_owned();
    for case in cases::CASES.iter().filter(|case| case.after != After::Refused) {
        if !kinds.insert(case.kind) {
            continue;
        }
        let mut devices = String::new();
        for options in repaired(case, &mut pile) {
            devices += &format!(" \"$(losetup -f --show {options} /dev/vda)\"");
        }
        let shown = Set::open(case.set).unwrap().entry.content.len().max(1);
        script += &format!(
            "echo '{} ({})'\ndevices=({devices})\nregister \"${{devices[@]}}\"\n\
             shown() {{ (($(compgen -G '/dev/bcache[0-9]*' | wc -l) == {shown})); }}\nawait shown\n\
             for d in /dev/bcache[0-9]*; do dd if=$d of=/dev/null bs=64k count=16 status=none; done\n\
             quiet\nstop_bcache\nquiet\n\
             for d in \"${{devices[@]}}\"; do await losetup -d \"$d\"; done\n",
            case.kind, case.name
        );
    }
    script += "echo all of them\n";
    let machine = Machine::new("6.12").snapshot(&path).seconds(900);
    let output = machine.succeed(&script).unwrap();
    assert!(output.ends_with("all of them\n"), "{output}");
}
