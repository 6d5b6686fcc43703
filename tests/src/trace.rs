//! Deterministic rows of reads and writes, played one at a time, to compare what two caches make of them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use bcache_engine::dev::Buf;
use bcache_engine::env::Rng;
use nix::fcntl::OFlag;

use crate::stamp::fill;

const SECTOR: u64 = 512;
/// Sectors of a MiB.
const MIB: u64 = 2048;
/// No request overlaps one of this many before it: what a miss brings reaches the cache a little after the answer.
const APART: usize = 16;
/// Time between a request and the next: with none, the kernel's allocator falls behind, and what finds no free bucket is
/// not cached.
const PAUSE: Duration = Duration::from_millis(1);

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Whether it writes.
    pub write: bool,
    /// Its first sector.
    pub sector: u64,
    /// Its length in sectors.
    pub sectors: u64,
}

/// What a trace is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Requests here and there, and streams, over 64 MiB: what bypasses the cache?
    Streams,
    /// Reads of 160 MiB, half of them in a tenth of it: what stays in a cache that is too small?
    Evictions,
}

impl Kind {
    /// By name.
    pub fn from_name(name: &str) -> Option<Kind> {
        match name {
            "streams" => Some(Kind::Streams),
            "evictions" => Some(Kind::Evictions),
            _ => None,
        }
    }

    /// The trace.
    pub fn requests(self) -> Vec<Request> {
        let mut trace = Trace { requests: Vec::new(), rng: Rng::new(1) };
        match self {
            Kind::Streams => {
                trace.scattered(400, 0..16 * MIB, 0);
                trace.scattered(300, 8 * MIB..24 * MIB, 100);
                trace.scattered(400, 0..24 * MIB, 0);
                for write in [false, false, true, false] {
                    trace.stream(write, 32 * MIB, 8 * MIB);
                }
                trace.stream(true, 48 * MIB, 6 * MIB);
                trace.stream(false, 48 * MIB, 6 * MIB);
                trace.scattered(600, 0..64 * MIB, 40);
            }
            Kind::Evictions => {
                for _ in 0..14 {
                    trace.scattered(100, 0..16 * MIB, 0);
                    trace.scattered(100, 0..160 * MIB, 0);
                }
            }
        }
        trace.requests
    }
}

struct Trace {
    requests: Vec<Request>,
    rng: Rng,
}

impl Trace {
    /// Requests of 4 to 32 KiB within `range`, of which `writes` per cent write.
    fn scattered(&mut self, count: usize, range: std::ops::Range<u64>, writes: u64) {
        let end = self.requests.len() + count;
        while self.requests.len() < end {
            let sectors = 8 * (1 + self.rng.below(8));
            let sector = range.start + 8 * self.rng.below((range.end - range.start - sectors) / 8);
            let write = self.rng.chance(writes, 100);
            let overlaps = |earlier: &Request| {
                earlier.sector < sector + sectors && sector < earlier.sector + earlier.sectors
            };
            if !self.requests.iter().rev().take(APART).any(overlaps) {
                self.requests.push(Request { write, sector, sectors });
            }
        }
    }

    /// One request of 64 KiB after the other.
    fn stream(&mut self, write: bool, start: u64, sectors: u64) {
        let places = (start..start + sectors).step_by(128);
        self.requests.extend(places.map(|sector| Request { write, sector, sectors: 128 }));
    }
}

/// Plays a trace. What it writes is stamped with the request's number.
pub fn play(device: &Path, kind: Kind) -> io::Result<()> {
    let target: File =
        OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_DIRECT.bits()).open(device)?;
    let mut memory = Buf::zeroed(1 << 20);
    for (number, request) in kind.requests().iter().enumerate() {
        std::thread::sleep(PAUSE);
        let buffer = &mut memory[..(request.sectors * SECTOR) as usize];
        if !request.write {
            target.read_exact_at(buffer, request.sector * SECTOR)?;
            continue;
        }
        fill(buffer, request.sector, number as u64 + 1);
        target.write_all_at(buffer, request.sector * SECTOR)?;
    }
    target.sync_data()
}
