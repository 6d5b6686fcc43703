//! Deterministic writes that can be judged afterwards, also when the machine died in the middle.
//!
//! A load is a row of writes of equal size, numbered from 0, whose places follow from a seed. Each 512-byte sector
//! is filled with the pair {its own sector number, the write's number plus one}, little-endian, 32 times. So every
//! sector read back says which write it comes from, and a checker that knows the load and how many writes were
//! acknowledged as durable can tell a lost write, a torn one, and one that went to the wrong place.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bcache_engine::dev::Buf;
use nix::fcntl::OFlag;
use serde::Deserialize;

const SECTOR: usize = 512;

/// In which order a load visits its slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Pseudo-random, a slot may come again.
    Rand,
    /// One after the other, from the start again at the end.
    Seq,
}

/// A load of stamped writes.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Sectors of 512 bytes in each write.
    pub block_sectors: u64,
    /// Sectors of the device that are written to, from sector 0 on.
    pub range_sectors: u64,
    /// Number of writes.
    pub count: u64,
    /// Seed of the places.
    pub seed: u64,
    /// Order of the places.
    pub mode: Mode,
}

impl Load {
    /// The first sector of each write, in the order of writing.
    fn places(&self) -> impl Iterator<Item = u64> + use<> {
        let load = *self;
        let slots = (load.range_sectors / load.block_sectors.max(1)).max(1);
        let mut state = load.seed.wrapping_mul(2_654_435_761).wrapping_add(88_172_645_463_325_252);
        (0..load.count).map(move |index| {
            // xorshift64; a sequential load draws as well so that a seed means the same state in both modes
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let slot = match load.mode {
                Mode::Rand => state % slots,
                Mode::Seq => index % slots,
            };
            slot * load.block_sectors
        })
    }

    /// Writes the load to a device with direct I/O, flushing after every `sync_every` writes (0: only at the end).
    /// After each flush `durable` is told the number of writes that it made durable.
    pub fn write(
        &self,
        device: &Path,
        sync_every: u64,
        mut durable: impl FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let target = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_DIRECT.bits())
            .open(device)
            .or_else(|_| OpenOptions::new().read(true).write(true).open(device))?;
        let len = self.block_sectors as usize * SECTOR;
        let mut block = Buf::zeroed(len);
        for (index, at) in self.places().enumerate() {
            let number = index as u64 + 1;
            fill(&mut block, at, number);
            target.write_all_at(&block, at * SECTOR as u64)?;
            if (sync_every != 0 && number.is_multiple_of(sync_every)) || number == self.count {
                target.sync_data()?;
                durable(number)?;
            }
        }
        Ok(())
    }

    /// Judges what a reader sees after the load, `acked` writes of which were acknowledged as durable: every sector
    /// must be whole and come from the last acknowledged write to it or a later one.
    pub fn check(&self, mut content: impl Read, acked: u64) -> io::Result<Report> {
        let mut oldest = vec![0u64; self.range_sectors as usize];
        let mut starts = vec![0u64];
        for (index, at) in self.places().enumerate() {
            starts.push(at);
            if (index as u64) < acked {
                let covered = at as usize..(at + self.block_sectors) as usize;
                oldest[covered].fill(index as u64 + 1);
            }
        }
        let mut report = Report { sectors: self.range_sectors, ..Report::default() };
        let mut bytes = [0; SECTOR];
        for (sector, &oldest) in oldest.iter().enumerate() {
            content.read_exact(&mut bytes)?;
            let sector = sector as u64;
            match self.judge(&bytes, sector, oldest, &starts) {
                Ok(number) => report.newer += u64::from(number > oldest),
                Err(found) => {
                    report.bad += 1;
                    if report.examples.len() < 10 {
                        report.examples.push(Bad { sector, oldest, ..found });
                    }
                }
            }
        }
        Ok(report)
    }

    /// The number of the write that a sector comes from, if that write may be seen there.
    fn judge(&self, bytes: &[u8; SECTOR], sector: u64, oldest: u64, starts: &[u64]) -> Result<u64, Bad> {
        let word =
            |index: usize| u64::from_le_bytes(bytes[index * 8..index * 8 + 8].try_into().unwrap_or_default());
        let (place, number) = (word(0), word(1));
        let torn = (1..32).any(|pair| word(pair * 2) != place || word(pair * 2 + 1) != number);
        let right_place = match starts.get(number as usize) {
            None => false, // no such write
            Some(_) if number == 0 => place == 0,
            Some(&start) => place == sector && (start..start + self.block_sectors).contains(&sector),
        };
        if !torn && right_place && number >= oldest {
            return Ok(number);
        }
        Err(Bad { place, number, torn, sector, oldest })
    }
}

