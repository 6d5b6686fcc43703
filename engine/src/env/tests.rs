//! The production runtime, on both backends.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::dev::Buf;
use crate::net::Stream;

fn each_backend(body: impl Fn(&Runtime)) {
    for backend in [Backend::Auto, Backend::Threads] {
        body(&Runtime::with_backend(backend).unwrap());
    }
}

#[test]
fn tasks_run_in_order_and_give_their_values() {
    each_backend(|runtime| {
        let env = runtime.env();
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<Task<u32>> = (0..5)
            .map(|number| {
                let order = Rc::clone(&order);
                env.spawn(async move {
                    order.borrow_mut().push(number);
                    number * 2
                })
            })
            .collect();
        let values = runtime.block_on(async {
            let mut values = Vec::new();
            for task in tasks {
                values.push(task.await);
            }
            values
        });
        assert_eq!((values, order.take()), (vec![0, 2, 4, 6, 8], vec![0, 1, 2, 3, 4]));
    });
}

#[test]
fn a_dropped_task_goes_on() {
    each_backend(|runtime| {
        let env = runtime.env();
        let done = Rc::new(Cell::new(false));
        let (inner, flag) = (env.clone(), Rc::clone(&done));
        drop(env.spawn(async move {
            inner.sleep(Duration::from_millis(1)).await;
            flag.set(true);
        }));
        runtime.block_on(async {
            while !done.get() {
                env.sleep(Duration::from_millis(1)).await;
            }
        });
    });
}

#[test]
fn offloaded_work_runs_on_another_thread() {
    each_backend(|runtime| {
        let env = runtime.env();
        let here = std::thread::current().id();
        let there = runtime.block_on(env.offload(|| std::thread::current().id()));
        assert_ne!(here, there);
        let many: Vec<_> = (0..100u64).map(|n| env.offload(move || n * n)).collect();
        let sum = runtime.block_on(async {
            let mut sum = 0;
            for one in many {
                sum += one.await;
            }
            sum
        });
        assert_eq!(sum, (0..100).map(|n| n * n).sum::<u64>());
    });
}

#[test]
fn a_panic_in_offloaded_work_reaches_the_waiter() {
    each_backend(|runtime| {
        let env = runtime.env();
        let waiting = runtime.env().offload(|| panic!("on purpose"));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(waiting)));
        assert!(outcome.is_err());
        assert_eq!(runtime.block_on(env.offload(|| 5)), 5, "the helper threads go on");
    });
}

#[test]
fn timeouts_end_what_takes_too_long_and_nothing_else() {
    each_backend(|runtime| {
        let env = runtime.env();
        runtime.block_on(async {
            assert_eq!(
                env.timeout(Duration::from_millis(5), std::future::pending::<()>()).await,
                Err(Elapsed)
            );
            assert_eq!(env.timeout(Duration::from_secs(60), async { 3 }).await, Ok(3));
        });
    });
}

#[test]
fn a_waker_used_on_another_thread_wakes_the_loop() {
    each_backend(|runtime| {
        let env = runtime.env();
        let flag = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let mut thread = None;
        runtime.block_on(std::future::poll_fn(|cx| {
            if flag.load(std::sync::atomic::Ordering::Acquire) {
                return std::task::Poll::Ready(());
            }
            if thread.is_none() {
                let (waker, flag) = (cx.waker().clone(), std::sync::Arc::clone(&flag));
                thread = Some(std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(5));
                    flag.store(true, std::sync::atomic::Ordering::Release);
                    waker.wake();
                }));
            }
            std::task::Poll::Pending
        }));
        assert!(env.now() >= 5_000_000);
    });
}

#[test]
fn dropping_the_runtime_drops_its_tasks() {
    each_backend(|runtime| {
        let alive = Rc::new(());
        {
            let inner = Runtime::with_backend(runtime.backend()).unwrap();
            let (env, held) = (inner.env(), Rc::clone(&alive));
            inner
                .env()
                .spawn(async move {
                    let _held = held;
                    env.sleep(Duration::from_secs(1000)).await;
                })
                .detach();
            inner.block_on(inner.env().yield_now());
            assert_eq!(Rc::strong_count(&alive), 2);
        }
        assert_eq!(Rc::strong_count(&alive), 1);
    });
}

#[test]
fn clocks_are_sane() {
    each_backend(|runtime| {
        let env = runtime.env();
        let before = env.now();
        runtime.block_on(env.sleep(Duration::from_millis(2)));
        assert!(env.now() - before >= 2_000_000);
        assert!(env.wall_secs() > 1_600_000_000);
        assert_ne!(env.random(), env.random());
    });
}

#[test]
fn signals_are_awaited() {
    use nix::sys::signal::{Signal, raise};
    each_backend(|runtime| {
        let env = runtime.env();
        // Raised for this thread alone, which has just blocked them.
        let signals = Signals::new(&env, &[Signal::SIGUSR1, Signal::SIGUSR2]).unwrap();
        raise(Signal::SIGUSR2).unwrap();
        assert_eq!(runtime.block_on(signals.next()).unwrap(), Signal::SIGUSR2);
        runtime.block_on(async {
            let sleeper = env.clone();
            let task = env.spawn(async move {
                sleeper.sleep(Duration::from_millis(2)).await;
                raise(Signal::SIGUSR1).unwrap();
            });
            assert_eq!(signals.next().await.unwrap(), Signal::SIGUSR1);
            task.await;
        });
    });
}

#[test]
fn who_gives_way_does_so_to_io_as_well() {
    each_backend(|runtime| {
        let env = runtime.env();
        runtime.block_on(async {
            let (one, other) = Stream::pair(&env).unwrap();
            one.send(vec![Buf::copied(b"now").freeze()]).await.unwrap();
            let receiver = env.spawn(async move { other.recv_exact(Buf::zeroed(3), 0).await });
            let others = env.clone();
            let busy = env.spawn(async move {
                let mut turns = 0;
                while !receiver.is_finished() {
                    others.yield_now().await;
                    turns += 1;
                }
                turns
            });
            let turns = busy.await;
            assert!(turns <= 4, "it was there, and took {turns} turns of a busy task");
        });
    });
}

#[test]
fn others_get_their_share_and_no_more_than_they_want() {
    each_backend(|runtime| {
        let env = runtime.env();
        runtime.block_on(async {
            env.give_way(Duration::from_secs(1000)).await;
            let (others, turns) = (env.clone(), Rc::new(Cell::new(0)));
            let counter = Rc::clone(&turns);
            let busy = env.spawn(async move {
                while counter.get() < 50 {
                    counter.set(counter.get() + 1);
                    others.yield_now().await;
                }
            });
            env.give_way(Duration::from_secs(1000)).await;
            assert!(turns.get() == 50 && busy.is_finished(), "they ran until they had enough");
            let (others, enough) = (env.clone(), Rc::new(Cell::new(false)));
            let had = Rc::clone(&enough);
            let greedy = env.spawn(async move {
                while !had.get() {
                    others.yield_now().await;
                }
            });
            // Comes back, though they never have enough.
            env.give_way(Duration::from_millis(2)).await;
            enough.set(true);
            greedy.await;
        });
    });
}
