//! Clients that read and write until the server is gone.

use std::io;
use std::time::Duration;

use bcache_engine::env::Rng;
use bcache_tests::crash::Model;
use bcache_tests::nbd::{Client, Served};

use super::{End, Outcome, SECTOR, Shared, World, said, with};

/// Clients of each export at once.
const CLIENTS: u64 = 2;
/// Sectors read at once when all is read.
const CHUNK: u64 = 2048;

/// What became of a request.
enum Answer<T = ()> {
    Done(T),
    /// The server is gone, or about to go.
    Gone,
}

/// A server that goes closes its connections or says that it is stopping; any other error is one too many.
fn answer<T>(what: &str, result: io::Result<T>) -> Outcome<Answer<T>> {
    const ESHUTDOWN: i32 = 108;
    match result {
        Ok(value) => Ok(Answer::Done(value)),
        Err(error) => match error.raw_os_error() {
            None | Some(ESHUTDOWN) => Ok(Answer::Gone),
            Some(_) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Ok(Answer::Gone)
            }
            Some(_) => Err(format!("{what}: {error}")),
        },
    }
}

fn read(client: &mut Client, model: &Shared, sector: u64, count: u64) -> Outcome<Answer> {
    let start = with(model, Model::tick);
    let bytes = client.read(sector * SECTOR, (count * SECTOR) as u32);
    let Answer::Done(bytes) = answer("a read", bytes)? else { return Ok(Answer::Gone) };
    said("a read", with(model, |model| model.judge(sector, &bytes, start)))?;
    Ok(Answer::Done(()))
}

/// Reads and judges all of all exports.
pub(super) fn read_all(world: &World, served: &Served) -> Outcome {
    for ((of, name), model) in world.names().iter().zip(&world.models) {
        let mut client = said(of, served.client(name))?;
        let sectors = with(model, |model| model.sectors());
        for sector in (0..sectors).step_by(CHUNK as usize) {
            let read = read(&mut client, model, sector, CHUNK.min(sectors - sector));
            if let Answer::Gone = read.map_err(|what| format!("{of}, right after the start: {what}"))? {
                return Err("the server went away".to_owned());
            }
        }
    }
    Ok(())
}

/// One connection to one export.
struct One<'a> {
    client: Client,
    model: &'a Shared,
    sectors: u64,
    block: u64,
}

impl One<'_> {
    fn step(&mut self, rng: &mut Rng) -> Outcome<Answer> {
        let Self { client, model, sectors, block } = self;
        let count = if rng.chance(4, 5) { rng.between(1, 16) } else { rng.between(1, 256) };
        let count = count.next_multiple_of(*block);
        // Half of the requests meet in a small part.
        let span = if rng.chance(1, 2) { *sectors / 16 } else { *sectors };
        let sector = rng.below(span.max(count) - count + 1) / *block * *block;
        let (at, len) = (sector * SECTOR, (count * SECTOR) as u32);
        match rng.below(100) {
            0..55 => {
                let fua = rng.chance(1, 10);
                let (number, bytes) = with(model, |model| model.begin_write(sector, count));
                let written = answer("a write", client.write(at, &bytes, fua))?;
                if let Answer::Done(()) = written {
                    with(model, |model| model.end_write(number, fua));
                }
                Ok(written)
            }
            55..60 => {
                let start = with(model, Model::tick);
                let flushed = answer("a flush", client.flush())?;
                if let Answer::Done(()) = flushed {
                    with(model, |model| model.end_flush(start));
                }
                Ok(flushed)
            }
            60..64 => {
                let number = with(model, |model| model.begin_discard(sector, count));
                let discarded = answer("a discard", client.discard(at, len))?;
                if let Answer::Done(()) = discarded {
                    with(model, |model| model.end_write(number, false));
                }
                Ok(discarded)
            }
            _ => read(client, model, sector, count),
        }
    }
}

/// Runs the load until the server ends.
pub(super) fn run(world: &World, served: Served, end: End, rng: &mut Rng) -> Outcome {
    std::thread::scope(|scope| {
        let mut clients = Vec::new();
        for ((of, name), model) in world.names().iter().zip(&world.models) {
            for _ in 0..CLIENTS {
                let client = said(of, served.client(name))?;
                let sectors = with(model, |model| model.sectors());
                let (mut one, mut rng) = (One { client, model, sectors, block: world.block }, rng.fork());
                let of = of.clone();
                clients.push(scope.spawn(move || -> Outcome {
                    while let Answer::Done(()) = one.step(&mut rng).map_err(|what| format!("{of}: {what}"))? {
                    }
                    Ok(())
                }));
            }
        }
        // As many early ends as late ones.
        std::thread::sleep(Duration::from_micros(1 << rng.between(8, 19)));
        match end {
            End::Stop => {
                let (status, _) = said("the stop", served.stop())?;
                if !status.success() {
                    return Err(format!("the stop: {status}"));
                }
            }
            End::Kill | End::KillWhileStarting => said("a kill", served.kill())?,
        }
        for client in clients {
            client.join().map_err(|_| "a client panicked".to_owned())??;
        }
        Ok(())
    })
}
