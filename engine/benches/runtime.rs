//! What a cache hit pays before it does anything of its own: locks, buffers, tasks, an operation's future.

#![allow(missing_docs)] // criterion's macros make public items without any

use std::hint::black_box;
use std::rc::Rc;

use bcache_engine::dev::{Buf, Io};
use bcache_engine::env::Runtime;
use bcache_engine::sync::{Mutex, Semaphore};
use criterion::{Criterion, criterion_group, criterion_main};

fn locks(c: &mut Criterion) {
    let lock = Mutex::new(1u64);
    c.bench_function("Mutex::try_lock", |b| b.iter(|| *black_box(&lock).try_lock().expect("free") += 1));
    let permits = Rc::new(Semaphore::new(10));
    c.bench_function("Semaphore::try_acquire_owned", |b| {
        b.iter(|| black_box(&permits).try_acquire_owned(1).expect("free"))
    });
    let runtime = Runtime::new().expect("a runtime");
    let mutex = Mutex::new(1u64);
    let semaphore = Semaphore::new(10);
    c.bench_function("1000 x Mutex::lock, Semaphore::acquire", |b| {
        b.iter(|| {
            runtime.block_on(async {
                for _ in 0..1000 {
                    let _permit = semaphore.acquire(1).await;
                    *mutex.lock().await += 1;
                }
            })
        });
    });
}

fn buffers(c: &mut Criterion) {
    c.bench_function("Buf::recycled 4 KiB", |b| b.iter(|| Buf::recycled(4096)));
    c.bench_function("Buf::zeroed 4 KiB", |b| b.iter(|| Buf::zeroed(4096)));
    c.bench_function("Buf::recycled 512 KiB", |b| b.iter(|| Buf::recycled(512 << 10)));
    let shared = Buf::zeroed(65536).freeze();
    c.bench_function("Shared::slice", |b| b.iter(|| black_box(&shared).slice(4096..8192)));
}

fn tasks(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let env = runtime.env();
    c.bench_function("1000 x spawn and await", |b| {
        b.iter(|| {
            runtime.block_on(async {
                for number in 0..1000u64 {
                    black_box(env.spawn(async move { number }).await);
                }
            })
        });
    });
    c.bench_function("1000 x run_or_spawn, done at once", |b| {
        b.iter(|| {
            runtime.block_on(async {
                for number in 0..1000u64 {
                    env.run_or_spawn(async move {
                        black_box(number);
                    });
                }
            })
        });
    });
    c.bench_function("1000 x Io::pair, complete and await", |b| {
        b.iter(|| {
            runtime.block_on(async {
                for number in 0..1000u64 {
                    let (completer, io) = Io::pair();
                    completer.complete(Ok(number));
                    black_box(io.await.expect("completed"));
                }
            })
        });
    });
}

criterion_group!(benches, locks, buffers, tasks);
criterion_main!(benches);
