//! One run from its seed, and many runs.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bcache_engine::dev::BlockDev;
use bcache_engine::env::{Env, Rng};
use bcache_engine::sim::{Config, Disk, Image, Outcome, Power, Runtime, Survival};
use bcache_engine::volume::Volume;

use super::load::{Load, read_all};
use super::model::{Model, SECTOR};

/// Something that is to survive power cuts. Made anew for each run, from the run's own generator, so that settings
/// can differ from run to run.
pub trait Subject: Sized {
    /// The subject while it runs.
    type Running: Running;

    /// A subject with settings drawn from `rng`.
    fn draw(rng: &mut Rng) -> Self;

    /// The disks it wants, in the order it gets them.
    fn disks(&self) -> Vec<Config>;

    /// Sectors that requests are aligned to.
    fn align(&self) -> u64 {
        1
    }

    /// Prepares empty disks. Happens with the power on.
    fn format(&self, env: &Env, disks: &[Rc<dyn BlockDev>]) -> impl Future<Output = Result<(), String>>;

    /// Starts, recovering whatever a power cut has left.
    fn start(
        &self,
        env: &Env,
        disks: &[Rc<dyn BlockDev>],
    ) -> impl Future<Output = Result<Self::Running, String>>;
}

/// A started subject.
pub trait Running {
    /// The volume under test.
    fn volume(&self) -> Rc<dyn Volume>;

    /// Checks what must hold inside, with no request under way.
    fn check(&self) -> impl Future<Output = Result<(), String>>;

    /// Stops cleanly.
    fn stop(self) -> impl Future<Output = Result<(), String>>;
}

/// How runs are made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// See [`Model::new`].
    pub strict: bool,
    /// Most power cuts of one run.
    pub cuts: u64,
    /// Events (starts and ends of I/O) within which a cut falls, at most.
    pub events: u64,
    /// Most steps of the scheduler in one epoch; more are taken for a task that never rests.
    pub steps: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { strict: false, cuts: 4, events: 3000, steps: 2_000_000 }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Power cuts.
    pub cuts: u64,
    /// Of those, cuts before the subject had started.
    pub in_recovery: u64,
    /// Equal for equal runs.
    pub trace: u64,
}

/// A run that went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The run's seed: all there is to know.
    pub seed: u64,
    /// Power cuts before it went wrong.
    pub cuts: u64,
    /// What went wrong.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, after {} power cuts: {}", self.seed, self.cuts, self.what)
    }
}

struct Run<S> {
    subject: S,
    options: Options,
    rng: Rng,
    images: Vec<Image>,
    model: Rc<RefCell<Model>>,
    summary: Summary,
}

/// What an epoch is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Start,
    ReadBack,
    Load,
    Check,
    Stop,
}

/// How an epoch ended.
enum Epoch {
    Cut,
    Stopped,
}

impl<S: Subject> Run<S> {
    fn disks(&self, runtime: &Runtime, power: &Power) -> Vec<Disk> {
        let configs = self.subject.disks().into_iter().zip(&self.images);
        configs.map(|(config, image)| Disk::with_image(runtime, power, config, image.clone())).collect()
    }

    fn format(&mut self) -> Result<(), String> {
        let runtime = Runtime::new(self.rng.bits());
        self.images = vec![Image::new(); self.subject.disks().len()];
        let disks = self.disks(&runtime, &Power::new());
        let devices: Vec<Rc<dyn BlockDev>> = disks.iter().map(Disk::dev).collect();
        runtime.block_on(async {
            self.subject.format(&runtime.env(), &devices).await?;
            let running = self.subject.start(&runtime.env(), &devices).await?;
            let sectors = running.volume().size_bytes() / SECTOR as u64;
            self.model = Rc::new(RefCell::new(Model::new(sectors, self.options.strict)));
            running.stop().await
        })?;
        self.images = disks.iter().map(Disk::durable).collect();
        Ok(())
    }

    /// Runs one epoch, with a power cut at event number `cut`, or to its end.
    fn epoch(&mut self, cut: Option<u64>) -> Result<Epoch, String> {
        let mut runtime = Runtime::new(self.rng.bits());
        runtime.set_max_steps(self.options.steps);
        let power = Power::new();
        let disks = self.disks(&runtime, &power);
        if let Some(event) = cut {
            power.cut_at(event);
        }
        let devices: Vec<Rc<dyn BlockDev>> = disks.iter().map(Disk::dev).collect();
        let stage = Cell::new(Stage::Start);
        let mut rng = self.rng.fork();
        let outcome = runtime.run(&power, self.live(&runtime.env(), &devices, &stage, &mut rng));
        self.summary.trace ^= runtime.trace_hash().rotate_left(self.summary.cuts as u32);
        match outcome {
            Outcome::Done(Ok(())) => {
                self.model.borrow_mut().stopped();
                self.images = disks.iter().map(Disk::durable).collect();
                Ok(Epoch::Stopped)
            }
            Outcome::Cut => {
                self.summary.cuts += 1;
                self.summary.in_recovery += u64::from(stage.get() == Stage::Start);
                self.model.borrow_mut().cut();
                self.images = disks.iter().map(|disk| disk.crash(survival(&mut self.rng))).collect();
                Ok(Epoch::Cut)
            }
            Outcome::Done(Err(what)) => Err(what),
            Outcome::Stalled => Err(format!("{:?}: every task waits for another: a deadlock", stage.get())),
            Outcome::Endless => Err(format!("{:?}: some task never rests", stage.get())),
        }
    }

