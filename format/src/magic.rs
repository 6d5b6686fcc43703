//! Magic numbers. Those of journal entries, prio sets and bsets are xored with the first eight bytes of the set's
//! UUID, so that a structure of another set is never taken for one of this.

use uuid::Uuid;

/// At byte 24 of every superblock.
pub const SUPERBLOCK: [u8; 16] =
    [0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];

const JSET: u64 = 0x2452_35c1_a362_5032;
const PRIO_SET: u64 = 0x6750_e15f_8733_7f91;
const BSET: u64 = 0x9013_5c78_b99e_07f5;

/// The magic numbers of one cache set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetMagic(u64);

impl SetMagic {
    /// Of the set with this UUID.
    #[must_use]
    pub fn of(set_uuid: &Uuid) -> Self {
        // The first eight bytes, read as a little-endian number.
        Self(set_uuid.as_u64_pair().0.swap_bytes())
    }
    /// Of the set whose journal entries have this magic number.
    #[must_use]
    pub const fn of_jset(magic: u64) -> Self {
        Self(magic ^ JSET)
    }
    /// Of the set whose prio sets have this magic number.
    #[must_use]
    pub const fn of_prio_set(magic: u64) -> Self {
        Self(magic ^ PRIO_SET)
    }
    /// The first half of the set's UUID, which is all that the numbers say of it.
    #[must_use]
    pub const fn uuid_start(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }
    /// Of journal entries.
    #[must_use]
    pub const fn jset(self) -> u64 {
        self.0 ^ JSET
    }
    /// Of prio sets.
    #[must_use]
    pub const fn prio_set(self) -> u64 {
        self.0 ^ PRIO_SET
    }
    /// Of bsets.
    #[must_use]
    pub const fn bset(self) -> u64 {
        self.0 ^ BSET
    }
}
