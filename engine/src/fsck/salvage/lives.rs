//! Which leaves are in use.
//!
//! A leaf that was replaced is still on the device until its bucket is used again. But what it held at its end was
//! written into the first bsets of those that replaced it. So a leaf whose extents are nearly all in the first bsets
//! of others was replaced by them. A leaf in use also shares extents with those it replaced, yet with what they held
//! at their *end*: what they held at first is older, and has less.
//!
//! Two leaves that say the same at both times cannot be told apart; then either will do.

use bcache_format::{Bkey, BucketNr, Pos};
use std::collections::HashMap;

/// Of a leaf's extents, this part in others' first bsets means that it was replaced, in percent: some of its keys
/// were stale and dropped, some were cut by the insert that made it split.
const REPLACED_PERCENT: u64 = 90;

/// A leaf that was found.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Where.
    pub bucket: BucketNr,
    /// Generation of the pointer it was written with.
    pub generation: u8,
    /// Extents of its first bset.
    pub first: Vec<Bkey>,
    /// Its extents at its end, merged.
    pub keys: Vec<Bkey>,
    /// Where its extents begin and end, those included that are not kept.
    pub hull: (Pos, Pos),
    /// All its bsets can be read.
    pub whole: bool,
}

/// What stays the same of an extent however it is cut: its slot, and how far its data is from its place.
type Line = (u32, u64, u8);

fn line(key: &Bkey) -> Option<Line> {
    let ptr = key.ptr()?;
    Some((key.inode(), ptr.offset().wrapping_sub(key.start()), ptr.generation()))
}

/// For each leaf whether it is in use.
#[must_use]
pub fn in_use(leaves: &[&Leaf]) -> Vec<bool> {
    let mut firsts: HashMap<Line, Vec<(u64, u64, usize)>> = HashMap::new();
    for (index, leaf) in leaves.iter().enumerate() {
        for key in &leaf.first {
            if let Some(line) = line(key) {
                firsts.entry(line).or_default().push((key.start(), key.offset(), index));
            }
        }
    }
    let replacers: Vec<Vec<usize>> =
        (0..leaves.len()).map(|index| replacers(leaves, index, &firsts)).collect();
    (0..leaves.len())
        .map(|index| {
            let others = replacers.get(index).map(Vec::as_slice).unwrap_or_default();
            // Of leaves that replace each other, being alike, the first is kept.
            let gone = others.iter().any(|other| {
                let back = replacers.get(*other).is_some_and(|theirs| theirs.contains(&index));
                !back || *other < index
            });
            !gone
        })
        .collect()
}

/// The leaves whose first bsets together hold nearly all that this one held at its end; empty when they do not.
fn replacers(leaves: &[&Leaf], index: usize, firsts: &HashMap<Line, Vec<(u64, u64, usize)>>) -> Vec<usize> {
    let Some(leaf) = leaves.get(index) else { return Vec::new() };
    let (mut all, mut shared) = (0u64, 0u64);
    let mut others: HashMap<usize, u64> = HashMap::new();
    for key in &leaf.keys {
        let Some(line) = line(key) else { continue };
        all += 1;
        let places = firsts.get(&line).map(Vec::as_slice).unwrap_or_default();
        let overlap = places
            .iter()
            .filter(|(start, end, other)| *other != index && *start < key.offset() && key.start() < *end);
        let mut any = false;
        for (_, _, other) in overlap {
            any = true;
            *others.entry(*other).or_default() += 1;
        }
        shared += u64::from(any);
    }
    if all == 0 || shared * 100 < all * REPLACED_PERCENT {
        return Vec::new();
    }
    // Those that hold more than a stray extent of it.
    others.into_iter().filter(|(_, count)| *count * 20 >= all).map(|(other, _)| other).collect()
}
