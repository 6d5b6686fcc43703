//! Journal entries.
//!
//! ```text
//! 0x00 csum u64          over 0x08 .. end of the keys
//! 0x08 magic u64         SetMagic::jset
//! 0x10 seq u64           one more than the entry before
//! 0x18 version u32       0: uuid entries of 64 bytes, 1: of 128
//! 0x1c keys u32          words of keys
//! 0x20 last_seq u64      oldest entry with keys that no btree node on disk holds yet
//! 0x28 uuid_bucket       key, padded to 64 bytes
//! 0x68 btree_root        key, padded to 64 bytes
//! 0xa8 btree_level u16, 6 bytes unused
//! 0xb0 prio_bucket[8] u64, one a cache device
//! 0xf0 keys ...
//! ```
//!
//! Entries are padded to the block and stand one after the other in a journal bucket; none crosses its end.

use crate::bkey::Bkey;
use crate::bset::Keys;
use crate::csum::{SEED_ONES, crc64};
use crate::error::{Error, Problem, Structure, field};
use crate::magic::SetMagic;
use crate::units::BucketNr;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// Bytes before the keys.
pub const HEADER_BYTES: usize = 0xf0;
/// Largest journal entry, in bytes (`PAGE_SIZE << JSET_BITS`).
pub const JSET_MAX_BYTES: u64 = crate::units::PAGE_BYTES << 3;
/// Uuid entries have 64 bytes.
pub const VERSION_UUID_V0: u32 = 0;
/// Uuid entries have 128 bytes; what is written today.
pub const VERSION: u32 = 1;
/// Bytes a key in the header is padded to.
const PADDED_KEY: usize = 64;

/// The header as it stands on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct JsetHeader {
    /// Checksum.
    pub csum: le::U64,
    /// Magic of the set.
    pub magic: le::U64,
    /// Number of the entry.
    pub seq: le::U64,
    /// Version.
    pub version: le::U32,
    /// Words of keys that follow.
    pub keys: le::U32,
    /// Oldest entry that is still needed.
    pub last_seq: le::U64,
    /// Key of the uuid table.
    pub uuid_bucket: [u8; PADDED_KEY],
    /// Key of the btree's root.
    pub btree_root: [u8; PADDED_KEY],
    /// Level of the root.
    pub btree_level: le::U16,
    /// Unused.
    pub pad: [u8; 6],
    /// First prio bucket of each device.
    pub prio_bucket: [le::U64; 8],
}
const _: () = assert!(size_of::<JsetHeader>() == HEADER_BYTES);

impl JsetHeader {
    /// The header at the start of `bytes`, unchecked.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(header, _)| header)
    }
    /// Bytes of header and keys.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        HEADER_BYTES as u64 + self.keys.get() as u64 * 8
    }
}

/// A journal entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jset {
    /// Number of the entry.
    pub seq: u64,
    /// Oldest entry that must be replayed when this one is the newest.
    pub last_seq: u64,
    /// Version.
    pub version: u32,
    /// Where the uuid table is.
    pub uuid_bucket: Bkey,
    /// Where the btree's root is.
    pub btree_root: Bkey,
    /// Level of the root; leaves are 0.
    pub btree_level: u16,
    /// First prio bucket of each device of the set.
    pub prio_bucket: [BucketNr; 8],
    /// Extents inserted.
    pub keys: Vec<Bkey>,
}

