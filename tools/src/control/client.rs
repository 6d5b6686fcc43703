//! Asking a set's engine.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use uuid::Uuid;

use super::{Reply, Request, paths};

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
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes()).context("the engine does not listen")?;
        let mut answer = String::new();
        self.reader.read_line(&mut answer).context("the engine does not answer")?;
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
