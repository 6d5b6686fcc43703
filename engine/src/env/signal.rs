//! Signals as something to await.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::{Env, Op};
use crate::dev::Io;

/// Signals taken from the process's usual handling, to be awaited instead.
///
/// They are blocked in the calling thread and every thread it starts afterwards, so this is made before any
/// helper thread runs. Dropping it does not unblock them.
pub struct Signals {
    env: Env,
    fd: SignalFd,
    poll: Arc<OwnedFd>,
}

impl Signals {
    /// Takes `signals` over.
    pub fn new(env: &Env, signals: &[Signal]) -> io::Result<Signals> {
        let mask: SigSet = signals.iter().copied().collect();
        mask.thread_block()?;
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let poll = Arc::new(fd.as_fd().try_clone_to_owned()?);
        Ok(Signals { env: env.clone(), fd, poll })
    }

    /// Takes `SIGTERM` and `SIGINT` over: the polite requests to stop.
    pub fn termination(env: &Env) -> io::Result<Signals> {
        Signals::new(env, &[Signal::SIGTERM, Signal::SIGINT])
    }

    /// Waits for the next of the signals.
    pub async fn next(&self) -> io::Result<Signal> {
        loop {
            if let Some(info) = self.fd.read_signal()? {
                let number = i32::try_from(info.ssi_signo).unwrap_or(0);
                return Ok(Signal::try_from(number)?);
            }
            let (reply, io) = Io::pair();
            self.env.reactor()?.start(Op::Poll { fd: Arc::clone(&self.poll), reply });
            let result = io.await.map_err(io::Error::from)?;
            if result < 0 {
                return Err(io::Error::from_raw_os_error(-result));
            }
        }
    }
}
