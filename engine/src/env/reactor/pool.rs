//! Helper threads, started when first needed.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Work for a helper thread.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Most helper threads. Jobs are either heavy on the processor (few) or wait for a disk (many).
const MAX_THREADS: usize = 16;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    closed: bool,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<Queue>,
    changed: Condvar,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                // A job that panics tells its waiter as it unwinds; the thread goes on.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                state = self.lock();
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

/// Threads that run jobs. Dropping it waits for all jobs given.
pub(crate) struct Pool(Arc<Inner>);

impl Pool {
    pub(crate) fn new() -> Pool {
        Pool(Arc::default())
    }

    /// Runs `job` on some thread. Where no thread can be had, the job runs here, before this returns.
    pub(crate) fn run(&self, job: Job) {
        let mut state = self.0.lock();
        state.jobs.push_back(job);
        if state.idle < state.jobs.len() && state.threads.len() < MAX_THREADS {
            let inner = Arc::clone(&self.0);
            match std::thread::Builder::new().name("bcache-helper".into()).spawn(move || inner.work()) {
                Ok(thread) => state.threads.push(thread),
                Err(error) if state.threads.is_empty() => {
                    tracing::warn!(%error, "no helper thread can be started");
                    let job = state.jobs.pop_back();
                    drop(state);
                    if let Some(job) = job {
                        job();
                    }
                    return;
                }
                Err(_) => {}
            }
        }
        self.0.changed.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let threads = {
            let mut state = self.0.lock();
            state.closed = true;
            self.0.changed.notify_all();
            std::mem::take(&mut state.threads)
        };
        for thread in threads {
            // A helper never panics by itself, and the pool may be dropped by the last job on one.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