impl Jset {
    /// The entry at the start of `bytes`: what is left of its journal bucket.
    ///
    /// # Errors
    /// What is wrong with it, in the kernel's order (`journal_read_bucket`): magic, size, checksum; then keys that do
    /// not fit. A version other than 0 and 1 is taken like the kernel takes it.
    pub fn parse(bytes: &[u8], magic: SetMagic) -> Result<Self, Error> {
        let header = JsetHeader::read(bytes).ok_or_else(|| truncated(HEADER_BYTES as u64, bytes))?;
        if header.magic.get() != magic.jset() {
            let problem = Problem::Magic { found: header.magic.get(), expected: magic.jset() };
            return Err(Error::new(Structure::Jset, 8, problem));
        }
        if header.bytes() > JSET_MAX_BYTES {
            let keys = header.keys.get().into();
            return Err(field(Structure::Jset, 0x1c, "keys", keys, "an entry has at most 32 KiB"));
        }
        let size = usize::try_from(header.bytes()).unwrap_or(usize::MAX);
        let Some(whole) = bytes.get(..size) else { return Err(truncated(header.bytes(), bytes)) };
        let expected = crc64(SEED_ONES, whole.get(8..).unwrap_or_default());
        if header.csum.get() != expected {
            let problem = Problem::Checksum { found: header.csum.get(), expected };
            return Err(Error::new(Structure::Jset, 0, problem));
        }
        let keys = Keys::new(whole.get(HEADER_BYTES..).unwrap_or_default(), 0xf0, Structure::Jset);
        Ok(Self {
            seq: header.seq.get(),
            last_seq: header.last_seq.get(),
            version: header.version.get(),
            uuid_bucket: padded_key(&header.uuid_bucket, 0x28)?,
            btree_root: padded_key(&header.btree_root, 0x68)?,
            btree_level: header.btree_level.get(),
            prio_bucket: header.prio_bucket.map(|bucket| BucketNr(bucket.get())),
            keys: keys.collect::<Result<_, _>>()?,
        })
    }
    /// Bytes of the entry with `words` words of keys, padded to the block.
    #[must_use]
    pub const fn padded_bytes(words: usize, block_bytes: u64) -> u64 {
        (HEADER_BYTES as u64 + words as u64 * 8).next_multiple_of(block_bytes)
    }
    /// The entry's bytes, checksum included, padded with zeros to the block.
    ///
    /// # Errors
    /// More keys than an entry can have.
    pub fn write(&self, magic: SetMagic, block_bytes: u64) -> Result<Vec<u8>, Error> {
        let words: usize = self.keys.iter().map(Bkey::u64s).sum();
        let rule = "an entry has at most 32 KiB";
        let too_many = || field(Structure::Jset, 0x1c, "keys", words as u64, rule);
        if Self::padded_bytes(words, 1) > JSET_MAX_BYTES {
            return Err(too_many());
        }
        let header = JsetHeader {
            csum: 0.into(),
            magic: magic.jset().into(),
            seq: self.seq.into(),
            version: self.version.into(),
            keys: u32::try_from(words).map_err(|_| too_many())?.into(),
            last_seq: self.last_seq.into(),
            uuid_bucket: pad_key(&self.uuid_bucket),
            btree_root: pad_key(&self.btree_root),
            btree_level: self.btree_level.into(),
            pad: [0; 6],
            prio_bucket: self.prio_bucket.map(|bucket| bucket.0.into()),
        };
        let mut out = Vec::with_capacity(HEADER_BYTES + words * 8);
        out.extend_from_slice(header.as_bytes());
        for key in &self.keys {
            key.write_to(&mut out);
        }
        seal(&mut out);
        let padded = out.len().next_multiple_of(usize::try_from(block_bytes).unwrap_or(1).max(1));
        out.resize(padded, 0);
        Ok(out)
    }
}

/// Puts the right checksum into `bytes`, which start with a journal entry; padding may follow.
pub fn seal(bytes: &mut [u8]) {
    let Some(header) = JsetHeader::read(bytes) else { return };
    let end = usize::try_from(header.bytes()).unwrap_or(usize::MAX);
    let Some(covered) = bytes.get(8..end) else { return };
    let csum = crc64(SEED_ONES, covered);
    if let Some(slot) = bytes.first_chunk_mut::<8>() {
        *slot = csum.to_le_bytes();
    }
}

fn padded_key(bytes: &[u8; PADDED_KEY], byte: u64) -> Result<Bkey, Error> {
    Bkey::from_bytes(bytes)
        .ok_or_else(|| field(Structure::Jset, byte, "pointers", 7, "a key has at most six pointers"))
}

fn pad_key(key: &Bkey) -> [u8; PADDED_KEY] {
    let mut out = [0; PADDED_KEY];
    for (slot, word) in out.as_chunks_mut::<8>().0.iter_mut().zip(key.words()) {
        *slot = word.to_le_bytes();
    }
    out
}

const fn truncated(need: u64, bytes: &[u8]) -> Error {
    Error::new(Structure::Jset, 0, Problem::Truncated { need, have: bytes.len() as u64 })
}
