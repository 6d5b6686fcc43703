//! io_uring with a table of what the kernel is working on.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use slab::Slab;

use crate::env::Op;

/// Entries of the submission queue: operations started between two turns; more go out early.
const ENTRIES: u32 = 256;
/// Entries of the completion queue. More than this many completions at once are kept by the kernel.
const COMPLETIONS: u32 = 4096;
/// Marks completions of the poll on the wake-up descriptor.
const WAKE: u64 = u64::MAX;
/// Marks completions nobody waits for.
const IGNORED: u64 = u64::MAX - 1;

/// An io_uring and the operations in flight on it.
pub(crate) struct Ring {
    uring: IoUring,
    flights: Slab<Flight>,
    /// Answers taken off the ring while making room on it.
    early: VecDeque<(u64, i32)>,
    wake_fd: RawFd,
}

/// An operation the kernel works on, with all memory that it was told of.
struct Flight {
    op: Op,
    /// Boxed, and its vector on the heap, because the kernel holds pointers to both.
    message: Option<Box<Message>>,
}

struct Message {
    header: libc::msghdr,
    parts: Vec<libc::iovec>,
}

impl Ring {
    /// A ring that also wakes up when `wake` becomes readable. The descriptor must outlive the ring; if it is
    /// closed early, wake-ups are lost and nothing worse happens.
    pub(crate) fn new(wake: BorrowedFd<'_>) -> io::Result<Ring> {
        let mut ring =
            Ring { uring: build()?, flights: Slab::new(), early: VecDeque::new(), wake_fd: wake.as_raw_fd() };
        // Saves the kernel a table look-up at each call; old kernels have no such thing.
        let _ = ring.uring.submitter().register_ring_fd();
        ring.arm_wake();
        Ok(ring)
    }

    fn arm_wake(&mut self) {
        let poll = opcode::PollAdd::new(Fd(self.wake_fd), libc::POLLIN as u32).build().user_data(WAKE);
        // SAFETY: a poll names no memory.
        unsafe { self.push(&poll) };
    }

    /// Operations in flight that will end by themselves.
    pub(crate) fn files_in_flight(&self) -> usize {
        self.flights.iter().filter(|(_, flight)| !flight.op.waits_for_peer()).count()
    }

    /// Starts an operation. The kernel hears of it at the next turn, or earlier.
    pub(crate) fn start(&mut self, op: Op) {
        let slot = self.flights.vacant_entry();
        let key = slot.key() as u64;
        let entry = prepare(slot.insert(Flight { op, message: None })).user_data(key);
        // SAFETY: the flight owns the buffers that the entry points to, on the heap, and the table keeps the
        // flight until `next_done` has seen the kernel's answer. `drop` waits for it or leaks the table.
        unsafe { self.push(&entry) };
    }

    /// # Safety
    ///
    /// Memory that `entry` points to must stay valid until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: promised by the caller.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return;
            }
            // Full. If the kernel takes nothing because its answers pile up, take those.
            if self.uring.submit().is_err() {
                self.collect();
            }
        }
    }

    /// Moves answers from the ring to `early`.
    fn collect(&mut self) {
        let completions = self.uring.completion();
        self.early.extend(completions.map(|entry| (entry.user_data(), entry.result())));
    }

    /// Tells the kernel of all operations started, and waits for an answer, at most for `wait`: not at all if it
    /// is zero, without a limit if it is none. May return early.
    pub(crate) fn turn(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let (submissions, deferred) = {
            let queue = self.uring.submission();
            (!queue.is_empty(), queue.taskrun() || queue.cq_overflow())
        };
        let answered = !self.early.is_empty() || !self.uring.completion().is_empty();
        let result = match wait {
            Some(Duration::ZERO) if !submissions && !deferred => return Ok(()),
            Some(Duration::ZERO) => self.uring.submit(),
            _ if answered => self.uring.submit(),
            None => self.uring.submit_and_wait(1),
            Some(wait) => {
                let limit = Timespec::from(wait);
                self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(e) => match e.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(e),
            },
        }
    }

    /// Whether the last turn was ended by the wake-up descriptor, and every answer that is there, in order.
    pub(crate) fn take_done(&mut self, done: &mut Vec<(Op, i32)>) -> bool {
        self.collect();
        let mut woken = false;
        while let Some((key, result)) = self.early.pop_front() {
            if key == WAKE {
                woken = true;
            } else if let Some(flight) =
                usize::try_from(key).ok().and_then(|key| self.flights.try_remove(key))
            {
                done.push((flight.op, result));
            }
        }
        if woken {
            self.arm_wake();
        }
        woken
    }

    /// Asks the kernel to give up what waits for a peer, and waits for all else.
    fn wind_down(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut done = Vec::new();
        while !self.flights.is_empty() && Instant::now() < deadline {
            let peers: Vec<u64> =
                self.flights.iter().filter(|(_, f)| f.op.waits_for_peer()).map(|f| f.0 as u64).collect();
            for key in peers {
                let cancel = opcode::AsyncCancel::new(key).build().user_data(IGNORED);
                // SAFETY: a cancellation names no memory.
                unsafe { self.push(&cancel) };
            }
            if self.turn(Some(Duration::from_millis(50))).is_err() {
                return;
            }
            self.take_done(&mut done);
            done.clear();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.wind_down();
        if !self.flights.is_empty() {
            // The kernel may still write to these buffers: they must never be used for anything else.
            std::mem::forget(std::mem::take(&mut self.flights));
        }
    }
}

