//! Exclusion, fairness and wake-ups, under many seeded schedules.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::sim::Runtime;

#[test]
fn a_holder_of_all_permits_is_alone() {
    const ALL: u64 = 1 << 40;
    for seed in 0..50 {
        let runtime = Runtime::new(seed);
        let env = runtime.env();
        let lock = Rc::new(Semaphore::new(ALL));
        let (value, sharers) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        runtime.block_on(async {
            let mut tasks = Vec::new();
            for task in 0..6 {
                let (inner, lock) = (env.clone(), Rc::clone(&lock));
                let (value, sharers) = (Rc::clone(&value), Rc::clone(&sharers));
                tasks.push(env.spawn(async move {
                    for _ in 0..20 {
                        if task % 2 == 0 {
                            let _all = Rc::clone(&lock).acquire_owned(ALL).await;
                            assert_eq!(sharers.get(), 0);
                            let before = value.get();
                            inner.yield_now().await;
                            value.set(before + 1);
                        } else {
                            let _one = lock.acquire(1).await;
                            sharers.set(sharers.get() + 1);
                            let before = value.get();
                            inner.yield_now().await;
                            assert_eq!(value.get(), before);
                            sharers.set(sharers.get() - 1);
                        }
                    }
                }));
            }
            for task in tasks {
                task.await;
            }
        });
        assert_eq!((lock.available(), value.get()), (ALL, 60));
    }
}

#[test]
fn a_mutex_is_held_by_one() {
    for seed in 0..50 {
        let runtime = Runtime::new(seed);
        let env = runtime.env();
        let mutex = Rc::new(Mutex::new(0));
        runtime.block_on(async {
            let tasks: Vec<_> = (0..4)
                .map(|_| {
                    let (inner, mutex) = (env.clone(), Rc::clone(&mutex));
                    env.spawn(async move {
                        for _ in 0..20 {
                            let mut value = mutex.lock().await;
                            let before = *value;
                            inner.yield_now().await;
                            assert!(mutex.try_lock().is_none());
                            *value = before + 1;
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        });
        assert_eq!(*mutex.try_lock().expect("nobody holds it"), 80);
    }
}

#[test]
fn giving_up_waiting_lets_the_others_through() {
    let runtime = Runtime::new(1);
    let env = runtime.env();
    let lock = Semaphore::new(9);
    runtime.block_on(async {
        let one = lock.acquire(1).await;
        assert!(env.timeout(Duration::from_millis(1), lock.acquire(9)).await.is_err());
        assert!(lock.try_acquire(1).is_some(), "the one who gave up is out of the way");
        drop(one);
        // One who was granted all and never polled again must hand them on.
        let held = lock.try_acquire(9).expect("free");
        let mut waiting = Box::pin(lock.acquire(9));
        assert!(env.timeout(Duration::from_millis(1), waiting.as_mut()).await.is_err());
        drop(held);
        assert_eq!(lock.available(), 0);
        drop(waiting);
        assert_eq!(lock.available(), 9);
    });
}

#[test]
fn locks_are_granted_in_the_order_of_asking() {
    let runtime = Runtime::new(4);
    let env = runtime.env();
    let mutex = Rc::new(Mutex::new(()));
    let order = Rc::new(RefCell::new(Vec::new()));
    runtime.block_on(async {
        let held = mutex.lock().await;
        let mut tasks = Vec::new();
        for number in 0..5 {
            let (mutex, order) = (Rc::clone(&mutex), Rc::clone(&order));
            tasks.push(env.spawn(async move {
                let _held = mutex.lock().await;
                order.borrow_mut().push(number);
            }));
            env.sleep(Duration::from_millis(1)).await;
        }
        drop(held);
        for task in tasks {
            task.await;
        }
    });
    assert_eq!(*order.borrow(), [0, 1, 2, 3, 4]);
}

#[test]
fn semaphores_bound_and_do_not_starve_the_large() {
    let runtime = Runtime::new(2);
    let env = runtime.env();
    let semaphore = Rc::new(Semaphore::new(4));
    runtime.block_on(async {
        let small = Rc::clone(&semaphore).acquire_owned(1).await;
        let large = env.spawn(Rc::clone(&semaphore).acquire_owned(4));
        env.sleep(Duration::from_millis(1)).await;
        assert!(semaphore.try_acquire(1).is_none(), "someone waits");
        drop(small);
        let large = large.await;
        assert_eq!(semaphore.available(), 0);
        drop(large);
        assert_eq!(semaphore.available(), 4);
    });
}

#[test]
fn wake_ups_are_not_lost() {
    for seed in 0..50 {
        let runtime = Runtime::new(seed);
        let env = runtime.env();
        let (queue, value) = (Rc::new(WaitQueue::new()), Rc::new(Cell::new(0)));
        runtime.block_on(async {
            let (waiter_queue, seen) = (Rc::clone(&queue), Rc::clone(&value));
            let waiter = env.spawn(async move { waiter_queue.wait_until(|| seen.get() == 10).await });
            for _ in 0..10 {
                env.yield_now().await;
                value.set(value.get() + 1);
                queue.wake_all();
            }
            waiter.await;
        });
        assert_eq!(queue.waiting(), 0);
    }
}

#[test]
fn a_wake_up_given_to_one_who_left_goes_to_the_next() {
    let runtime = Runtime::new(1);
    runtime.block_on(async {
        let queue = WaitQueue::new();
        let (first, second) = (queue.wait(), queue.wait());
        assert!(queue.wake_one());
        drop(first);
        second.await;
        assert!(!queue.wake_one());
    });
}

#[test]
fn a_raised_flag_stays_up_for_the_next() {
    let runtime = Runtime::new(1);
    let env = runtime.env();
    runtime.block_on(async {
        let flag = Notify::new();
        flag.notify();
        flag.notify();
        flag.notified().await;
        assert!(env.timeout(Duration::from_millis(1), flag.notified()).await.is_err());
        flag.notify();
        flag.notified().await;
    });
}
