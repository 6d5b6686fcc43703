//! One client: its handshake, its requests, its end.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use bcache_engine::dev::{Buf, Shared};
use bcache_engine::env::Env;
use bcache_engine::net::Stream;
use bcache_engine::sync::{OwnedPermit, Semaphore, WaitQueue};
use bcache_engine::volume::Volume;

use super::handshake::{Handshake, Next};
use super::output::{Output, Reply};
use super::proto::{self, Command, MAX_PAYLOAD, ProtoError, REQUEST_HEADER, Request};
use super::state::{Limits, Shared as ServerState};
use super::{Exports, Stats};

/// Bytes asked from the socket at once: some dozens of requests, or of small writes.
const RECEIVE: usize = 128 << 10;
/// Most options before a client must have made up its mind.
const MAX_OPTIONS: u32 = 256;

/// Why a connection ended other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The stream failed, or ended in the middle of a message.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The client does not speak the protocol.
    #[error("{0}")]
    Protocol(#[from] ProtoError),
    /// The handshake took too long.
    #[error("no export chosen in time")]
    Slow,
}

/// Bytes received and not yet used.
struct Input {
    stream: Stream,
    buf: Buf,
    start: usize,
    end: usize,
}

impl Input {
    fn new(stream: Stream) -> Input {
        Input { stream, buf: Buf::zeroed(RECEIVE), start: 0, end: 0 }
    }

