//! The only door to time, chance and concurrency.
//!
//! Engine code takes an [`Env`] and asks it for the clock, random numbers, timers, new tasks and helper threads.
//! The production [`Runtime`] answers with the real ones; the simulator's answers follow
//! from its seed alone.

mod core;
mod finish;
mod reactor;
mod rng;
mod runtime;
mod signal;
mod task;
#[cfg(test)]
mod tests;
mod timer;

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::core::{Core, Host, MainTask};
pub use self::finish::{Finish, YieldNow};
pub use self::reactor::Backend;
pub(crate) use self::reactor::{Handle, Job, Op, Reactor};
pub use self::rng::Rng;
pub(crate) use self::rng::mix;
pub use self::runtime::Runtime;
pub use self::signal::Signals;
pub use self::task::{Offloaded, Task};
pub use self::timer::{Elapsed, Sleep, Timeout};

/// A handle to the runtime; clones are cheap and equal.
#[derive(Clone)]
pub struct Env {
    core: Rc<Core>,
}

impl Env {
    pub(crate) fn new(core: Rc<Core>) -> Env {
        Env { core }
    }

    /// Where real I/O is done, if this is the real world.
    pub(crate) fn reactor(&self) -> io::Result<&Reactor> {
        self.core.host.reactor().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// Nanoseconds since some fixed moment; never goes back.
    pub fn now(&self) -> u64 {
        self.core.host.now()
    }

    /// Seconds since 1970, as bcache's uuid table and superblocks store them.
    pub fn wall_secs(&self) -> u32 {
        self.core.host.wall_secs()
    }

    /// 64 random bits.
    pub fn random(&self) -> u64 {
        self.core.host.random()
    }

    /// Completes `duration` after its first poll.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        Sleep::new(Rc::clone(&self.core), duration)
    }

    /// Runs `future` beside all others on this thread. Dropping the [`Task`] detaches it: nothing is ever
    /// cancelled in the middle of an operation.
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.core.spawn(future)
    }

    /// Runs `future` here and now as far as it goes without waiting, and the rest of it as a detached task. Spares
    /// work that is done at once the way through the run queue.
    pub fn run_or_spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + 'static,
    {
        let mut future = Box::pin(future);
        // What the first poll registers this waker for is lost, but the spawned task polls again.
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        if future.as_mut().poll(&mut cx).is_pending() {
            self.spawn(future).detach();
        }
    }

    /// Makes `future` go on as a task if it is dropped after it began: what changes something is never left half done.
    #[inline]
    pub fn finish<F>(&self, future: F) -> Finish<F>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        Finish::new(Rc::clone(&self.core), future)
    }

    /// Lets every other task that is ready run first, and hands I/O that was started to the kernel.
    pub fn yield_now(&self) -> YieldNow {
        YieldNow::new(Rc::clone(&self.core))
    }

    /// Lets other tasks run for as long as `share`, or until none of them wants to.
    pub async fn give_way(&self, share: Duration) {
        let begun = self.now();
        loop {
            let ran = self.core.ran();
            self.yield_now().await;
            let alone = self.core.ran() == ran + 1;
            if alone || self.now() - begun >= share.as_nanos() as u64 {
                return;
            }
        }
    }

    /// Runs `job`, which is heavy on the processor, on a helper thread.
    ///
    /// # Panics
    ///
    /// Awaiting it panics if the job did.
    pub fn offload<T, F>(&self, job: F) -> Offloaded<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (shared, offloaded) = Offloaded::pair();
        let job: Job = Box::new(move || {
            let answer = task::Answer(Arc::clone(&shared));
            let value = job();
            answer.give(value);
        });
        self.core.host.offload(self, job);
        offloaded
    }

    /// Gives `future` at most `limit`; it is dropped when that is over.
    pub fn timeout<F: Future>(&self, limit: Duration, future: F) -> Timeout<F> {
        Timeout::new(self.sleep(limit), future)
    }
}
