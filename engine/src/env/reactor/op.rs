//! The operations a runtime's thread gives to the kernel.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use crate::dev::{Buf, Completer, DevError, DevOp, Shared};

/// An open file or device, and what messages call it.
pub(crate) struct Handle {
    pub(crate) file: File,
    pub(crate) name: Arc<str>,
}

impl Handle {
    pub(crate) fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn error(&self, op: DevOp, at: u64, len: usize, errno: i32) -> DevError {
        DevError { device: Arc::clone(&self.name), op, at, len: len as u64, errno }
    }
}

/// An operation with its memory and the one who waits for it. Results are the system calls': a count or a
/// negative error number.
pub(crate) enum Op {
    /// Fills `buf` from byte `at` of the file on; `done` bytes are there already.
    Read { file: Arc<Handle>, at: u64, buf: Buf, done: usize, reply: Completer<Buf> },
    /// Writes `data` at byte `at`; `done` bytes are written already.
    Write { file: Arc<Handle>, at: u64, data: Shared, done: usize, fua: bool, reply: Completer<()> },
    /// `fdatasync`.
    Sync { file: Arc<Handle>, reply: Completer<()> },
    /// `fallocate`; `op` says on whose behalf. Answers with the call's result, since callers have ways around
    /// refusals.
    Fallocate { file: Arc<Handle>, mode: i32, at: u64, len: u64, reply: Completer<i32> },
    /// Receives what is there, at least one byte, into `buf` from `start` on. Zero is the end of the stream.
    Recv { socket: Arc<OwnedFd>, buf: Buf, start: usize, reply: Completer<(Buf, i32)> },
    /// Sends the parts one after the other; may send less.
    Send { socket: Arc<OwnedFd>, parts: Vec<Shared>, reply: Completer<i32> },
    /// Waits until the descriptor is readable.
    Poll { fd: Arc<OwnedFd>, reply: Completer<i32> },
    /// A command of 16 bytes for the driver of a file: may wait until that has something to tell.
    Command { file: Arc<File>, number: u32, bytes: [u8; 16], reply: Completer<i32> },
}

impl Op {
    /// Whether it may wait for ever, for somebody else.
    pub(crate) fn waits_for_peer(&self) -> bool {
        matches!(self, Op::Recv { .. } | Op::Send { .. } | Op::Poll { .. } | Op::Command { .. })
    }

    /// Answers whoever waits, or gives the operation back to be started again for what is left of it.
    pub(crate) fn finish(self, result: i32) -> Option<Op> {
        if matches!(result, n if n == -libc::EINTR || n == -libc::EAGAIN) && !self.waits_for_peer() {
            return Some(self);
        }
        match self {
            Op::Read { file, at, buf, done, reply } => {
                let total = match moved(done, buf.len(), result) {
                    Ok(total) => total,
                    Err(errno) => {
                        reply.complete(Err(file.error(DevOp::Read, at, buf.len(), errno)));
                        return None;
                    }
                };
                if total < buf.len() {
                    return Some(Op::Read { file, at, buf, done: total, reply });
                }
                reply.complete(Ok(buf));
            }
            Op::Write { file, at, data, done, fua, reply } => {
                let total = match moved(done, data.len(), result) {
                    Ok(total) => total,
                    Err(errno) => {
                        reply.complete(Err(file.error(DevOp::Write, at, data.len(), errno)));
                        return None;
                    }
                };
                if total < data.len() {
                    return Some(Op::Write { file, at, data, done: total, fua, reply });
                }
                reply.complete(Ok(()));
            }
            Op::Sync { file, reply } => {
                let failed = || file.error(DevOp::Flush, 0, 0, -result);
                reply.complete(if result < 0 { Err(failed()) } else { Ok(()) });
            }
            Op::Fallocate { reply, .. }
            | Op::Send { reply, .. }
            | Op::Poll { reply, .. }
            | Op::Command { reply, .. } => reply.complete(Ok(result)),
            Op::Recv { buf, reply, .. } => reply.complete(Ok((buf, result))),
        }
        None
    }
}

/// Bytes moved after a call that began at `done` of `len`, or an error number. A device that moves nothing has
/// ended before the size it claimed.
fn moved(done: usize, len: usize, result: i32) -> Result<usize, i32> {
    match usize::try_from(result) {
        Ok(0) if done < len => Err(libc::EIO),
        Ok(count) => Ok((done + count).min(len)),
        Err(_) => Err(-result),
    }
}
