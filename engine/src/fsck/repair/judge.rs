//! What a repair changes for a reader: the mapping before it, by the best there is, against the mapping after it.
//!
//! A range is changed when a reader gets it from another place afterwards, or when what only the cache has is not called
//! dirty any more. A clean copy may go: the backing device has the same. That of a volume may not: there is none.

use super::super::check::Checked;
use super::super::ranges::Ranges;
use super::super::view::{SeenExtent, SetView};
use super::{Refused, trusted, uuids};
use bcache_format::uuid_entry::UuidEntry;
use bcache_format::{Bkey, Pos};

/// What changes between what was checked and the view of the repaired set.
///
/// # Errors
/// A device that changed since it was checked.
pub(super) fn changes(checked: &Checked, before: &SetView, after: &SetView) -> Result<Ranges, Refused> {
    let kept = |extent: &SeenExtent| {
        let Some(ptr) = extent.key.ptr().filter(|ptr| ptr.is_device()) else { return false };
        let bucket = before.cache.geometry.ptr_bucket(ptr);
        let revived = extent.key.dirty() && checked.revived.contains(&bucket);
        (extent.live().is_some() || revived) && !checked.metadata.contains_key(&bucket)
    };
    let old = trusted(checked, before);
    let old = old.filter(|extent| extent.as_ref().map_or(true, kept)).map(|extent| Ok(extent?.key));
    // It was checked a moment ago, and had no finding.
    let new = after.extents(Pos::ZERO, Pos::MAX).flatten();
    let new = new.filter(|extent| extent.live().is_some()).map(|extent| extent.key);
    let volume = |slot: u32| before.uuids.get(slot as usize).is_some_and(UuidEntry::is_flash_only);
    let mut changed = compare(old, new, &volume)?;
    for slot in uuids::moved(checked, before, &after.uuids) {
        if let Some(used) = checked.slots.get(&slot).filter(|used| used.all > 0) {
            changed.add((Pos::new(slot, used.start), Pos::new(slot, used.end)));
        }
    }
    Ok(changed)
}

/// The ranges of which two mappings, both in order and without overlaps, say different things.
fn compare<E>(
    mut before: impl Iterator<Item = Result<Bkey, E>>,
    mut after: impl Iterator<Item = Bkey>,
    volume: &dyn Fn(u32) -> bool,
) -> Result<Ranges, E> {
    let mut changed = Ranges::default();
    let (mut old, mut new) = (before.next().transpose()?, after.next());
    loop {
        let starts = (old.map(|key| key.start_pos()), new.map(|key| key.start_pos()));
        let until = match (&old, &new) {
            (None, None) => return Ok(changed),
            (Some(old), None) => old.pos(),
            (None, Some(new)) => new.pos(),
            (Some(old), Some(new)) if old.start_pos() < new.start_pos() => old.pos().min(new.start_pos()),
            (Some(old), Some(new)) if new.start_pos() < old.start_pos() => new.pos().min(old.start_pos()),
            (Some(old), Some(new)) => old.pos().min(new.pos()),
        };
        let from = match starts {
            (Some(old), Some(new)) => old.min(new),
            (old, new) => old.or(new).unwrap_or(until),
        };
        let was = old.filter(|key| key.start_pos() == from);
        let is = new.filter(|key| key.start_pos() == from);
        let same = match (&was, &is) {
            (Some(was), Some(is)) => place(was) == place(is) && (is.dirty() || !was.dirty()),
            (Some(was), None) => !was.dirty() && !volume(was.inode()),
            (None, _) => is.is_none(),
        };
        if !same {
            changed.add((from, until));
        }
        if was.is_some() {
            old = old.filter(|key| key.pos() > until).map(|key| behind(key, until));
            if old.is_none() {
                old = before.next().transpose()?;
            }
        }
        if is.is_some() {
            new = new.filter(|key| key.pos() > until).map(|key| behind(key, until)).or_else(|| after.next());
        }
    }
}

fn behind(mut key: Bkey, from: Pos) -> Bkey {
    key.cut_front(from);
    key
}

/// Where an extent's first sector is, and with which generation.
fn place(key: &Bkey) -> Option<(u64, u8)> {
    key.ptr().map(|ptr| (ptr.offset(), ptr.generation()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bcache_format::Ptr;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// Extents of two slots, the second a volume: slot, gap before, size, place, dirty.
    type Shape = Vec<(u64, u64, u64, bool)>;

    fn keys(shapes: &[Shape]) -> Vec<Bkey> {
        let mut keys = Vec::new();
        for (slot, shape) in (0u32..).zip(shapes) {
            let mut at = 0;
            for (gap, size, place, dirty) in shape {
                let (start, end) = (at + gap, at + gap + size);
                // Few places, so that some are the same in both.
                let ptr = Ptr::new(0, place * 64 + start, 0);
                keys.push(Bkey::extent(slot, end, *size, ptr, *dirty));
                at = end;
            }
        }
        keys
    }
    fn sectors(keys: &[Bkey]) -> BTreeMap<(u32, u64), (u64, bool)> {
        let of = |key: &Bkey| {
            let (slot, start, at, dirty) =
                (key.inode(), key.start(), key.ptr().unwrap().offset(), key.dirty());
            (0..key.size()).map(move |i| ((slot, start + i), (at + i, dirty)))
        };
        keys.iter().flat_map(of).collect()
    }

    fn shape() -> impl Strategy<Value = Shape> {
        prop::collection::vec((0u64..4, 1u64..6, 0u64..2, any::<bool>()), 0..8)
    }

    proptest! {
        #[test]
        fn a_change_is_what_a_reader_gets_from_elsewhere(
            before in prop::collection::vec(shape(), 2),
            after in prop::collection::vec(shape(), 2),
        ) {
            let (before, after) = (keys(&before), keys(&after));
            let got = compare(before.iter().copied().map(Ok::<_, ()>), after.iter().copied(), &|slot| slot == 1);
            let got: BTreeSet<(u32, u64)> = got
                .unwrap()
                .iter()
                .flat_map(|(from, to)| (from.offset..to.offset).map(move |sector| (from.inode, sector)))
                .collect();
            let (before, after) = (sectors(&before), sectors(&after));
            let all: BTreeSet<_> = before.keys().chain(after.keys()).copied().collect();
            let differs = |sector: &(u32, u64)| match (before.get(sector), after.get(sector)) {
                (Some((was, dirty)), Some((is, still))) => was != is || (*dirty && !still),
                (Some((_, dirty)), None) => *dirty || sector.0 == 1,
                (None, is) => is.is_some(),
            };
            let want: BTreeSet<_> = all.into_iter().filter(differs).collect();
            prop_assert_eq!(got, want);
        }
    }
}
