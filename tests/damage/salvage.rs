//! Dirty data of sets whose journal and root are gone.

use std::collections::BTreeMap;

use bcache_engine::fsck::salvage::{Belief, Salvage};
use bcache_engine::fsck::view::SetView;
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
