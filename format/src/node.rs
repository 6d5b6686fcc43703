//! A btree node: the bsets of one life, block-aligned, one after the other.
//!
//! The first bset's `seq` names the life. Reading goes on while the next block starts with that `seq`; what follows is
//! from an earlier use of the bucket, unless a later block carries the `seq` again, which is corruption. Nodes do not
//! record their level.

use crate::bkey::Ptr;
use crate::bset::{Bset, BsetHeader};
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

/// A node that cannot be taken whole: the bsets before the bad one, and what is wrong.
#[derive(Clone, Debug)]
pub struct Broken<'a> {
    /// What could be read. Not the node's content: newer keys may be missing.
    pub readable: Node<'a>,
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
        Err(error) => Err(Box::new(Broken { readable: node, error })),
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
    use crate::bset;
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
    fn a_bset_behind_a_gap_is_corruption() {
        let bytes = node(&[set(8, 5), set(24, 4), set(16, 5)]);
        let broken = parse(&bytes, Ptr(77), magic(), 512).unwrap_err();
        assert_eq!(broken.error.byte, 1024 + 0x10);
        assert_eq!(broken.readable.sets.len(), 1);
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
