//! Random damage, judged by what a reader sees: a repair changes no sector but those that the destroyed bytes alone
//! held, tells of each, and nothing at all where it says that nothing is lost.

use std::collections::{BTreeMap, BTreeSet};

use bcache_engine::fsck::salvage::Salvage;
use bcache_engine::fsck::view::{Device, SetView};
use bcache_engine::fsck::{Checked, Options, Severity, check, repair};
use bcache_format::bset::{BsetHeader, Keys};
use bcache_format::jset::Jset;
use bcache_format::{Bkey, Pos, Structure};

use crate::cases::World;
use crate::mutations::Random;
use crate::regions::{Kind as Holds, Region};

/// Sets that have something dirty.
const SETS: [&str; 5] = ["wb-dirty", "wb-crash", "deep-btree", "two-backing-flash", "reuse-gc"];

type Sector = (u32, u64);

/// What only the cache has, where each dirty sector is; or where the clean ones are, which a reader gets from the backing
/// device as well.
fn seen(view: &SetView, dirty: bool) -> BTreeMap<Sector, u64> {
    let live = view.extents(Pos::ZERO, Pos::MAX).flatten().filter(|extent| extent.key.dirty() == dirty);
    live.filter_map(|extent| Some((extent.key, extent.live()?)))
        .flat_map(|(key, ptr)| {
            (0..key.size()).map(move |i| ((key.inode(), key.start() + i), ptr.offset() + i))
        })
        .collect()
}

/// The keys that a region has, before it is damaged.
fn keys(world: &World, region: &Region) -> Vec<Bkey> {
    let bytes = world.cache.bytes(region.byte, region.len);
    match region.kind {
        Holds::Bset(_) => {
            let end = BsetHeader::read(&bytes).expect("a header").bytes() as usize;
            let keys = Keys::new(&bytes[32..end.min(bytes.len())], 32, Structure::Bset);
            keys.map_while(Result::ok).collect()
        }
        // One that is damaged a second time has told before what it held.
        Holds::Jset => {
            Jset::parse(&bytes, world.view.cache.magic).map_or_else(|_| Vec::new(), |jset| jset.keys)
        }
        _ => Vec::new(),
    }
}

/// One damage to a region: bits, a sector, all of it, or a sector that cannot be read.
fn damage(world: &mut World, region: Region, random: &mut Random) -> &'static str {
    let at = region.byte + random.next() % region.len;
    let sector = at / 512 * 512;
    match random.next() % 5 {
        0 => {
            let byte = world.cache.bytes(at, 1)[0];
            world.cache.write(at, &[byte ^ 1 << (random.next() % 8)]);
            "bit"
        }
        1 => {
            let byte = world.cache.bytes(at, 1)[0];
            world.cache.write(at, &[!byte]);
            "byte"
        }
        2 => {
            world.cache.write(sector, &[0; 512]);
            "sector"
        }
        3 => {
            world.cache.write(region.byte, &vec![0; region.len as usize]);
            "all"
        }
        _ => {
            world.cache.spoil(sector);
            "unreadable"
        }
    }
}

fn run(devices: &[Device]) -> Checked {
    check(devices.iter().cloned(), Options::default())
}

/// What came of one damaged set.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Came {
    repaired: u64,
    refused: u64,
    lossless: u64,
    lost: u64,
}

