//! Putting one flipped bit back.
//!
//! A CRC is linear: what a flipped bit does to it depends on where the bit is, and on nothing else. So the difference
//! between the checksum that stands there and that of what is there names the bit, and for the number of bits that a
//! structure has no other explanation is left: one in 2^40 of random differences passes for one at most.

use crate::bkey::Ptr;
use crate::bset::{self, BsetHeader};
use crate::csum::{POLYNOMIAL, SEED_ONES, crc64};
use crate::jset::JSET_MAX_BYTES;
use crate::jset::{self, JsetHeader};
use crate::magic::SetMagic;
use crate::prio::PrioSet;
use crate::superblock::{D_OFFSET, JOURNAL_BUCKETS_MAX, RawSuperblock, Superblock};

/// A structure with a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// A superblock.
    Superblock,
    /// A journal entry.
    Jset(SetMagic),
    /// A bset of the node that the pointer points at.
    Bset(SetMagic, Ptr),
    /// A prio set; it takes all the bytes.
    Prio(SetMagic),
}

/// Bits of the word that says how many keys there are, and with that how far the checksum goes.
const COUNT_AT: usize = 0x1c;

impl Sealed {
    /// Whether `bytes` begin with a sound one.
    #[must_use]
    pub fn is_sound(self, bytes: &[u8]) -> bool {
        match self {
            Self::Superblock => Superblock::parse(bytes).is_ok(),
            Self::Jset(magic) => jset::Jset::parse(bytes, magic).is_ok(),
            Self::Bset(magic, ptr) => bset::Bset::parse(bytes, ptr, magic).is_ok(),
            Self::Prio(magic) => PrioSet::parse(bytes, magic).is_ok(),
        }
    }
    /// Bytes from the start up to where the checksum ends.
    fn covered(self, bytes: &[u8]) -> Option<usize> {
        let end = match self {
            Self::Superblock => {
                let keys = usize::from(RawSuperblock::read(bytes)?.keys.get()).min(JOURNAL_BUCKETS_MAX);
                D_OFFSET + 8 * keys
            }
            Self::Jset(_) => {
                let size = JsetHeader::read(bytes)?.bytes();
                usize::try_from(size).ok().filter(|_| size <= JSET_MAX_BYTES)?
            }
            Self::Bset(..) => usize::try_from(BsetHeader::read(bytes)?.bytes()).ok()?,
            Self::Prio(_) => bytes.len(),
        };
        (end >= 8 && end <= bytes.len()).then_some(end)
    }
    fn seed(self, bytes: &[u8]) -> u64 {
        match self {
            Self::Bset(_, ptr) => {
                let version = BsetHeader::read(bytes).map_or(bset::VERSION, |header| header.version.get());
                if version == bset::VERSION_UNSEEDED { SEED_ONES } else { ptr.0 }
            }
            _ => SEED_ONES,
        }
    }
    /// Bits on which it depends what the checksum covers, and with what it begins.
    fn shape(self) -> std::ops::Range<usize> {
        match self {
            Self::Superblock => 0xce * 8..0xd0 * 8,
            Self::Jset(_) => COUNT_AT * 8..(COUNT_AT + 4) * 8,
            // Its version as well.
            Self::Bset(..) => (COUNT_AT - 4) * 8..(COUNT_AT + 4) * 8,
            Self::Prio(_) => 0..0,
        }
    }
}

/// The one bit of `bytes`, counted from the least of the first byte, that has to be flipped to make the structure at
/// their start sound. Nothing when it is sound, or when no single bit does it.
#[must_use]
pub fn flipped_bit(bytes: &[u8], sealed: Sealed) -> Option<usize> {
    if sealed.is_sound(bytes) {
        return None;
    }
    let mut copy = bytes.to_vec();
    let mut makes_sound = |bit: usize| {
        flip(&mut copy, bit)?;
        let sound = sealed.is_sound(&copy);
        flip(&mut copy, bit)?;
        sound.then_some(bit)
    };
    let inside = || {
        let whole = bytes.get(..sealed.covered(bytes)?)?;
        let (stored, body) = whole.split_first_chunk::<8>()?;
        let difference = u64::from_le_bytes(*stored) ^ crc64(sealed.seed(bytes), body);
        bit_of(difference, body.len())
    };
    inside().and_then(&mut makes_sound).or_else(|| sealed.shape().find_map(makes_sound))
}

