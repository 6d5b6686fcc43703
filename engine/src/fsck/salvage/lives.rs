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
    let replaced: Vec<Replaced> = (0..leaves.len()).map(|index| replacers(leaves, index, &firsts)).collect();
    replaced
        .iter()
        .enumerate()
        .map(|(index, mine)| {
            // Of two that seem to replace each other the older is all in the newer, which has something of its own.
            // Of leaves that are alike the first is kept.
            let gone = mine.by.iter().any(|other| {
                replaced.get(*other).is_none_or(|theirs| {
                    let (ours, back) = (mine.shared * theirs.all, theirs.shared * mine.all);
                    !theirs.by.contains(&index) || ours > back || (ours == back && *other < index)
                })
            });
            !gone
        })
        .collect()
}

/// What of a leaf is in others' first bsets.
#[derive(Default)]
struct Replaced {
    /// The leaves whose first bsets together hold nearly all that this one held at its end; empty when they do not.
    by: Vec<usize>,
    /// Its extents of which they have something.
    shared: u64,
    /// All its extents.
    all: u64,
}

fn replacers(leaves: &[&Leaf], index: usize, firsts: &HashMap<Line, Vec<(u64, u64, usize)>>) -> Replaced {
    let Some(leaf) = leaves.get(index) else { return Replaced::default() };
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
        return Replaced { by: Vec::new(), shared, all };
    }
    // Those that hold more than a stray extent of it.
    let by = others.into_iter().filter(|(_, count)| *count * 20 >= all).map(|(other, _)| other).collect();
    Replaced { by, shared, all }
}
