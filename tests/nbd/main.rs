//! The NBD front end on a volume in memory: the fuzzer's seeds, and the clients that people use.

#[path = "../../fuzz/src/nbd.rs"]
mod session;

mod cached;
mod clients;
mod moving;

use bcache_tests::paths;

#[test]
fn the_fuzzers_seeds_pass() {
    let seeds = paths::repository().join("fuzz/seeds/nbd");
    let mut count = 0;
    for seed in std::fs::read_dir(&seeds).unwrap() {
        let bytes = std::fs::read(seed.unwrap().path()).unwrap();
        session::session(&bytes);
        // Cut short and damaged, they must do no harm either.
        for at in 0..bytes.len().min(200) {
            session::session(&bytes[..at]);
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x80 | at as u8;
            session::session(&damaged);
        }
        count += 1;
    }
    assert!(count >= 4, "{count} seeds in {}", seeds.display());
}