/// What a check found.
#[derive(Debug, Default)]
pub struct Report {
    /// Sectors looked at.
    pub sectors: u64,
    /// Sectors that no legal history explains.
    pub bad: u64,
    /// Sectors that show a write which was not acknowledged yet: legal.
    pub newer: u64,
    /// The first few bad sectors.
    pub examples: Vec<Bad>,
}

/// A sector that no legal history explains.
#[derive(Debug)]
pub struct Bad {
    /// Its number.
    pub sector: u64,
    /// The sector number stamped into it.
    pub place: u64,
    /// The write stamped into it, plus one.
    pub number: u64,
    /// The stamp is not the same all through it.
    pub torn: bool,
    /// The oldest write, plus one, that may be seen here.
    pub oldest: u64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for bad in &self.examples {
            let Bad { sector, place, number, torn, oldest } = bad;
            writeln!(f, "sector {sector}: stamp {{{place},{number}}} torn {torn}, want seq >= {oldest}")?;
        }
        write!(f, "sectors {} bad {} newer-than-acked {}", self.sectors, self.bad, self.newer)
    }
}

/// Stamps the sectors of a block, the first of which is `place`.
pub(crate) fn fill(block: &mut [u8], place: u64, number: u64) {
    for (sector, place) in block.chunks_exact_mut(SECTOR).zip(place..) {
        for pair in sector.chunks_exact_mut(16) {
            pair[..8].copy_from_slice(&place.to_le_bytes());
            pair[8..].copy_from_slice(&number.to_le_bytes());
        }
    }
}

/// Notes in a file how many writes are durable, durably.
pub fn note(ack: &File, durable: u64) -> io::Result<()> {
    ack.write_all_at(format!("{durable:020}\n").as_bytes(), 0)?;
    ack.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    const LOAD: Load = Load { block_sectors: 8, range_sectors: 800, count: 300, seed: 7, mode: Mode::Rand };

    fn check(path: &Path, acked: u64) -> Report {
        LOAD.check(BufReader::new(File::open(path).unwrap()), acked).unwrap()
    }

    #[test]
    fn what_was_written_passes_and_what_was_lost_does_not() {
        let dir = crate::paths::scratch().unwrap();
        let (device, ack) = (dir.path().join("device"), dir.path().join("ack"));
        crate::sparse::create(&device, 800 * 512).unwrap();
        let file = File::create(&ack).unwrap();
        LOAD.write(&device, 64, |durable| note(&file, durable)).unwrap();
        assert_eq!(std::fs::read_to_string(&ack).unwrap().trim().parse::<u64>().unwrap(), 300);
        assert_eq!(check(&device, 300).bad, 0);
        assert!(check(&device, 100).newer > 0);

        // Lose the last write, tear one of its sectors, then put it into the wrong place.
        let last = LOAD.places().last().unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&device).unwrap();
        let mut whole = [0; 512];
        file.read_exact_at(&mut whole, last * 512).unwrap();
        file.write_all_at(&[0; 512], last * 512).unwrap();
        assert_eq!(check(&device, 300).bad, 1);
        let mut torn = whole;
        torn[256..].fill(0);
        file.write_all_at(&torn, last * 512).unwrap();
        assert!(check(&device, 300).examples[0].torn);
        file.write_all_at(&whole, (last + 1) * 512).unwrap();
        assert_eq!(check(&device, 300).bad, 2);
    }

    #[test]
    fn the_generator_is_the_recorded_one() {
        // The first places of the crashed golden set's load, as its writer drew them.
        let load = Load { block_sectors: 8, range_sectors: 200_000, count: 3, seed: 4, mode: Mode::Rand };
        assert_eq!(load.places().collect::<Vec<_>>(), PLACES);
    }

    const PLACES: [u64; 3] = [148560, 24264, 20440];
}
