//! A cache set in memory: looking up, reading, inserting, reading btree nodes, committing the journal.
//!
//! Ten million extents take half a minute to make: `SET_EXTENTS` asks for another number.

#![allow(missing_docs)] // criterion's macros make public items without any

use bcache_engine::env::{Rng, Runtime};
use bcache_engine::volume::Volume;
use bcache_format::{Sectors, Span};
use criterion::{Criterion, criterion_group, criterion_main};

mod fixture;

use fixture::{EXTENT, Fixture};

fn set(c: &mut Criterion) {
    let extents = std::env::var("SET_EXTENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000_000);
    let runtime = Runtime::new().expect("a runtime");
    let env = runtime.env();
    let fixture = runtime.block_on(async {
        let fixture = Fixture::new(&env, extents).await;
        fixture.fill().await;
        fixture
    });
    let (set, device) = (&fixture.set, &fixture.device);
    let (inode, first) = (device.inode.get().expect("it is attached"), device.first_sector());
    let mut rng = Rng::new(1);
    let mut group = c.benchmark_group(format!("{extents} extents"));
    group.sample_size(20);
    let mut pieces = Vec::new();
    group.bench_function("lookup", |b| {
        b.iter(|| {
            let sector = first + Sectors::from_bytes(rng.below(extents) * EXTENT);
            pieces.clear();
            set.pieces_resident(Span::new(inode, sector, sector + Sectors::from_bytes(EXTENT)), &mut pieces);
        })
    });
    let mut rng = Rng::new(2);
    group.bench_function("100 reads of 4 KiB that hit", |b| {
        b.iter(|| {
            runtime.block_on(async {
                for _ in 0..100 {
                    let at = rng.below(extents) * EXTENT;
                    fixture.volume.read(at, EXTENT as u32).await.expect("a hit");
                }
            })
        })
    });
    let mut rng = Rng::new(3);
    group.bench_function("100 inserts (writes of 4 KiB)", |b| {
        b.iter(|| {
            runtime.block_on(async {
                for _ in 0..100 {
                    fixture.write(rng.below(extents)).await;
                }
            })
        })
    });
    group.bench_function("journal commit (a write and a flush)", |b| {
        b.iter(|| {
            runtime.block_on(async {
                fixture.write(rng.below(extents)).await;
                fixture.volume.flush().await.expect("a flush");
            })
        })
    });
    group.bench_function("node read", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let at = first + Sectors::from_bytes(rng.below(extents) * EXTENT);
                set.reread_leaf(Span::new(inode, at, at).start_pos()).await.expect("a leaf")
            })
        })
    });
    group.finish();
    runtime.block_on(set.stop()).expect("it stops");
}

criterion_group!(benches, set);
criterion_main!(benches);