/// The best ring the kernel offers. Kernels before 6.1 lack the later flags.
fn build() -> io::Result<IoUring> {
    let best = IoUring::builder()
        .dontfork()
        .setup_clamp()
        .setup_cqsize(COMPLETIONS)
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_defer_taskrun()
        .build(ENTRIES);
    match best {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().dontfork().setup_clamp().setup_cqsize(COMPLETIONS).build(ENTRIES)
        }
        other => other,
    }
}

/// The submission entry of an operation that has found its place in the table.
fn prepare(flight: &mut Flight) -> squeue::Entry {
    match &mut flight.op {
        Op::Read { file, at, buf, done, .. } => {
            let rest = &mut buf[*done..];
            let len = u32::try_from(rest.len()).unwrap_or(1 << 30);
            opcode::Read::new(Fd(file.raw()), rest.as_mut_ptr(), len).offset(*at + *done as u64).build()
        }
        Op::Write { file, at, data, done, fua, .. } => {
            let rest = &data[*done..];
            let len = u32::try_from(rest.len()).unwrap_or(1 << 30);
            let flags = if *fua { libc::RWF_DSYNC } else { 0 };
            let write = opcode::Write::new(Fd(file.raw()), rest.as_ptr(), len);
            write.offset(*at + *done as u64).rw_flags(flags as _).build()
        }
        Op::Sync { file, .. } => opcode::Fsync::new(Fd(file.raw())).flags(FsyncFlags::DATASYNC).build(),
        Op::Fallocate { file, mode, at, len, .. } => {
            opcode::Fallocate::new(Fd(file.raw()), *len).offset(*at).mode(*mode).build()
        }
        Op::Recv { socket, buf, start, .. } => {
            let rest = &mut buf[*start..];
            let len = u32::try_from(rest.len()).unwrap_or(1 << 30);
            opcode::Recv::new(Fd(socket.as_raw_fd()), rest.as_mut_ptr(), len).build()
        }
        Op::Send { socket, parts, .. } => {
            let parts: Vec<libc::iovec> = parts
                .iter()
                .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() })
                .collect();
            // SAFETY: all zeroes is a valid `msghdr`: no name, no control data, null pointers with zero lengths.
            let header = unsafe { std::mem::zeroed::<libc::msghdr>() };
            let message = flight.message.insert(Box::new(Message { header, parts }));
            message.header.msg_iov = message.parts.as_mut_ptr();
            message.header.msg_iovlen = message.parts.len() as _;
            let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
            opcode::SendMsg::new(Fd(socket.as_raw_fd()), ptr::from_ref(&message.header)).flags(flags).build()
        }
        Op::Command { file, number, bytes, .. } => {
            opcode::UringCmd16::new(Fd(file.as_raw_fd()), *number).cmd(*bytes).build()
        }
        Op::Poll { fd, .. } => opcode::PollAdd::new(Fd(fd.as_raw_fd()), libc::POLLIN as u32).build(),
    }
}