    async fn live(
        &self,
        env: &Env,
        devices: &[Rc<dyn BlockDev>],
        stage: &Cell<Stage>,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let running = self.subject.start(env, devices).await.map_err(|error| format!("start: {error}"))?;
        let volume = running.volume();
        let model = &self.model;
        // Half of the time the load meets a volume that nobody has looked at since the cut.
        stage.set(Stage::ReadBack);
        if rng.chance(1, 2) {
            read_all(&volume, model).await.map_err(|error| format!("after the start: {error}"))?;
        }
        stage.set(Stage::Load);
        let load = Load::draw(rng, self.subject.align());
        load.run(env, &volume, model, rng).await.map_err(|error| format!("under load: {error}"))?;
        stage.set(Stage::ReadBack);
        read_all(&volume, model).await.map_err(|error| format!("after the load: {error}"))?;
        stage.set(Stage::Check);
        running.check().await.map_err(|error| format!("check: {error}"))?;
        drop(volume);
        stage.set(Stage::Stop);
        running.stop().await.map_err(|error| format!("stop: {error}"))
    }
}

fn survival(rng: &mut Rng) -> Survival {
    match rng.below(8) {
        0 => Survival::None,
        1 => Survival::All,
        2 => Survival::Completed,
        _ => Survival::Seeded,
    }
}

/// Makes the run of `seed`.
fn run<S: Subject>(seed: u64, options: Options) -> Result<Summary, Failure> {
    let mut rng = Rng::new(seed);
    let subject = S::draw(&mut rng);
    let model = Rc::new(RefCell::new(Model::new(0, options.strict)));
    let mut run = Run { subject, options, rng, images: Vec::new(), model, summary: Summary::default() };
    let result = catch_unwind(AssertUnwindSafe(|| {
        run.format().map_err(|error| format!("format: {error}"))?;
        let cuts = run.rng.between(1, options.cuts);
        for _ in 0..cuts {
            // As many early cuts as late ones, so that recovery gets its share.
            let scale = run.rng.between(1, u64::from(options.events.ilog2()) + 1);
            let event = run.rng.below(options.events.min(1 << scale));
            run.epoch(Some(event))?;
        }
        match run.epoch(None)? {
            Epoch::Stopped => {}
            Epoch::Cut => return Err("a cut without a cause".to_owned()),
        }
        // What was stopped cleanly must be there again, and stay.
        run.epoch(None).map(|_| ())
    }));
    let fail = |what| Failure { seed, cuts: run.summary.cuts, what };
    match result {
        Ok(Ok(())) => Ok(run.summary),
        Ok(Err(what)) => Err(fail(what)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(fail(format!("panic: {text}")))
        }
    }
}

/// Many runs on all processors.
#[derive(Clone, Copy, Debug)]
pub struct Campaign {
    /// How each run is made.
    pub options: Options,
    /// The seed of the first; the others follow.
    pub first_seed: u64,
    /// Goes on until this many power cuts were survived.
    pub cuts: u64,
    /// Ends early after this much time.
    pub time: Duration,
}

impl Campaign {
    /// Runs of default options for `cuts` power cuts. The environment variable `SIM_SEED` names one run to make
    /// instead.
    pub fn of(cuts: u64) -> Campaign {
        Campaign { options: Options::default(), first_seed: 1, cuts, time: Duration::from_secs(280) }
    }

    /// Makes the runs; what they did together and how many there were, or the first failure found.
    pub fn run<S: Subject>(self) -> Result<(Summary, u64), Failure> {
        if let Some(seed) = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
            return run::<S>(seed, self.options).map(|summary| (summary, 1));
        }
        let (next, cuts) = (AtomicU64::new(self.first_seed), AtomicU64::new(0));
        let stop = AtomicBool::new(false);
        let result = Mutex::new((Summary::default(), 0, None::<Failure>));
        let start = Instant::now();
        let worker = || {
            while !stop.load(Ordering::Relaxed)
                && cuts.load(Ordering::Relaxed) < self.cuts
                && start.elapsed() < self.time
            {
                let outcome = run::<S>(next.fetch_add(1, Ordering::Relaxed), self.options);
                let mut result = result.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                match outcome {
                    Ok(summary) => {
                        cuts.fetch_add(summary.cuts, Ordering::Relaxed);
                        result.0.cuts += summary.cuts;
                        result.0.in_recovery += summary.in_recovery;
                        result.0.trace ^= summary.trace;
                        result.1 += 1;
                    }
                    Err(failure) => {
                        stop.store(true, Ordering::Relaxed);
                        // The smallest seed found, so that the report does not depend on who was faster.
                        if result.2.as_ref().is_none_or(|known| failure.seed < known.seed) {
                            result.2 = Some(failure);
                        }
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(worker);
            }
        });
        let (summary, runs, failure) = result.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        failure.map_or(Ok((summary, runs)), Err)
    }
}
