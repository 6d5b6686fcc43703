//! I/O without io_uring: files on helper threads, sockets by `poll`.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{MsgFlags, recv, sendmsg};
use slab::Slab;

use super::{Op, Pool};
use crate::dev::Buf;

/// What a helper thread gives back: the operation's key, its result, and the buffer it read into.
type Return = (usize, i32, Option<Buf>);

/// Operations in flight on helper threads and sockets.
pub(super) struct Threads {
    flights: Slab<Op>,
    /// Keys of operations on sockets, tried again when their descriptor is ready.
    polled: Vec<usize>,
    returns: Arc<Mutex<Vec<Return>>>,
    pool: Arc<Pool>,
    wake: Arc<EventFd>,
}

impl Threads {
    pub(super) fn new(pool: Arc<Pool>, wake: Arc<EventFd>) -> Threads {
        Threads { flights: Slab::new(), polled: Vec::new(), returns: Arc::default(), pool, wake }
    }

    pub(super) fn files_in_flight(&self) -> usize {
        self.flights.len() - self.polled.len()
    }

    pub(super) fn start(&mut self, mut op: Op) {
        let job = blocking(&mut op);
        let key = self.flights.insert(op);
        let Some(job) = job else {
            self.polled.push(key);
            return;
        };
        let (returns, wake) = (Arc::clone(&self.returns), Arc::clone(&self.wake));
        self.pool.run(Box::new(move || {
            let (result, buf) = job();
            returns.lock().unwrap_or_else(PoisonError::into_inner).push((key, result, buf));
            let _ = wake.write(1);
        }));
    }

    /// Waits and collects; true if the wake-up descriptor was readable.
    pub(super) fn turn(&mut self, wait: Option<Duration>, done: &mut Vec<(Op, i32)>) -> io::Result<bool> {
        // Only operations that ran before this turn are answered in it, so that both backends behave alike.
        self.try_sockets(done);
        self.take_returns(done);
        let wait = if done.is_empty() { wait } else { Some(Duration::ZERO) };
        let woken = self.wait(wait)?;
        self.take_returns(done);
        self.try_sockets(done);
        Ok(woken)
    }

    fn wait(&self, wait: Option<Duration>) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.polled.iter().filter_map(|key| match self.flights.get(*key)? {
            Op::Recv { socket: fd, .. } | Op::Poll { fd, .. } => {
                Some(PollFd::new(fd.as_fd(), PollFlags::POLLIN))
            }
            Op::Send { socket, .. } => Some(PollFd::new(socket.as_fd(), PollFlags::POLLOUT)),
            _ => None,
        }));
        // Rounded up: waking early would only mean to wait again.
        let timeout = match wait {
            None => PollTimeout::NONE,
            Some(wait) => {
                let millis = wait.as_nanos().div_ceil(1_000_000);
                PollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut fds, timeout) {
            Ok(_) => Ok(fds.first().is_some_and(|fd| fd.any() == Some(true))),
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn take_returns(&mut self, done: &mut Vec<(Op, i32)>) {
        let returns = std::mem::take(&mut *self.returns.lock().unwrap_or_else(PoisonError::into_inner));
        for (key, result, filled) in returns {
            let Some(mut op) = self.flights.try_remove(key) else { continue };
            if let (Op::Read { buf, .. }, Some(filled)) = (&mut op, filled) {
                *buf = filled;
            }
            done.push((op, result));
        }
    }

    fn try_sockets(&mut self, done: &mut Vec<(Op, i32)>) {
        let flights = &mut self.flights;
        self.polled.retain(|key| {
            let Some(op) = flights.get_mut(*key) else { return false };
            match attempt(op) {
                Some(result) => {
                    done.push((flights.remove(*key), result));
                    false
                }
                None => true,
            }
        });
    }
}

fn code<T>(result: io::Result<T>, count: impl FnOnce(T) -> usize) -> i32 {
    match result {
        Ok(value) => i32::try_from(count(value)).unwrap_or(i32::MAX),
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}

type Blocking = Box<dyn FnOnce() -> (i32, Option<Buf>) + Send>;

/// The part of an operation that blocks, with memory of its own; none for operations on sockets.
fn blocking(op: &mut Op) -> Option<Blocking> {
    match op {
        Op::Read { file, at, buf, done, .. } => {
            let mut buf = std::mem::replace(buf, Buf::zeroed(0));
            let (file, at, done) = (Arc::clone(file), *at, *done);
            Some(Box::new(move || {
                let result = file.file.read_at(&mut buf[done..], at + done as u64);
                (code(result, |n| n), Some(buf))
            }))
        }
        Op::Write { file, at, data, done, fua, .. } => {
            // A shared buffer cannot leave its thread, so its bytes do.
            let data = Buf::copied(&data[*done..]);
            let (file, at, fua) = (Arc::clone(file), *at + *done as u64, *fua);
            Some(Box::new(move || (code(write_at(&file.file, &data, at, fua), |()| data.len()), None)))
        }
        Op::Sync { file, .. } => {
            let file = Arc::clone(file);
            Some(Box::new(move || (code(file.file.sync_data(), |()| 0), None)))
        }
        Op::Fallocate { file, mode, at, len, .. } => {
            let (file, mode, at, len) = (Arc::clone(file), *mode, *at, *len);
            Some(Box::new(move || {
                let flags = FallocateFlags::from_bits_truncate(mode);
                let result = fallocate(&file.file, flags, at as libc::off_t, len as libc::off_t);
                (code(result.map_err(io::Error::from), |()| 0), None)
            }))
        }
        Op::Recv { .. } | Op::Send { .. } | Op::Poll { .. } | Op::Command { .. } => None,
    }
}

fn write_at(file: &File, data: &[u8], at: u64, fua: bool) -> io::Result<()> {
    file.write_all_at(data, at)?;
    if fua { file.sync_data() } else { Ok(()) }
}

/// Tries an operation on a socket; none if it would have to wait.
fn attempt(op: &mut Op) -> Option<i32> {
    let result = match op {
        Op::Recv { socket, buf, start, .. } => {
            recv(socket.as_raw_fd(), &mut buf[*start..], MsgFlags::MSG_DONTWAIT).map(|n| n as i32)
        }
        Op::Send { socket, parts, .. } => {
            let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            sendmsg::<()>(socket.as_raw_fd(), &parts, &[], flags, None).map(|n| n as i32)
        }
        Op::Poll { fd, .. } => readable(fd),
        // Only a ring can carry it.
        Op::Command { .. } => Ok(-libc::EOPNOTSUPP),
        _ => Ok(-libc::EINVAL),
    };
    match result {
        Ok(count) => Some(count),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => None,
        Err(errno) => Some(-(errno as i32)),
    }
}

fn readable(fd: &OwnedFd) -> nix::Result<i32> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO)? {
        0 => Err(nix::errno::Errno::EAGAIN),
        _ => Ok(i32::from(libc::POLLIN)),
    }
}
