//! A btree node: the bsets of one life, block-aligned, one after the other.
//!
//! The first bset's `seq` names the life. Reading goes on while the next block starts with that `seq`; what follows is
//! from an earlier use of the bucket, unless a later block carries the `seq` again, which is corruption. Nodes do not
//! record their level.

use crate::bkey::Ptr;
use crate::bset::{self, Bset, BsetHeader};
use crate::error::{Error, Problem, Structure, field};
use crate::magic::SetMagic;

/// The bsets of a node, oldest first, each with the byte of the node where it starts.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    /// The bsets.
    pub sets: Vec<(u64, Bset<'a>)>,
    /// Bytes used: where the next bset would be written. A multiple of the block.
    pub written: u64,
}

/// A node that cannot be taken whole: the bsets on both sides of the bad one, and what is wrong.
#[derive(Clone, Debug)]
pub struct Broken<'a> {
    /// What comes before the bad one. Not the node's content: newer keys are missing.
    pub readable: Node<'a>,
    /// The bsets of this life behind the bad one, oldest first. Their checksums are seeded with the pointer, so that
    /// nothing else passes for one.
    pub behind: Vec<(u64, Bset<'a>)>,
    /// What is wrong, with the byte of the node.
    pub error: Error,
}

/// The node that `bytes` (a whole node, [`crate::Geometry::btree_node_bytes`]) holds and `ptr` points at.
///
/// # Errors
/// A bset that fails its checks, an empty node, a bset without keys that is not the first, or a lost bset: a block
/// behind the last that carries the node's `seq`.
pub fn parse(bytes: &[u8], ptr: Ptr, magic: SetMagic, block_bytes: u64) -> Result<Node<'_>, Box<Broken<'_>>> {
    let mut node = Node { sets: Vec::new(), written: 0 };
    match collect(&mut node, bytes, ptr, magic, block_bytes.max(1)) {
        Ok(()) => Ok(node),
        Err(error) => {
            let behind = behind(&node, bytes, ptr, magic, block_bytes.max(1));
            Err(Box::new(Broken { readable: node, behind, error }))
        }
    }
}

fn collect<'a>(
    node: &mut Node<'a>,
    bytes: &'a [u8],
    ptr: Ptr,
    magic: SetMagic,
    block_bytes: u64,
) -> Result<(), Error> {
    let life = seq_at(bytes, 0).unwrap_or(0);
    if life == 0 {
        return Err(field(Structure::BtreeNode, 0x10, "seq", 0, "the first bset of a node has one"));
    }
    while let Some(rest) = from(bytes, node.written).filter(|rest| seq_at(rest, 0) == Some(life)) {
        let at = node.written;
        let set = Bset::parse(rest, ptr, magic).map_err(|error| error.at(at))?;
        if at > 0 && set.header().keys.get() == 0 {
            return Err(field(Structure::Bset, at + 0x1c, "keys", 0, "only the first bset may be empty"));
        }
        node.sets.push((at, set));
        node.written = at.saturating_add(set.header().bytes().next_multiple_of(block_bytes));
    }
    if let Some(rest) = from(bytes, node.written)
        && is_flipped(rest, life, ptr, magic)
    {
        let problem = Problem::Field {
            field: "seq",
            value: seq_at(rest, 0).unwrap_or(0),
            rule: "one bit differs from the node's, with which the checksum is right: it is the node's bset",
        };
        return Err(Error::new(Structure::BtreeNode, node.written + 0x10, problem));
    }
    let mut at = node.written;
    while at < bytes.len() as u64 {
        if seq_at(bytes, at) == Some(life) {
            let problem = Problem::Field {
                field: "seq",
                value: life,
                rule: "a block behind the last bset carries the node's seq: a bset before it is lost",
            };
            return Err(Error::new(Structure::BtreeNode, at + 0x10, problem));
        }
        at = at.saturating_add(block_bytes);
    }
    Ok(())
}

/// Whether the bset at the start of `bytes` is one of this life, of which a bit of the name was flipped. Without a look it
/// would be one of an earlier life, and nobody would miss it.
fn is_flipped(bytes: &[u8], life: u64, ptr: Ptr, magic: SetMagic) -> bool {
    let Some(header) = BsetHeader::read(bytes) else { return false };
    if (header.seq.get() ^ life).count_ones() != 1 || header.magic.get() != magic.bset() {
        return false;
    }
    let size = usize::try_from(header.bytes()).unwrap_or(usize::MAX);
    let Some(mut whole) = bytes.get(..size).map(<[u8]>::to_vec) else { return false };
    if let Some(seq) = whole.get_mut(0x10..0x18) {
        seq.copy_from_slice(&life.to_le_bytes());
    }
    Bset::parse(&whole, ptr, magic).is_ok()
}