    fn available(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// Receives until at least `want` bytes are there (no more than the buffer holds). False at the end of the
    /// stream before the first of them.
    async fn fill(&mut self, want: usize) -> io::Result<bool> {
        while self.end - self.start < want {
            if self.start > 0 {
                self.buf.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            let buf = std::mem::replace(&mut self.buf, Buf::zeroed(0));
            let (buf, result) = self.stream.recv(buf, self.end).await;
            self.buf = buf;
            match result? {
                0 if self.end == 0 => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.end += count,
            }
        }
        Ok(true)
    }

    /// Takes `N` bytes; none at the end of the stream.
    async fn take<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        if !self.fill(N).await? {
            return Ok(None);
        }
        let bytes = self.available().first_chunk().copied();
        self.start += N;
        Ok(bytes)
    }

    /// Takes `len` bytes into a buffer of their own: what is here is copied, the rest is received in place.
    async fn take_buf(&mut self, len: usize) -> io::Result<Buf> {
        let mut buf = Buf::recycled(len);
        let here = len.min(self.end - self.start);
        buf[..here].copy_from_slice(&self.available()[..here]);
        self.start += here;
        if here == len { Ok(buf) } else { self.stream.recv_exact(buf, here).await }
    }

    /// Throws `len` bytes away.
    async fn skip(&mut self, mut len: usize) -> io::Result<()> {
        while len > 0 {
            if self.start == self.end && !self.fill(1).await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let part = len.min(self.end - self.start);
            self.start += part;
            len -= part;
        }
        Ok(())
    }
}

/// Requests under way, and where their replies go.
struct Client {
    volume: Rc<dyn Volume>,
    structured: bool,
    output: Output,
    stats: Rc<Stats>,
    running: Cell<u64>,
    ended: WaitQueue,
}

/// Serves one client from its greeting to its end. Returns only when none of its requests is under way.
///
/// Without a handshake, `volume` is what the client gets, with simple replies.
pub(super) async fn serve(
    env: &Env,
    server: &Rc<ServerState>,
    stream: Stream,
    volume: Option<Rc<dyn Volume>>,
) -> Result<(), Ended> {
    let mut input = Input::new(stream.clone());
    let limits = &server.limits;
    let (volume, structured) = match volume {
        Some(volume) => (volume, false),
        None => {
            let settled =
                env.timeout(limits.handshake, handshake(&mut input, &stream, &*server.exports)).await;
            let Some(settled) = settled.map_err(|_| Ended::Slow)?? else { return Ok(()) };
            settled
        }
    };
    let client = Rc::new(Client {
        volume,
        structured,
        output: Output::default(),
        stats: Rc::clone(&server.stats),
        running: Cell::new(0),
        ended: WaitQueue::new(),
    });
    let writer = {
        let (client, stream) = (Rc::clone(&client), stream.clone());
        env.spawn(async move {
            let result = client.output.run(&stream).await;
            if result.is_err() {
                // Nobody reads replies any more. The reader may wait for the budget that they hold, or for the
                // client: end both.
                client.output.abandon();
                stream.shutdown();
            }
            result
        })
    };
    let result = requests(env, limits, &mut input, &client).await;
    client.ended.wait_until(|| client.running.get() == 0).await;
    client.output.close();
    let sent = writer.await;
    result?;
    Ok(sent?)
}

/// Settles options; the chosen volume and whether replies are structured, or none if the client left.
async fn handshake(
    input: &mut Input,
    stream: &Stream,
    exports: &dyn Exports,
) -> Result<Option<(Rc<dyn Volume>, bool)>, Ended> {
    stream.send(vec![Buf::copied(&proto::greeting()).freeze()]).await?;
    let Some(flags) = input.take().await? else { return Ok(None) };
    let mut state = Handshake { no_zeroes: proto::client_flags(flags)?, structured: false };
    for _ in 0..MAX_OPTIONS {
        let Some(header) = input.take().await? else { return Ok(None) };
        let (option, len) = proto::option_header(header)?;
        let data = input.take_buf(len as usize).await?;
        let answer = state.answer(exports, option, &data);
        if !answer.bytes.is_empty() {
            stream.send(vec![Buf::copied(&answer.bytes).freeze()]).await?;
        }
        match answer.next {
            Next::Continue => {}
            Next::Transmit(volume) => return Ok(Some((volume, state.structured))),
            Next::Close => return Ok(None),
        }
    }
    Err(ProtoError::OptionCount(MAX_OPTIONS).into())
}

/// Takes requests until the client is done.
async fn requests(env: &Env, limits: &Limits, input: &mut Input, client: &Rc<Client>) -> Result<(), Ended> {
    let budget = Rc::new(Semaphore::new(limits.client_bytes));
    let size = client.volume.size_bytes();
    let read_only = client.volume.read_only();
    loop {
        let Some(header) = input.take::<REQUEST_HEADER>().await? else { return Ok(()) };
        let request = Request::parse(header)?;
        if request.command == Command::Disconnect {
            return Ok(());
        }
        let checked = request.check(size, read_only);
        // A request costs the memory of its data and something for itself, until its reply is sent.
        let data = match request.command {
            Command::Read | Command::Write if checked.is_ok() => u64::from(request.len),
            _ => 0,
        };
        let cost = (data + REQUEST_COST).min(limits.client_bytes);
        let permit = match budget.try_acquire_owned(cost) {
            Some(permit) => permit,
            None => Rc::clone(&budget).acquire_owned(cost).await,
        };
        if let Err(error) = checked {
            input.skip(request.payload()).await?;
            client.reply(&request, Err(error), permit);
            continue;
        }
        let payload = match request.payload() {
            0 => None,
            len => Some(input.take_buf(len).await?.freeze()),
        };
        let run = Running::new(client);
        env.run_or_spawn(async move { run.0.execute(request, payload, permit).await });
    }
}

/// What a request costs its client's budget besides its data, in bytes.
const REQUEST_COST: u64 = 1024;
const _: () = assert!(REQUEST_COST < MAX_PAYLOAD as u64);

/// Counts a request as under way until dropped, whatever way it ends.
struct Running(Rc<Client>);

impl Running {
    fn new(client: &Rc<Client>) -> Running {
        client.running.set(client.running.get() + 1);
        Running(Rc::clone(client))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        if self.0.running.get() == 0 {
            self.0.ended.wake_all();
        }
    }
}

impl Client {
    async fn execute(&self, request: Request, payload: Option<Shared>, permit: OwnedPermit) {
        let Request { offset, len, .. } = request;
        let (volume, stats) = (&self.volume, &self.stats);
        stats.count(&request);
        let result = match request.command {
            Command::Read => volume.read(offset, len).await,
            Command::Write => match payload {
                Some(data) => volume.write(offset, data, request.fua()).await.map(|()| Vec::new()),
                None => Ok(Vec::new()),
            },
            Command::Flush => volume.flush().await.map(|()| Vec::new()),
            Command::Trim => {
                let discarded = volume.discard(offset, u64::from(len)).await;
                match discarded {
                    // FUA on a trim makes the trim durable, which the engine only promises after a flush.
                    Ok(()) if request.fua() => volume.flush().await,
                    other => other,
                }
                .map(|()| Vec::new())
            }
            Command::WriteZeroes => {
                let no_hole = request.flags & proto::command_flag::NO_HOLE != 0;
                let len = u64::from(len);
                volume.write_zeroes(offset, len, request.fua(), no_hole).await.map(|()| Vec::new())
            }
            Command::Disconnect | Command::Other(_) => Ok(Vec::new()),
        };
        let result = match result {
            Ok(data) if data.iter().map(|d| d.len() as u64).sum::<u64>() != expected(&request) => {
                tracing::error!(offset, len, "the volume answered a read with another length");
                Err(proto::error::EIO)
            }
            Ok(data) => Ok(data),
            Err(error) => {
                tracing::warn!(offset, len, command = ?request.command, %error, "request failed");
                Err(proto::error::from_errno(error.errno))
            }
        };
        self.reply(&request, result, permit);
    }

    fn reply(&self, request: &Request, result: Result<Vec<Shared>, u32>, permit: OwnedPermit) {
        let Request { cookie, offset, len, .. } = *request;
        // Only reads must be answered in chunks; for all else the simple form is shorter.
        let structured = self.structured && request.command == Command::Read;
        let permit = Some(permit);
        if result.is_err() {
            self.stats.errors.set(self.stats.errors.get() + 1);
        }
        self.output.push(match result {
            Ok(data) if structured && len > 0 => {
                Reply::new(&proto::data_chunk(cookie, offset, len), data, permit)
            }
            Ok(_) if structured => Reply::new(&proto::empty_chunk(cookie), Vec::new(), permit),
            Ok(data) => Reply::new(&proto::simple_reply(cookie, 0), data, permit),
            Err(error) if structured => Reply::new(&proto::error_chunk(cookie, error), Vec::new(), permit),
            Err(error) => Reply::new(&proto::simple_reply(cookie, error), Vec::new(), permit),
        });
    }
}

/// Bytes of data the reply must carry.
fn expected(request: &Request) -> u64 {
    if request.command == Command::Read { u64::from(request.len) } else { 0 }
}
