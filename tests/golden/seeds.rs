//! The fuzzers' seeds, cut from the golden sets, through the functions that are fuzzed.

use std::fs;

use bcache_tests::paths;

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

#[path = "../../fuzz/src/fsck.rs"]
mod fuzz_fsck;

/// What the fuzzer calls.
type Target = fn(&[u8]);

#[test]
fn every_seed_parses_without_panic_whole_and_truncated() {
    let targets: [(&str, Target); 9] = [
        ("superblock", fuzz::superblock),
        ("jset", fuzz::jset),
        ("bset", fuzz::bset),
        ("node", fuzz::node),
        ("prio_set", fuzz::prio_set),
        ("uuid_table", fuzz::uuid_table),
        ("bkey", fuzz::bkey),
        ("fsck_view", fuzz_fsck::view),
        ("fsck_planner", fuzz_fsck::planner),
    ];
    for (name, target) in targets {
        let dir = paths::repository().join("fuzz/seeds").join(name);
        let seeds: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        assert!(seeds.len() >= 4, "{name}: seeds are missing");
        for seed in &seeds {
            target(seed);
            for len in (0..seed.len()).step_by(7) {
                target(&seed[..len]);
            }
        }
    }
}
