//! A set with many extents in memory: lookups a second, memory, and what garbage collection costs requests.
//!
//! `cargo run --release -p bcache-engine --example large_set [EXTENTS [--lookups]]`. All of it is on one core, without a
//! front end; `--lookups` leaves out what takes long.

use bcache_format::{Sectors, Span};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bcache_engine::env::{Env, Rng, Runtime};
use bcache_engine::volume::Volume;

#[path = "../benches/fixture/mod.rs"]
mod fixture;

use fixture::{EXTENT, Fixture};

/// Requests that are under way at once while latency is measured.
const CLIENTS: u64 = 8;
/// Passes of GC during which it is measured, one after the other.
const PASSES: u32 = 20;
/// How long latency is measured without GC.
const QUIET: Duration = Duration::from_secs(5);

fn main() {
    let extents = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(10_000_000);
    let only_lookups = std::env::args().nth(2).is_some_and(|text| text == "--lookups");
    let runtime = Runtime::new().expect("a runtime");
    let env = runtime.env();
    runtime.block_on(async {
        let fixture = Rc::new(Fixture::new(&env, extents).await);
        let begun = Instant::now();
        fixture.fill().await;
        rate("writes", extents, begun);
        let tree = &fixture.set.tree;
        println!("{} extents in {} nodes", tree.extents(), tree.len());
        tree.recount();
        println!("{:.1} bytes of memory an extent", tree.bytes() as f64 / tree.extents() as f64);
        lookups(&fixture);
        if !only_lookups {
            reads(&fixture).await;
            latencies(&env, &fixture).await;
        }
        fixture.set.stop().await.expect("it stops");
    });
}

fn rate(what: &str, count: u64, begun: Instant) {
    println!("{:.0} {what} a second", count as f64 / begun.elapsed().as_secs_f64());
}

fn lookups(fixture: &Fixture) {
    const COUNT: u64 = 5_000_000;
    let mut rng = Rng::new(1);
    let inode = fixture.device.inode.get().expect("it is attached");
    let first = fixture.device.first_sector();
    let (mut pieces, mut hits) = (Vec::new(), 0);
    let begun = Instant::now();
    for _ in 0..COUNT {
        let sector = first + Sectors::from_bytes(rng.below(fixture.extents) * EXTENT);
        pieces.clear();
        fixture
            .set
            .pieces_resident(Span::new(inode, sector, sector + Sectors::from_bytes(EXTENT)), &mut pieces);
        hits += pieces.len() as u64;
    }
    rate("lookups", COUNT, begun);
    assert_eq!(hits, COUNT, "each extent is there");
}

async fn reads(fixture: &Fixture) {
    const COUNT: u64 = 2_000_000;
    let mut rng = Rng::new(2);
    let begun = Instant::now();
    for _ in 0..COUNT {
        let at = rng.below(fixture.extents) * EXTENT;
        fixture.volume.read(at, EXTENT as u32).await.expect("a hit");
    }
    rate("reads of 4 KiB that hit", COUNT, begun);
}

/// Latency of requests with nothing else going on, and while GC walks the tree.
async fn latencies(env: &Env, fixture: &Rc<Fixture>) {
    let quiet = Load::begin(env, fixture, false);
    env.sleep(QUIET).await;
    quiet.end(env).await.print("without GC");
    let busy = Load::begin(env, fixture, true);
    let begun = Instant::now();
    for _ in 0..PASSES {
        fixture.set.collect_garbage().await;
    }
    let took = begun.elapsed() / PASSES;
    busy.end(env).await.print("during GC");
    println!("a pass of GC took {:.2} s", took.as_secs_f64());
}

/// Clients that each have one request under way, three reads for each write, in the queue behind everything else.
struct Load {
    stop: Rc<Cell<bool>>,
    running: Rc<Cell<u64>>,
    histogram: Rc<RefCell<Histogram>>,
}

impl Load {
    /// Counts requests that begin while GC runs, or while it does not.
    fn begin(env: &Env, fixture: &Rc<Fixture>, in_gc: bool) -> Load {
        let load =
            Load { stop: Rc::default(), running: Rc::new(Cell::new(CLIENTS)), histogram: Rc::default() };
        for seed in 0..CLIENTS {
            let (stop, running) = (Rc::clone(&load.stop), Rc::clone(&load.running));
            let (histogram, fixture, task) = (Rc::clone(&load.histogram), Rc::clone(fixture), env.clone());
            env.spawn(async move {
                let mut rng = Rng::new(100 + seed);
                while !stop.get() {
                    let begun = task.now();
                    let counts = fixture.set.collects_garbage() == in_gc;
                    task.yield_now().await;
                    let i = rng.below(fixture.extents);
                    if rng.below(4) == 0 {
                        fixture.write(i).await;
                    } else {
                        fixture.volume.read(i * EXTENT, EXTENT as u32).await.expect("a hit");
                    }
                    if counts {
                        histogram.borrow_mut().count(task.now() - begun);
                    }
                }
                running.set(running.get() - 1);
            })
            .detach();
        }
        load
    }

    async fn end(self, env: &Env) -> Histogram {
        self.stop.set(true);
        while self.running.get() > 0 {
            env.yield_now().await;
        }
        self.histogram.take()
    }
}

/// Nanoseconds by their power of two, each in eight parts.
#[derive(Default)]
struct Histogram {
    counts: Vec<u64>,
    worst: u64,
}

impl Histogram {
    fn count(&mut self, nanos: u64) {
        let nanos = nanos.max(8);
        let power = nanos.ilog2();
        let slot = (power * 8) as usize + ((nanos >> (power - 3)) & 7) as usize;
        if self.counts.len() <= slot {
            self.counts.resize(slot + 1, 0);
        }
        self.counts[slot] += 1;
        self.worst = self.worst.max(nanos);
    }

    fn quantile(&self, part: f64) -> f64 {
        let mut left = (self.counts.iter().sum::<u64>() as f64 * part) as u64;
        for (slot, count) in self.counts.iter().enumerate() {
            if *count > left {
                return ((8 + slot % 8 + 1) as u64 * (1 << (slot / 8)) / 8) as f64 / 1000.0;
            }
            left -= count;
        }
        self.worst as f64 / 1000.0
    }

    fn print(&self, what: &str) {
        println!(
            "{what}: {} requests, latency in microseconds: p50 {:.0}, p99 {:.0}, p99.9 {:.0}, worst {:.0}",
            self.counts.iter().sum::<u64>(),
            self.quantile(0.5),
            self.quantile(0.99),
            self.quantile(0.999),
            self.worst as f64 / 1000.0
        );
    }
}
