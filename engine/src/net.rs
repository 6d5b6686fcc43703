//! Stream sockets on the runtime's own ring.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::dev::{Buf, Io, Shared};
use crate::env::{Env, Op};

/// A connected stream socket; clones are handles to the same one.
#[derive(Clone)]
pub struct Stream {
    env: Env,
    socket: Arc<OwnedFd>,
}

impl Stream {
    /// A stream over a connected Unix socket.
    pub fn from_std(env: &Env, stream: net::UnixStream) -> io::Result<Stream> {
        // The ring waits by itself; a socket marked non-blocking would make it give up instead.
        stream.set_nonblocking(false)?;
        Ok(Stream { env: env.clone(), socket: Arc::new(OwnedFd::from(stream)) })
    }

    /// Connects to the Unix socket at `path`. The connection itself is made by a blocking call.
    pub fn connect(env: &Env, path: &Path) -> io::Result<Stream> {
        Stream::from_std(env, net::UnixStream::connect(path)?)
    }

    /// Two streams connected to each other.
    pub fn pair(env: &Env) -> io::Result<(Stream, Stream)> {
        let (one, other) = net::UnixStream::pair()?;
        Ok((Stream::from_std(env, one)?, Stream::from_std(env, other)?))
    }

    /// Receives into `buf` from byte `start` on, whatever is there, at least a byte. Zero bytes are the end of the
    /// stream, or a `buf` without room.
    pub async fn recv(&self, buf: Buf, start: usize) -> (Buf, io::Result<usize>) {
        if start >= buf.len() {
            return (buf, Ok(0));
        }
        let (reply, io) = Io::pair();
        let reactor = match self.env.reactor() {
            Ok(reactor) => reactor,
            Err(error) => return (buf, Err(error)),
        };
        reactor.start(Op::Recv { socket: Arc::clone(&self.socket), buf, start, reply });
        match io.await {
            Ok((buf, result)) => (buf, count(result)),
            Err(error) => (Buf::zeroed(0), Err(error.into())),
        }
    }

