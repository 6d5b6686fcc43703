//! The production runtime: one thread, a queue served in order, one ring.

use std::cell::RefCell;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use super::reactor::{Backend, Reactor};
use super::{Core, Env, Host, Job, MainTask, Rng};

/// Most tasks run between two looks at the ring, so that a flood of ready tasks cannot keep completions waiting.
const BATCH: usize = 128;

struct RealHost {
    start: Instant,
    rng: RefCell<Rng>,
    reactor: Reactor,
}

impl Host for RealHost {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn wall_secs(&self) -> u32 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs() as u32)
    }

    fn random(&self) -> u64 {
        self.rng.borrow_mut().bits()
    }

    fn offload(&self, _env: &Env, job: Job) {
        self.reactor.pool().run(job);
    }

    fn reactor(&self) -> Option<&Reactor> {
        Some(&self.reactor)
    }
}

/// Runs an engine and its front ends on the calling thread.
///
/// Dropping it drops all of its tasks, waits for I/O in flight and for the helper threads.
pub struct Runtime {
    core: Rc<Core>,
}

impl Runtime {
    /// A runtime on io_uring, or on helper threads where that is forbidden.
    pub fn new() -> io::Result<Runtime> {
        Runtime::with_backend(Backend::Auto)
    }

    /// A runtime that does its I/O in a given way.
    pub fn with_backend(backend: Backend) -> io::Result<Runtime> {
        let reactor = Reactor::new(backend)?;
        let wake = reactor.waker();
        // The standard library keys its hashers from the operating system's generator.
        let seed = std::hash::RandomState::new().build_hasher().finish();
        let host = RealHost { start: Instant::now(), rng: RefCell::new(Rng::new(seed)), reactor };
        let unpark = move || {
            // It fails only when the counter is full, and then the thread is being woken anyway.
            let _ = wake.write(1);
        };
        Ok(Runtime { core: Core::new(Box::new(host), Box::new(unpark)) })
    }

    /// The handle engine code gets.
    pub fn env(&self) -> Env {
        Env::new(Rc::clone(&self.core))
    }

    /// Which way I/O goes.
    pub fn backend(&self) -> Backend {
        self.reactor().backend()
    }

    fn reactor(&self) -> &Reactor {
        match self.core.host.reactor() {
            Some(reactor) => reactor,
            None => unreachable!("a production host has a reactor"),
        }
    }

    /// Runs `future` and all tasks beside it until it completes. The other tasks stay, and go on at the next call.
    ///
    /// # Panics
    ///
    /// If the kernel refuses to wait for I/O, which it does not.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _entered = self.core.enter();
        let mut future = pin!(future);
        let main = MainTask::new(&self.core);
        let mut done = Vec::new();
        loop {
            self.core.drain_inbox();
            if main.is_ready()
                && let Poll::Ready(value) = main.poll(&self.core, future.as_mut())
            {
                // What was started and not yet handed to the kernel must not wait for the next call.
                self.turn(Some(Duration::ZERO), &mut done);
                return value;
            }
            for _ in 0..BATCH {
                if !self.core.run_first() {
                    break;
                }
            }
            let busy = self.core.ready_len() > 0
                || self.core.has_yielded()
                || main.is_ready()
                || self.core.has_inbox();
            let wait = if busy { Some(Duration::ZERO) } else { self.until_timer() };
            self.turn(wait, &mut done);
            if self.core.next_deadline().is_some() {
                self.core.fire_timers(self.core.host.now());
            }
            self.core.resume_yielded();
        }
    }

    fn turn(&self, wait: Option<Duration>, done: &mut Vec<(super::Op, i32)>) {
        if let Err(error) = self.reactor().turn(wait, done) {
            panic!("waiting for I/O failed: {error}");
        }
    }

    /// Time until the next timer; none if there is no timer.
    fn until_timer(&self) -> Option<Duration> {
        let deadline = self.core.next_deadline()?;
        Some(Duration::from_nanos(deadline.saturating_sub(self.core.host.now())))
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.core.close();
        // Files in flight are waited for: what was started must not be half done when the process ends.
        let mut done = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.reactor().files_in_flight() > 0 && Instant::now() < deadline {
            self.turn(Some(Duration::from_millis(20)), &mut done);
        }
    }
}
