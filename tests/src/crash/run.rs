//! One run from its seed, and many runs.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bcache_engine::env::{Env, Rng};
use bcache_engine::sim::{Config, Disk, Image, Medium, Outcome, Power, Runtime, Survival};
use bcache_engine::volume::Volume;

use super::kept::Kept;
use super::load::{Judged, Load, ends, read_all};
use super::model::Model;
use super::set::Focus;

/// Volumes by number; one that is not there in this epoch is nothing.
pub type Volumes = Vec<Option<Rc<dyn Volume>>>;

/// Something that is to survive power cuts. Made anew for each run, from the run's own generator, so that settings
/// can differ from run to run.
pub trait Subject: Sized + fmt::Debug {
    /// The subject while it runs.
    type Running: Running;

    /// A subject with settings drawn from `rng`.
    fn draw(rng: &mut Rng, focus: &Focus) -> Self;

    /// The disks it wants, in the order it gets them.
    fn disks(&self) -> Vec<Config>;

    /// Sectors of each volume.
    fn sectors(&self) -> Vec<u64>;

    /// Sectors that requests are aligned to.
    fn align(&self) -> u64 {
        1
    }

    /// Whether a process that ends may lose nothing that it acknowledged: then some of the cuts end only that.
    fn kills(&self) -> bool {
        false
    }

    /// Whether volumes are filled with small extents at first.
    fn deep(&self) -> bool {
        false
    }

    /// Whether several disturbances go on at once.
    fn wild(&self) -> bool {
        false
    }

    /// Changes a load to what this subject's runs are about.
    fn load(&self, load: Load) -> Load {
        load
    }

    /// Prepares empty disks. Happens with the power on.
    fn format(&self, disks: &[Disk]) -> impl Future<Output = Result<(), String>>;

    /// Starts, recovering whatever a power cut has left, or the end of a process.
    fn start(
        &self,
        env: &Env,
        disks: &[Disk],
        kept: &Rc<Kept>,
        rng: &mut Rng,
    ) -> impl Future<Output = Result<Self::Running, String>>;

    /// Breaks something of the disks for one epoch; true if requests may fail from it.
    fn spoil(&self, _disks: &[Disk], _rng: &mut Rng) -> bool {
        false
    }

    /// Looks at disks at rest, after a clean stop or after a cut; with what the volumes may hold, and what is kept in
    /// memory.
    fn look(
        &self,
        _disks: &[Image],
        _models: &mut [Model],
        _kept: &Kept,
        _clean: bool,
    ) -> Result<(), String> {
        Ok(())
    }
}

/// A started subject.
pub trait Running {
    /// The volumes under test. Asked for before each round of load, so that they may change in between.
    fn volumes(&self) -> Volumes;

    /// Checks what must hold inside, with no request under way.
    fn check(&self) -> impl Future<Output = Result<(), String>> {
        async { Ok(()) }
    }

    /// Says what is known inside, for whoever looks for a mistake.
    fn tell(&self) -> impl Future<Output = ()> {
        async {}
    }

    /// Does something on its own while clients are busy. Called again and again until they are done.
    fn disturb(&self, env: &Env, rng: &mut Rng) -> impl Future<Output = Result<(), String>> {
        let pause = env.sleep(Duration::from_micros(rng.between(1, 20_000)));
        async {
            pause.await;
            Ok(())
        }
    }

    /// Changes what can only be changed with no request under way.
    fn between(&self, _rng: &mut Rng) -> impl Future<Output = Result<(), String>> {
        async { Ok(()) }
    }

    /// Makes durable what a stop does not: clients were still busy when it was called.
    fn settle(&self) -> impl Future<Output = Result<(), String>> {
        async { Ok(()) }
    }

    /// What is still there after the stop that should not be: waiters, counts, memory.
    fn left_behind(&self) -> Vec<String> {
        Vec::new()
    }

    /// Stops cleanly. False when some of the disks were not in use, and are as the last cut has left them.
    fn stop(&self) -> impl Future<Output = Result<bool, String>>;
}

