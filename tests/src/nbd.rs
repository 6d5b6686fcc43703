//! A small blocking NBD client, and a `bcache serve` to use it on.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::paths;

/// A connection past its handshake, one request at a time.
pub struct Client {
    stream: UnixStream,
    /// Size of the export in bytes.
    pub bytes: u64,
}

fn number<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Client {
    /// Connects to the export called `name`.
    pub fn connect(socket: &Path, name: &str) -> io::Result<Client> {
        let mut stream = UnixStream::connect(socket)?;
        number::<18>(&mut stream)?;
        let len = name.len() as u32;
        // Fixed newstyle without zeroes; NBD_OPT_EXPORT_NAME, the shortest way in.
        let hello =
            [&3u32.to_be_bytes()[..], b"IHAVEOPT", &1u32.to_be_bytes(), &len.to_be_bytes(), name.as_bytes()];
        stream.write_all(&hello.concat())?;
        let bytes = u64::from_be_bytes(number(&mut stream)?);
        number::<2>(&mut stream)?;
        Ok(Client { stream, bytes })
    }

    /// Sends a request and awaits its reply; an error the server answers becomes an [`io::Error`].
    fn request(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> io::Result<()> {
        let header = [
            &0x2560_9513u32.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &command.to_be_bytes(),
            &7u64.to_be_bytes(),
            &offset.to_be_bytes(),
            &len.to_be_bytes(),
            data,
        ];
        self.stream.write_all(&header.concat())?;
        let reply: [u8; 16] = number(&mut self.stream)?;
        let error = u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]);
        match (&reply[..4] == b"\x67\x44\x66\x98", error) {
            (true, 0) => Ok(()),
            (true, error) => Err(io::Error::from_raw_os_error(error as i32)),
            (false, _) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        self.request(0, 0, offset, len, &[])?;
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// Writes, durably if `fua`.
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        self.request(1, u16::from(fua), offset, data.len() as u32, data)
    }

    /// Discards.
    pub fn discard(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.request(4, 0, offset, len, &[])
    }

    /// All of the export, as a stream of its bytes.
    pub fn content(&mut self) -> impl Read {
        BufReader::with_capacity(1 << 20, Content { client: self, at: 0 })
    }

    /// Flushes.
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(3, 0, 0, 0, &[])
    }
}

struct Content<'a> {
    client: &'a mut Client,
    at: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // Whole sectors, so that the last read may be short of what the reader asked for.
        let len = (buf.len() as u64 / 512 * 512).min(self.client.bytes - self.at).min(1 << 20);
        if len > 0 {
            let data = self.client.read(self.at, len as u32)?;
            buf[..data.len()].copy_from_slice(&data);
        }
        self.at += len;
        Ok(len as usize)
    }
}

/// How real clients name a server at a socket.
pub fn uri(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", socket.display())
}

/// A running `bcache serve`; killed when dropped.
pub struct Served {
    child: Child,
    socket: PathBuf,
    /// Name, UUID and size in bytes of each export, in the server's order.
    pub exports: Vec<(String, String, u64)>,
}

impl Served {
    /// Starts serving `devices` at a socket in `dir`, and waits until it takes clients.
    pub fn start<A: AsRef<OsStr>>(dir: &Path, options: &[&str], devices: &[A]) -> Result<Served> {
        let socket = dir.join("socket");
        let mut command = Command::new(paths::program("bcache")?);
        command.arg("serve").arg("--nbd").arg(&socket).args(options).args(devices);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("its output")?;
        let mut exports = Vec::new();
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            if line.starts_with("serving at ") {
                return Ok(Served { child, socket, exports });
            }
            let words: Vec<&str> = line.split(' ').collect();
            if let ["export", name, "uuid", uuid, "bytes", bytes] = words[..] {
                exports.push((name.to_owned(), uuid.to_owned(), bytes.parse()?));
            }
        }
        let mut said = String::new();
        child.stderr.take().context("its errors")?.read_to_string(&mut said)?;
        bail!("{}: {}", child.wait()?, said.trim())
    }

    /// Where real clients find it.
    pub fn uri(&self) -> String {
        uri(&self.socket)
    }

    /// A connection to the export called `name`.
    pub fn client(&self, name: &str) -> io::Result<Client> {
        Client::connect(&self.socket, name)
    }

    /// Asks it to stop, and waits; how it ended, and how long that took.
    pub fn stop(mut self) -> Result<(ExitStatus, Duration)> {
        let start = Instant::now();
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM)?;
        Ok((self.child.wait()?, start.elapsed()))
    }

    /// Kills it, as `kill -9` does.
    pub fn kill(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
