//! Dirty data of sets whose journal and root are gone.

use std::collections::BTreeMap;

use bcache_engine::fsck::check::Absent;
use bcache_engine::fsck::repair::{Refused, plan};
use bcache_engine::fsck::salvage::{Belief, Salvage};
use bcache_engine::fsck::view::SetView;
use bcache_engine::fsck::view::node::SeenNode;
use bcache_engine::fsck::{Kind, Options, check};
use bcache_format::superblock::SB_OFFSET;
use bcache_format::{Bkey, Pos};
use bcache_tests::golden::Set;

use crate::patched::Patched;
use crate::regions::view;

/// Where each dirty sector is.
fn sectors(key: &Bkey) -> impl Iterator<Item = ((u32, u64), u64)> + use<> {
    let (inode, start, at) = (key.inode(), key.start(), key.ptr().unwrap().offset());
    (0..key.size()).map(move |i| ((inode, start + i), at + i))
}

fn dirty(view: &SetView) -> BTreeMap<(u32, u64), u64> {
    let live = view.extents(Pos::ZERO, Pos::MAX).flatten().filter(|extent| extent.live().is_some());
    live.filter(|extent| extent.key.dirty()).flat_map(|extent| sectors(&extent.key)).collect()
}

/// Wipes all journal buckets, and the root node too when that is asked for.
fn destroy(device: &mut Patched, view: &SetView, with_root: bool) {
    let geometry = view.cache.geometry;
    let block = vec![0; 4096];
    for bucket in geometry.first_bucket..geometry.first_bucket + view.cache.njournal_buckets() {
        let start = bucket * geometry.bucket_bytes();
        // Entries are small and many: all of them go.
        for at in (0..geometry.bucket_bytes().min(1 << 20)).step_by(block.len()) {
            device.write(start + at, &block);
        }
    }
    let root = view.root.unwrap().key.ptr().unwrap().offset() * 512;
    if !with_root {
        return;
    }
    device.write(root, &vec![0; geometry.btree_node_bytes() as usize]);
}

#[test]
fn without_journal_and_root_nearly_all_dirty_sectors_come_back() {
    for set in Set::all().unwrap() {
        // In the detached set only the journal says dirty, of what was written back long before.
        if (set.entry.content.is_empty() && set.entry.stamp.is_none()) || set.name == "detached-fifo" {
            continue;
        }
        for with_root in [false, true] {
            comes_back(&set.name, with_root);
        }
    }
}

fn comes_back(set: &str, with_root: bool) {
    let mut device = Patched::cache_of(set);
    let whole = view(device.cache());
    let want = dirty(&whole);
    // A root that is a leaf holds everything: nothing is left without it.
    if want.is_empty() || (with_root && whole.root.unwrap().level == 0) {
        return;
    }
    destroy(&mut device, &whole, with_root);
    let found = Salvage::scan(&device.cache(), &|_, _| {}).unwrap();
    let all = found.slots.values().flatten();
    let got: BTreeMap<_, _> = all.clone().flat_map(|(key, _)| sectors(key)).collect();
    let right = want.iter().filter(|(place, at)| got.get(place) == Some(at)).count();
    assert!(right * 100 >= want.len() * 95, "{set}: {right} of {}", want.len());
    // What is believed is right, unless only the journal knew better: then the set was not stopped cleanly.
    let sure = all.filter(|(_, belief)| *belief == Belief::Sure).flat_map(|(key, _)| sectors(key));
    let wrong = sure.filter(|(place, at)| want.get(place) != Some(at)).count();
    let newest_in_journal = whole.replayed.from(Pos::ZERO).map(|key| key.size()).sum::<u64>();
    assert!(wrong as u64 <= newest_in_journal, "{set}: {wrong} sure sectors are wrong");
}

#[test]
fn of_a_cache_that_was_cut_off_what_is_there_is_found() {
    let mut partly = 0;
    for set in ["wb-dirty", "wb-crash", "deep-btree", "two-backing-flash", "reuse-gc"] {
        let whole = view(Patched::cache_of(set).cache());
        let want = dirty(&whole);
        let size = whole.cache.device.size();
        for part in [1, 2, 5, 9, 14, 20, 30, 45, 70, 99] {
            // Nothing says that a copy ends at a block.
            let end = size * part / 100 + 137;
            let found = cut(set, &whole, &want, end);
            partly += usize::from(0 < found && found < want.len());
        }
    }
    assert!(partly > 10, "only {partly} had something before and something behind their end");
}