/// The bsets behind a bad one, wherever they start: how long the bad one was nobody knows.
fn behind<'a>(
    node: &Node<'a>,
    bytes: &'a [u8],
    ptr: Ptr,
    magic: SetMagic,
    block_bytes: u64,
) -> Vec<(u64, Bset<'a>)> {
    let life = node.sets.first().map(|(_, set)| set.seq());
    let mut sets: Vec<(u64, Bset<'a>)> = Vec::new();
    let mut at = node.written;
    while let Some(rest) = from(bytes, at) {
        let set = Bset::parse(rest, ptr, magic).ok().filter(|set| {
            let life = life.or_else(|| sets.first().map(|(_, first)| first.seq()));
            set.header().version.get() == bset::VERSION
                && set.header().keys.get() > 0
                && life.is_none_or(|life| life == set.seq())
        });
        let bytes = set.map_or(1, |set| set.header().bytes());
        sets.extend(set.map(|set| (at, set)));
        at = at.saturating_add(bytes.next_multiple_of(block_bytes));
    }
    sets
}

fn from(bytes: &[u8], at: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(at).ok()?..).filter(|rest| !rest.is_empty())
}

fn seq_at(bytes: &[u8], at: u64) -> Option<u64> {
    BsetHeader::read(from(bytes, at)?).map(|header| header.seq.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bkey::Bkey;
    use uuid::Uuid;

    fn magic() -> SetMagic {
        SetMagic::of(&Uuid::from_u128(0x1122))
    }

    fn set(offset: u64, seq: u64) -> Vec<u8> {
        let key = Bkey::extent(1, offset, 8, Ptr::new(0, 64, 0), true);
        let mut bytes = bset::write(&[key], seq, bset::VERSION, Ptr(77), magic()).unwrap();
        bytes.resize(512, 0);
        bytes
    }

    fn node(sets: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = sets.concat();
        bytes.resize(8192, 0);
        bytes
    }

    #[test]
    fn bsets_of_another_life_are_leftovers() {
        let bytes = node(&[set(8, 5), set(16, 5), set(24, 4)]);
        let node = parse(&bytes, Ptr(77), magic(), 512).unwrap();
        assert_eq!(node.sets.len(), 2);
        assert_eq!(node.written, 1024);
    }

    #[test]
    fn a_bset_with_a_flipped_name_is_missed() {
        let mut bytes = node(&[set(8, 5), set(16, 5)]);
        for bit in 0..64 {
            bytes[512 + 0x10 + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&bytes, Ptr(77), magic(), 512).unwrap_err().error.byte, 512 + 0x10);
            bytes[512 + 0x10 + bit / 8] ^= 1 << (bit % 8);
        }
        // Another life's name may differ in a bit as well: then the checksum is right as it is.
        assert!(parse(&node(&[set(8, 5), set(16, 4)]), Ptr(77), magic(), 512).is_ok());
    }

    #[test]
    fn a_bset_behind_a_gap_is_corruption() {
        let bytes = node(&[set(8, 5), set(24, 4), set(16, 5)]);
        let broken = parse(&bytes, Ptr(77), magic(), 512).unwrap_err();
        assert_eq!(broken.error.byte, 1024 + 0x10);
        assert_eq!(broken.readable.sets.len(), 1);
        assert_eq!(broken.behind.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1024]);
    }

    #[test]
    fn a_bad_bset_hides_none_behind_it() {
        let mut bytes = node(&[set(8, 5), set(16, 5), set(24, 5), set(32, 5)]);
        for bad in [512, 1024] {
            bytes[bad + 40] ^= 1;
        }
        let broken = parse(&bytes, Ptr(77), magic(), 512).unwrap_err();
        let places = |sets: &[(u64, Bset<'_>)]| sets.iter().map(|(at, _)| *at).collect::<Vec<_>>();
        assert_eq!((places(&broken.readable.sets), places(&broken.behind)), (vec![0], vec![1536]));
        // Also where the life's own name is gone with the first one.
        bytes[..512].fill(0);
        let broken = parse(&bytes, Ptr(77), magic(), 512).unwrap_err();
        assert_eq!((broken.readable.sets.len(), places(&broken.behind)), (0, vec![1536]));
    }

    #[test]
    fn the_checksum_belongs_to_the_pointer() {
        let bytes = node(&[set(8, 5)]);
        let broken = parse(&bytes, Ptr(78), magic(), 512).unwrap_err();
        assert!(matches!(broken.error.problem, Problem::Checksum { .. }));
    }

    #[test]
    fn a_node_without_seq_or_with_an_empty_later_set_is_refused() {
        assert!(parse(&[0; 8192], Ptr(77), magic(), 512).is_err());
        let mut empty = bset::write(&[], 5, bset::VERSION, Ptr(77), magic()).unwrap();
        empty.resize(512, 0);
        assert!(parse(&node(&[empty.clone()]), Ptr(77), magic(), 512).is_ok());
        let broken = parse(&node(&[set(8, 5), empty]), Ptr(77), magic(), 512).unwrap_err().error.byte;
        assert_eq!(broken, 512 + 0x1c);
        assert!(parse(&[], Ptr(77), magic(), 512).is_err());
    }
}