    /// Fills `buf` from byte `start` on; `UnexpectedEof` if the stream ends before.
    pub async fn recv_exact(&self, mut buf: Buf, mut start: usize) -> io::Result<Buf> {
        while start < buf.len() {
            let (filled, result) = self.recv(buf, start).await;
            buf = filled;
            match result? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => start += count,
            }
        }
        Ok(buf)
    }

    /// Sends all of `parts`, one after the other. One call at a time: parts of two would mix.
    pub async fn send(&self, mut parts: Vec<Shared>) -> io::Result<()> {
        /// The kernel's bound on parts of one message.
        const IOV_MAX: usize = 1024;
        while !parts.is_empty() {
            let rest = parts.split_off(parts.len().min(IOV_MAX));
            let (reply, io) = Io::pair();
            let op = Op::Send { socket: Arc::clone(&self.socket), parts: parts.clone(), reply };
            self.env.reactor()?.start(op);
            let sent = count(io.await.map_err(io::Error::from)?)?;
            parts = unsent(parts, sent);
            parts.extend(rest);
        }
        Ok(())
    }

    /// The user at the other end when it connected.
    pub fn peer_uid(&self) -> io::Result<u32> {
        use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
        Ok(getsockopt(&self.socket, PeerCredentials)?.uid())
    }

    /// Whether the other end is closed already.
    pub fn is_hung_up(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let ended = PollFlags::POLLHUP | PollFlags::POLLERR;
        poll(&mut fds, PollTimeout::ZERO).is_ok()
            && fds.iter().any(|fd| fd.revents().is_some_and(|events| events.intersects(ended)))
    }

    /// Ends the stream in both directions: whoever waits on either side is told.
    pub fn shutdown(&self) {
        use std::os::fd::AsRawFd;
        // Fails only when the peer was faster.
        let _ = nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

/// What is left of `parts` once `sent` bytes are gone.
fn unsent(parts: Vec<Shared>, mut sent: usize) -> Vec<Shared> {
    if parts.iter().map(Shared::len).sum::<usize>() == sent {
        return Vec::new();
    }
    let mut left = Vec::new();
    for part in parts {
        let gone = sent.min(part.len());
        sent -= gone;
        if gone < part.len() {
            left.push(part.slice(gone..part.len()));
        }
    }
    left
}

fn count(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// A listening Unix socket. Its path is removed when it is dropped.
pub struct Listener {
    env: Env,
    listener: net::UnixListener,
    poll: Arc<OwnedFd>,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`. A socket left there by a process that is gone is replaced; one in use is not
    /// (`AddrInUse`).
    pub fn bind(env: &Env, path: &Path) -> io::Result<Listener> {
        let stale = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
            && net::UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        if stale {
            std::fs::remove_file(path)?;
        }
        let listener = net::UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let poll = Arc::new(OwnedFd::from(listener.try_clone()?));
        Ok(Listener { env: env.clone(), listener, poll, path: path.to_owned() })
    }

    /// Waits for the next client.
    pub async fn accept(&self) -> io::Result<Stream> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => return Stream::from_std(&self.env, stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let (reply, io) = Io::pair();
            self.env.reactor()?.start(Op::Poll { fd: Arc::clone(&self.poll), reply });
            count(io.await.map_err(io::Error::from)?)?;
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Backend, Runtime};

    fn each_backend(body: impl AsyncFn(&Env)) {
        for backend in [Backend::Auto, Backend::Threads] {
            let runtime = Runtime::with_backend(backend).unwrap();
            runtime.block_on(body(&runtime.env()));
        }
    }

    #[test]
    fn large_messages_arrive_whole_through_small_socket_buffers() {
        each_backend(async |env| {
            let (one, other) = Stream::pair(env).unwrap();
            let mut data = Buf::zeroed(3 << 20);
            data.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / 977) as u8);
            let data = data.freeze();
            let parts: Vec<Shared> = (0..3000).map(|i| data.slice(i * 1000..(i + 1) * 1000)).collect();
            let sender = env.spawn(async move { one.send(parts).await });
            let received = other.recv_exact(Buf::zeroed(3_000_000), 0).await.unwrap();
            sender.await.unwrap();
            assert!(received[..] == data[..3_000_000]);
        });
    }

    #[test]
    fn the_end_of_a_stream_is_told() {
        each_backend(async |env| {
            let (one, other) = Stream::pair(env).unwrap();
            let waiter = other.clone();
            let task = env.spawn(async move { waiter.recv(Buf::zeroed(10), 0).await.1 });
            env.yield_now().await;
            one.shutdown();
            assert_eq!(task.await.unwrap(), 0);
            assert!(other.send(vec![Buf::zeroed(10).freeze()]).await.is_err());
            assert!(other.recv_exact(Buf::zeroed(10), 0).await.is_err());
        });
    }

    #[test]
    fn listeners_accept_and_replace_only_dead_sockets() {
        each_backend(async |env| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("socket");
            let listener = Listener::bind(env, &path).unwrap();
            let error = Listener::bind(env, &path).err().expect("it is in use");
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            // The probe above made a connection, which comes first and ends at once.
            let probe = listener.accept().await.unwrap();
            assert_eq!(probe.recv(Buf::zeroed(1), 0).await.1.unwrap(), 0);
            let client = Stream::connect(env, &path).unwrap();
            let server = listener.accept().await.unwrap();
            client.send(vec![Buf::copied(b"hello").freeze()]).await.unwrap();
            assert_eq!(&server.recv_exact(Buf::zeroed(5), 0).await.unwrap()[..], b"hello");
            drop(listener);
            assert!(!path.exists());
            drop(net::UnixListener::bind(&path).unwrap());
            assert!(path.exists(), "left behind");
            Listener::bind(env, &path).unwrap();
        });
    }

    #[test]
    fn a_runtime_ends_while_someone_waits_for_a_peer() {
        for backend in [Backend::Auto, Backend::Threads] {
            let runtime = Runtime::with_backend(backend).unwrap();
            let (one, _other) = Stream::pair(&runtime.env()).unwrap();
            let env = runtime.env();
            env.spawn(async move { one.recv(Buf::zeroed(10), 0).await.1 }).detach();
            runtime.block_on(env.yield_now());
            drop(env);
            drop(runtime);
        }
    }
}
