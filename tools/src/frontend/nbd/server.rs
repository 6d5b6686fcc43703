//! Taking clients in and letting them go.

use super::state::{Limits, Shared, Stats};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bcache_engine::env::Env;
use bcache_engine::net::{Listener, Stream};
use bcache_engine::sync::WaitQueue;
use bcache_engine::volume::Volume;

use super::{Exports, connection};

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