/// Flips a bit, counted from the least of the first byte.
pub fn flip(bytes: &mut [u8], bit: usize) -> Option<()> {
    *bytes.get_mut(bit / 8)? ^= 1 << (bit % 8);
    Some(())
}

/// The bit of a structure whose checksum is off by `difference`, with a checksum over `body` bytes behind its own eight.
fn bit_of(difference: u64, body: usize) -> Option<usize> {
    if difference.is_power_of_two() {
        return Some(difference.trailing_zeros() as usize);
    }
    // What the least bit of the last byte does, then the one before it, and so on.
    let mut effect = POLYNOMIAL;
    for back in 0..body.checked_mul(8)? {
        if effect == difference {
            return Some((8 + body - 1 - back / 8) * 8 + back % 8);
        }
        let carry = effect >> 63 == 1;
        effect = effect << 1 ^ if carry { POLYNOMIAL } else { 0 };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bkey::Bkey;
    use crate::prio::BucketDisk;
    use crate::units::BucketNr;
    use uuid::Uuid;

    fn every_bit_comes_back(bytes: &[u8], sealed: Sealed, bits: std::ops::Range<usize>) {
        assert!(sealed.is_sound(bytes));
        assert_eq!(flipped_bit(bytes, sealed), None);
        let mut bad = bytes.to_vec();
        for bit in bits {
            flip(&mut bad, bit).expect("a bit of it");
            assert_eq!(flipped_bit(&bad, sealed), Some(bit), "{sealed:?}");
            flip(&mut bad, bit).expect("a bit of it");
        }
    }

    #[test]
    fn every_bit_of_every_structure_is_found() {
        let magic = SetMagic::of(&Uuid::from_u128(77));
        let keys: Vec<_> =
            (1..9).map(|i| Bkey::extent(0, i * 100, 8, Ptr::new(0, i * 64, 3), i % 2 == 0)).collect();
        let ptr = Ptr::new(0, 4096, 9);
        let mut set = bset::write(&keys, 5, bset::VERSION, ptr, magic).expect("few keys");
        let bits = set.len() * 8;
        set.resize(1024, 0xa5);
        every_bit_comes_back(&set, Sealed::Bset(magic, ptr), 0..bits);
        let entry = jset::Jset {
            seq: 3,
            last_seq: 1,
            version: jset::VERSION,
            uuid_bucket: Bkey::ZERO,
            btree_root: Bkey::ZERO,
            btree_level: 1,
            prio_bucket: [BucketNr(5); 8],
            keys,
        };
        let entry = entry.write(magic, 512).expect("few keys");
        every_bit_comes_back(&entry, Sealed::Jset(magic), 0..(0xf0 + 8 * 24) * 8);
        let entries = vec![BucketDisk::default(); 9];
        let prio = PrioSet { seq: 3, version: 0, next_bucket: BucketNr(7), entries };
        let prio = prio.write(magic, 4096);
        every_bit_comes_back(&prio, Sealed::Prio(magic), 0..4096);
    }

    #[test]
    fn two_bits_are_not_taken_for_one() {
        let magic = SetMagic::of(&Uuid::from_u128(77));
        let ptr = Ptr::new(0, 4096, 9);
        let mut set = bset::write(&[Bkey::new(1, 2, 1)], 5, bset::VERSION, ptr, magic).expect("one key");
        flip(&mut set, 300).expect("a bit");
        flip(&mut set, 301).expect("a bit");
        assert_eq!(flipped_bit(&set, Sealed::Bset(magic, ptr)), None);
        assert_eq!(flipped_bit(&[], Sealed::Superblock), None);
    }
}