/// How runs are made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// See [`Model::new`].
    pub strict: bool,
    /// Most epochs of one run that are cut.
    pub epochs: u64,
    /// Events (starts and ends of I/O) within which a cut falls, at most.
    pub events: u64,
    /// Most places of an epoch, besides the cut itself, where what a cut would leave is looked at.
    pub looks: u64,
    /// Most steps of the scheduler in one epoch; more are taken for a task that never rests.
    pub steps: u64,
    /// What runs are about.
    pub focus: Focus,
}

impl Default for Options {
    fn default() -> Self {
        Options { strict: true, epochs: 4, events: 4096, looks: 8, steps: 2_000_000, focus: Focus::default() }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Power cuts that were recovered from, no two alike.
    pub cuts: u64,
    /// Of those, cuts before the subject had started.
    pub in_recovery: u64,
    /// Clean stops.
    pub stops: u64,
    /// Equal for equal runs.
    pub trace: u64,
}

impl Summary {
    fn add(&mut self, other: Summary) {
        self.cuts += other.cuts;
        self.in_recovery += other.in_recovery;
        self.stops += other.stops;
        self.trace ^= other.trace;
    }
}

/// A run that went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The run's seed: all there is to know.
    pub seed: u64,
    /// Power cuts before it went wrong, those of other runs included.
    pub cuts: u64,
    /// What went wrong.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, after {} power cuts: {}", self.seed, self.cuts, self.what)
    }
}

/// What there is while nothing runs.
#[derive(Clone)]
struct World {
    disks: Vec<Medium>,
    models: Vec<Model>,
    kept: Kept,
    /// The last end was a clean stop.
    clean: bool,
    /// The cut came before the subject had started.
    in_recovery: bool,
}

struct Run<S> {
    subject: S,
    options: Options,
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

/// What is to happen in an epoch.
#[derive(Default)]
struct Plan {
    /// The event at which the power is cut.
    cut: Option<u64>,
    /// Events before it that are looked at.
    looks: Vec<u64>,
    /// Clients come; otherwise everything is only read.
    load: bool,
}

impl<S: Subject> Run<S> {
    fn plug(&self, media: &[Medium], runtime: &Runtime, power: &Power) -> Vec<Disk> {
        let configs = self.subject.disks().into_iter().zip(media);
        configs.map(|(config, medium)| Disk::with_medium(runtime, power, config, medium.clone())).collect()
    }

    fn format(&mut self, rng: &mut Rng) -> Result<World, String> {
        let runtime = Runtime::new(rng.bits());
        let empty = vec![Medium::from(Image::new()); self.subject.disks().len()];
        let disks = self.plug(&empty, &runtime, &Power::new());
        runtime.block_on(self.subject.format(&disks))?;
        let models = self.subject.sectors().into_iter().map(|size| Model::new(size, self.options.strict));
        let models = models.collect();
        let disks = durable(&disks);
        let kept = Kept::empty(rng);
        Ok(World { disks, models, kept, clean: false, in_recovery: false })
    }

