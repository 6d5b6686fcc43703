//! Several clients of some volumes at once.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bcache_engine::env::{Env, Rng};
use bcache_engine::volume::Volume;

use super::model::{Model, SECTOR};

/// Sectors read at once when everything is read back.
const CHUNK: u64 = 128;

/// A volume, and what it may answer.
#[derive(Clone)]
pub struct Judged {
    /// The volume.
    pub volume: Rc<dyn Volume>,
    /// Everything it was asked.
    pub model: Rc<RefCell<Model>>,
    /// Whether requests may fail: something is wrong with the disks. What is answered has to be right all the same.
    pub may_fail: bool,
}

/// Says what happens, where `SIM_TRACE` is set.
pub(super) fn trace(what: impl FnOnce() -> String) {
    thread_local!(static ON: bool = std::env::var_os("SIM_TRACE").is_some());
    if ON.with(|on| *on) {
        eprintln!("{}", what());
    }
}

/// How a write begins to fail for which the cache has no room.
pub(super) const NO_SPACE: &str = "no space left in the cache";
/// Simulated time within which whatever was begun has to end, however slow the disks are.
pub(super) const PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// What `future` gives, unless it takes longer than anything may.
pub(super) async fn ends<T>(env: &Env, what: &str, future: impl Future<Output = T>) -> Result<T, String> {
    let ended = env.timeout(PATIENCE, future).await;
    ended.map_err(|_| format!("{what} does not end within {PATIENCE:?}: a deadlock"))
}

/// What clients do, and how much of it.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Clients at once.
    pub clients: u32,
    /// Operations of each.
    pub operations: u32,
    /// Longest request in sectors.
    pub max_sectors: u64,
    /// Of 100 operations, how many write.
    pub writes: u64,
    /// Of 100 operations, how many flush.
    pub flushes: u64,
    /// Of 100 operations, how many discard or zero.
    pub discards: u64,
    /// Of 100 writes, how many have FUA.
    pub fua: u64,
    /// Of 100 operations, how many fall into a small place where clients meet.
    pub hot: u64,
    /// Requests begin at multiples of this many sectors, and are multiples of it.
    pub align: u64,
    /// Some requests are about the whole volume.
    pub whole: bool,
}

impl Load {
    /// A load like those that find most: drawn from `rng`.
    pub fn draw(rng: &mut Rng, align: u64) -> Load {
        Load {
            clients: rng.between(1, 6) as u32,
            operations: rng.between(5, 60) as u32,
            max_sectors: [8, 32, 128, 256][rng.below(4) as usize],
            writes: rng.between(20, 80),
            flushes: [0, 3, 10, 20][rng.below(4) as usize],
            discards: [0, 0, 3, 10][rng.below(4) as usize],
            fua: [0, 5, 50][rng.below(3) as usize],
            hot: [20, 80, 95][rng.below(3) as usize],
            align,
            whole: false,
        }
    }

    /// Fills volumes with many small extents.
    pub async fn fill(align: u64, env: &Env, volumes: &[Judged], rng: &mut Rng) -> Result<(), String> {
        let load = Load { align, ..Load::draw_wild(rng, align) };
        let hot = volumes.iter().map(|_| (0, 1)).collect();
        let client = Client { env: env.clone(), volumes: volumes.to_vec(), rng: rng.fork(), load, hot };
        client.fill(2).await
    }

    /// More of everything.
    pub fn draw_wild(rng: &mut Rng, align: u64) -> Load {
        Load {
            clients: rng.between(1, 10) as u32,
            operations: rng.between(10, 120) as u32,
            max_sectors: [8, 32, 128, 512][rng.below(4) as usize],
            writes: rng.between(20, 90),
            flushes: [0, 3, 10][rng.below(3) as usize],
            discards: [0, 3, 10, 30][rng.below(4) as usize],
            fua: [0, 5, 50][rng.below(3) as usize],
            hot: [5, 20, 80, 95][rng.below(4) as usize],
            align,
            whole: rng.chance(1, 4),
        }
    }

