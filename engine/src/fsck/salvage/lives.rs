//! Which leaves are in use.
//!
//! A leaf that was replaced is still on the device until its bucket is used again. But what it held at its end was
//! written into the first bsets of those that replaced it. So a leaf whose extents are nearly all in the first bsets
//! of others was replaced by them. A leaf in use also shares extents with those it replaced, yet with what they held
//! at their *end*: what they held at first is older, and has less.
//!
//! Two leaves that say the same at both times cannot be told apart; then either will do.

use bcache_format::{Bkey, BucketNr, Geometry, Pos};
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

/// What stays the same of an extent however it is cut: its slot, the bucket of its data with its generation, and how far
/// the data is from its place.
type Line = (u32, u64, BucketNr, u8);

fn line(geometry: &Geometry, key: &Bkey) -> Option<Line> {
    let ptr = key.ptr()?;
    let bucket = geometry.ptr_bucket(ptr);
    Some((key.inode(), ptr.offset().wrapping_sub(key.start()), bucket, ptr.generation()))
}

/// A part of a leaf's first bset that is on a line.
struct Place {
    leaf: usize,
    start: u64,
    end: u64,
}

/// Lives of a line that are looked at: an image made to be slow has one line in all its leaves.
const LIVES_MAX: usize = 256;

/// For each leaf whether it is in use. Extents that are not `live` say nothing: whoever replaced a leaf left them out.
#[must_use]
pub fn in_use(geometry: &Geometry, leaves: &[&Leaf], live: &dyn Fn(&Bkey) -> bool) -> Vec<bool> {
    // In the order of leaves, and of each leaf's in the order of their places.
    let mut firsts: HashMap<Line, Vec<Place>> = HashMap::new();
    for (index, leaf) in leaves.iter().enumerate() {
        for key in &leaf.first {
            if let Some(line) = line(geometry, key) {
                let place = Place { leaf: index, start: key.start(), end: key.offset() };
                firsts.entry(line).or_default().push(place);
            }
        }
    }
    let of = |(index, leaf): (usize, &&Leaf)| replacers(geometry, leaf, index, &firsts, live);
    let replaced: Vec<Replaced> = leaves.iter().enumerate().map(of).collect();
    replaced
        .iter()
        .enumerate()
        .map(|(index, mine)| {
            // Of two that seem to replace each other the older is all in the newer, which has something of its own.
            // Of leaves that are alike the first is kept.
            let gone = mine.by.iter().any(|other| {
                replaced.get(*other).is_none_or(|theirs| {
                    let (ours, back) = (mine.shared * theirs.all, theirs.shared * mine.all);
                    theirs.by.binary_search(&index).is_err()
                        || ours > back
                        || (ours == back && *other < index)
                })
            });
            !gone
        })
        .collect()
}

/// What of a leaf is in others' first bsets.
#[derive(Default)]
struct Replaced {
    /// The leaves whose first bsets together hold nearly all that this one held at its end, in order; empty when they
    /// do not.
    by: Vec<usize>,
    /// Its live extents of which they have something.
    shared: u64,
    /// All its live extents.
    all: u64,
}

fn replacers(
    geometry: &Geometry,
    leaf: &Leaf,
    index: usize,
    firsts: &HashMap<Line, Vec<Place>>,
    live: &dyn Fn(&Bkey) -> bool,
) -> Replaced {
    let (mut all, mut shared) = (0u64, 0u64);
    let mut others: HashMap<usize, u64> = HashMap::new();
    for key in leaf.keys.iter().filter(|key| live(key)) {
        let Some(line) = line(geometry, key) else { continue };
        all += 1;
        let mut places = firsts.get(&line).map(Vec::as_slice).unwrap_or_default();
        let mut any = false;
        for _ in 0..LIVES_MAX {
            let Some(other) = places.first().map(|place| place.leaf) else { break };
            let (its, later) = places.split_at(places.partition_point(|place| place.leaf <= other));
            places = later;
            let near = its.get(its.partition_point(|place| place.end <= key.start()));
            if other != index && near.is_some_and(|place| place.start < key.offset()) {
                any = true;
                *others.entry(other).or_default() += 1;
            }
        }
        shared += u64::from(any);
    }
    if all == 0 || shared * 100 < all * REPLACED_PERCENT {
        return Replaced { by: Vec::new(), shared, all };
    }
    // Those that hold more than a stray extent of it.
    let mut by: Vec<_> =
        others.into_iter().filter(|(_, count)| *count * 20 >= all).map(|(other, _)| other).collect();
    by.sort_unstable();
    Replaced { by, shared, all }
}
