//! What is fuzzed: one function a parser of the on-disk format.
//!
//! Each takes any bytes, puts the magic number and the checksum right so that the fuzzer gets past them, and parses.
//! Nothing may panic, and what was parsed must survive being written and parsed again. The seeds are cut from the
//! golden sets. The tests run all seeds through these functions, too, so that they need no fuzzer to be kept alive.

use bcache_format::bkey::{Bkey, Ptr};
use bcache_format::bset::{self, Bset, BsetHeader};
use bcache_format::jset::{self, Jset};
use bcache_format::magic::SetMagic;
use bcache_format::prio::{self, PrioSet};
use bcache_format::superblock::{RawSuperblock, SB_BYTES, Superblock};
use bcache_format::{node, uuid_entry};
use uuid::Uuid;

/// Bytes of a block in every input.
const BLOCK: usize = 512;
/// The pointer that seeds the checksums of all nodes.
const PTR: Ptr = Ptr(0x0123_4567_89ab_cdef);

fn magic() -> SetMagic {
    SetMagic::of(&Uuid::from_u128(0xfeed))
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    if let Some(slot) = bytes.get_mut(at..at + 8) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
}

/// Superblocks of all versions.
pub fn superblock(data: &[u8]) {
    let mut bytes = vec![0; SB_BYTES];
    let len = data.len().min(SB_BYTES);
    bytes[..len].copy_from_slice(&data[..len]);
    put(&mut bytes, 8, 8);
    bytes[0x18..0x28].copy_from_slice(&bcache_format::magic::SUPERBLOCK);
    let csum = RawSuperblock::read(&bytes).map_or(0, |raw| raw.expected_csum());
    put(&mut bytes, 0, csum);
    let Ok(parsed) = Superblock::parse(&bytes) else { return };
    let _ = (parsed.check_device(1 << 30, 512), parsed.geometry(), parsed.state(), parsed.label.to_text());
    let mut written = vec![0; SB_BYTES];
    parsed.write_to(&mut written).expect("what was parsed can be written");
    assert_eq!(Superblock::parse(&written).expect("what was written parses"), parsed);
}

/// Journal entries.
pub fn jset(data: &[u8]) {
    let mut bytes = data.to_vec();
    put(&mut bytes, 8, magic().jset());
    jset::seal(&mut bytes);
    let Ok(parsed) = Jset::parse(&bytes, magic()) else { return };
    let written = parsed.write(magic(), BLOCK as u64).expect("what was parsed can be written");
    assert_eq!(Jset::parse(&written, magic()).expect("what was written parses"), parsed);
}

/// One bset and all its keys.
pub fn bset(data: &[u8]) {
    let mut bytes = data.to_vec();
    seal_bset(&mut bytes);
    let Ok(parsed) = Bset::parse(&bytes, PTR, magic()) else { return };
    let Ok(keys) = parsed.keys().collect::<Result<Vec<_>, _>>() else { return };
    let header = parsed.header();
    let written = bset::write(&keys, header.seq.get(), header.version.get(), PTR, magic())
        .expect("what was parsed can be written");
    let again = Bset::parse(&written, PTR, magic()).expect("what was written parses");
    let again: Vec<_> = again.keys().map(|key| key.expect("a key that was written")).collect();
    assert_eq!(again, keys);
}

/// A node of several bsets, each put right.
pub fn node(data: &[u8]) {
    let mut bytes = data.to_vec();
    let mut at = 0;
    while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
        let size = seal_bset(rest).unwrap_or(0).max(1);
        at = at.saturating_add(size.next_multiple_of(BLOCK));
    }
    let sets = match node::parse(&bytes, PTR, magic(), BLOCK as u64) {
        Ok(node) => {
            assert!(node.written > 0);
            node.sets
        }
        Err(broken) => broken.readable.sets,
    };
    for (_, set) in sets {
        set.keys().for_each(drop);
    }
}

/// Prio sets.
pub fn prio_set(data: &[u8]) {
    let mut bytes = data.to_vec();
    put(&mut bytes, 8, magic().prio_set());
    prio::seal(&mut bytes);
    let Ok(parsed) = PrioSet::parse(&bytes, magic()) else { return };
    let written = parsed.write(magic(), bytes.len() as u64);
    assert_eq!(PrioSet::parse(&written, magic()).expect("what was written parses"), parsed);
}

/// Uuid tables of both versions; the first byte chooses.
pub fn uuid_table(data: &[u8]) {
    let Some((&choice, table)) = data.split_first() else { return };
    let version = u32::from(choice & 1);
    let size = if version == 0 { uuid_entry::ENTRY_BYTES_V0 } else { uuid_entry::ENTRY_BYTES };
    let count = table.len() / size;
    let entries =
        uuid_entry::parse_table(table, version, count).expect("as many entries as there are bytes for");
    let written = uuid_entry::write_table(&entries, (count * uuid_entry::ENTRY_BYTES) as u64);
    assert_eq!(uuid_entry::parse_table(&written, 1, count).expect("what was written parses"), entries);
    assert!(uuid_entry::parse_table(table, version, count + 1).is_err());
}

/// A single key: its fields, and cutting it at its own middle.
pub fn bkey(data: &[u8]) {
    let Some(key) = Bkey::from_bytes(data) else { return };
    let mut written = Vec::new();
    key.write_to(&mut written);
    assert_eq!(Bkey::from_bytes(&written), Some(key));
    let _ = (key.start(), key.start_pos(), key.pos(), key.ptr(), key.u64s());
    let middle = bcache_format::Pos::new(key.inode(), key.start().wrapping_add(key.size() / 2));
    let (mut front, mut back) = (key, key);
    // A key longer than its end is never valid; cutting it only must not panic.
    if front.cut_front(middle) && back.cut_back(middle) && key.size() <= key.offset() {
        assert_eq!(front.size() + back.size(), key.size());
    }
}

/// Puts magic and checksum of the bset at the start of `bytes` right and tells its size, if it lies within.
fn seal_bset(bytes: &mut [u8]) -> Option<usize> {
    put(bytes, 8, magic().bset());
    let size = usize::try_from(BsetHeader::read(bytes)?.bytes()).ok()?;
    bset::seal(bytes.get_mut(..size)?, PTR);
    Some(size)
}