    /// Runs all clients to their end. The error is a violation or a failed request.
    pub async fn run(self, env: &Env, volumes: &[Judged], rng: &mut Rng) -> Result<(), String> {
        let mut tasks = Vec::new();
        // Clients meet in a few places, or the chance that anything overlaps would be small.
        let mut hot = |volume: &Judged| {
            let sectors = volume.model.borrow().sectors();
            let span = sectors.min([64, 512, sectors][rng.below(3) as usize]);
            (rng.below(sectors - span + 1), span)
        };
        let hot: Vec<(u64, u64)> = volumes.iter().map(&mut hot).collect();
        for _ in 0..self.clients {
            let client = Client {
                env: env.clone(),
                volumes: volumes.to_vec(),
                rng: rng.fork(),
                load: self,
                hot: hot.clone(),
            };
            tasks.push(env.spawn(client.run()));
        }
        for task in tasks {
            task.await?;
        }
        Ok(())
    }
}

struct Client {
    env: Env,
    volumes: Vec<Judged>,
    rng: Rng,
    load: Load,
    /// First sector and number of sectors of the place where clients meet, for each volume.
    hot: Vec<(u64, u64)>,
}

/// Sectors of a volume.
struct Place {
    on: Judged,
    sector: u64,
    count: u64,
}

impl Client {
    async fn run(mut self) -> Result<(), String> {
        for _ in 0..self.load.operations {
            let place = self.place();
            let Load { writes, flushes, discards, .. } = self.load;
            let env = self.env.clone();
            match self.rng.below(100) {
                n if n < writes => ends(&env, "a write", self.write(place)).await??,
                n if n < writes + flushes => ends(&env, "a flush", flush(place)).await??,
                n if n < writes + flushes + discards => {
                    ends(&env, "a discard", self.discard(place)).await??
                }
                _ => ends(&env, "a read", read(&place.on, place.sector, place.count)).await??,
            }
            if self.rng.chance(1, 4) {
                let pause = 1 << self.rng.below(25);
                self.env.sleep(Duration::from_nanos(pause)).await;
            }
        }
        Ok(())
    }

    /// One sector in every `step`, so that there are many extents.
    async fn fill(self, step: u64) -> Result<(), String> {
        for on in &self.volumes {
            let sectors = on.model.borrow().sectors();
            let mut sector = 0;
            while sector + self.load.align <= sectors {
                let (number, bytes) = on.model.borrow_mut().begin_write(sector, self.load.align);
                let result = on.volume.write(sector * SECTOR as u64, bytes.freeze(), false).await;
                on.ended(number, false, result.map_err(|error| format!("write at {sector}: {error}")))?;
                sector += step * self.load.align;
            }
        }
        Ok(())
    }

    fn place(&mut self) -> Place {
        let which = self.rng.below(self.volumes.len() as u64) as usize;
        let on = self.volumes[which].clone();
        let align = self.load.align;
        let sectors = on.model.borrow().sectors();
        let (base, span) = if self.rng.chance(self.load.hot, 100) { self.hot[which] } else { (0, sectors) };
        let longest = if self.rng.chance(3, 4) { 8 } else { self.load.max_sectors };
        let count = (self.rng.between(1, longest.min(sectors)).next_multiple_of(align)).min(sectors);
        let sector = (base + self.rng.below(span)).min(sectors - count);
        Place { on, sector: sector - sector % align, count }
    }

    async fn write(&mut self, Place { on, sector, count }: Place) -> Result<(), String> {
        let fua = self.rng.chance(self.load.fua, 100);
        let (number, bytes) = on.model.borrow_mut().begin_write(sector, count);
        trace(|| format!("{} write {number} of {sector}+{count} fua {fua}", on.volume.id().name));
        let result = on.volume.write(sector * SECTOR as u64, bytes.freeze(), fua).await;
        trace(|| {
            format!(
                "{} write {number} ended {:?}",
                on.volume.id().name,
                result.as_ref().err().map(ToString::to_string)
            )
        });
        on.ended(
            number,
            fua,
            result.map_err(|error| format!("write of {count} sectors at {sector}: {error}")),
        )
    }

