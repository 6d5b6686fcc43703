//! Replies on their way out, many to one system call.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use bcache_engine::dev::{Buf, Shared};
use bcache_engine::net::Stream;
use bcache_engine::sync::{Notify, OwnedPermit};

use super::proto;

/// Most bytes sent at once: enough to make the call's cost small, little enough that the client begins to work on
/// the first replies while the next are made.
const BATCH_BYTES: usize = 256 << 10;
/// Most replies sent at once: their headers fit one page.
const BATCH_REPLIES: usize = 128;

/// A reply: its header, its data, and the memory budget it holds until it is sent.
pub(super) struct Reply {
    header: [u8; MAX_HEADER],
    header_len: u8,
    data: Vec<Shared>,
    _budget: Option<OwnedPermit>,
}

const MAX_HEADER: usize = proto::CHUNK_HEADER + 8;

impl Reply {
    /// A reply of `header` and `data`.
    pub(super) fn new(header: &[u8], data: Vec<Shared>, budget: Option<OwnedPermit>) -> Reply {
        let mut bytes = [0; MAX_HEADER];
        bytes[..header.len()].copy_from_slice(header);
        Reply { header: bytes, header_len: header.len() as u8, data, _budget: budget }
    }

    fn len(&self) -> usize {
        usize::from(self.header_len) + self.data.iter().map(Shared::len).sum::<usize>()
    }
}

/// The queue of replies of one connection.
#[derive(Default)]
pub(super) struct Output {
    queue: RefCell<VecDeque<Reply>>,
    filled: Notify,
    closing: Cell<bool>,
    abandoned: Cell<bool>,
}

impl Output {
    /// Adds a reply.
    pub(super) fn push(&self, reply: Reply) {
        if !self.abandoned.get() {
            self.queue.borrow_mut().push_back(reply);
            self.filled.notify();
        }
    }

    /// Makes [`run`](Self::run) end once everything is sent.
    pub(super) fn close(&self) {
        self.closing.set(true);
        self.filled.notify();
    }

    /// Sends replies until the queue is closed and empty, or the peer is gone.
    pub(super) async fn run(&self, stream: &Stream) -> std::io::Result<()> {
        loop {
            let batch = self.take_batch();
            if batch.is_empty() {
                if self.closing.get() {
                    return Ok(());
                }
                self.filled.notified().await;
                continue;
            }
            stream.send(gather(&batch)).await?;
        }
    }

    /// Gives up what is queued, and what will be: the peer is gone.
    pub(super) fn abandon(&self) {
        self.abandoned.set(true);
        self.queue.borrow_mut().clear();
    }

    fn take_batch(&self) -> Vec<Reply> {
        let mut queue = self.queue.borrow_mut();
        let mut bytes = 0;
        let mut count = 0;
        for reply in queue.iter().take(BATCH_REPLIES) {
            if count > 0 && bytes + reply.len() > BATCH_BYTES {
                break;
            }
            bytes += reply.len();
            count += 1;
        }
        queue.drain(..count).collect()
    }
}

/// All headers in one buffer, and between them the data where they lie.
fn gather(batch: &[Reply]) -> Vec<Shared> {
    let mut headers = Buf::recycled(batch.len() * MAX_HEADER);
    for (slot, reply) in headers.chunks_exact_mut(MAX_HEADER).zip(batch) {
        slot.copy_from_slice(&reply.header);
    }
    let headers = headers.freeze();
    let mut parts = Vec::with_capacity(2 * batch.len());
    for (index, reply) in batch.iter().enumerate() {
        let start = index * MAX_HEADER;
        parts.push(headers.slice(start..start + usize::from(reply.header_len)));
        parts.extend(reply.data.iter().cloned());
    }
    parts
}
