//! Sets that were damaged and repaired: the kernel registers them and shows the content from before.

use std::path::Path;
use std::process::Command;

use bcache_tests::golden::Set;
use bcache_tests::paths;
use bcache_tests::vm::Machine;

/// A set, what is written over its cache, and the options of the repair.
struct Case {
    set: &'static str,
    damage: &'static [(u64, &'static [u8])],
    option: &'static str,
    /// Whether nothing is lost by it.
    same: bool,
    /// Whether the set is flushed as well.
    flush: bool,
}

const CASES: &[Case] = &[
    // Prio set in bucket 28 of 64 KiB, and the superblock's checksum.
    Case {
        set: "wb-dirty",
        damage: &[(28 * 65536 + 100, b"rot"), (4096, b"checksum")],
        option: "-p",
        same: true,
        flush: false,
    },
    // Prio set.
    Case {
        set: "two-backing-flash",
        damage: &[(17 * 65536 + 100, b"rot")],
        option: "-p",
        same: true,
        flush: false,
    },
    // The superblock's checksum alone; then all dirty data goes to the backing device.
    Case { set: "block-4k", damage: &[(4096, b"checksum")], option: "-p", same: true, flush: true },
    // A leaf.
    Case {
        set: "deep-btree",
        damage: &[(952 * 16384 + 64, b"rot")],
        option: "-y",
        same: false,
        flush: false,
    },
];

fn damage(cache: &Path, case: &Case) {
    let file = std::fs::File::options().write(true).open(cache).unwrap();
    for (byte, bytes) in case.damage {
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
        let cache = devices.iter().find(|path| path.ends_with("cache.img")).unwrap();
        damage(cache, case);
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
