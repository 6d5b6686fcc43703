//! Flipped bits, put back before anything else is thought of.
//!
//! Looked for only where a check found something that fails its checksum, or that does not even look like what should be
//! there: see [`bcache_format::mend`].

use super::check::Checked;
use super::finding::Finding;
use super::kind::Kind;
use super::repair::Write;
use super::view::devices::read_sectors;
use super::view::journal::Stop;
use super::view::node::SeenNode;
use super::view::{Cache, Device};
use bcache_format::jset::{JSET_MAX_BYTES, JsetHeader};
use bcache_format::magic;
use bcache_format::mend::{Sealed, flip, flipped_bit};
use bcache_format::superblock::{SB_BYTES, SB_OFFSET};
use bcache_format::{BucketNr, Ptr, SECTOR_SIZE};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Where a superblock has its magic number.
const MAGIC_AT: usize = 0x18;

/// A bit to be put back, as a finding and as the write that does it.
pub struct Fix {
    /// What is said of it.
    pub finding: Finding,
    /// The sector with the bit as it was.
    pub write: Write,
}

/// Bits that explain what a check of `devices` found.
pub fn find(checked: &Checked, devices: &[Device]) -> Vec<Fix> {
    let mut fixes = Vec::new();
    for device in devices {
        let fix = look(device, SB_OFFSET, SB_BYTES as u64, Sealed::Superblock);
        fixes.extend(fix.or_else(|| wiped(device)));
    }
    let Some(cache) = &checked.cache else { return fixes };
    journal(checked, cache, &mut fixes);
    let set = checked.set.as_ref();
    let found = checked.findings.iter().filter(|finding| in_bucket(finding.kind)).filter_map(|f| f.bucket);
    let suspects: BTreeSet<BucketNr> = found.chain(checked.broken_nodes.iter().copied()).collect();
    for bucket in suspects {
        let byte = cache.geometry.bucket_start_byte(bucket);
        let prio = look(&cache.device, byte, cache.geometry.meta_bucket_bytes(), Sealed::Prio(cache.magic));
        if let Some(fix) = prio {
            fixes.push(fix);
            continue;
        }
        let leaf = |view: &super::view::SetView| {
            let mut at = view.leaves.iter().chain(&view.root);
            at.find_map(|at: &SeenNode| at.key.ptr().filter(|ptr| cache.geometry.ptr_bucket(*ptr) == bucket))
        };
        let stored = set.and_then(|view| {
            let generation = view.gens.get(bucket.0)?;
            Some(Ptr::new(0, cache.geometry.bucket_start(bucket).0, generation))
        });
        if let Some(ptr) = set.and_then(leaf).or(stored) {
            node(cache, ptr, &mut fixes);
        }
    }
    fixes
}

/// The magic number of a superblock of which all else is there.
fn wiped(device: &Device) -> Option<Fix> {
    let mut content = vec![0; SB_BYTES];
    device.read_at(SB_OFFSET, &mut content).ok()?;
    if Sealed::Superblock.is_sound(&content) {
        return None;
    }
    content.get_mut(MAGIC_AT..MAGIC_AT + 16)?.copy_from_slice(&magic::SUPERBLOCK);
    let sound = Sealed::Superblock.is_sound(&content);
    let sector = content.get(..SECTOR_SIZE as usize).filter(|_| sound)?.to_vec();
    let name: Arc<str> = device.name().into();
    let detail = "the magic number is gone, the rest is whole: with it the checksum is right".to_owned();
    Some(Fix {
        finding: Finding::new(Kind::SbWiped, &name, SB_OFFSET + MAGIC_AT as u64, detail),
        write: Write {
            device: name,
            byte: SB_OFFSET,
            bytes: sector.into(),
            what: "put the magic number back".to_owned(),
        },
    })
}

/// Kinds of findings about a bucket of which one bit may be wrong.
const fn in_bucket(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::PrioChecksum
            | Kind::PrioMagic
            | Kind::BsetChecksum
            | Kind::BsetMagic
            | Kind::BsetSize
            | Kind::BsetVersion
            | Kind::BsetLost
            | Kind::BsetEmpty
            | Kind::BsetKeys
            | Kind::NodeEmpty
    )
}

