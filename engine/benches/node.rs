//! Reading a btree node from memory: the same keys as one bset, as 8 and as 64, which is all that a node of this set has
//! blocks for.

#![allow(missing_docs)] // criterion's macros make public items without any

use bcache_engine::dev::Buf;
use bcache_engine::env::{Rng, Runtime};
use bcache_format::bkey::{Bkey, Ptr};
use bcache_format::{Pos, bset};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

#[allow(dead_code)] // other benchmarks use the rest
mod fixture;

use fixture::Fixture;

/// Keys of the node. Newer bsets cut what older ones hold, as keys that were overwritten do.
const KEYS: usize = 6400;
/// Sectors of a key's extent.
const SECTORS: u64 = 8;

/// Keys of a bset at random places, in order.
fn keys(inode: u32, count: usize, shift: u64, rng: &mut Rng) -> Vec<Bkey> {
    let mut places: Vec<u64> = (0..KEYS as u64).collect();
    for i in 0..count {
        places.swap(i, rng.between(i as u64, KEYS as u64 - 1) as usize);
    }
    places.truncate(count);
    places.sort_unstable();
    let key = |place: u64| {
        let ptr = Ptr::new(0, (2000 + rng.below(1000)) * 1024 + rng.below(64) * 16, 0);
        Bkey::extent(inode, 16 + shift + (place + 1) * SECTORS, SECTORS, ptr, true)
    };
    places.into_iter().map(key).collect()
}

fn node(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let env = runtime.env();
    let fixture = runtime.block_on(Fixture::new(&env, 1_000_000));
    let set = &fixture.set;
    let inode = fixture.device.inode.get().expect("it is attached");
    let mut group = c.benchmark_group(format!("node of {KEYS} keys"));
    group.throughput(Throughput::Elements(KEYS as u64));
    for sets in [1, 8, 64] {
        let mut rng = Rng::new(1);
        let ptr = runtime.block_on(set.leaf_ptr(Pos::new(inode, 0))).expect("the first leaf");
        let mut at = ptr.offset() * 512;
        let block = set.cache.geometry.block_bytes() as usize;
        for i in 0..sets {
            let keys = keys(inode, KEYS / sets, i as u64 % 2 * 4, &mut rng);
            let image = bset::write(&keys, 7, bset::VERSION, ptr, set.cache.magic).expect("a bset");
            let mut padded = Buf::zeroed(image.len().next_multiple_of(block));
            padded[..image.len()].copy_from_slice(&image);
            let size = padded.len() as u64;
            runtime.block_on(set.cache.dev.write(at, padded.freeze(), true)).expect("memory");
            at += size;
        }
        // What an earlier round left behind the last bset would be taken for a bset.
        let end = (ptr.offset() * 512 + set.cache.geometry.btree_node_bytes()).saturating_sub(at);
        if end > 0 {
            let rest = Buf::zeroed(end as usize).freeze();
            runtime.block_on(set.cache.dev.write(at, rest, true)).expect("memory");
        }
        group.bench_function(format!("{sets} bsets"), |b| {
            b.iter(|| runtime.block_on(set.reread_leaf(Pos::new(inode, 0))).expect("a leaf"));
        });
    }
    group.finish();
}

criterion_group!(benches, node);
criterion_main!(benches);
