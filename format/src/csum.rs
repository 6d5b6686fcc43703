//! The CRC-64 of bcache, and the value each structure starts it with.
//!
//! Polynomial 0x42F0E1EBA9EA3693 (ECMA-182), most significant bit first, final value inverted. Over
//! `"123456789"` with the initial value of all ones it gives 0x62EC59E3F1A4F00A (CRC-64/WE).
//!
//! | structure | initial value |
//! |---|---|
//! | superblock, jset, prio_set | all ones |
//! | bset of version 0 | all ones |
//! | bset of version 1 | the first pointer word of the key that points at the node |
//!
//! The work is done by `crc64fast`, which computes the bit-reflected sibling (CRC-64/XZ) with carry-less
//! multiplication. Both are the same polynomial division seen in a mirror: reversing the bits of each byte on the
//! way in and of the result on the way out turns one into the other. It always starts from all ones; another
//! initial value is had by xoring its difference from all ones into the first eight message bytes, because the
//! register is xored with the message there anyway.
//!
//! Why not `crc-fast`, which knows CRC-64/WE as it is and is faster (README.md has both, `cargo bench` measures them): nothing
//! here waits for a checksum. A check decodes about 1 GB/s of metadata a core, a disk delivers less, and this does 15.
//! `crc64fast` has one algorithm in a few hundred lines that can be read, and it is what this project was asked to use.

use crc64fast::Digest;
use multiversion::multiversion;

/// The initial value of every checksum that is not seeded by a pointer.
pub const SEED_ONES: u64 = u64::MAX;

/// The polynomial without its highest term.
pub(crate) const POLYNOMIAL: u64 = 0x42F0_E1EB_A9EA_3693;

/// Bytes mirrored at a time: a multiple of what the carry-less multiplication takes in one round of its wide loop, and
/// so few that the processor still fetches ahead of the next ones.
const CHUNK: usize = 4096;

/// Mirrored bytes. Of bytes that are not aligned like this the carry-less multiplication takes the first ones singly.
#[repr(align(128))]
struct Mirrored([u8; CHUNK]);

/// The checksum of `data`, starting from `seed`.
#[must_use]
pub fn crc64(seed: u64, data: &[u8]) -> u64 {
    let mut digest = Digest::new();
    let mut mirrored = Mirrored([0; CHUNK]);
    let mut data = data;
    if seed != SEED_ONES {
        let Some((head, rest)) = data.split_first_chunk::<8>() else {
            return crc64_bitwise(seed, data);
        };
        let seeded = (u64::from_be_bytes(*head) ^ seed ^ SEED_ONES).to_be_bytes();
        digest.write(&seeded.map(u8::reverse_bits));
        data = rest;
    }
    for chunk in data.chunks(CHUNK) {
        let out = mirrored.0.get_mut(..chunk.len()).unwrap_or_default();
        mirror(chunk, out);
        digest.write(out);
    }
    digest.sum64().reverse_bits()
}

/// Reverses the bits of every byte of `from` into `to`, which has the same length.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+gfni", "x86_64+avx2", "x86_64+ssse3"))]
fn mirror(from: &[u8], to: &mut [u8]) {
    for (from, to) in from.iter().zip(to.iter_mut()) {
        *to = from.reverse_bits();
    }
}

/// The same checksum, a bit at a time: for inputs too short to carry a seed.
fn crc64_bitwise(seed: u64, data: &[u8]) -> u64 {
    let mut crc = seed;
    for &byte in data {
        crc ^= u64::from(byte) << 56;
        for _ in 0..8 {
            let carry = crc >> 63 == 1;
            crc <<= 1;
            if carry {
                crc ^= POLYNOMIAL;
            }
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn matches_the_published_check_value() {
        assert_eq!(crc64(SEED_ONES, b"123456789"), 0x62EC_59E3_F1A4_F00A);
        assert_eq!(crc64_bitwise(SEED_ONES, b"123456789"), 0x62EC_59E3_F1A4_F00A);
        assert_eq!(crc64(SEED_ONES, b""), crc64_bitwise(SEED_ONES, b""));
    }

    proptest! {
        #[test]
        fn agrees_with_another_implementation(data in proptest::collection::vec(any::<u8>(), 0..40_000)) {
            let theirs = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64We, &data);
            prop_assert_eq!(crc64(SEED_ONES, &data), theirs);
        }

        #[test]
        fn any_seed_agrees_with_the_definition(seed in any::<u64>(), data in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(crc64(seed, &data), crc64_bitwise(seed, &data));
        }
    }
}
