//! One test for each rule of the fault model.

use std::time::Duration;

use super::*;
use crate::dev::{BlockDev, Buf, Shared};

const KIB: u64 = 1024;

fn filled(byte: u8, len: usize) -> Shared {
    let mut buf = Buf::zeroed(len);
    buf.fill(byte);
    buf.freeze()
}

fn bytes(image: &Image, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    image.read(at, &mut bytes);
    bytes
}

fn all(byte: u8, len: usize) -> Vec<u8> {
    vec![byte; len]
}

/// Runs `body` on a fresh disk of 1 MiB for each of some seeds.
fn each_seed(seeds: u64, mut body: impl AsyncFnMut(&Runtime, &Power, &Disk)) {
    for seed in 0..seeds {
        let runtime = Runtime::new(seed);
        let power = Power::new();
        let disk = Disk::new(&runtime, &power, Config::new("sim", 1024 * KIB));
        runtime.block_on(body(&runtime, &power, &disk));
    }
}

#[test]
fn completed_writes_are_read_back_and_volatile() {
    each_seed(20, async |_, _, disk| {
        disk.write(4096, filled(1, 1024), false).await.unwrap();
        let read = disk.read(4096, Buf::zeroed(2048)).await.unwrap();
        assert_eq!((&read[..1024], &read[1024..]), (&all(1, 1024)[..], &all(0, 1024)[..]));
        assert_eq!(bytes(&disk.crash(Survival::None), 4096, 1024), all(0, 1024));
        assert_eq!(bytes(&disk.crash(Survival::Completed), 4096, 1024), all(1, 1024));
    });
}

#[test]
fn a_flush_makes_earlier_writes_durable_and_no_later_ones() {
    each_seed(20, async |_, _, disk| {
        disk.write(0, filled(1, 512), false).await.unwrap();
        let flush = disk.flush();
        disk.write(512, filled(2, 512), false).await.unwrap();
        flush.await.unwrap();
        let image = disk.crash(Survival::None);
        assert_eq!(bytes(&image, 0, 1024), [all(1, 512), all(0, 512)].concat());
    });
}

#[test]
fn a_write_in_flight_when_the_flush_begins_is_not_covered() {
    each_seed(20, async |_, _, disk| {
        disk.hold();
        let write = disk.write(0, filled(1, 512), false);
        let flush = disk.flush();
        disk.release();
        write.await.unwrap();
        flush.await.unwrap();
        assert_eq!(bytes(&disk.crash(Survival::None), 0, 512), all(0, 512));
    });
}

#[test]
fn fua_makes_its_own_bytes_durable_and_nothing_else() {
    each_seed(20, async |_, _, disk| {
        disk.write(0, filled(1, 1024), false).await.unwrap();
        disk.write(512, filled(2, 512), true).await.unwrap();
        let image = disk.crash(Survival::None);
        assert_eq!(bytes(&image, 0, 1024), [all(0, 512), all(2, 512)].concat());
        // The older volatile write must never come back over it.
        for _ in 0..20 {
            assert_eq!(bytes(&disk.crash(Survival::Seeded), 512, 512), all(2, 512));
        }
    });
}

#[test]
fn without_a_volatile_cache_completed_writes_are_durable() {
    let runtime = Runtime::new(1);
    let power = Power::new();
    let config = Config { volatile: false, ..Config::new("sim", 64 * KIB) };
    let disk = Disk::new(&runtime, &power, config);
    runtime.block_on(disk.write(0, filled(1, 512), false)).unwrap();
    assert_eq!(bytes(&disk.crash(Survival::None), 0, 512), all(1, 512));
}

#[test]
fn operations_complete_in_any_order() {
    let mut swapped = 0;
    for seed in 0..50 {
        let runtime = Runtime::new(seed);
        let disk = Disk::new(&runtime, &Power::new(), Config::new("sim", 64 * KIB));
        runtime.block_on(async {
            let first = disk.write(0, filled(1, 512), false);
            let second = disk.write(0, filled(2, 512), false);
            first.await.unwrap();
            second.await.unwrap();
        });
        swapped += usize::from(bytes(&disk.snapshot(), 0, 512) == all(1, 512));
    }
    assert!((5..=45).contains(&swapped), "{swapped} of 50");
}

