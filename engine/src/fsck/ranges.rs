//! Ranges of keys: behind one position, up to and including another. Ranges of bytes: from one up to another.

use bcache_format::Pos;
use std::collections::BTreeMap;

/// Ranges in order, without overlaps; those that touch are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges<T: Ord = Pos>(BTreeMap<T, T>);

impl<T: Copy + Ord> Ranges<T> {
    /// Adds a range. An empty one changes nothing.
    pub fn add(&mut self, (mut from, mut to): (T, T)) {
        if from >= to {
            return;
        }
        while let Some((&start, &end)) = self.0.range(..=to).next_back().filter(|(_, end)| **end >= from) {
            self.0.remove(&start);
            (from, to) = (from.min(start), to.max(end));
        }
        self.0.insert(from, to);
    }
    /// Takes a range out.
    pub fn remove(&mut self, (from, to): (T, T)) {
        if from >= to {
            return;
        }
        while let Some((&start, &end)) = self.0.range(..to).next_back().filter(|(_, end)| **end > from) {
            self.0.remove(&start);
            if start < from {
                self.0.insert(start, from);
            }
            if to < end {
                self.0.insert(to, end);
            }
        }
    }
    /// The parts of a range that are in these, in order.
    pub fn inside(&self, (from, to): (T, T)) -> impl Iterator<Item = (T, T)> + '_ {
        let first = self.0.range(..=from).next_back().map_or(from, |(start, _)| *start);
        let near = self.0.range(first..).take_while(move |(start, _)| **start < to);
        near.map(move |(start, end)| (from.max(*start), to.min(*end))).filter(|(from, to)| from < to)
    }
    /// The parts of a range that are in none of these, in order.
    pub fn outside(&self, (from, to): (T, T)) -> impl Iterator<Item = (T, T)> + '_ {
        let mut at = from;
        let ends = self.inside((from, to)).chain([(to, to)]);
        ends.filter_map(move |(start, end)| {
            let gap = (at, start);
            at = end;
            (gap.0 < gap.1).then_some(gap)
        })
    }
    /// Whether some of a range is in these.
    #[must_use]
    pub fn touch(&self, range: (T, T)) -> bool {
        self.inside(range).next().is_some()
    }
    /// Whether all of a range is in these.
    #[must_use]
    pub fn cover(&self, range: (T, T)) -> bool {
        self.outside(range).next().is_none()
    }
    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (T, T)> + '_ {
        self.0.iter().map(|(from, to)| (*from, *to))
    }
    /// How many pieces they are in.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(Pos, Pos)> for Ranges {
    fn from_iter<I: IntoIterator<Item = (Pos, Pos)>>(ranges: I) -> Self {
        let mut all = Self::default();
        ranges.into_iter().for_each(|range| all.add(range));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range((from, size): (u64, u64)) -> (Pos, Pos) {
        (Pos::new(0, from), Pos::new(0, from + size))
    }
    fn sectors(ranges: impl IntoIterator<Item = (Pos, Pos)>) -> BTreeSet<u64> {
        ranges.into_iter().flat_map(|(from, to)| from.offset..to.offset).collect()
    }

    proptest! {
        #[test]
        fn ranges_are_sets_of_sectors(
            steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..20),
            look in (0u64..60, 0u64..20),
        ) {
            let (mut ranges, mut want) = (Ranges::default(), BTreeSet::new());
            for (add, from, size) in steps {
                let these = from..from + size;
                if add {
                    ranges.add(range((from, size)));
                    want.extend(these);
                } else {
                    ranges.remove(range((from, size)));
                    want.retain(|sector| !these.contains(sector));
                }
            }
            prop_assert_eq!(&sectors(ranges.iter()), &want);
            let all: BTreeSet<u64> = (look.0..look.0 + look.1).collect();
            let inside: BTreeSet<u64> = all.intersection(&want).copied().collect();
            let outside: BTreeSet<u64> = all.difference(&want).copied().collect();
            prop_assert_eq!(&sectors(ranges.inside(range(look))), &inside);
            prop_assert_eq!(&sectors(ranges.outside(range(look))), &outside);
            prop_assert_eq!(ranges.touch(range(look)), !inside.is_empty());
            prop_assert_eq!(ranges.cover(range(look)), outside.is_empty());
            let ends: Vec<_> = ranges.iter().collect();
            prop_assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0));
        }
    }
}
