#![no_main]

#[path = "../src/fsck.rs"]
mod fsck;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fsck::view(data));
