//! Prio sets: priority and generation of every bucket, a chain of buckets.
//!
//! ```text
//! 0x00 csum u64         over 0x08 .. the end of the metadata part of the bucket
//! 0x08 magic u64        SetMagic::prio_set
//! 0x10 seq u64
//! 0x18 version u32, 4 bytes unused
//! 0x20 next_bucket u64  the last one's points into the previous chain: count, do not follow to an end
//! 0x28 entries of 3 bytes: prio u16, gen u8
//! ```

use crate::csum::{SEED_ONES, crc64};
use crate::error::{Error, Problem, Structure};
use crate::magic::SetMagic;
use crate::units::BucketNr;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// Bytes before the entries.
pub const HEADER_BYTES: usize = 0x28;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 3;
/// Largest age of a pointer: GC runs before generations can go further (`BUCKET_GC_GEN_MAX`). With one above it
/// generations cannot be compared any more, and the kernel stops the set.
pub const GC_GEN_MAX: u8 = 96;
/// Priority of buckets that hold btree nodes.
pub const BTREE_PRIO: u16 = u16::MAX;
/// Priority of data buckets when they are filled.
pub const INITIAL_PRIO: u16 = 32768;

/// The header as it stands on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PrioHeader {
    /// Checksum.
    pub csum: le::U64,
    /// Magic of the set.
    pub magic: le::U64,
    /// Counts the writes of all prio sets.
    pub seq: le::U64,
    /// Version, always 0.
    pub version: le::U32,
    /// Unused.
    pub pad: le::U32,
    /// Bucket of the next prio set.
    pub next_bucket: le::U64,
}
const _: () = assert!(size_of::<PrioHeader>() == HEADER_BYTES);

impl PrioHeader {
    /// The header at the start of `bytes`, unchecked.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(header, _)| header)
    }
}

/// What is kept of a bucket.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct BucketDisk {
    /// Priority for replacement; higher stays longer.
    pub prio: le::U16,
    /// Generation: pointers with an older one are stale.
    pub generation: u8,
}
const _: () = assert!(size_of::<BucketDisk>() == ENTRY_BYTES);

/// One prio set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrioSet {
    /// Counts the writes.
    pub seq: u64,
    /// Version.
    pub version: u32,
    /// Bucket of the next prio set.
    pub next_bucket: BucketNr,
    /// An entry a bucket; as many as fit, also behind the last bucket of the device.
    pub entries: Vec<BucketDisk>,
}

impl PrioSet {
    /// The prio set that fills `bytes` ([`crate::Geometry::meta_bucket_bytes`]).
    ///
    /// # Errors
    /// Too few bytes, then checksum or magic (`prio_read` reports both as one).
    pub fn parse(bytes: &[u8], magic: SetMagic) -> Result<Self, Error> {
        let Ok((header, rest)) = PrioHeader::read_from_prefix(bytes) else {
            let problem = Problem::Truncated { need: HEADER_BYTES as u64, have: bytes.len() as u64 };
            return Err(Error::new(Structure::PrioSet, 0, problem));
        };
        if header.magic.get() != magic.prio_set() {
            let problem = Problem::Magic { found: header.magic.get(), expected: magic.prio_set() };
            return Err(Error::new(Structure::PrioSet, 8, problem));
        }
        let expected = crc64(SEED_ONES, bytes.get(8..).unwrap_or_default());
        if header.csum.get() != expected {
            let problem = Problem::Checksum { found: header.csum.get(), expected };
            return Err(Error::new(Structure::PrioSet, 0, problem));
        }
        let entries =
            rest.as_chunks::<ENTRY_BYTES>().0.iter().map(|bytes| zerocopy::transmute!(*bytes)).collect();
        Ok(Self {
            seq: header.seq.get(),
            version: header.version.get(),
            next_bucket: BucketNr(header.next_bucket.get()),
            entries,
        })
    }
    /// The bytes of the prio set, `bytes` long, checksum included. Entries that do not fit are left out.
    #[must_use]
    pub fn write(&self, magic: SetMagic, bytes: u64) -> Vec<u8> {
        let size = usize::try_from(bytes).unwrap_or(usize::MAX).max(HEADER_BYTES);
        let header = PrioHeader {
            csum: 0.into(),
            magic: magic.prio_set().into(),
            seq: self.seq.into(),
            version: self.version.into(),
            pad: 0.into(),
            next_bucket: self.next_bucket.0.into(),
        };
        let mut out = Vec::with_capacity(size);
        out.extend_from_slice(header.as_bytes());
        let fit = (size - HEADER_BYTES) / ENTRY_BYTES;
        for entry in self.entries.iter().take(fit) {
            out.extend_from_slice(entry.as_bytes());
        }
        out.resize(size, 0);
        seal(&mut out);
        out
    }
}

/// Puts the right checksum into `bytes`, a whole prio set.
pub fn seal(bytes: &mut [u8]) {
    let csum = crc64(SEED_ONES, bytes.get(8..).unwrap_or_default());
    if let Some(slot) = bytes.first_chunk_mut::<8>() {
        *slot = csum.to_le_bytes();
    }
}