#[test]
fn a_power_cut_tears_writes_by_sector_and_invents_nothing() {
    let (mut torn, mut older, mut in_flight) = (0, 0, 0);
    each_seed(100, async |_, _, disk| {
        disk.write(0, filled(1, 4096), false).await.unwrap();
        disk.write(0, filled(2, 4096), false).await.unwrap();
        disk.hold();
        let _write = disk.write(0, filled(3, 4096), false);
        let image = disk.crash(Survival::Seeded);
        let mut values = Vec::new();
        for sector in 0..8 {
            let bytes = bytes(&image, sector * 512, 512);
            assert!(bytes[0] <= 3 && bytes.iter().all(|b| *b == bytes[0]), "whole sectors of real writes");
            values.push(bytes[0]);
        }
        torn += usize::from(values.iter().any(|v| *v != values[0]));
        older += usize::from(values.contains(&1));
        in_flight += usize::from(values.contains(&3));
    });
    assert!(torn > 20 && older > 5 && in_flight > 20, "torn {torn}, older {older}, in flight {in_flight}");
}

#[test]
fn writes_in_flight_survive_only_where_chosen() {
    each_seed(5, async |_, _, disk| {
        disk.hold();
        let _write = disk.write(0, filled(3, 512), true);
        assert_eq!(bytes(&disk.crash(Survival::Completed), 0, 512), all(0, 512));
        assert_eq!(bytes(&disk.crash(Survival::All), 0, 512), all(3, 512));
    });
}

#[test]
fn the_power_fails_at_every_chosen_event() {
    let work = async |disk: &Disk| {
        for i in 0..4u8 {
            disk.write(u64::from(i) * 512, filled(i + 1, 512), true).await.unwrap();
        }
    };
    let events = {
        let (runtime, power) = (Runtime::new(7), Power::new());
        let disk = Disk::new(&runtime, &power, Config::new("sim", 64 * KIB));
        runtime.block_on(work(&disk));
        power.events()
    };
    assert_eq!(events, 8, "each of four writes begins and ends");
    for cut in 0..events {
        let (runtime, power) = (Runtime::new(7), Power::new());
        let disk = Disk::new(&runtime, &power, Config::new("sim", 64 * KIB));
        power.cut_at(cut);
        assert_eq!(runtime.run(&power, work(&disk)), Outcome::Cut, "event {cut}");
        let durable = bytes(&disk.durable(), 0, 2048).iter().filter(|b| **b != 0).count();
        assert_eq!(durable as u64, cut / 2 * 512, "event {cut}: its effect must not have happened");
    }
}

#[test]
fn after_the_cut_nothing_completes() {
    each_seed(5, async |runtime, power, disk| {
        let write = disk.write(0, filled(1, 512), false);
        power.cut();
        let env = runtime.env();
        assert!(env.timeout(Duration::from_secs(5), write).await.is_err());
        assert!(env.timeout(Duration::from_secs(5), disk.read(0, Buf::zeroed(512))).await.is_err());
        assert_eq!(bytes(&disk.snapshot(), 0, 512), all(0, 512));
        // The runtime's own supply is another, so this future still ends.
    });
}

#[test]
fn disks_lose_their_writes_independently() {
    let runtime = Runtime::new(3);
    let power = Power::new();
    let cache = Disk::new(&runtime, &power, Config::new("cache", 64 * KIB));
    let backing = Disk::new(&runtime, &power, Config::new("backing", 64 * KIB));
    runtime.block_on(async {
        cache.write(0, filled(1, 512), false).await.unwrap();
        backing.write(0, filled(2, 512), false).await.unwrap();
    });
    assert_eq!(bytes(&cache.crash(Survival::All), 0, 512), all(1, 512));
    assert_eq!(bytes(&backing.crash(Survival::None), 0, 512), all(0, 512));
}

#[test]
fn faults_strike_their_range_their_operation_and_their_number_of_times() {
    each_seed(5, async |_, _, disk| {
        disk.inject(Fault::eio(FaultOn::Read, 4096..8192).times(2));
        assert!(disk.write(4096, filled(1, 512), false).await.is_ok());
        assert!(disk.read(0, Buf::zeroed(4096)).await.is_ok());
        let error = disk.read(0, Buf::zeroed(8192)).await.expect_err("it touches the range");
        assert_eq!((error.errno, error.at, error.len), (libc::EIO, 0, 8192));
        assert!(disk.read(4096, Buf::zeroed(512)).await.is_err());
        assert!(disk.read(4096, Buf::zeroed(512)).await.is_ok(), "two strikes, no more");
        assert_eq!(disk.stats().failed, 2);
    });
}