    /// Runs one epoch. What is left at its end is the world from then on; what cuts at the looks would have left is
    /// answered. False when it was not cut.
    fn epoch(&mut self, world: &mut World, rng: &mut Rng, plan: Plan) -> Result<(bool, Vec<World>), String> {
        let images: Vec<Image> = world.disks.iter().map(|medium| medium.image().clone()).collect();
        self.subject
            .look(&images, &mut world.models, &world.kept, world.clean)
            .map_err(|error| format!("at rest: {error}"))?;
        let mut runtime = Runtime::new(rng.bits());
        runtime.set_max_steps(self.options.steps * if self.subject.deep() { 20 } else { 1 });
        let power = Power::new();
        let disks = self.plug(&world.disks, &runtime, &power);
        let models: Vec<_> =
            std::mem::take(&mut world.models).into_iter().map(|m| Rc::new(RefCell::new(m))).collect();
        let stage = Rc::new(Cell::new(Stage::Start));
        let kept = Rc::new(world.kept.clone());
        if plan.load {
            kept.draw_faults(rng);
        } else {
            kept.heal();
        }
        let ends = Ends {
            disks: disks.clone(),
            models: models.clone(),
            kept: Rc::clone(&kept),
            kills: self.subject.kills(),
        };
        let left = Rc::new(RefCell::new(Vec::new()));
        if let Some(event) = plan.cut {
            power.cut_at(event);
        }
        if !plan.looks.is_empty() {
            let (ends, stage) = (ends.clone(), Rc::clone(&stage));
            let (left, mut rng) = (Rc::clone(&left), rng.fork());
            power.look_at(plan.looks.iter().copied(), move || {
                left.borrow_mut().push(ends.cut(stage.get(), &mut rng));
            });
        }
        let may_fail = plan.load && self.subject.spoil(&disks, rng);
        super::load::trace(|| {
            format!("=== epoch: load {} cut {:?} may fail {may_fail}", plan.load, plan.cut)
        });
        let mut inner = rng.fork();
        let used = RefCell::default();
        let life = Life { disks: &disks, models: &models, kept: &kept, stage: &stage, used: &used };
        let outcome = runtime.run(&power, self.live(&runtime.env(), life, &mut inner, plan.load, may_fail));
        power.look_away();
        self.summary.trace ^= runtime.trace_hash().rotate_left(self.summary.cuts as u32);
        let refused: u64 = disks.iter().map(|disk| disk.stats().refused).sum();
        if refused > 0 {
            return Err(format!("{:?}: {refused} operations broke the devices' contract", stage.get()));
        }
        let at = |what: String| format!("{:?}: {what}", stage.get());
        let mut clean = false;
        let was_cut = match outcome {
            Outcome::Done(Ok(all)) => {
                clean = all;
                false
            }
            // Whatever could not be done for want of good disks is as good as a cut.
            Outcome::Done(Err(Wrong::Failed(_))) if may_fail => true,
            Outcome::Cut => true,
            Outcome::Done(Err(Wrong::Failed(what) | Wrong::Violation(what))) => return Err(at(what)),
            Outcome::Stalled => return Err(at("every task waits for another: a deadlock".to_owned())),
            Outcome::Endless => return Err(at("some task never rests".to_owned())),
        };
        if was_cut || !plan.load {
            // Who only looked did not stop either.
            *world = ends.cut(stage.get(), rng);
            if was_cut {
                self.count(world);
            }
        } else {
            self.summary.stops += 1;
            let used = used.take();
            let models = models.iter().enumerate().map(|(index, model)| {
                let mut model = model.take();
                if clean || used.get(index).copied().unwrap_or(false) {
                    model.stopped()
                } else {
                    model.kill()
                }
                model
            });
            world.models = models.collect();
            // What was not in use is as it was.
            world.disks =
                if clean { durable(&disks) } else { disks.iter().map(Disk::process_ends).collect() };
            if clean && !kept.is_empty() && !kept.fails() {
                return Err("something is kept in memory after a clean stop".to_owned());
            }
            world.kept = (*kept).clone();
            world.clean = clean;
            world.in_recovery = false;
        }
        Ok((was_cut, left.take()))
    }

    fn count(&mut self, world: &World) {
        self.summary.cuts += 1;
        self.summary.in_recovery += u64::from(world.in_recovery);
    }