    async fn discard(&mut self, Place { on, sector, count }: Place) -> Result<(), String> {
        // All of it, now and then.
        let all = on.model.borrow().sectors();
        let whole = self.load.whole && self.rng.chance(1, 8);
        let (sector, count) = if whole { (0, all) } else { (sector, count) };
        let (at, len) = (sector * SECTOR as u64, count * SECTOR as u64);
        let (number, fua, result) = if self.rng.chance(1, 2) {
            let number = on.model.borrow_mut().begin_discard(sector, count);
            trace(|| format!("{} discard {number} of {sector}+{count}", on.volume.id().name));
            (number, false, on.volume.discard(at, len).await)
        } else {
            let fua = self.rng.chance(self.load.fua, 100);
            let number = on.model.borrow_mut().begin_zeroes(sector, count);
            trace(|| format!("{} zeroes {number} of {sector}+{count} fua {fua}", on.volume.id().name));
            (number, fua, on.volume.write_zeroes(at, len, fua, self.rng.chance(1, 2)).await)
        };
        on.ended(
            number,
            fua,
            result.map_err(|error| format!("discard of {count} sectors at {sector}: {error}")),
        )
    }
}

impl Judged {
    fn ended(&self, number: u32, fua: bool, result: Result<(), String>) -> Result<(), String> {
        trace(|| format!("  {number}: {result:?}"));
        match result {
            Ok(()) => self.model.borrow_mut().end_write(number, fua),
            Err(_) if self.may_fail => self.model.borrow_mut().fail_write(number),
            // A volume may be larger than its cache.
            Err(error) if error.contains(NO_SPACE) => self.model.borrow_mut().fail_write(number),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

async fn flush(Place { on, .. }: Place) -> Result<(), String> {
    let start = on.model.borrow_mut().tick();
    trace(|| format!("{} flush begins at {start}", on.volume.id().name));
    let flushed = on.volume.flush().await;
    trace(|| {
        format!(
            "{} flush of {start} ended {:?}",
            on.volume.id().name,
            flushed.as_ref().err().map(ToString::to_string)
        )
    });
    match flushed {
        Ok(()) => on.model.borrow_mut().end_flush(start),
        Err(_) if on.may_fail => on.model.borrow_mut().fail_flush(),
        Err(error) => return Err(format!("flush: {error}")),
    }
    Ok(())
}

/// Reads and judges.
async fn read(on: &Judged, sector: u64, count: u64) -> Result<(), String> {
    let start = on.model.borrow_mut().tick();
    let pieces = match on.volume.read(sector * SECTOR as u64, count as u32 * SECTOR as u32).await {
        Err(_) if on.may_fail => return Ok(()),
        result => result.map_err(|error| format!("read of {count} sectors at {sector}: {error}"))?,
    };
    let got: usize = pieces.iter().map(|piece| piece.len()).sum();
    if got as u64 != count * SECTOR as u64 {
        return Err(format!("read of {count} sectors at {sector} gave {got} bytes"));
    }
    let mut at = sector;
    for piece in pieces {
        on.model.borrow_mut().judge(at, &piece, start).map_err(|violation| violation.to_string())?;
        at += (piece.len() / SECTOR) as u64;
    }
    Ok(())
}

/// Reads and judges all of some volumes.
pub(super) async fn read_all(env: &Env, volumes: &[Judged]) -> Result<(), String> {
    for (index, on) in volumes.iter().enumerate() {
        let sectors = on.model.borrow().sectors();
        let mut sector = 0;
        while sector < sectors {
            let count = CHUNK.min(sectors - sector);
            trace(|| format!("volume {index}: read back {sector}"));
            let read = ends(env, "a read", read(on, sector, count)).await?;
            read.map_err(|error| format!("volume {index}: {error}"))?;
            sector += count;
        }
    }
    Ok(())
}
