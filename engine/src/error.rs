//! What the engine cannot do, and where.

use crate::dev::DevError;
use std::rc::Rc;

/// A failure of the engine.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A device failed.
    #[error(transparent)]
    Dev(#[from] DevError),
    /// Metadata that cannot be trusted. The set takes no more writes; every dirty byte stays where it is.
    #[error("{device}: {what}; nothing is written any more, check the set with bcache fsck")]
    Untrusted {
        /// The device.
        device: Rc<str>,
        /// Which check failed, and where.
        what: Rc<str>,
    },
    /// The set stopped writing after an earlier failure.
    #[error("the cache set stopped after a failure: {0}")]
    Failed(Rc<str>),
    /// The set is being stopped.
    #[error("the cache set is stopping")]
    Stopping,
    /// The cache is full of what must stay, and nothing frees any of it.
    #[error("no space left in the cache: {0}")]
    NoSpace(&'static str),
    /// What was asked for cannot be done, and nothing was changed.
    #[error("{0}")]
    Refused(Rc<str>),
    /// Data that only the cache had cannot be read.
    #[error("dirty sectors {start}..{end} cannot be read from the cache: {source}")]
    DirtyLost {
        /// First sector of the cached device.
        start: u64,
        /// Sector after the last.
        end: u64,
        /// Why.
        source: DevError,
    },
}

/// The engine's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A request that is refused, with the reason.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused(reason.into().into())
    }
    /// The operating system's number for it, positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Dev(error) => error.errno,
            Self::Refused(_) => libc::EINVAL,
            Self::Stopping => libc::ESHUTDOWN,
            Self::NoSpace(_) => libc::ENOSPC,
            _ => libc::EIO,
        }
    }
}

impl From<Error> for crate::volume::VolumeError {
    fn from(error: Error) -> Self {
        Self::new(error.errno(), error.to_string())
    }
}
