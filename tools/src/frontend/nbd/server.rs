//! Taking clients in and letting them go.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bcache_engine::env::Env;
use bcache_engine::net::{Listener, Stream};
use bcache_engine::sync::WaitQueue;
use bcache_engine::volume::Volume;
use slab::Slab;

use super::proto::{Command, MAX_PAYLOAD, Request};
use super::{Exports, connection};

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
    streams: RefCell<Slab<Stream>>,
    left: WaitQueue,
    stopping: Cell<bool>,
}

/// An NBD server; clones are handles to the same one.
#[derive(Clone)]
pub struct Server {
    env: Env,
    shared: Rc<Shared>,
}

impl Server {
    /// A server of `exports` that serves nobody yet.
    pub fn new(env: &Env, exports: Rc<dyn Exports>, limits: Limits) -> Server {
        let shared = Rc::new(Shared {
            exports,
            limits,
            stats: Rc::default(),
            streams: RefCell::default(),
            left: WaitQueue::new(),
            stopping: Cell::new(false),
        });
        Server { env: env.clone(), shared }
    }

    /// What clients asked for so far.
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// Clients connected now.
    pub fn clients(&self) -> usize {
        self.shared.streams.borrow().len()
    }

    /// Takes clients in until the listener fails. A caller that is to stop drops this and calls
    /// [`stop`](Self::stop).
    pub async fn listen(&self, listener: &Listener) -> io::Result<()> {
        loop {
            match listener.accept().await {
                Ok(stream) => self.serve(stream),
                // Out of descriptors or memory: that passes when a client leaves.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) =>
                {
                    tracing::warn!(%error, "a client had to wait");
                    self.env.sleep(Duration::from_millis(100)).await;
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Serves a connected client in the background.
    pub fn serve(&self, stream: Stream) {
        self.serve_from(stream, None);
    }

    /// Serves a client that needs no handshake, because it was told in another way that it gets `volume`.
    pub fn serve_volume(&self, stream: Stream, volume: Rc<dyn Volume>) {
        self.serve_from(stream, Some(volume));
    }

    fn serve_from(&self, stream: Stream, volume: Option<Rc<dyn Volume>>) {
        let shared = &self.shared;
        if shared.stopping.get() || self.clients() >= shared.limits.clients {
            tracing::warn!(limit = shared.limits.clients, "a client was turned away");
            stream.shutdown();
            return;
        }
        let key = shared.streams.borrow_mut().insert(stream.clone());
        shared.stats.clients.set(shared.stats.clients.get() + 1);
        let (env, shared) = (self.env.clone(), Rc::clone(shared));
        self.env
            .spawn(async move {
                let result = connection::serve(&env, &shared, stream.clone(), volume).await;
                // What still waits on the socket holds a reference to it: closing alone would not reach the client.
                stream.shutdown();
                if let Err(error) = result
                    && !shared.stopping.get()
                {
                    tracing::info!(%error, "a client was dropped");
                }
                shared.streams.borrow_mut().try_remove(key);
                shared.left.wake_all();
            })
            .detach();
    }

    /// Waits until there is no client.
    pub async fn empty(&self) {
        self.shared.left.wait_until(|| self.shared.streams.borrow().is_empty()).await;
    }

    /// Ends all connections and waits until no request is under way. Requests already received are carried out;
    /// whether their replies still reach the client is open.
    pub async fn stop(&self) {
        self.shared.stopping.set(true);
        for (_, stream) in self.shared.streams.borrow().iter() {
            stream.shutdown();
        }
        self.shared.left.wait_until(|| self.shared.streams.borrow().is_empty()).await;
    }
}
