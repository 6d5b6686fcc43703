//! Several clients of some volumes at once.

use std::cell::RefCell;
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
            match self.rng.below(100) {
                n if n < writes => self.write(place).await?,
                n if n < writes + flushes => flush(place).await?,
                n if n < writes + flushes + discards => self.discard(place).await?,
                _ => read(&place.on, place.sector, place.count).await?,
            }
            if self.rng.chance(1, 4) {
                let pause = 1 << self.rng.below(25);
                self.env.sleep(Duration::from_nanos(pause)).await;
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
        let result = on.volume.write(sector * SECTOR as u64, bytes.freeze(), fua).await;
        on.ended(
            number,
            fua,
            result.map_err(|error| format!("write of {count} sectors at {sector}: {error}")),
        )
    }

    async fn discard(&mut self, Place { on, sector, count }: Place) -> Result<(), String> {
        let (at, len) = (sector * SECTOR as u64, count * SECTOR as u64);
        let (number, fua, result) = if self.rng.chance(1, 2) {
            let number = on.model.borrow_mut().begin_discard(sector, count);
            (number, false, on.volume.discard(at, len).await)
        } else {
            let fua = self.rng.chance(self.load.fua, 100);
            let number = on.model.borrow_mut().begin_zeroes(sector, count);
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
        match result {
            Ok(()) => self.model.borrow_mut().end_write(number, fua),
            Err(_) if self.may_fail => self.model.borrow_mut().fail_write(number),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

async fn flush(Place { on, .. }: Place) -> Result<(), String> {
    let start = on.model.borrow_mut().tick();
    match on.volume.flush().await {
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
pub(super) async fn read_all(volumes: &[Judged]) -> Result<(), String> {
    for (index, on) in volumes.iter().enumerate() {
        let sectors = on.model.borrow().sectors();
        let mut sector = 0;
        while sector < sectors {
            let count = CHUNK.min(sectors - sector);
            read(on, sector, count).await.map_err(|error| format!("volume {index}: {error}"))?;
            sector += count;
        }
    }
    Ok(())
}
