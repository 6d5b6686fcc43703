//! Where the runtime's thread meets the kernel: one ring for files, sockets and wake-ups.

mod op;
mod pool;
mod threads;

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

pub(crate) use op::{Handle, Op};
pub(crate) use pool::{Job, Pool};
use threads::Threads;

use crate::raw::Ring;

/// How a runtime does its I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// io_uring, and where the kernel forbids it, helper threads. The variable `BCACHE_IO` set to `threads` or
    /// `uring` decides otherwise.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// Helper threads for files and `poll` for sockets.
    Threads,
}

enum Kind {
    Uring(Box<Ring>),
    Threads(Threads),
}

/// Operations in flight, and the place to wait for them.
pub(crate) struct Reactor {
    kind: RefCell<Kind>,
    wake: Arc<EventFd>,
    pool: Arc<Pool>,
}

impl Reactor {
    pub(crate) fn new(backend: Backend) -> io::Result<Reactor> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let pool = Arc::new(Pool::new());
        let threads = || Kind::Threads(Threads::new(Arc::clone(&pool), Arc::clone(&wake)));
        let asked = std::env::var("BCACHE_IO").unwrap_or_default();
        let backend = match (backend, asked.as_str()) {
            (Backend::Auto, "threads") => Backend::Threads,
            (Backend::Auto, "uring") => Backend::Uring,
            (other, _) => other,
        };
        let kind = match backend {
            Backend::Threads => threads(),
            Backend::Uring => Kind::Uring(Box::new(Ring::new(wake.as_fd())?)),
            Backend::Auto => match Ring::new(wake.as_fd()) {
                Ok(ring) => Kind::Uring(Box::new(ring)),
                Err(error) => {
                    tracing::info!(%error, "no io_uring here: using helper threads");
                    threads()
                }
            },
        };
        Ok(Reactor { kind: RefCell::new(kind), wake, pool })
    }

    /// What brings the thread back from [`turn`](Self::turn), from any other thread.
    pub(crate) fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.wake)
    }

    /// The helper threads.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Which way operations go.
    pub(crate) fn backend(&self) -> Backend {
        match &*self.kind.borrow() {
            Kind::Uring(_) => Backend::Uring,
            Kind::Threads(_) => Backend::Threads,
        }
    }

    /// Operations on files and devices in flight.
    pub(crate) fn files_in_flight(&self) -> usize {
        match &*self.kind.borrow() {
            Kind::Uring(ring) => ring.files_in_flight(),
            Kind::Threads(threads) => threads.files_in_flight(),
        }
    }

    /// Starts an operation.
    pub(crate) fn start(&self, op: Op) {
        match &mut *self.kind.borrow_mut() {
            Kind::Uring(ring) => ring.start(op),
            Kind::Threads(threads) => threads.start(op),
        }
    }

    /// Lets the kernel work, and answers those who wait. Waits for something to happen for at most `wait`: not at
    /// all if it is zero, without a limit if it is none.
    pub(crate) fn turn(&self, wait: Option<Duration>, done: &mut Vec<(Op, i32)>) -> io::Result<()> {
        let woken = match &mut *self.kind.borrow_mut() {
            Kind::Uring(ring) => {
                ring.turn(wait)?;
                ring.take_done(done)
            }
            Kind::Threads(threads) => threads.turn(wait, done)?,
        };
        if woken {
            // Non-blocking; that somebody else emptied it is as good.
            let _ = self.wake.read();
        }
        for (op, result) in done.drain(..) {
            if let Some(rest) = op.finish(result) {
                self.start(rest);
            }
        }
        Ok(())
    }
}
