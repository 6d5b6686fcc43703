//! How programs and a set's engine process speak to each other: JSON, one object a line, over a Unix socket that only
//! root can reach.

pub mod client;
pub mod paths;
pub mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What an engine is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Request {
    /// Take a device, whose superblock names this set. Answered before the work is done.
    Register {
        /// Its path.
        device: PathBuf,
    },
    /// Tell everything.
    Status,
    /// Stop the set: devices vanish, everything is durable, the process ends.
    Stop,
    /// Stop the process so that another one can take the devices over; requests wait meanwhile.
    HandOver,
}

/// What an engine answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done, or accepted.
    Ok(Value),
    /// Refused or failed, with the reason.
    Error(String),
}