#[test]
fn a_failed_write_leaves_each_sector_old_or_new() {
    let mut mixed = 0;
    each_seed(30, async |_, _, disk| {
        disk.write(0, filled(1, 4096), true).await.unwrap();
        disk.inject(Fault::eio(FaultOn::Write, 0..512));
        assert!(disk.write(0, filled(2, 4096), true).await.is_err());
        let now = bytes(&disk.snapshot(), 0, 4096);
        assert!(now.chunks(512).all(|s| s == all(1, 512) || s == all(2, 512)));
        mixed += usize::from(now.contains(&1) && now.contains(&2));
        assert_eq!(bytes(&disk.durable(), 0, 4096), all(1, 4096), "not durable whatever was asked");
    });
    assert!(mixed > 15);
}

#[test]
fn a_failed_flush_makes_nothing_durable_and_may_lose_writes_for_good() {
    let mut lost = 0;
    each_seed(30, async |_, _, disk| {
        disk.write(0, filled(1, 512), false).await.unwrap();
        disk.inject(Fault::eio(FaultOn::Flush, 0..0).times(1));
        assert!(disk.flush().await.is_err());
        assert_eq!(bytes(&disk.durable(), 0, 512), all(0, 512));
        disk.flush().await.unwrap();
        lost += usize::from(bytes(&disk.durable(), 0, 512) == all(0, 512));
    });
    assert!((5..=25).contains(&lost), "{lost} of 30");
}

#[test]
fn delays_add_to_an_operations_time() {
    each_seed(5, async |runtime, _, disk| {
        disk.inject(Fault::slow(FaultOn::Read, 0..512, Duration::from_secs(3)));
        let before = runtime.clock();
        disk.read(512, Buf::zeroed(512)).await.unwrap();
        assert!(runtime.clock() - before < 1_000_000_000);
        disk.read(0, Buf::zeroed(512)).await.unwrap();
        assert!(runtime.clock() - before >= 3_000_000_000);
    });
}

#[test]
fn an_unplugged_disk_fails_everything() {
    each_seed(5, async |_, _, disk| {
        let write = disk.write(0, filled(1, 512), false);
        disk.unplug();
        assert_eq!(write.await.expect_err("gone").errno, libc::ENODEV);
        assert_eq!(disk.flush().await.expect_err("gone").errno, libc::ENODEV);
    });
}

#[test]
fn broken_contracts_are_refused_and_counted() {
    let runtime = Runtime::new(1);
    let mut config = Config::new("sim", 64 * KIB);
    config.geometry.logical_block = 4096;
    let disk = Disk::new(&runtime, &Power::new(), config.clone());
    runtime.block_on(async {
        assert_eq!(disk.write(512, filled(1, 4096), false).await.expect_err("offset").errno, libc::EINVAL);
        assert_eq!(disk.write(0, filled(1, 512), false).await.expect_err("length").errno, libc::EINVAL);
        assert_eq!(disk.read(64 * KIB, Buf::zeroed(4096)).await.expect_err("the end").errno, libc::EINVAL);
        assert_eq!(disk.discard(u64::MAX - 4095, 4096).await.expect_err("overflow").errno, libc::EINVAL);
        assert!(disk.write(60 * KIB, filled(1, 4096), false).await.is_ok());
    });
    assert_eq!(disk.stats().refused, 4);
    config.geometry.read_only = true;
    let disk = Disk::new(&runtime, &Power::new(), config);
    assert_eq!(runtime.block_on(disk.write_zeroes(0, 4096)).expect_err("read-only").errno, libc::EROFS);
}

#[test]
fn discards_leave_what_the_disk_was_made_for_and_are_volatile() {
    for (mode, expect) in
        [(AfterDiscard::Zeroes, Some(0)), (AfterDiscard::Unchanged, Some(1)), (AfterDiscard::Garbage, None)]
    {
        let runtime = Runtime::new(1);
        let config = Config { after_discard: mode, ..Config::new("sim", 64 * KIB) };
        let disk = Disk::new(&runtime, &Power::new(), config);
        runtime.block_on(async {
            disk.write(0, filled(1, 8192), true).await.unwrap();
            disk.discard(4096, 512).await.unwrap();
        });
        let now = bytes(&disk.snapshot(), 4096, 512);
        match expect {
            Some(byte) => assert_eq!(now, all(byte, 512)),
            None => assert!(now != all(0, 512) && now != all(1, 512)),
        }
        assert_eq!(bytes(&disk.snapshot(), 4608, 512), all(1, 512), "only the range");
        assert_eq!(bytes(&disk.crash(Survival::None), 4096, 512), all(1, 512));
    }
}

