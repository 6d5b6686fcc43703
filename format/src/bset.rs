//! A bset: sorted keys under one checksum. A btree node on disk is a log of them.
//!
//! ```text
//! 0x00 csum u64   over 0x08 .. end of the keys, seeded (see csum.rs)
//! 0x08 magic u64  SetMagic::bset
//! 0x10 seq u64    names the life of the node; never 0
//! 0x18 version u32
//! 0x1c keys u32   words of keys, not their number
//! 0x20 keys ...
//! ```

use crate::bkey::{Bkey, Ptr};
use crate::csum::{SEED_ONES, crc64};
use crate::error::{Error, Problem, Structure, field};
use crate::magic::SetMagic;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// Bytes before the keys.
pub const HEADER_BYTES: usize = 32;
/// The checksum is not seeded.
pub const VERSION_UNSEEDED: u32 = 0;
/// The checksum is seeded with the node's pointer; what is written today (`BCACHE_BSET_VERSION`).
pub const VERSION: u32 = 1;

/// The header as it stands on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BsetHeader {
    /// Checksum.
    pub csum: le::U64,
    /// Magic of the set.
    pub magic: le::U64,
    /// Life of the node.
    pub seq: le::U64,
    /// Version of the format.
    pub version: le::U32,
    /// Words of keys that follow.
    pub keys: le::U32,
}
const _: () = assert!(size_of::<BsetHeader>() == HEADER_BYTES);

impl BsetHeader {
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

/// A bset that passed its checks: version, size, magic and checksum. The keys inside are not checked by that.
#[derive(Clone, Copy, Debug)]
pub struct Bset<'a> {
    header: BsetHeader,
    keys: &'a [u8],
}

impl<'a> Bset<'a> {
    /// The bset at the start of `bytes`, of the node that `node_ptr` points at.
    ///
    /// # Errors
    /// What is wrong with it, in the kernel's order (`bch_btree_node_read_done`): version, size against `bytes`,
    /// magic, checksum.
    pub fn parse(bytes: &'a [u8], node_ptr: Ptr, magic: SetMagic) -> Result<Self, Error> {
        let header = BsetHeader::read(bytes).ok_or_else(|| truncated(HEADER_BYTES as u64, bytes))?;
        if header.version.get() > VERSION {
            return Err(Error::new(Structure::Bset, 0x18, Problem::Version(header.version.get().into())));
        }
        let size = usize::try_from(header.bytes()).unwrap_or(usize::MAX);
        let Some(whole) = bytes.get(..size) else { return Err(truncated(header.bytes(), bytes)) };
        if header.magic.get() != magic.bset() {
            let problem = Problem::Magic { found: header.magic.get(), expected: magic.bset() };
            return Err(Error::new(Structure::Bset, 8, problem));
        }
        let expected = checksum(whole, seed(header.version.get(), node_ptr));
        if header.csum.get() != expected {
            let problem = Problem::Checksum { found: header.csum.get(), expected };
            return Err(Error::new(Structure::Bset, 0, problem));
        }
        Ok(Self { header, keys: whole.get(HEADER_BYTES..).unwrap_or_default() })
    }
    /// The header.
    #[must_use]
    pub const fn header(&self) -> &BsetHeader {
        &self.header
    }
    /// Life of the node this was written for.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.header.seq.get()
    }
    /// The keys' bytes.
    #[must_use]
    pub const fn key_bytes(&self) -> &'a [u8] {
        self.keys
    }
    /// The keys in their order on disk. A key that does not fit ends the walk with an error.
    #[must_use]
    pub const fn keys(&self) -> Keys<'a> {
        Keys { rest: self.keys, byte: HEADER_BYTES as u64, structure: Structure::Bset }
    }
}

/// Keys packed one after the other.
#[derive(Clone, Debug)]
pub struct Keys<'a> {
    rest: &'a [u8],
    byte: u64,
    structure: Structure,
}

impl<'a> Keys<'a> {
    /// Keys packed in `bytes`, which start at `byte` of `structure`.
    #[must_use]
    pub const fn new(bytes: &'a [u8], byte: u64, structure: Structure) -> Self {
        Self { rest: bytes, byte, structure }
    }
    /// Where the next key starts, in bytes from the start of the structure.
    #[must_use]
    pub const fn byte(&self) -> u64 {
        self.byte
    }
}

impl Iterator for Keys<'_> {
    type Item = Result<Bkey, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some(key) = Bkey::from_bytes(self.rest) else {
            let have = self.rest.len() as u64;
            self.rest = &[];
            let need = 16.max(have + 1);
            return Some(Err(Error::new(self.structure, self.byte, Problem::Truncated { need, have })));
        };
        let size = key.u64s() * 8;
        self.rest = self.rest.get(size..).unwrap_or_default();
        self.byte += size as u64;
        Some(Ok(key))
    }
}

/// The bytes of a bset with these keys, checksum included, not padded.
///
/// # Errors
/// More words of keys than the count can hold.
pub fn write(
    keys: &[Bkey],
    seq: u64,
    version: u32,
    node_ptr: Ptr,
    magic: SetMagic,
) -> Result<Vec<u8>, Error> {
    let words: usize = keys.iter().map(Bkey::u64s).sum();
    let count = u32::try_from(words)
        .map_err(|_| field(Structure::Bset, 0x1c, "keys", words as u64, "must fit in 32 bits"))?;
    let header = BsetHeader {
        csum: 0.into(),
        magic: magic.bset().into(),
        seq: seq.into(),
        version: version.into(),
        keys: count.into(),
    };
    let mut out = Vec::with_capacity(HEADER_BYTES + words * 8);
    out.extend_from_slice(header.as_bytes());
    for key in keys {
        key.write_to(&mut out);
    }
    seal(&mut out, node_ptr);
    Ok(out)
}

/// Puts the right checksum into `bytes`, a whole bset without padding, of the node that `node_ptr` points at.
pub fn seal(bytes: &mut [u8], node_ptr: Ptr) {
    let Some(header) = BsetHeader::read(bytes) else { return };
    let csum = checksum(bytes, seed(header.version.get(), node_ptr));
    if let Some(slot) = bytes.first_chunk_mut::<8>() {
        *slot = csum.to_le_bytes();
    }
}

const fn seed(version: u32, node_ptr: Ptr) -> u64 {
    if version == VERSION_UNSEEDED { SEED_ONES } else { node_ptr.0 }
}

fn checksum(whole: &[u8], seed: u64) -> u64 {
    crc64(seed, whole.get(8..).unwrap_or_default())
}

const fn truncated(need: u64, bytes: &[u8]) -> Error {
    Error::new(Structure::Bset, 0, Problem::Truncated { need, have: bytes.len() as u64 })
}
