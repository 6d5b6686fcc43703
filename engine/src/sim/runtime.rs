//! The seeded scheduler and its clock.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::Power;
use crate::env::{Core, Env, Host, Job, MainTask};
use crate::env::{Rng, mix};

/// What the host and the runtime share.
pub(super) struct World {
    seed: u64,
    clock: Cell<u64>,
    rng: RefCell<Rng>,
    trace: Cell<u64>,
}

impl World {
    pub(super) fn rng<R>(&self, choose: impl FnOnce(&mut Rng) -> R) -> R {
        choose(&mut self.rng.borrow_mut())
    }

    /// Folds something that happened into the trace hash.
    pub(super) fn trace(&self, what: u64) {
        self.trace.set(mix(self.trace.get().rotate_left(5) ^ what));
    }
}

struct SimHost(Rc<World>);

impl Host for SimHost {
    fn now(&self) -> u64 {
        // Looking at the clock takes time, so that loops which run until a deadline end.
        let step = self.0.rng(|rng| rng.between(20, 500));
        self.0.clock.set(self.0.clock.get() + step);
        self.0.clock.get()
    }

    fn wall_secs(&self) -> u32 {
        // Some day in 2020 plus the simulated seconds.
        1_600_000_000 + (self.0.clock.get() / 1_000_000_000) as u32
    }

    fn random(&self) -> u64 {
        self.0.rng(Rng::bits)
    }

    fn offload(&self, env: &Env, job: Job) {
        let delay = self.0.rng(|rng| rng.below(200_000));
        let sleep = env.sleep(Duration::from_nanos(delay));
        env.spawn(async move {
            sleep.await;
            job();
        })
        .detach();
    }
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// The future completed.
    Done(T),
    /// The power was cut.
    Cut,
    /// Nothing could ever happen any more: a deadlock.
    Stalled,
    /// More steps than allowed: a task that never rests.
    Endless,
}

/// A runtime whose every choice follows from its seed.
///
/// Dropping it drops all of its tasks.
pub struct Runtime {
    core: Rc<Core>,
    world: Rc<World>,
    max_steps: u64,
}

impl Runtime {
    /// The runtime of `seed`.
    pub fn new(seed: u64) -> Runtime {
        let world = Rc::new(World {
            seed,
            clock: Cell::new(1_000_000_000),
            rng: RefCell::new(Rng::new(seed)),
            trace: Cell::new(seed),
        });
        let core = Core::new(Box::new(SimHost(Rc::clone(&world))), Box::new(|| {}));
        Runtime { core, world, max_steps: 100_000_000 }
    }

    /// Bounds the steps of each run, so that a task which never rests ends as [`Outcome::Endless`].
    pub fn set_max_steps(&mut self, max_steps: u64) {
        self.max_steps = max_steps;
    }

    /// The handle engine code gets.
    pub fn env(&self) -> Env {
        Env::new(Rc::clone(&self.core))
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.world.seed
    }

    /// A hash over everything that happened so far: equal for equal runs.
    pub fn trace_hash(&self) -> u64 {
        self.world.trace.get()
    }

    /// Simulated nanoseconds, without the tick that asking through [`Env::now`] costs.
    pub fn clock(&self) -> u64 {
        self.world.clock.get()
    }

    /// Tasks that have not ended.
    pub fn live_tasks(&self) -> usize {
        self.core.live_len()
    }

    pub(super) fn world(&self) -> &Rc<World> {
        &self.world
    }

    /// Runs `future` and all tasks beside it until it completes.
    ///
    /// # Panics
    ///
    /// If it cannot complete; the message names the seed.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self.run(&Power::new(), future) {
            Outcome::Done(value) => value,
            Outcome::Stalled => panic!("simulation of seed {} stalled: every task waits", self.world.seed),
            Outcome::Cut | Outcome::Endless => {
                panic!("simulation of seed {} took more than {} steps", self.world.seed, self.max_steps)
            }
        }
    }

    /// Runs `future` and all tasks beside it until it completes or `power` fails.
    pub fn run<F: Future>(&self, power: &Power, future: F) -> Outcome<F::Output> {
        let _entered = self.core.enter();
        let mut future = pin!(future);
        let main = MainTask::new(&self.core);
        for _ in 0..self.max_steps {
            if power.is_off() {
                return Outcome::Cut;
            }
            self.core.drain_inbox();
            self.core.resume_yielded();
            self.core.fire_timers(self.world.clock.get());
            let tasks = self.core.ready_len();
            let choices = tasks + usize::from(main.is_ready());
            if choices == 0 {
                match self.core.next_deadline() {
                    Some(deadline) => self.world.clock.set(deadline),
                    None => return Outcome::Stalled,
                }
                continue;
            }
            let choice = self.world.rng(|rng| rng.below(choices as u64)) as usize;
            self.world.trace((choices as u64) << 32 | choice as u64);
            if choice < tasks {
                self.core.run_nth(choice);
            } else if let Poll::Ready(value) = main.poll(&self.core, future.as_mut()) {
                return Outcome::Done(value);
            }
        }
        Outcome::Endless
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.core.close();
    }
}
