//! The uuid table: backing devices and flash-only volumes of a set. A slot's number is the inode in keys.
//!
//! No magic and no checksum. Only all-zero slots are reused, so zeroing a slot would hand its old keys to the next
//! device; detaching overwrites the UUID with [`DETACHED_UUID`] instead.
//!
//! ```text
//! 0x00 uuid[16]  0x10 label[32]  0x30 first_reg u32  0x34 last_reg u32  0x38 invalidated u32
//! version 1 goes on: 0x3c flags u32 (bit 0: flash-only volume)  0x40 sectors u64, up to 0x80 unused
//! version 0 ends at 0x40
//! ```

use crate::error::{Error, Problem, Structure};
use crate::label::Label;
use crate::units::Sectors;
use uuid::Uuid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// Bytes of an entry of version 1.
pub const ENTRY_BYTES: usize = 128;
/// Bytes of an entry of version 0.
pub const ENTRY_BYTES_V0: usize = 64;
/// What a detached device's UUID is overwritten with.
pub const DETACHED_UUID: Uuid = Uuid::from_u128(0xa03e_f8ed_3ee1_b878_c850_fc5e_cb16_cd99);

const FLAG_FLASH_ONLY: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntryV0 {
    uuid: [u8; 16],
    label: [u8; 32],
    first_reg: le::U32,
    last_reg: le::U32,
    invalidated: le::U32,
    flags: le::U32,
}
const _: () = assert!(size_of::<RawEntryV0>() == ENTRY_BYTES_V0);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    v0: RawEntryV0,
    sectors: le::U64,
    pad: [u8; 56],
}
const _: () = assert!(size_of::<RawEntry>() == ENTRY_BYTES);

/// What the set knows of one backing device or flash-only volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UuidEntry {
    /// UUID of the backing superblock, or of the volume; zero for a slot never used.
    pub uuid: Uuid,
    /// Label, with junk behind the first NUL.
    pub label: Label,
    /// Seconds since 1970 of the first registration.
    pub first_reg: u32,
    /// Seconds since 1970 of the last registration.
    pub last_reg: u32,
    /// Seconds since 1970 of the detaching; 0 while in use.
    pub invalidated: u32,
    /// Flag bits.
    pub flags: u32,
    /// Size of a flash-only volume.
    pub sectors: Sectors,
    /// Bytes nobody uses, kept as they are.
    pub pad: [u8; 56],
}

impl UuidEntry {
    /// A slot that was never used.
    pub const EMPTY: Self = Self {
        uuid: Uuid::nil(),
        label: Label([0; 32]),
        first_reg: 0,
        last_reg: 0,
        invalidated: 0,
        flags: 0,
        sectors: Sectors(0),
        pad: [0; 56],
    };
    /// Whether the slot may be taken.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.uuid.is_nil()
    }
    /// Whether the slot belonged to a device that was detached, or to a volume that was destroyed.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.uuid == DETACHED_UUID
    }
    /// Whether the slot is a flash-only volume.
    #[must_use]
    pub const fn is_flash_only(&self) -> bool {
        self.flags & FLAG_FLASH_ONLY != 0
    }
    /// Makes the slot a flash-only volume, or not.
    pub const fn set_flash_only(&mut self, yes: bool) {
        self.flags = if yes { self.flags | FLAG_FLASH_ONLY } else { self.flags & !FLAG_FLASH_ONLY };
    }
}

impl From<RawEntry> for UuidEntry {
    fn from(raw: RawEntry) -> Self {
        Self {
            uuid: Uuid::from_bytes(raw.v0.uuid),
            label: Label(raw.v0.label),
            first_reg: raw.v0.first_reg.get(),
            last_reg: raw.v0.last_reg.get(),
            invalidated: raw.v0.invalidated.get(),
            flags: raw.v0.flags.get(),
            sectors: Sectors(raw.sectors.get()),
            pad: raw.pad,
        }
    }
}

/// The table that `bytes` hold ([`crate::Geometry::meta_bucket_bytes`]), of a journal entry of `version`.
///
/// # Errors
/// Fewer than `count` entries.
pub fn parse_table(bytes: &[u8], version: u32, count: usize) -> Result<Vec<UuidEntry>, Error> {
    let size = if version == crate::jset::VERSION_UUID_V0 { ENTRY_BYTES_V0 } else { ENTRY_BYTES };
    let need = size.saturating_mul(count);
    let Some(bytes) = bytes.get(..need) else {
        let problem = Problem::Truncated { need: need as u64, have: bytes.len() as u64 };
        return Err(Error::new(Structure::UuidTable, 0, problem));
    };
    if size == ENTRY_BYTES {
        let entries = bytes.as_chunks::<ENTRY_BYTES>().0.iter();
        return Ok(entries
            .map(|chunk| zerocopy::transmute!(*chunk))
            .map(|raw: RawEntry| raw.into())
            .collect());
    }
    let widen = |chunk: &[u8; ENTRY_BYTES_V0]| {
        let mut v0: RawEntryV0 = zerocopy::transmute!(*chunk);
        v0.flags = 0.into();
        RawEntry { v0, sectors: 0.into(), pad: [0; 56] }.into()
    };
    Ok(bytes.as_chunks::<ENTRY_BYTES_V0>().0.iter().map(widen).collect())
}

/// The table's bytes in version 1, `bytes` long.
#[must_use]
pub fn write_table(entries: &[UuidEntry], bytes: u64) -> Vec<u8> {
    let size = usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut out = Vec::with_capacity(size);
    for entry in entries.iter().take(size / ENTRY_BYTES) {
        let v0 = RawEntryV0 {
            uuid: entry.uuid.into_bytes(),
            label: entry.label.0,
            first_reg: entry.first_reg.into(),
            last_reg: entry.last_reg.into(),
            invalidated: entry.invalidated.into(),
            flags: entry.flags.into(),
        };
        let raw = RawEntry { v0, sectors: entry.sectors.0.into(), pad: entry.pad };
        out.extend_from_slice(raw.as_bytes());
    }
    out.resize(size, 0);
    out
}