    async fn live(
        &self,
        env: &Env,
        life: Life<'_>,
        rng: &mut Rng,
        load: bool,
        may_fail: bool,
    ) -> Result<bool, Wrong> {
        let Life { disks, models, kept, stage, used } = life;
        let start = ends(env, "the start", self.subject.start(env, disks, kept, rng)).await;
        let running = Rc::new(start.map_err(Wrong::Violation)?.map_err(Wrong::Failed)?);
        let judged = || -> Vec<Judged> {
            let volumes = running.volumes().into_iter().zip(models);
            let judge = |(volume, model): (Option<_>, &Rc<RefCell<Model>>)| {
                Some(Judged { volume: volume?, model: Rc::clone(model), may_fail })
            };
            volumes.filter_map(judge).collect()
        };
        *used.borrow_mut() = running.volumes().iter().map(Option::is_some).collect();
        stage.set(Stage::Check);
        ends(env, "a check", running.check()).await.and_then(|checked| checked).map_err(Wrong::Violation)?;
        let sudden = load && self.subject.wild() && rng.chance(1, 6);
        if sudden {
            stage.set(Stage::Load);
            return self.stopped_in_the_middle(env, &running, models, rng).await;
        }
        // Half of the time the load meets volumes that nobody has looked at since the cut.
        stage.set(Stage::ReadBack);
        if !load || rng.chance(1, 2) {
            read_all(env, &judged()).await.map_err(Wrong::Violation)?;
        }
        if !load {
            return Ok(false);
        }
        if self.subject.deep() && models.iter().all(|model| model.borrow().is_untouched()) {
            Load::fill(self.subject.align(), env, &judged(), rng).await.map_err(Wrong::Violation)?;
            super::load::trace(|| "=== filled".to_owned());
        }
        for round in 0..rng.between(1, 2) {
            if round > 0 {
                let between = ends(env, "an attach", running.between(rng)).await;
                between.map_err(Wrong::Violation)?.map_err(Wrong::Failed)?;
            }
            stage.set(Stage::Load);
            self.round(env, &running, &judged(), rng).await.map_err(Wrong::Violation)?;
        }
        stage.set(Stage::ReadBack);
        if let Err(what) = read_all(env, &judged()).await {
            super::load::trace(|| format!("=== {what}"));
            running.tell().await;
            return Err(Wrong::Violation(what));
        }
        stage.set(Stage::Check);
        ends(env, "a check", running.check()).await.and_then(|checked| checked).map_err(Wrong::Violation)?;
        stage.set(Stage::Stop);
        self.stop(env, &running).await
    }

    /// Stops the subject. Whatever fails, it comes to an end and leaves nothing behind.
    async fn stop(&self, env: &Env, running: &S::Running) -> Result<bool, Wrong> {
        let stopped = ends(env, "the stop", running.stop()).await.map_err(Wrong::Violation)?;
        let left = running.left_behind();
        if !left.is_empty() {
            return Err(Wrong::Violation(format!("the stop leaves behind: {}", left.join("; "))));
        }
        stopped.map_err(Wrong::Failed)
    }

    /// The subject is stopped while clients are busy: they are told no from then on, and what they were told before is
    /// there.
    async fn stopped_in_the_middle(
        &self,
        env: &Env,
        running: &Rc<S::Running>,
        models: &[Rc<RefCell<Model>>],
        rng: &mut Rng,
    ) -> Result<bool, Wrong> {
        let volumes = running.volumes().into_iter().zip(models);
        let judge = |(volume, model): (Option<_>, &Rc<RefCell<Model>>)| {
            Some(Judged { volume: volume?, model: Rc::clone(model), may_fail: true })
        };
        let volumes: Vec<Judged> = volumes.filter_map(judge).collect();
        let mut stop_rng = rng.fork();
        let stopping = async {
            env.sleep(Duration::from_nanos(1 << stop_rng.between(14, 32))).await;
            super::load::trace(|| "=== stop in the middle".to_owned());
            self.stop(env, running).await
        };
        let (round, stopped) = both(self.round(env, running, &volumes, rng), stopping).await;
        round.map_err(Wrong::Violation)?;
        let settled = ends(env, "a flush", running.settle()).await.map_err(Wrong::Violation)?;
        let stopped = stopped?;
        settled.map_err(Wrong::Failed)?;
        Ok(stopped)
    }

    /// Clients and disturbances side by side.
    async fn round(
        &self,
        env: &Env,
        running: &Rc<S::Running>,
        volumes: &[Judged],
        rng: &mut Rng,
    ) -> Result<(), String> {
        let busy = Rc::new(Cell::new(true));
        let load = if self.subject.wild() {
            Load::draw_wild(rng, self.subject.align())
        } else {
            self.subject.load(Load::draw(rng, self.subject.align()))
        };
        let mut clients_rng = rng.fork();
        let clients = async {
            let result = load.run(env, volumes, &mut clients_rng).await;
            busy.set(false);
            result
        };
        let mut others = [rng.fork(), rng.fork()];
        let wild = self.subject.wild();
        let disturbances = async {
            while busy.get() {
                ends(env, "a disturbance", running.disturb(env, rng)).await??;
            }
            Ok(())
        };
        let more = async {
            let [one, two] = &mut others;
            let disturb = async |rng: &mut Rng| -> Result<(), String> {
                while wild && busy.get() {
                    ends(env, "a disturbance", running.disturb(env, rng)).await??;
                }
                Ok(())
            };
            let (one, two) = both(disturb(one), disturb(two)).await;
            one.and(two)
        };
        let (clients, (disturbances, more)) = both(clients, both(disturbances, more)).await;
        clients.and(disturbances).and(more)
    }

