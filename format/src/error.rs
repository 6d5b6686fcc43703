//! What a parser says of bytes it cannot take.

use std::fmt;
use thiserror::Error as ThisError;

/// The structures of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Structure {
    /// Superblock of a cache or backing device.
    Superblock,
    /// Journal entry.
    Jset,
    /// One sorted set of keys of a btree node.
    Bset,
    /// Btree node as a whole.
    BtreeNode,
    /// A key.
    Bkey,
    /// Priorities and generations of buckets.
    PrioSet,
    /// The table of backing devices and volumes.
    UuidTable,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::Jset => "journal entry",
            Self::Bset => "bset",
            Self::BtreeNode => "btree node",
            Self::Bkey => "key",
            Self::PrioSet => "prio set",
            Self::UuidTable => "uuid table",
        })
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum Problem {
    /// The bytes end before the structure does.
    #[error("needs {need} bytes, has {have}")]
    Truncated {
        /// Bytes the structure says it has.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// Not the structure it should be, or of another cache set.
    #[error("bad magic {found:016x}, expected {expected:016x}")]
    Magic {
        /// What the bytes hold.
        found: u64,
        /// What this set's structures hold.
        expected: u64,
    },
    /// The bytes are not those that were written.
    #[error("bad checksum {found:016x}, expected {expected:016x}")]
    Checksum {
        /// What the bytes hold.
        found: u64,
        /// What it is over these bytes.
        expected: u64,
    },
    /// A version this format does not know.
    #[error("unknown version {0}")]
    Version(u64),
    /// Feature bits nobody here knows; the device may hold what we would misread.
    #[error("unknown {kind} features {bits:#x}")]
    Features {
        /// `compat`, `incompat` or `ro_compat`.
        kind: &'static str,
        /// The bits that are not known.
        bits: u64,
    },
    /// A field outside what it may hold.
    #[error("{field} is {value}: {rule}")]
    Field {
        /// The field's name in the format.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// What the format asks of it.
        rule: &'static str,
    },
}

/// Bytes that cannot be taken: which structure, at which byte of it, and why.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("{structure} at byte {byte}: {problem}")]
pub struct Error {
    /// What was being parsed.
    pub structure: Structure,
    /// Where, in bytes from the start of the bytes that were given.
    pub byte: u64,
    /// What is wrong there.
    pub problem: Problem,
}

impl Error {
    /// An error at `byte` of `structure`.
    #[must_use]
    pub const fn new(structure: Structure, byte: u64, problem: Problem) -> Self {
        Self { structure, byte, problem }
    }
    /// The same error, counted from `base` bytes earlier: from the start of the bucket or the device.
    #[must_use]
    pub fn at(mut self, base: u64) -> Self {
        self.byte = self.byte.saturating_add(base);
        self
    }
}

/// Short form for a field outside what it may hold.
pub(crate) const fn field(
    structure: Structure,
    byte: u64,
    field: &'static str,
    value: u64,
    rule: &'static str,
) -> Error {
    Error::new(structure, byte, Problem::Field { field, value, rule })
}
