//! What a merge gives is what comes out when the bsets are laid over each other one by one.

use super::*;
use crate::btree::ExtentMap;
use crate::sim::Runtime;
use bcache_format::bkey::Ptr;
use bcache_format::bset;
use bcache_format::magic::SetMagic;
use proptest::prelude::*;
use uuid::Uuid;

const BUCKET: u64 = 64;
const NODE: Ptr = Ptr(77);

fn magic() -> SetMagic {
    SetMagic::of(&Uuid::from_u128(0x1122))
}

fn image(keys: &[Bkey]) -> Vec<u8> {
    bset::write(keys, 5, bset::VERSION, NODE, magic()).expect("a bset")
}

fn parsed(images: &[Vec<u8>]) -> Vec<(u64, Bset<'_>)> {
    let parse = |image| Bset::parse(image, NODE, magic()).expect("a bset");
    images.iter().enumerate().map(|(i, image)| (i as u64 * 4096, parse(image))).collect()
}

/// Bsets laid over each other one by one, oldest first: slower, and too simple to be wrong.
fn fold(sets: &[(u64, Bset<'_>)], max: Pos) -> Result<(Vec<Extent>, bool), String> {
    let (mut map, mut has_holes) = (ExtentMap::new(), false);
    for (byte, set) in sets {
        let mut last = Pos::ZERO;
        for key in set.keys() {
            let key = key.map_err(|error| error.at(*byte).to_string())?;
            if key.size() == 0 {
                continue;
            }
            let extent = Extent::from_key(&key).ok_or("it starts before the first sector")?;
            if extent.start_pos() < last || extent.pos() > max {
                return Err("it is out of order".to_owned());
            }
            last = extent.pos();
            has_holes |= extent.is_hole();
            map.overlay(extent, false, BUCKET, |_| ());
        }
    }
    Ok((joined(map.iter().copied()), has_holes))
}

/// The same extents with those made one that can be: how often keys cut each other on the way does not count.
fn joined(extents: impl IntoIterator<Item = Extent>) -> Vec<Extent> {
    let mut all: Vec<Extent> = Vec::new();
    for extent in extents {
        match all.last_mut().and_then(|last| Some((last.joined(&extent, BUCKET)?, last))) {
            Some((joined, last)) => *last = joined,
            None => all.push(extent),
        }
    }
    all
}

fn merged(pool: &MergePool, sets: &[(u64, Bset<'_>)], max: Pos) -> Result<(Vec<Extent>, bool), String> {
    let mut merge = Runtime::new(1).block_on(pool.take(sets.len()));
    let mut sets = Sets { sets, max, has_holes: false };
    let mut all: Vec<Extent> = Vec::new();
    merge.run(&mut sets, |extent| {
        assert!(all.last().is_none_or(|last| last.pos() <= extent.start_pos()), "in order, without overlaps");
        all.push(extent);
        Ok(())
    })?;
    Ok((joined(all.into_iter().filter(|extent| !extent.is_hole())), sets.has_holes))
}

/// Keys of a bset: gap before each, size, bucket, and what it is.
fn bset_of(inode: u32, keys: &[(u64, u64, u64, u8)]) -> Vec<Bkey> {
    let mut at = 0;
    let key = |&(gap, size, bucket, kind): &(u64, u64, u64, u8)| {
        at += gap + size;
        let ptr = Ptr::new(0, bucket * BUCKET + at % 8, 0);
        match kind {
            0 => Bkey::new(inode, at, size),
            1 => Bkey::new(inode, at, 0),
            _ => Bkey::extent(inode, at, size, ptr, kind % 2 == 0),
        }
    };
    keys.iter().map(key).collect()
}

fn bsets() -> impl Strategy<Value = Vec<Vec<Bkey>>> {
    let keys = || prop::collection::vec((0..30u64, 1..20u64, 1..9u64, 0..8u8), 0..30);
    let set = (keys(), keys()).prop_map(|(a, b)| [bset_of(0, &a), bset_of(3, &b)].concat());
    prop::collection::vec(set, 0..20)
}

proptest! {
    #[test]
    fn a_merge_is_what_laying_over_each_other_gives(sets in bsets()) {
        let images: Vec<_> = sets.iter().map(|keys| image(keys)).collect();
        let (sets, pool) = (parsed(&images), MergePool::new(20));
        prop_assert_eq!(merged(&pool, &sets, Pos::MAX), fold(&sets, Pos::MAX));
        prop_assert!(pool.is_whole());
    }

    /// Keys in any order, perhaps behind the leaf's end: both refuse the same.
    #[test]
    fn what_is_out_of_order_is_refused(
        sets in prop::collection::vec(prop::collection::vec((1..60u64, 1..9u64), 0..4), 1..5),
        end in 20..80u64,
    ) {
        let key = |&(end, size): &(u64, u64)| Bkey::extent(1, end, size, Ptr::new(0, 640, 0), true);
        let images: Vec<_> = sets.iter().map(|keys| image(&keys.iter().map(key).collect::<Vec<_>>())).collect();
        let (sets, pool, max) = (parsed(&images), MergePool::new(5), Pos::new(1, end));
        let (merged, fold) = (merged(&pool, &sets, max), fold(&sets, max));
        prop_assert_eq!(merged.is_err(), fold.is_err());
        prop_assert!(fold.is_err() || merged == fold);
        prop_assert!(pool.is_whole());
    }
}

#[test]
fn a_key_that_does_not_fit_is_refused_with_its_byte() {
    let mut bytes = image(&[Bkey::extent(1, 8, 8, Ptr::new(0, 640, 0), true), Bkey::new(1, 16, 8)]);
    // The second key claims a pointer for which there is no room.
    bytes[HEADER_BYTES + 24 + 7] |= 0x10;
    bset::seal(&mut bytes, NODE);
    let images = [bytes];
    let error = merged(&MergePool::new(1), &parsed(&images), Pos::MAX).expect_err("it is refused");
    assert!(error.contains(&format!("{:#x}", HEADER_BYTES + 24)) || error.contains("56"), "{error}");
}

/// Two reads at once when there is no memory: the second waits for the first, and for no longer.
#[test]
fn who_finds_no_memory_waits_for_the_reserve() {
    let pool = std::rc::Rc::new(MergePool::new(65));
    pool.starve();
    let runtime = Runtime::new(1);
    let env = runtime.env();
    runtime.block_on(async {
        let first = pool.take(65).await;
        let waiting = std::rc::Rc::clone(&pool);
        let second = env.spawn(async move { waiting.take(3).await.inner.cursors.capacity() });
        env.sleep(std::time::Duration::from_secs(1)).await;
        assert!(!second.is_finished());
        drop(first);
        assert!(second.await >= 65, "it has the reserve");
        assert!(pool.is_whole());
    });
}

#[test]
fn a_second_read_asks_for_memory_for_as_many_as_it_has() {
    let pool = MergePool::new(65);
    Runtime::new(1).block_on(async {
        let first = pool.take(2).await;
        let second = pool.take(7).await;
        assert!(first.is_reserve && !second.is_reserve);
        assert!((7..65).contains(&second.inner.cursors.capacity()));
        drop(second);
        assert!(!pool.is_whole());
        drop(first);
        assert!(pool.is_whole());
    });
}
