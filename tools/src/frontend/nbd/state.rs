//! What a server's connections share.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bcache_engine::net::Stream;
use bcache_engine::sync::WaitQueue;
use slab::Slab;

use super::Exports;
use super::proto::{Command, MAX_PAYLOAD, Request};

/// What clients may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most clients at once; more are turned away.
    pub clients: usize,
    /// Memory for the requests of one client that are under way, replies not yet sent included, in bytes.
    pub client_bytes: u64,
    /// Time for the handshake.
    pub handshake: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            clients: 64,
            client_bytes: u64::from(MAX_PAYLOAD) + (1 << 20),
            handshake: Duration::from_secs(30),
        }
    }
}

/// What clients asked for so far.
#[derive(Debug, Default)]
pub struct Stats {
    /// Clients that came.
    pub clients: Cell<u64>,
    /// Reads.
    pub reads: Cell<u64>,
    /// Bytes of reads.
    pub read_bytes: Cell<u64>,
    /// Writes and writes of zeroes.
    pub writes: Cell<u64>,
    /// Bytes of writes and writes of zeroes.
    pub written_bytes: Cell<u64>,
    /// Flushes.
    pub flushes: Cell<u64>,
    /// Trims.
    pub trims: Cell<u64>,
    /// Requests answered with an error.
    pub errors: Cell<u64>,
}

impl Stats {
    pub(super) fn count(&self, request: &Request) {
        let add = |cell: &Cell<u64>, count: u64| cell.set(cell.get() + count);
        let len = u64::from(request.len);
        match request.command {
            Command::Read => {
                add(&self.reads, 1);
                add(&self.read_bytes, len);
            }
            Command::Write | Command::WriteZeroes => {
                add(&self.writes, 1);
                add(&self.written_bytes, len);
            }
            Command::Flush => add(&self.flushes, 1),
            Command::Trim => add(&self.trims, 1),
            Command::Disconnect | Command::Other(_) => {}
        }
    }
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) exports: Rc<dyn Exports>,
    pub(super) limits: Limits,
    pub(super) stats: Rc<Stats>,
    pub(super) streams: RefCell<Slab<Stream>>,
    pub(super) left: WaitQueue,
    pub(super) stopping: Cell<bool>,
}
