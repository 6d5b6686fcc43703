//! Exclusion, fairness and wake-ups, under many seeded schedules.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::sim::Runtime;

#[test]
fn readers_share_and_a_writer_is_alone() {
    for seed in 0..50 {
        let runtime = Runtime::new(seed);
        let env = runtime.env();
        let lock = Rc::new(RwLock::new(0u64));
        let readers = Rc::new(Cell::new(0));
        runtime.block_on(async {
            let mut tasks = Vec::new();
            for task in 0..6 {
                let (inner, lock, readers) = (env.clone(), Rc::clone(&lock), Rc::clone(&readers));
                tasks.push(env.spawn(async move {
                    for _ in 0..20 {
                        if task % 2 == 0 {
                            let mut value = Rc::clone(&lock).write_owned().await;
                            assert_eq!(readers.get(), 0);
                            let before = *value;
                            inner.yield_now().await;
                            *value = before + 1;
                        } else {
                            let value = lock.read().await;
                            readers.set(readers.get() + 1);
                            let before = *value;
                            inner.yield_now().await;
                            assert_eq!(*value, before);
                            readers.set(readers.get() - 1);
                        }
                    }
                }));
            }
            for task in tasks {
                task.await;
            }
        });
        assert!(!lock.is_locked());
        assert_eq!(*lock.try_read().expect("unlocked"), 60);
    }
}

#[test]
fn a_waiting_writer_holds_later_readers_back() {
    let runtime = Runtime::new(1);
    let env = runtime.env();
    let lock = Rc::new(RwLock::new(()));
    runtime.block_on(async {
        let reader = lock.read().await;
        let writer = env.spawn(Rc::clone(&lock).write_owned());
        while lock.try_read().is_some() {
            env.yield_now().await;
        }
        assert!(!writer.is_finished());
        drop(reader);
        let writer = writer.await;
        assert!(lock.try_read().is_none());
        let reader = writer.downgrade();
        assert!(lock.try_read().is_some() && lock.try_write().is_none());
        drop(reader);
        assert!(lock.try_write().is_some());
    });
}

#[test]
fn giving_up_waiting_lets_the_others_through() {
    let runtime = Runtime::new(1);
    let env = runtime.env();
    let lock = Rc::new(RwLock::new(()));
    runtime.block_on(async {
        let reader = lock.read().await;
        assert!(env.timeout(Duration::from_millis(1), lock.write()).await.is_err());
        assert!(lock.try_read().is_some(), "the writer that gave up is out of the way");
        drop(reader);
        // One that was granted the lock and never polled again must hand it on.
        let held = lock.try_write().expect("free");
        let mut waiting = Box::pin(lock.write());
        assert!(env.timeout(Duration::from_millis(1), waiting.as_mut()).await.is_err());
        drop(held);
        assert!(lock.is_locked());
        drop(waiting);
        assert!(!lock.is_locked());
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