    /// Recovers what a cut has left and reads everything, perhaps after another cut during the recovery.
    fn recover(&mut self, mut world: World, rng: &mut Rng) -> Result<(), String> {
        self.count(&world);
        if rng.chance(1, 3) {
            let reach = 1 << rng.between(1, 9);
            let cut = Some(rng.below(reach));
            self.epoch(&mut world, rng, Plan { cut, ..Plan::default() })?;
        }
        self.epoch(&mut world, rng, Plan::default())?;
        Ok(())
    }

    fn whole(&mut self, rng: &mut Rng) -> Result<(), String> {
        let mut world = self.format(rng).map_err(|error| format!("format: {error}"))?;
        for _ in 0..rng.between(1, self.options.epochs) {
            // As many early cuts as late ones, so that recovery gets its share.
            let scale = rng.between(1, u64::from(self.options.events.ilog2()) + 1);
            let cut = rng.below(self.options.events.min(1 << scale));
            let looks = (0..rng.below(self.options.looks + 1)).map(|_| rng.below(cut.max(1))).collect();
            let plan = Plan { cut: Some(cut), looks, load: true };
            for left in self.epoch(&mut world, rng, plan)?.1 {
                self.recover(left, rng)?;
            }
        }
        if self.epoch(&mut world, rng, Plan { load: true, ..Plan::default() })?.0 {
            // It could not be stopped for want of good disks; here they are good again.
            self.epoch(&mut world, rng, Plan::default())?;
            return Ok(());
        }
        // What was stopped cleanly must be there again.
        self.epoch(&mut world, rng, Plan::default())?;
        Ok(())
    }
}

/// What ends an epoch early.
enum Wrong {
    /// The subject says that it cannot. With spoilt disks it need not.
    Failed(String),
    /// What never may be.
    Violation(String),
}

/// What an epoch is about.
#[derive(Clone, Copy)]
struct Life<'a> {
    disks: &'a [Disk],
    models: &'a [Rc<RefCell<Model>>],
    kept: &'a Rc<Kept>,
    stage: &'a Cell<Stage>,
    /// Which volumes there are.
    used: &'a RefCell<Vec<bool>>,
}

/// What an epoch can be ended with at any moment.
#[derive(Clone)]
struct Ends {
    disks: Vec<Disk>,
    models: Vec<Rc<RefCell<Model>>>,
    kept: Rc<Kept>,
    kills: bool,
}

impl Ends {
    /// What a power cut at this moment leaves; or what the end of the process alone does.
    fn cut(&self, stage: Stage, rng: &mut Rng) -> World {
        // That a flush failed, and that nobody was told yet, is forgotten with the process.
        let forgets = self.disks.iter().any(|disk| disk.stats().failed_flushes > 0);
        let kill = self.kills && !forgets && rng.chance(1, 2);
        super::load::trace(|| format!("=== cut at {stage:?}, kill {kill}"));
        let ended = |model: &Rc<RefCell<Model>>| {
            let mut model = model.borrow().clone();
            if kill {
                model.kill()
            } else {
                model.cut()
            }
            model
        };
        let models = self.models.iter().map(ended).collect();
        let (disks, kept) = if kill {
            (self.disks.iter().map(Disk::process_ends).collect(), (*self.kept).clone())
        } else {
            let cut = |disk: &Disk| Medium::from(disk.crash(survival(rng)));
            (self.disks.iter().map(cut).collect(), self.kept.after_a_boot(rng))
        };
        World { disks, models, kept, clean: false, in_recovery: stage == Stage::Start }
    }
}

