//! Asking a set's engine.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Reply, Request, paths};

/// How long an engine that works takes at most for what it does at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same where it ends, and waits for disks.
const PATIENCE_FOR_END: Duration = Duration::from_secs(60);
/// Longest answer.
const ANSWER: u64 = 64 << 20;

/// How long an answer is waited for. What writes data back takes as long as it takes: then the engine is asked that often
/// whether it still answers anybody.
fn patience(request: &Request) -> Duration {
    match request {
        Request::HandOver | Request::Restart => PATIENCE_FOR_END,
        _ => PATIENCE,
    }
}

fn takes_long(request: &Request) -> bool {
    let at_once = [Request::Status, Request::HandOver, Request::Restart];
    !at_once.contains(request) && !matches!(request, Request::Register { .. })
}

/// What an engine answers that does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// A connection to an engine.
pub struct Client {
    set: Uuid,
    reader: BufReader<UnixStream>,
}

/// Connects without waiting: whoever listens and takes nothing has a queue that is full at some time.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

impl Client {
    /// Connects to the engine of `set`; none if there is none.
    ///
    /// # Errors
    /// There is one, but not for us.
    pub fn connect(set: Uuid) -> Result<Option<Client>> {
        let path = paths::socket(set);
        match connect(&path) {
            Ok(stream) => Ok(Some(Client { set, reader: BufReader::new(stream) })),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!("the engine of set {set} does not answer")
            }
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The engine refuses ([`Refused`]), or ends before it answers.
    pub fn ask(&mut self, request: &Request) -> Result<Value> {
        let stream = self.reader.get_mut();
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(patience(request)))?;
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes()).context("the engine does not listen")?;
        let mut answer = Vec::new();
        loop {
            // Nothing of ours is that long; whoever else listens there is not read without end.
            let left = ANSWER.saturating_sub(answer.len() as u64);
            match (&mut self.reader).take(left).read_until(b'\n', &mut answer) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && takes_long(request) => {
                    self.is_alive()?;
                }
                Err(error) => return Err(error).context("the engine does not answer"),
            }
        }
        if answer.is_empty() {
            bail!("the engine ended before it answered; its log says why");
        }
        match serde_json::from_slice(&answer).context("the engine's answer")? {
            Reply::Ok(value) => Ok(value),
            Reply::Error(error) => Err(Refused(error).into()),
        }
    }

    /// Whether the engine answers somebody else meanwhile. One that has ended is seen on the connection.
    fn is_alive(&self) -> Result<()> {
        if let Some(mut other) = Client::connect(self.set)? {
            other.ask(&Request::Status)?;
        }
        Ok(())
    }

    /// Waits until the engine has ended the connection, which it does at its end.
    pub fn wait_for_end(mut self) {
        let mut rest = Vec::new();
        // A limit on reading that was set for the answer counts for this, too.
        while matches!((&mut self.reader).take(ANSWER).read_until(b'\n', &mut rest), Ok(1..)) {
            rest.clear();
        }
    }
}

/// What a set's engine says of itself; null where there is none, or none that answers.
///
/// # Errors
/// There is one, but not for us.
pub fn status(set: Uuid) -> Result<Value> {
    let answer = Client::connect(set)?.map(|mut engine| engine.ask(&Request::Status));
    Ok(answer.and_then(Result::ok).unwrap_or_default())
}

/// What every engine says of itself; of one that does not answer, that it does not.
///
/// # Errors
/// The directory of sockets cannot be read.
pub fn statuses() -> Result<Vec<(Uuid, Value)>> {
    let mut all = Vec::new();
    for set in super::paths::sets()? {
        let asked = match Client::connect(set) {
            Ok(None) => continue,
            Ok(Some(mut client)) => client.ask(&Request::Status),
            Err(error) => Err(error),
        };
        let status = asked.unwrap_or_else(|error| {
            let why = format!("{error:#}");
            json!({"set": set, "engine": "user", "state": "does not answer", "failure": why})
        });
        all.push((set, status));
    }
    Ok(all)
}

/// Whether what an engine says of a device fits what somebody calls it: name, path, label, UUID or backing device.
#[must_use]
pub fn is_called(device: &Value, wanted: &str) -> bool {
    let resolved = std::fs::canonicalize(wanted).ok();
    ["name", "path", "label", "uuid", "backing"].iter().any(|field| {
        let value = device.get(field).and_then(Value::as_str).filter(|value| !value.is_empty());
        value.is_some_and(|value| {
            value == wanted || resolved.as_deref().is_some_and(|path| path == std::path::Path::new(value))
        })
    })
}

/// The set whose engine serves a device, with what it says of the device.
///
/// # Errors
/// None does, or several do.
pub fn find_device(wanted: &str) -> Result<(Uuid, Value)> {
    let mut found = Vec::new();
    for (set, status) in statuses()? {
        let devices = status.get("devices").and_then(Value::as_array).cloned().unwrap_or_default();
        found.extend(
            devices.into_iter().filter(|device| is_called(device, wanted)).map(|device| (set, device)),
        );
    }
    match found.len() {
        1 => found.pop().context("it was there"),
        0 if is_alone(wanted) => bail!("{wanted}: has no cache, so there is nothing to change"),
        0 => bail!("{wanted}: no running set has a device with this name; bcache status lists them"),
        _ => bail!("{wanted}: several devices are called so; name one by its UUID"),
    }
}

/// Whether a device that runs without cache is called so.
fn is_alone(wanted: &str) -> bool {
    let name = wanted.strip_prefix("/dev/mapper/").unwrap_or(wanted);
    let called =
        |(device, uuid): &(crate::dm::Device, Uuid)| device.name == name || uuid.to_string() == wanted;
    crate::expose::alone().is_ok_and(|alone| alone.iter().any(called))
}

/// The set that was named, or the only one that is served.
///
/// # Errors
/// None is served, or several and none was named.
pub fn one_set(named: Option<Uuid>) -> Result<Uuid> {
    if let Some(set) = named {
        return Ok(set);
    }
    let sets: Vec<Uuid> = statuses()?.into_iter().map(|(set, _)| set).collect();
    match sets[..] {
        [] => bail!("no set is served"),
        [set] => Ok(set),
        [..] => bail!("several sets are served: name one (bcache status lists them)"),
    }
}

/// Asks the engine of `set`.
///
/// # Errors
/// There is none, or it refuses.
pub fn ask(set: Uuid, request: &Request) -> Result<Value> {
    let Some(mut client) = Client::connect(set)? else { bail!("no engine serves set {set}") };
    client.ask(request)
}