/// Damages a set by a seed, repairs and judges it.
fn one(seed: u64, came: &mut Came) {
    let mut random = Random::new(seed);
    let set = SETS[(seed % SETS.len() as u64) as usize];
    let mut world = World::of(set);
    let (before, clean) = (seen(&world.view, true), seen(&world.view, false));
    let mut allowed: BTreeSet<Sector> = BTreeSet::new();
    let mut told = Vec::new();
    let mut journal = false;
    for _ in 0..1 + random.next() % 3 {
        let region = world.regions[(random.next() % world.regions.len() as u64) as usize];
        // A damaged superblock is refused, or a bit or a checksum that `every_kind_of_damage` looks at.
        if region.kind == Holds::Superblock {
            continue;
        }
        let held =
            if world.cache.bytes(region.byte, 8) == [0; 8] { Vec::new() } else { keys(&world, &region) };
        allowed.extend(held.iter().flat_map(|key| (0..key.size()).map(|i| (key.inode(), key.start() + i))));
        journal |= region.kind == Holds::Jset;
        told.push((region.kind, region.byte, damage(&mut world, region, &mut random)));
        if told.last().is_some_and(|(_, _, how)| *how == "unreadable") {
            // Other entries of the same sectors went with it.
            break;
        }
    }
    let replay =
        format!("CONTENT_SEED={seed} cargo nextest run -p bcache-tests content::one_seed --run-ignored=all");
    let at = format!("{set} {told:?}; {replay}");
    let devices = world.devices();
    let checked = run(&devices);
    let planned = repair::plan(&devices, &checked, &mut || random.next());
    let Ok(plan) = planned else {
        came.refused += 1;
        return;
    };
    came.repaired += 1;
    let after_devices = plan.simulate(&devices, usize::MAX).expect("in memory");
    let last = run(&after_devices);
    assert_eq!(*last.findings, [], "{at}");
    let Some(view) = &last.set else { return };
    let after = seen(view, true);
    // An entry that is replayed once more says dirty of what was written back since, or was moved: in a place where it
    // still is.
    let bytes = |at: &u64| world.cache.bytes(at * 512, 512);
    let again = |sector: &Sector| {
        let was = before.get(sector).or_else(|| clean.get(sector));
        was.zip(after.get(sector)).is_some_and(|(was, is)| was == is || bytes(was) == bytes(is))
    };
    let differ: BTreeSet<Sector> = before
        .keys()
        .chain(after.keys())
        .filter(|sector| before.get(*sector) != after.get(*sector) && !again(sector))
        .copied()
        .collect();
    came.lost += differ.len() as u64;
    if std::env::var_os("CONTENT_SEED").is_some() {
        println!("{:#?}", checked.findings.to_vec());
    }
    // A bset at the end of its node whose beginning became zeros was never written, as far as anybody can tell.
    let unwritten = told.iter().any(|(kind, byte, how)| {
        let last = world.regions.iter().rfind(|region| region.kind == *kind).map(|region| region.byte);
        matches!(kind, Holds::Bset(_)) && last == Some(*byte) && matches!(*how, "all" | "sector")
    });
    // The same goes for the newest entry, also when it is there in part: so it is when a crash tears it. Older ones are
    // replayed then that it said need not be.
    let newest = world.view.journal.newest().unwrap();
    let torn =
        told.iter().any(|(kind, byte, how)| *kind == Holds::Jset && *byte == newest.byte && *how != "bit");
    if torn {
        let replayed = checked.set.iter().flat_map(|view| view.journal.entries.range(..newest.jset.last_seq));
        let keys = replayed.flat_map(|(_, entry)| &entry.jset.keys);
        allowed.extend(keys.flat_map(|key| (0..key.size()).map(|i| (key.inode(), key.start() + i))));
    }
    if unwritten {
        return;
    }
    let lossless = checked.worst().is_none_or(|worst| worst <= Severity::Lossless) && plan.changed.is_empty();
    came.lossless += u64::from(lossless);
    assert!(!lossless || torn || differ.is_empty(), "lossless, but {} sectors differ: {at}", differ.len());
    let more: Vec<_> = differ.difference(&allowed).take(5).collect();
    assert!(
        more.is_empty(),
        "sectors that no destroyed byte held differ: {more:?} of {}; {at}",
        differ.len()
    );
    // Where the journal is whole every loss has a name.
    let lost = checked.lost();
    let named = |(inode, sector): &Sector| {
        lost.iter()
            .any(|(from, to)| *from <= Pos::new(*inode, *sector) && Pos::new(*inode, sector + 1) <= *to)
    };
    let silent: Vec<_> = differ.iter().filter(|sector| !named(sector)).take(5).collect();
    assert!(journal || silent.is_empty(), "not named as lost: {silent:?}; {at}");
    // Salvage has nothing that the repair has not.
    if let Ok(salvage) = Salvage::of(&checked) {
        let keys = salvage.slots.values().flatten().map(|(key, _)| key);
        let missing = keys.flat_map(|key| (0..key.size()).map(move |i| (key.inode(), key.start() + i)));
        let missing: Vec<_> = missing.filter(|sector| !after.contains_key(sector)).take(5).collect();
        assert!(missing.is_empty(), "only salvage has {missing:?}; {at}");
    }
}

fn many(seeds: std::ops::Range<u64>) {
    let mut came = Came::default();
    let mut failed = Vec::new();
    let all = seeds.end - seeds.start;
    for seed in seeds {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| one(seed, &mut came)));
        if ran.is_err() {
            failed.push(seed);
        }
    }
    println!("{came:?}");
    assert!(failed.is_empty(), "{} of {all}: {failed:?}", failed.len());
    assert!(came.repaired > all / 2 && came.lossless > 0, "{came:?} of {all}");
}

#[test]
fn a_repair_changes_only_what_the_destroyed_bytes_held() {
    many(0..60);
}

#[test]
#[ignore = "replays one seed"]
fn one_seed() {
    let seed = std::env::var("CONTENT_SEED").ok().and_then(|seed| seed.parse().ok());
    one(seed.expect("CONTENT_SEED is a number"), &mut Came::default());
}

mod long {
    #[test]
    #[ignore = "takes long"]
    fn a_repair_changes_only_what_the_destroyed_bytes_held() {
        super::many(1000..11_000);
    }
}
