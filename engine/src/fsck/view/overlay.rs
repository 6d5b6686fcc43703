//! Laying newer extents over older ones.

use bcache_format::{Bkey, Pos};
use std::convert::Infallible;
use std::iter::Peekable;

/// Which of the two streams an extent comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// What was there before.
    Older,
    /// What was laid over it.
    Newer,
}

/// Two streams of extents, each in order, without overlaps and without empty extents, as one: where they overlap the
/// newer one is seen, and of the older what it leaves. Errors of the older stream are passed on where they come.
pub struct Overlay<O, N, E>
where
    O: Iterator<Item = Result<Bkey, E>>,
    N: Iterator<Item = Bkey>,
{
    older: O,
    newer: Peekable<N>,
    /// The older extent that comes next, or what is left of it.
    held: Option<Bkey>,
    /// End of the last newer extent that was given out: nothing older before it is seen.
    covered: Pos,
}

impl<O, N, E> Overlay<O, N, E>
where
    O: Iterator<Item = Result<Bkey, E>>,
    N: Iterator<Item = Bkey>,
{
    /// Lays `newer` over `older`.
    pub fn new(older: O, newer: N) -> Self {
        Self { older, newer: newer.peekable(), held: None, covered: Pos::ZERO }
    }

    /// The next older extent of which something is left behind what is covered.
    fn next_older(&mut self) -> Option<Result<Bkey, E>> {
        loop {
            let mut key = match self.held.take() {
                Some(key) => key,
                None => match self.older.next()? {
                    Ok(key) => key,
                    Err(error) => return Some(Err(error)),
                },
            };
            if key.cut_front(self.covered) {
                return Some(Ok(key));
            }
        }
    }
}

impl<O, N, E> Iterator for Overlay<O, N, E>
where
    O: Iterator<Item = Result<Bkey, E>>,
    N: Iterator<Item = Bkey>,
{
    type Item = Result<(Bkey, Layer), E>;

    fn next(&mut self) -> Option<Self::Item> {
        let older = match self.next_older() {
            Some(Err(error)) => return Some(Err(error)),
            Some(Ok(key)) => Some(key),
            None => None,
        };
        let Some(newer) = self.newer.peek() else { return older.map(|key| Ok((key, Layer::Older))) };
        let Some(mut older) = older.filter(|older| older.start_pos() < newer.start_pos()) else {
            self.held = older;
            self.covered = newer.pos();
            return self.newer.next().map(|key| Ok((key, Layer::Newer)));
        };
        if older.pos() > newer.start_pos() {
            let mut rest = older;
            rest.cut_front(newer.start_pos());
            self.held = Some(rest);
            older.cut_back(newer.start_pos());
        }
        Some(Ok((older, Layer::Older)))
    }
}

/// `newer` laid over `older`, both in order and without overlaps.
#[must_use]
pub fn merge(older: Vec<Bkey>, newer: Vec<Bkey>) -> Vec<Bkey> {
    if newer.is_empty() {
        return older;
    }
    let mut merged = Vec::with_capacity(older.len() + newer.len());
    let older = older.into_iter().map(Ok::<_, Infallible>);
    merged.extend(Overlay::new(older, newer.into_iter()).flatten().map(|(key, _)| key));
    merged
}

/// All of `sets`, oldest first, laid over each other.
#[must_use]
pub fn merge_all(mut sets: Vec<Vec<Bkey>>) -> Vec<Bkey> {
    // Neighbours first, like a merge sort: a node may have hundreds of small sets.
    while sets.len() > 1 {
        let mut halved = Vec::with_capacity(sets.len().div_ceil(2));
        let mut rest = sets.into_iter();
        while let Some(older) = rest.next() {
            halved.push(merge(older, rest.next().unwrap_or_default()));
        }
        sets = halved;
    }
    sets.pop().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::extent_map::SeenMap;
    use super::*;
    use bcache_format::Ptr;
    use proptest::prelude::*;

    /// Extents with the sector's own number in the pointer, so that a wrong cut shows.
    fn extent(inode: u32, start: u64, size: u64, layer: u64) -> Bkey {
        Bkey::extent(inode, start + size, size, Ptr::new(0, (layer << 20) + start, 0), false)
    }

    /// What each sector shows, one by one: the definition.
    fn sectors(keys: &[Bkey]) -> Vec<((u32, u64), u64)> {
        let of = |key: &Bkey| {
            let (inode, start, ptr) = (key.inode(), key.start(), key.ptr().unwrap());
            (0..key.size()).map(move |i| ((inode, start + i), ptr.offset() + i))
        };
        keys.iter().flat_map(of).collect()
    }

    proptest! {
        #[test]
        fn newest_wins_sector_by_sector(
            sets in prop::collection::vec(prop::collection::vec((0u32..2, 0u64..60, 1u64..20), 0..8), 0..7),
        ) {
            let mut want = std::collections::BTreeMap::new();
            let mut all = SeenMap::default();
            let mut sorted = Vec::new();
            for (layer, set) in sets.iter().enumerate() {
                let mut map = SeenMap::default();
                for &(inode, start, size) in set {
                    let key = extent(inode, start, size, layer as u64);
                    map.insert(key);
                    all.insert(key);
                    want.extend(sectors(&[key]));
                }
                sorted.push(map.into_keys());
            }
            let want: Vec<_> = want.into_iter().collect();
            prop_assert_eq!(&sectors(&merge_all(sorted)), &want);
            prop_assert_eq!(&sectors(&all.into_keys()), &want);
        }
    }
}