fn durable(disks: &[Disk]) -> Vec<Medium> {
    disks.iter().map(|disk| Medium::from(disk.durable())).collect()
}

/// Runs two futures to their ends.
async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    let (mut done_a, mut done_b) = (None, None);
    std::future::poll_fn(|cx| {
        if done_a.is_none()
            && let std::task::Poll::Ready(value) = a.as_mut().poll(cx)
        {
            done_a = Some(value);
        }
        if done_b.is_none()
            && let std::task::Poll::Ready(value) = b.as_mut().poll(cx)
        {
            done_b = Some(value);
        }
        match (done_a.take(), done_b.take()) {
            (Some(a), Some(b)) => std::task::Poll::Ready((a, b)),
            (a, b) => {
                (done_a, done_b) = (a, b);
                std::task::Poll::Pending
            }
        }
    })
    .await
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
    let subject = S::draw(&mut rng, &options.focus);
    let mut run = Run { subject, options, summary: Summary::default() };
    let result = catch_unwind(AssertUnwindSafe(|| run.whole(&mut rng)));
    let fail = |what| Failure { seed, cuts: run.summary.cuts, what: format!("{what}\n{:?}", run.subject) };
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
#[derive(Clone)]
pub struct Campaign {
    /// How each run is made.
    pub options: Options,
    /// The seed of the first; the others follow.
    pub first_seed: u64,
    /// Goes on until this many power cuts were survived.
    pub cuts: u64,
    /// Ends early after this much time.
    pub time: Duration,
    /// Called by every thread before its runs.
    pub prepare: Arc<dyn Fn() + Send + Sync>,
}

impl Campaign {
    /// Runs of default options for `cuts` power cuts. The environment variable `SIM_SEED` names one run to make
    /// instead, `SIM_FROM` the first seed, `SIM_CUTS` another number of cuts.
    pub fn of(cuts: u64) -> Campaign {
        let cuts = number("SIM_CUTS").unwrap_or(cuts);
        let first_seed = number("SIM_FROM").unwrap_or(1);
        let time = Duration::from_secs(4 * 3600);
        Campaign { options: Options::default(), first_seed, cuts, time, prepare: Arc::new(|| ()) }
    }

    /// The same about something in particular.
    pub fn about(self, focus: Focus) -> Campaign {
        Campaign { options: Options { focus, ..self.options }, ..self }
    }

    /// Makes the runs; what they did together and how many there were, or the first failure found.
    pub fn run<S: Subject>(self) -> Result<(Summary, u64), Failure> {
        if let Some(seed) = number("SIM_SEED") {
            (self.prepare)();
            return run::<S>(seed, self.options).map(|summary| (summary, 1));
        }
        let (next, cuts) = (AtomicU64::new(self.first_seed), AtomicU64::new(0));
        let stop = AtomicBool::new(false);
        let result = Mutex::new((Summary::default(), 0, None::<Failure>));
        let start = Instant::now();
        let worker = || {
            (self.prepare)();
            while !stop.load(Ordering::Relaxed)
                && cuts.load(Ordering::Relaxed) < self.cuts
                && start.elapsed() < self.time
            {
                let outcome = run::<S>(next.fetch_add(1, Ordering::Relaxed), self.options);
                let mut result = result.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                match outcome {
                    Ok(summary) => {
                        let before = cuts.fetch_add(summary.cuts, Ordering::Relaxed);
                        if std::env::var_os("SIM_PROGRESS").is_some()
                            && before / 10_000 != (before + summary.cuts) / 10_000
                        {
                            eprintln!("{} cuts after {} s", before + summary.cuts, start.elapsed().as_secs());
                        }
                        result.0.add(summary);
                        result.1 += 1;
                    }
                    Err(failure) => {
                        stop.store(true, Ordering::Relaxed);
                        // The smallest seed found, so that the report does not depend on who was faster.
                        if result.2.as_ref().is_none_or(|known| failure.seed < known.seed) {
                            let cuts = failure.cuts + cuts.load(Ordering::Relaxed);
                            result.2 = Some(Failure { cuts, ..failure });
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

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
