#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bcache_fuzz::node(data));