/// Where recovery stops reading a journal bucket, one bit may be why.
fn journal(checked: &Checked, cache: &Cache, fixes: &mut Vec<Fix>) {
    let kinds = [
        Kind::JournalEmpty,
        Kind::JournalMissing,
        Kind::JournalUnreadable,
        Kind::JournalHole,
        Kind::JournalTailTorn,
        Kind::JournalTailKept,
        Kind::JournalHidden,
        Kind::JournalOrder,
    ];
    if !kinds.iter().any(|kind| checked.has(*kind)) {
        return;
    }
    let mut left = ENTRIES_TRIED;
    for scan in &checked.journal.scans {
        let seq = match &scan.stopped {
            None => continue,
            Some(Stop::Invalid { seq, .. }) => *seq,
            // What is behind a sector that cannot be read is read all the same.
            Some(Stop::Fault(_)) => None,
        };
        // Somebody took it for the torn end and went on from there: another entry has its number by now.
        if seq.is_some_and(|seq| checked.journal.entries.contains_key(&seq)) {
            continue;
        }
        let end = cache.geometry.bucket_start_byte(scan.bucket) + cache.geometry.bucket_bytes();
        let entry = |byte: u64| {
            let bytes = JSET_MAX_BYTES.min(end.saturating_sub(byte));
            look(&cache.device, byte, bytes, Sealed::Jset(cache.magic))
        };
        fixes.extend(entry(scan.end));
        // Behind the first bad entry there may be another.
        let behind = scan.end.saturating_add(cache.geometry.block_bytes());
        for byte in entries_behind(checked, cache, (behind, end), &mut left) {
            fixes.extend(entry(byte));
        }
    }
}

/// Entries that are tried behind bad ones: an image made to be slow has the head of one in each block.
const ENTRIES_TRIED: usize = 1 << 12;
/// Bytes of a journal bucket that are looked at at a time.
const CHUNK: u64 = 1 << 20;

/// Places between two bytes of a journal bucket where an entry begins that is newer than all that must be replayed is old,
/// and that nothing has the number of. No more than are `left`.
fn entries_behind(checked: &Checked, cache: &Cache, (from, to): (u64, u64), left: &mut usize) -> Vec<u64> {
    let Some(newest) = checked.journal.newest() else { return Vec::new() };
    let block = cache.geometry.block_bytes().max(1);
    let is_one = |header: JsetHeader| {
        let seq = header.seq.get();
        let known = checked.journal.entries.contains_key(&seq) || checked.journal.hidden.contains_key(&seq);
        header.magic.get() == cache.magic.jset() && seq >= newest.jset.last_seq && !known
    };
    let mut found = Vec::new();
    for at in (from..to).step_by(CHUNK.next_multiple_of(block) as usize) {
        let mut bytes = vec![0; usize::try_from(CHUNK.min(to - at)).unwrap_or(0)];
        if cache.device.read_at(at, &mut bytes).is_err() {
            read_sectors(&cache.device, at, &mut bytes);
        }
        let heads = (at..).step_by(block as usize).zip(bytes.chunks(block as usize));
        let ours =
            heads.filter(|(_, bytes)| JsetHeader::read(bytes).is_some_and(is_one)).map(|(byte, _)| byte);
        let before = found.len();
        found.extend(ours.take(*left));
        *left -= found.len() - before;
        if *left == 0 {
            break;
        }
    }
    found
}

/// The bset of a node that is not sound.
fn node(cache: &Cache, ptr: Ptr, fixes: &mut Vec<Fix>) {
    let geometry = &cache.geometry;
    let start = ptr.offset().saturating_mul(SECTOR_SIZE);
    let end = start.saturating_add(geometry.btree_node_bytes());
    let sealed = Sealed::Bset(cache.magic, ptr);
    let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(0)];
    if cache.device.read_at(start, &mut bytes).is_err() {
        return;
    }
    let block = usize::try_from(geometry.block_bytes()).unwrap_or(512).max(1);
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| sealed.is_sound(rest)) {
        let size = bcache_format::bset::BsetHeader::read(rest).map_or(0, |header| header.bytes());
        at = at.saturating_add(usize::try_from(size).unwrap_or(0).next_multiple_of(block).max(block));
    }
    let byte = start.saturating_add(at as u64);
    fixes.extend(look(&cache.device, byte, end.saturating_sub(byte), sealed));
}

/// The fix of the structure at a place, if one bit makes it sound.
fn look(device: &Device, byte: u64, bytes: u64, sealed: Sealed) -> Option<Fix> {
    let mut content = vec![0; usize::try_from(bytes).ok()?];
    if device.read_at(byte, &mut content).is_err() && !read_sectors(device, byte, &mut content).is_empty() {
        return None;
    }
    let bit = flipped_bit(&content, sealed)?;
    flip(&mut content, bit)?;
    let name: Arc<str> = device.name().into();
    let (at, of) = (byte + bit as u64 / 8, bit % 8);
    let sector = at / SECTOR_SIZE * SECTOR_SIZE;
    let skip = usize::try_from(sector.checked_sub(byte)?).ok()?;
    let sector_bytes = content.get(skip..skip + SECTOR_SIZE as usize)?.to_vec();
    let what = match sealed {
        Sealed::Superblock => "superblock",
        Sealed::Jset(_) => "journal entry",
        Sealed::Bset(..) => "bset",
        Sealed::Prio(_) => "prio set",
    };
    let detail = format!("bit {of} of byte {at} of the {what} at byte {byte}: with it the checksum is right");
    Some(Fix {
        finding: Finding::new(Kind::BitFlipped, &name, at, detail),
        write: Write {
            device: name,
            byte: sector,
            bytes: sector_bytes.into(),
            what: format!("put a bit of a {what} back"),
        },
    })
}