#[test]
fn zeroing_is_a_write_of_zeroes() {
    each_seed(5, async |_, _, disk| {
        disk.write(0, filled(1, 8192), true).await.unwrap();
        disk.write_zeroes(1024, 4096).await.unwrap();
        let expect = [all(1, 1024), all(0, 4096), all(1, 3072)].concat();
        assert_eq!(bytes(&disk.snapshot(), 0, 8192), expect);
        assert_eq!(bytes(&disk.durable(), 0, 8192), all(1, 8192));
        disk.flush().await.unwrap();
        assert_eq!(bytes(&disk.durable(), 0, 8192), expect);
    });
}

#[test]
fn a_large_disk_costs_only_what_is_written() {
    let runtime = Runtime::new(1);
    let tib = 1u64 << 40;
    let disk = Disk::new(&runtime, &Power::new(), Config::new("sim", tib));
    runtime.block_on(async {
        disk.write(tib - 4096, filled(1, 4096), false).await.unwrap();
        disk.write_zeroes(0, tib - 4096).await.unwrap();
        disk.discard(0, tib / 2).await.unwrap();
        disk.flush().await.unwrap();
    });
    assert_eq!(disk.snapshot().stored_bytes(), 4096);
    assert_eq!(bytes(&disk.durable(), tib - 512, 512), all(1, 512));
}

#[test]
fn snapshots_do_not_change() {
    each_seed(2, async |_, _, disk| {
        disk.write(0, filled(1, 512), false).await.unwrap();
        let before = disk.snapshot();
        disk.write(0, filled(2, 512), false).await.unwrap();
        assert_eq!(bytes(&before, 0, 512), all(1, 512));
        assert_ne!(before, disk.snapshot());
    });
}

/// A busy little world: writers, flushes, offloads and timers at once.
fn busy(seed: u64) -> (u64, Image) {
    let runtime = Runtime::new(seed);
    let disk = Disk::new(&runtime, &Power::new(), Config::new("sim", 256 * KIB));
    let env = runtime.env();
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for task in 0..8u64 {
            let (disk, inner) = (disk.clone(), env.clone());
            tasks.push(env.spawn(async move {
                for _ in 0..20 {
                    let at = inner.random() % 500 * 512;
                    let value = inner.offload(move || task as u8 + 1).await;
                    disk.write(at, filled(value, 512), false).await.unwrap();
                    inner.sleep(Duration::from_micros(inner.random() % 100)).await;
                    if inner.random() % 8 == 0 {
                        disk.flush().await.unwrap();
                    }
                }
            }));
        }
        for task in tasks {
            task.await;
        }
    });
    (runtime.trace_hash(), disk.crash(Survival::Seeded))
}

#[test]
fn one_seed_is_one_run() {
    for seed in 0..10 {
        assert_eq!(busy(seed), busy(seed), "seed {seed}");
    }
    assert_ne!(busy(1).0, busy(2).0);
}

#[test]
fn a_deadlock_is_reported() {
    let runtime = Runtime::new(1);
    assert_eq!(runtime.run(&Power::new(), std::future::pending::<()>()), Outcome::Stalled);
}

#[test]
fn a_task_that_never_rests_is_reported() {
    let mut runtime = Runtime::new(1);
    runtime.set_max_steps(1000);
    let env = runtime.env();
    let spin = async {
        loop {
            env.yield_now().await;
        }
    };
    let outcome: Outcome<()> = runtime.run(&Power::new(), spin);
    assert_eq!(outcome, Outcome::Endless);
}

#[test]
fn dropping_the_runtime_drops_waiting_tasks() {
    let alive = std::rc::Rc::new(());
    let runtime = Runtime::new(1);
    let (env, held) = (runtime.env(), std::rc::Rc::clone(&alive));
    env.spawn({
        let env = env.clone();
        async move {
            let _held = held;
            env.sleep(Duration::from_secs(1000)).await;
        }
    })
    .detach();
    runtime.block_on(env.sleep(Duration::from_secs(1)));
    assert_eq!((runtime.live_tasks(), std::rc::Rc::strong_count(&alive)), (1, 2));
    drop(runtime);
    assert_eq!(std::rc::Rc::strong_count(&alive), 1);
}

#[test]
fn the_clock_jumps_and_loops_on_it_end() {
    let runtime = Runtime::new(1);
    let env = runtime.env();
    runtime.block_on(env.sleep(Duration::from_secs(86400)));
    assert!(runtime.clock() >= 86_400_000_000_000);
    let end = env.now() + 200_000;
    while env.now() < end {}
}
