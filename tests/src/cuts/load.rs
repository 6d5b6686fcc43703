//! Several clients of one volume at once.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bcache_engine::dev::Buf;
use bcache_engine::env::{Env, Rng};
use bcache_engine::volume::Volume;

use super::model::{Model, SECTOR};

/// Sectors read at once when everything is read back.
const CHUNK: u64 = 128;

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
            align,
        }
    }

    /// Runs all clients to their end. The error is a violation or a failed request.
    pub async fn run(
        self,
        env: &Env,
        volume: &Rc<dyn Volume>,
        model: &Rc<RefCell<Model>>,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let mut tasks = Vec::new();
        // Clients meet in a few places, or the chance that anything overlaps would be small.
        let sectors = model.borrow().sectors();
        let span = sectors.min([64, 512, sectors][rng.below(3) as usize]);
        let base = rng.below(sectors - span + 1);
        for _ in 0..self.clients {
            let client = Client {
                env: env.clone(),
                volume: Rc::clone(volume),
                model: Rc::clone(model),
                rng: rng.fork(),
                load: self,
                hot: (base, span),
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
    volume: Rc<dyn Volume>,
    model: Rc<RefCell<Model>>,
    rng: Rng,
    load: Load,
    /// First sector and number of sectors of the place where clients meet.
    hot: (u64, u64),
}

impl Client {
    async fn run(mut self) -> Result<(), String> {
        for _ in 0..self.load.operations {
            let (sector, count) = self.place();
            let Load { writes, flushes, discards, .. } = self.load;
            match self.rng.below(100) {
                n if n < writes => self.write(sector, count).await?,
                n if n < writes + flushes => self.flush().await?,
                n if n < writes + flushes + discards => self.discard(sector, count).await?,
                _ => read(&self.volume, &self.model, sector, count).await?,
            }
            if self.rng.chance(1, 4) {
                let pause = 1 << self.rng.below(25);
                self.env.sleep(Duration::from_nanos(pause)).await;
            }
        }
        Ok(())
    }

    fn place(&mut self) -> (u64, u64) {
        let align = self.load.align;
        let sectors = self.model.borrow().sectors();
        let (base, span) = if self.rng.chance(4, 5) { self.hot } else { (0, sectors) };
        let longest = if self.rng.chance(3, 4) { 8 } else { self.load.max_sectors };
        let count = (self.rng.between(1, longest.min(sectors)).next_multiple_of(align)).min(sectors);
        let sector = (base + self.rng.below(span)).min(sectors - count);
        (sector - sector % align, count)
    }

    async fn write(&mut self, sector: u64, count: u64) -> Result<(), String> {
        let fua = self.rng.chance(self.load.fua, 100);
        let (number, bytes) = self.model.borrow_mut().begin_write(sector, count);
        let result = self.volume.write(sector * SECTOR as u64, Buf::copied(&bytes).freeze(), fua).await;
        result.map_err(|error| format!("write of {count} sectors at {sector}: {error}"))?;
        self.model.borrow_mut().end_write(number, fua);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), String> {
        let start = self.model.borrow_mut().tick();
        self.volume.flush().await.map_err(|error| format!("flush: {error}"))?;
        self.model.borrow_mut().end_flush(start);
        Ok(())
    }

    async fn discard(&mut self, sector: u64, count: u64) -> Result<(), String> {
        let (at, len) = (sector * SECTOR as u64, count * SECTOR as u64);
        let (number, fua, result) = if self.rng.chance(1, 2) {
            let number = self.model.borrow_mut().begin_discard(sector, count);
            (number, false, self.volume.discard(at, len).await)
        } else {
            let fua = self.rng.chance(self.load.fua, 100);
            let number = self.model.borrow_mut().begin_zeroes(sector, count);
            (number, fua, self.volume.write_zeroes(at, len, fua, self.rng.chance(1, 2)).await)
        };
        result.map_err(|error| format!("discard of {count} sectors at {sector}: {error}"))?;
        self.model.borrow_mut().end_write(number, fua);
        Ok(())
    }
}

/// Reads and judges.
async fn read(
    volume: &Rc<dyn Volume>,
    model: &Rc<RefCell<Model>>,
    sector: u64,
    count: u64,
) -> Result<(), String> {
    let start = model.borrow_mut().tick();
    let pieces = volume.read(sector * SECTOR as u64, count as u32 * SECTOR as u32).await;
    let pieces = pieces.map_err(|error| format!("read of {count} sectors at {sector}: {error}"))?;
    let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
    if bytes.len() as u64 != count * SECTOR as u64 {
        return Err(format!("read of {count} sectors at {sector} gave {} bytes", bytes.len()));
    }
    model.borrow_mut().judge(sector, &bytes, start).map_err(|violation| violation.to_string())
}

/// Reads and judges the whole volume.
pub(super) async fn read_all(volume: &Rc<dyn Volume>, model: &Rc<RefCell<Model>>) -> Result<(), String> {
    let sectors = model.borrow().sectors();
    let mut sector = 0;
    while sector < sectors {
        let count = CHUNK.min(sectors - sector);
        read(volume, model, sector, count).await?;
        sector += count;
    }
    Ok(())
}
