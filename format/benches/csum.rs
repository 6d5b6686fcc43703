//! How fast the checksum is: ours beside another implementation of the same CRC and beside copying the bytes, which
//! no checksum can beat by much. `cargo bench -p bcache-format`

#![allow(missing_docs)] // criterion's macros make public items without any

use std::hint::black_box;

use bcache_format::csum::{SEED_ONES, crc64};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// A block, a btree node, and more than any cache holds.
const SIZES: [usize; 3] = [4 << 10, 256 << 10, 64 << 20];

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("csum");
    for size in SIZES {
        let data: Vec<u8> = (0..size).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect();
        let mut copy = vec![0; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("ours", size), |b| {
            b.iter(|| crc64(SEED_ONES, black_box(&data)));
        });
        group.bench_function(BenchmarkId::new("crc-fast", size), |b| {
            b.iter(|| crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64We, black_box(&data)));
        });
        group.bench_function(BenchmarkId::new("memcpy", size), |b| {
            b.iter(|| copy.copy_from_slice(black_box(&data)));
        });
    }
    group.finish();
}

criterion_group!(benches, checksums);
criterion_main!(benches);