/// Cuts a cache off. Tells how many sectors were found.
fn cut(set: &str, whole: &SetView, want: &BTreeMap<(u32, u64), u64>, end: u64) -> usize {
    let mut device = Patched::cache_of(set);
    device.truncate(end);
    let devices = [device.device()];
    let checked = check(devices.iter().cloned(), Options::default());
    let what = format!("{set} cut off at {end}");
    assert!(checked.has(Kind::SbTooBig), "{what}: {:?}", checked.findings.to_vec());
    let rest = Absent::Rest {
        of: "cache".into(),
        bytes: end,
        whole: whole.cache.geometry.nbuckets * whole.cache.geometry.bucket_bytes(),
    };
    assert!(checked.absent().contains(&rest), "{what}: {:?}", checked.absent());
    // Never repaired, whatever else is found.
    assert!(matches!(plan(&devices, &checked, &mut || 7), Err(Refused::Fatal(..))), "{what}");
    let Ok(found) = Salvage::of(&checked) else {
        // Without its journal nothing is left of so little.
        let journal = (whole.cache.geometry.first_bucket + whole.cache.njournal_buckets())
            * whole.cache.geometry.bucket_bytes();
        assert!(end < journal + whole.cache.geometry.bucket_bytes(), "{what}: nothing found");
        return 0;
    };
    let lost = |inode: u32, sector: u64| {
        found.lost.iter().any(|(from, to)| *from <= Pos::new(inode, sector) && Pos::new(inode, sector) < *to)
    };
    let sure = found.slots.values().flatten().filter(|(_, belief)| *belief == Belief::Sure);
    let got: BTreeMap<_, _> = sure.flat_map(|(key, _)| sectors(key)).collect();
    for (place, at) in &got {
        assert!(want.get(place) == Some(at), "{what}: {place:?} is wrong, and sure");
        assert!((at + 1) * 512 <= end, "{what}: {place:?} is behind the end");
    }
    // With the way to it there, all that is before the end is found.
    let before_end = |at: &SeenNode| at.key.ptr().unwrap().offset() * 512 + at.key.size() * 512 <= end;
    let missing: Vec<_> =
        whole.leaves.iter().filter(|at| !before_end(at)).map(|at| (at.lower, at.key.pos())).collect();
    let way = whole.root.is_some_and(|root| root.level < 2 && before_end(&root));
    for ((inode, sector), at) in want {
        let has = got.get(&(*inode, *sector)) == Some(at);
        assert!(has || lost(*inode, *sector), "{what}: sector {sector} of {inode} is missing, and not told");
        let pos = Pos::new(*inode, sector + 1);
        let leaf_is_there = !missing.iter().any(|(from, to)| *from < pos && pos <= *to);
        let expected = way && leaf_is_there && (at + 1) * 512 <= end;
        assert!(has || !expected, "{what}: sector {sector} of {inode} is there, and not found");
    }
    got.len()
}

#[test]
fn more_buckets_than_any_cache_has_take_no_memory_and_no_time() {
    let mut device = Patched::cache_of("wb-dirty");
    for nbuckets in [1u64 << 24, 1 << 30, 1 << 40, u64::MAX] {
        let whole = view(Patched::cache_of("wb-dirty").cache());
        let region = crate::regions::of(&whole)[0];
        crate::regions::change(&mut device, &region, |bytes| {
            bytes[0xb8..0xc0].copy_from_slice(&nbuckets.to_le_bytes());
        });
        assert_eq!(region.byte, SB_OFFSET);
        let start = std::time::Instant::now();
        let checked = check([device.device()], Options::default());
        assert!(
            checked.has(Kind::SbTooBig) || checked.has(Kind::SbField),
            "{nbuckets}: {:?}",
            checked.findings.to_vec()
        );
        assert!(start.elapsed().as_secs() < 20, "{nbuckets}: {:?}", start.elapsed());
    }
}
