//! How programs and a set's engine process speak to each other: JSON, one object a line, over a Unix socket that only
//! root can reach.

pub mod client;
pub mod paths;
pub mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::config::Config;

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
    /// Change a setting, at once.
    Set {
        /// The device it is about, by name, label or UUID; without one all devices, if it is a setting of devices.
        device: Option<String>,
        /// `NAME=VALUE`.
        assignment: String,
    },
    /// Attach a backing device that is attached to nothing, which may be in use. Answered when it is done.
    Attach {
        /// Its path.
        device: PathBuf,
    },
    /// Write everything dirty of a device back and let it run without cache. Answered when it is done; the path of the
    /// backing device.
    Detach {
        /// Name, label, UUID or path.
        device: String,
    },
    /// Detach all devices, then stop.
    Unregister {
        /// Even if dirty data of devices that are not there stays in the cache.
        #[serde(default)]
        lose_dirty_data: bool,
    },
    /// Give up what the cache has of a backing device that is not there.
    Forget {
        /// Its UUID.
        device: Uuid,
        /// Even if that is dirty.
        #[serde(default)]
        lose_dirty_data: bool,
    },
    /// Make a flash-only volume; its name below `/dev/mapper`.
    VolumeCreate {
        /// Size in bytes.
        bytes: u64,
        /// Label; may be empty.
        label: String,
    },
    /// Let a device be as long as its backing device is now; its length in bytes.
    Resize {
        /// Name, label or UUID.
        device: String,
    },
    /// Remove a flash-only volume and everything in it.
    VolumeRemove {
        /// Name, label or UUID.
        device: String,
    },
    /// Take what the configuration file says from now on, and apply it.
    Configure {
        /// What it says.
        config: Config,
    },
    /// Stop the set: devices vanish, everything is durable, the process ends.
    Stop,
    /// Stop the process so that another one can take the devices over; requests wait meanwhile.
    HandOver,
    /// As [`HandOver`](Self::HandOver), for a process of systemd's, which starts the next one by itself.
    Restart,
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
