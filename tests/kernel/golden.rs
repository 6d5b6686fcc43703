//! The golden sets still are what the kernel reads.

use bcache_tests::golden::Set;
use bcache_tests::vm::Machine;

#[test]
#[ignore = "boots a kernel"]
fn the_kernel_reads_the_recorded_content() {
    let sets = ["wb-dirty", "two-backing-flash"].map(|name| Set::open(name).unwrap());
    let mut machine = Machine::new("6.12");
    for set in &sets {
        for path in set.paths() {
            machine = machine.snapshot(&path);
        }
    }
    let script = "load_bcache\nregister /dev/vd[a-e]\n\
        await test -e /dev/bcache3\nfor d in /dev/bcache[0-9]; do sha256sum < $d; done\nstop_bcache\n";
    let output = machine.succeed(script).unwrap();
    for content in sets.iter().flat_map(|set| &set.entry.content) {
        assert!(output.contains(&content.sha256), "{content:?} is not in\n{output}");
    }
}
