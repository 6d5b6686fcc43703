//! Asking a set's engine.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Reply, Request, paths};

/// How long an engine that works takes at most for what it does at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same where it ends, and waits for disks.
const PATIENCE_FOR_END: Duration = Duration::from_secs(60);
/// Longest answer.
const ANSWER: u64 = 64 << 20;

/// How long an answer is waited for; what writes data back takes as long as it takes.
fn patience(request: &Request) -> Option<Duration> {
    match request {
        Request::Status | Request::Register { .. } => Some(PATIENCE),
        Request::HandOver | Request::Restart => Some(PATIENCE_FOR_END),
        _ => None,
    }
}

/// A connection to an engine.
pub struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the engine of `set`; none if there is none.
    ///
    /// # Errors
    /// There is one, but not for us.
    pub fn connect(set: Uuid) -> Result<Option<Client>> {
        let path = paths::socket(set);
        match UnixStream::connect(&path) {
            Ok(stream) => Ok(Some(Client { reader: BufReader::new(stream) })),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The engine refuses, or ends before it answers.
    pub fn ask(&mut self, request: &Request) -> Result<Value> {
        let stream = self.reader.get_mut();
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(patience(request))?;
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes()).context("the engine does not listen")?;
        let mut answer = String::new();
        // Nothing of ours is that long; whoever else listens there is not read without end.
        (&mut self.reader).take(ANSWER).read_line(&mut answer).context("the engine does not answer")?;
        if answer.is_empty() {
            bail!("the engine ended before it answered; its log says why");
        }
        match serde_json::from_str(&answer).context("the engine's answer")? {
            Reply::Ok(value) => Ok(value),
            Reply::Error(error) => bail!("{error}"),
        }
    }

    /// Waits until the engine has ended the connection, which it does at its end.
    pub fn wait_for_end(mut self) {
        let mut rest = String::new();
        while matches!(self.reader.read_line(&mut rest), Ok(1..)) {
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
        let Some(mut client) = Client::connect(set)? else { continue };
        let status = client.ask(&Request::Status).unwrap_or_else(|error| {
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
        0 => bail!("{wanted}: no set that is served has such a device (bcache status lists them)"),
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
