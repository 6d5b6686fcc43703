//! Kinds of single damage: what is done to a golden set, and which finding must name it.

use std::collections::HashSet;

use bcache_engine::fsck::Kind;
use bcache_engine::fsck::view::node::NodeView;
use bcache_engine::fsck::view::tree::{Step, Walk};
use bcache_engine::fsck::view::{Device, SetView};
use bcache_format::superblock::SB_OFFSET;
use bcache_format::uuid_entry::ENTRY_BYTES;
use bcache_format::{Bkey, BucketNr, Pos, Ptr, bset};

use crate::patched::Patched;
use crate::regions::{Kind as Holds, Region, change, of};

/// What becomes of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Repaired, the content is as before.
    Same,
    /// Repaired, except for what is reported as lost.
    Less,
    /// Not repaired.
    Refused,
}

/// One kind of damage.
pub struct Case {
    pub name: &'static str,
    pub set: &'static str,
    pub kind: Kind,
    pub after: After,
    pub damage: fn(&mut World),
}

/// A golden set to damage.
pub struct World {
    pub cache: Patched,
    pub backings: Vec<Patched>,
    pub view: SetView,
    pub regions: Vec<Region>,
}

impl World {
    pub fn of(set: &str) -> Self {
        let mut devices = Patched::all_of(set);
        let backings = devices.split_off(1);
        let cache = devices.remove(0);
        let view = SetView::open(cache.cache()).unwrap();
        let regions = of(&view);
        Self { cache, backings, view, regions }
    }
    /// All devices, damaged or not, the cache first.
    pub fn devices(&self) -> Vec<Device> {
        std::iter::once(self.cache.device()).chain(self.backings.iter().map(Patched::device)).collect()
    }
    pub fn sb(&mut self, damage: impl FnOnce(&mut [u8])) {
        change(&mut self.cache, &self.regions[0], damage);
    }
    pub fn backing(&mut self, damage: impl FnOnce(&mut [u8])) {
        let region = Region { kind: Holds::Superblock, byte: SB_OFFSET, len: 4096 };
        change(&mut self.backings[0], &region, damage);
    }
    pub fn newest(&self) -> Region {
        *self.regions.iter().rfind(|region| region.kind == Holds::Jset).unwrap()
    }
    pub fn jset(&mut self, damage: impl FnOnce(&mut [u8])) {
        let newest = self.newest();
        change(&mut self.cache, &newest, damage);
    }
    pub fn region(&self, holds: Holds) -> Region {
        *self.regions.iter().find(|region| region.kind == holds).unwrap()
    }
    pub fn prio(&mut self, damage: impl FnOnce(&mut [u8])) {
        let region = self.region(Holds::Prio);
        change(&mut self.cache, &region, damage);
    }
    fn uuid(&mut self, slot: usize, damage: impl FnOnce(&mut [u8])) {
        let region = self.region(Holds::Uuids);
        change(&mut self.cache, &region, |bytes| damage(&mut bytes[slot * ENTRY_BYTES..][..ENTRY_BYTES]));
    }
    /// The root's bsets.
    pub fn root(&self) -> Vec<Region> {
        let first = self.regions.iter().find(|region| matches!(region.kind, Holds::Bset(_))).unwrap().kind;
        self.regions.iter().filter(|region| region.kind == first).copied().collect()
    }
    /// The bsets of the last leaf.
    pub fn leaf(&self) -> Vec<Region> {
        let last = self.regions.last().unwrap().kind;
        self.regions.iter().filter(|region| region.kind == last).copied().collect()
    }
    /// Changes the first bset of the last leaf.
    pub fn bset(&mut self, damage: impl FnOnce(&mut [u8])) {
        let first = self.leaf()[0];
        change(&mut self.cache, &first, damage);
    }
    /// Changes the newest dirty extent of a leaf that is still seen: its bytes in its bset.
    fn extent(&mut self, damage: impl FnOnce(&SetView, &mut Bkey)) {
        let (region, at, mut key) = self.seen_extent();
        damage(&self.view, &mut key);
        self.put_extent(&region, at, &key);
    }
    /// Writes a key of a bset, which has as many pointers as the one that is there.
    pub fn put_extent(&mut self, region: &Region, at: usize, key: &Bkey) {
        let bytes: Vec<u8> = key.words().flat_map(u64::to_le_bytes).collect();
        change(&mut self.cache, region, |set| set[at..at + bytes.len()].copy_from_slice(&bytes));
    }
    /// Where the data of a clean extent is.
    fn clean_data(&self) -> u64 {
        let mut extents = self.view.extents(Pos::ZERO, Pos::MAX).flatten();
        let clean = extents.find_map(|extent| extent.live().filter(|_| !extent.key.dirty()));
        clean.unwrap().offset() * 512
    }
    /// A dirty extent that is seen whole: nothing newer covers a part of it, neither in its node nor in the journal.
    pub fn seen_extent(&self) -> (Region, usize, Bkey) {
        self.seen_extents().into_iter().next().expect("a dirty extent")
    }
    /// The last of these that is the last key of its bset: it may become larger.
    fn last_extent(&self) -> (Region, usize, Bkey) {
        let is_last = |(region, at, key): &(Region, usize, Bkey)| at + key.u64s() * 8 == region.len as usize;
        self.seen_extents().into_iter().rfind(is_last).expect("a dirty extent at the end of a bset")
    }
    pub fn seen_extents(&self) -> Vec<(Region, usize, Bkey)> {
        let mut found = Vec::new();
        let mut walk = Walk::new(&self.view.cache, self.view.root.unwrap(), Pos::ZERO, Pos::MAX);
        while let Some(Step::Node(node)) = walk.step_settled(&self.view.gens) {
            for set in node.sets.iter().filter(|_| node.at.level == 0) {
                let (byte, len) = (node.byte + set.offset, set.bytes);
                let bytes = self.cache.bytes(byte, len);
                let mut at = 32;
                while let Some(key) = bytes.get(at..).and_then(Bkey::from_bytes) {
                    let covered = self.view.replayed.from(key.start_pos()).next();
                    let free = covered.is_none_or(|journal| journal.start_pos() >= key.pos());
                    let live = key.dirty() && self.view.gens.stale_key(&key) == 0;
                    if live && free && node.keys.contains(&key) {
                        found.push((Region { kind: Holds::Bset(node.ptr), byte, len }, at, key));
                    }
                    at += key.u64s() * 8;
                }
            }
        }
        found
    }
    /// Zeros in place of the root.
    pub fn wipe_root(&mut self) {
        for region in self.root() {
            self.cache.write(region.byte, &vec![0; region.len as usize]);
        }
    }
    /// The bucket with the highest number that nothing is in.
    pub fn unused_bucket(&self) -> u64 {
        let (view, geometry) = (&self.view, self.view.cache.geometry);
        let used: HashSet<u64> = view
            .extents(Pos::ZERO, Pos::MAX)
            .flatten()
            .filter_map(|extent| Some(geometry.ptr_bucket(extent.key.ptr()?).0))
            .chain(view.nodes.iter().map(|bucket| bucket.0))
            .chain(view.prios.buckets.iter().map(|(bucket, _)| bucket.0))
            .chain(self.regions.iter().map(|region| region.byte / geometry.bucket_bytes()))
            .collect();
        (0..geometry.nbuckets).rev().find(|bucket| !used.contains(bucket)).unwrap()
    }
    /// Writes a leaf that nothing leads to and that has the last leaf's range: the data of every two of its dirty extents
    /// is exchanged.
    fn contradict(&mut self) {
        let view = &self.view;
        let at = *view.leaves.last().unwrap();
        let mut keys = NodeView::read(&view.cache, at).unwrap().keys;
        keys.retain(|key| key.dirty() && view.gens.stale_key(key) == 0);
        for i in
            (1..keys.len()).step_by(2).filter(|i| keys[*i].size() == keys[i - 1].size()).collect::<Vec<_>>()
        {
            let (one, other) = (keys[i - 1].ptr().unwrap(), keys[i].ptr().unwrap());
            keys[i - 1].set_ptrs(&[other]);
            keys[i].set_ptrs(&[one]);
        }
        let (geometry, bucket) = (view.cache.geometry, self.unused_bucket());
        let ptr = Ptr::new(0, geometry.bucket_start(BucketNr(bucket)).0, view.gens.get(bucket).unwrap());
        let bytes = bset::write(&keys, 0x5eed, bset::VERSION, ptr, view.cache.magic).unwrap();
        self.cache.write(bucket * geometry.bucket_bytes(), &vec![0; geometry.bucket_bytes() as usize]);
        self.cache.write(bucket * geometry.bucket_bytes(), &bytes);
    }
    /// Bumps the stored generation of a bucket.
    pub fn bump(&mut self, bucket: u64, by: u8) {
        self.prio(|bytes| {
            let at = 0x28 + 3 * bucket as usize + 2;
            bytes[at] = bytes[at].wrapping_add(by);
        });
    }
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Writes over bytes of a region without putting the checksum right.
pub fn rot(world: &mut World, region: Region, at: u64) {
    let byte = world.cache.bytes(region.byte + at, 1)[0];
    // Two bits: one would be put back.
    world.cache.write(region.byte + at, &[byte ^ 0x41]);
}

pub fn flip(world: &mut World, region: Region, at: u64) {
    let byte = world.cache.bytes(region.byte + at, 1)[0];
    world.cache.write(region.byte + at, &[byte ^ 0x40]);
}

macro_rules! case {
    ($name:literal, $set:literal, $kind:ident, $after:ident, $damage:expr) => {
        Case { name: $name, set: $set, kind: Kind::$kind, after: After::$after, damage: $damage }
    };
}

/// All of them.
pub const CASES: &[Case] = &[
    // Superblock of the cache.
    case!("superblock checksum", "wb-dirty", SbChecksum, Same, |w| w.cache.write(SB_OFFSET, &[1; 8])),
    case!("one bit of a superblock", "wb-dirty", BitFlipped, Same, |w| flip(w, w.regions[0], 0x50)),
    case!("one bit of the newest entry", "wb-crash", BitFlipped, Same, |w| flip(w, w.newest(), 0x90)),
    case!("one bit of a prio set", "wb-dirty", BitFlipped, Same, |w| flip(w, w.region(Holds::Prio), 0x100)),
    case!("one bit of the root", "deep-btree", BitFlipped, Same, |w| flip(w, w.root()[0], 40)),
    case!("one bit of a bset's magic", "deep-btree", BitFlipped, Same, |w| flip(w, w.leaf()[0], 9)),
    case!("one bit of a bset's size", "deep-btree", BitFlipped, Same, |w| flip(w, w.leaf()[0], 0x1d)),
    case!("superblock of another role", "wb-dirty", SbDoubtful, Refused, |w| {
        // A cache's superblock that says it is a backing device's: two bits of the version.
        let version = w.cache.bytes(SB_OFFSET + 0x10, 1)[0];
        assert_eq!(version, 3);
        w.cache.write(SB_OFFSET + 0x10, &[4]);
    }),
    case!("wipefs on a cache", "wb-dirty", SbWiped, Same, |w| w.cache.write(SB_OFFSET + 0x18, &[0; 16])),
    case!("wipefs on a backing device", "wb-dirty", SbWiped, Same, |w| {
        w.backings[0].write(SB_OFFSET + 0x18, &[0; 16]);
    }),
    case!("superblock label rots", "wb-dirty", SbChecksum, Same, |w| w.cache.write(SB_OFFSET + 0x50, b"x")),
    case!("no device of bcache", "wb-dirty", SbMagic, Refused, |w| {
        // A file system's, behind a wrong magic number.
        w.sb(|b| b[0x18] ^= 1);
        w.cache.write(1080, b"\x53\xef");
    }),
    case!("superblock gone", "wb-dirty", SbLost, Same, |w| w.cache.write(SB_OFFSET, &[0; 4096])),
    case!("superblock offset", "wb-dirty", SbField, Refused, |w| w.sb(|b| b[8] = 9)),
    case!("superblock version", "wb-dirty", SbVersion, Refused, |w| w.sb(|b| b[0x10] = 9)),
    case!("superblock uuid", "wb-dirty", SbField, Refused, |w| w.sb(|b| b[0x28..0x38].fill(0))),
    case!("superblock set uuid zero", "wb-dirty", SbField, Refused, |w| w.sb(|b| b[0x38..0x48].fill(0))),
    case!("superblock set uuid", "wb-dirty", JournalEmpty, Refused, |w| w.sb(|b| b[0x38] ^= 1)),
    case!("superblock features", "large-bucket-64m", SbFeatures, Refused, |w| w.sb(|b| b[0x81] = 1)),
    case!("superblock nbuckets few", "wb-dirty", SbField, Refused, |w| w.sb(|b| put(b, 0xb8, 5))),
    case!("superblock nbuckets many", "wb-dirty", SbTooBig, Refused, |w| w.sb(|b| put(b, 0xb8, 1 << 30))),
    case!("superblock block size", "wb-dirty", SbField, Refused, |w| w.sb(|b| b[0xc0] = 3)),
    case!("superblock bucket size", "wb-dirty", SbField, Refused, |w| w.sb(|b| b[0xc2] = 7)),
    case!("superblock nr in set", "wb-dirty", SbField, Refused, |w| w.sb(|b| b[0xc4] = 0)),
    case!("superblock journal buckets", "wb-dirty", SbField, Refused, |w| w.sb(|b| b[0xcf] = 0xff)),
    case!("superblock journal list", "wb-dirty", SbField, Refused, |w| w.sb(|b| b[0xd0] ^= 4)),
    case!("superblock first bucket", "wb-dirty", SbField, Refused, |w| w.sb(|b| b[0xcc] ^= 2)),
    case!("superblock sync", "wb-dirty", SbSync, Same, |w| w.sb(|b| b[0x68] &= !1)),
    case!("device cut off", "wb-dirty", SbTooBig, Refused, |w| w.cache.truncate(32 << 20)),
    case!("device almost gone", "wb-dirty", SbUnreadable, Refused, |w| w.cache.truncate(6000)),
    // Journal.
    case!("journal gone", "wb-dirty", JournalEmpty, Less, |w| {
        let geometry = w.view.cache.geometry;
        for bucket in geometry.first_bucket..geometry.first_bucket + w.view.cache.njournal_buckets() {
            let len = geometry.bucket_bytes() as usize;
            w.cache.write(bucket * geometry.bucket_bytes(), &vec![0; len]);
        }
    }),
    case!("journal bucket unreadable", "wb-dirty", JournalUnreadable, Less, |w| {
        let newest = w.newest();
        let geometry = w.view.cache.geometry;
        let first = geometry.first_bucket * geometry.bucket_bytes();
        assert!(newest.byte >= first + geometry.bucket_bytes());
        w.cache.spoil(first + 1024);
    }),
    case!("journal bucket of the next entry unreadable", "wb-dirty", JournalUnreadable, Less, |w| {
        let geometry = w.view.cache.geometry;
        let bucket = w.newest().byte / geometry.bucket_bytes();
        let last = geometry.first_bucket + w.view.cache.njournal_buckets() - 1;
        let next = if bucket == last { geometry.first_bucket } else { bucket + 1 };
        w.cache.spoil(next * geometry.bucket_bytes());
    }),
    case!("journal entry unreadable in the middle", "wb-crash", JournalUnreadable, Less, |w| {
        let middle = w.regions.iter().filter(|r| r.kind == Holds::Jset).nth(5).copied().unwrap();
        w.cache.spoil(middle.byte + 0x80);
    }),
    case!("journal entry rots in the middle", "wb-crash", JournalHole, Less, |w| {
        let middle = w.regions.iter().filter(|r| r.kind == Holds::Jset).nth(5).copied().unwrap();
        rot(w, middle, 0x80);
    }),
    case!("journal tail torn", "wb-crash", JournalTailTorn, Same, |w| {
        let newest = w.newest();
        let mut next = w.cache.bytes(newest.byte, newest.len);
        let seq = u64::from_le_bytes(next[16..24].try_into().unwrap()) + 1;
        put(&mut next, 16, seq);
        w.cache.write(newest.byte + newest.len, &next);
    }),
    case!("journal last_seq too new", "wb-dirty", JournalOrder, Less, |w| w.jset(|b| put(b, 0x20, 1 << 40))),
    case!("journal last_seq too old", "wb-dirty", JournalMissing, Less, |w| w.jset(|b| put(b, 0x20, 1))),
    case!("journal seq jumps", "wb-dirty", JournalMissing, Less, |w| w.jset(|b| put(b, 0x10, 1 << 40))),
    case!("journal newest hidden", "wb-dirty", JournalHidden, Same, |w| {
        // Between the first bucket with entries and the newest: the search for the end of the ring turns back.
        let geometry = w.view.cache.geometry;
        let block = vec![0; geometry.block_bytes() as usize];
        let middle = geometry.first_bucket + 2;
        w.cache.write(middle * geometry.bucket_bytes(), &block);
    }),
    case!("journal key of no size", "wb-crash", JournalKey, Less, |w| w.jset(|b| b[0xf2] &= 0x0f)),
    case!("journal key crosses its bucket", "wb-crash", JournalKey, Less, |w| {
        w.jset(|b| {
            let word = u64::from_le_bytes(b[0x100..0x108].try_into().unwrap());
            put(b, 0x100, word | (127 << 8));
        });
    }),
    // Prio sets.
    case!("prio checksum", "wb-dirty", PrioChecksum, Same, |w| {
        let region = w.region(Holds::Prio);
        rot(w, region, 0x100);
    }),
    case!("prio magic", "wb-dirty", PrioMagic, Same, |w| w.prio(|b| b[8] ^= 1)),
    case!("prio set unreadable", "wb-dirty", PrioUnreadable, Same, |w| {
        let region = w.region(Holds::Prio);
        w.cache.spoil(region.byte + 0x1000);
    }),
    case!("prio loop", "deep-btree", PrioLoop, Same, |w| {
        let region = w.region(Holds::Prio);
        let own = region.byte / w.view.cache.geometry.bucket_bytes();
        w.prio(|b| put(b, 0x20, own));
    }),
    case!("prio chain leaves the device", "deep-btree", PrioBucket, Same, |w| w.prio(|b| put(
        b,
        0x20,
        1 << 50
    ))),
    case!("prio chain starts nowhere", "wb-dirty", PrioBucket, Same, |w| w.jset(|b| put(b, 0xb0, 0))),
    case!("prio chain starts in the journal", "wb-dirty", PrioBucket, Same, |w| w.jset(|b| put(b, 0xb0, 2))),
    case!("gen of a node ahead", "deep-btree", ChildLost, Same, |w| {
        let Holds::Bset(ptr) = w.leaf()[0].kind else { panic!("no leaf") };
        let bucket = w.view.cache.geometry.ptr_bucket(ptr).0;
        w.bump(bucket, 3);
    }),
    case!("gen of dirty data ahead", "wb-dirty", ExtentDirtyStale, Same, |w| {
        let (_, _, key) = w.seen_extent();
        let bucket = w.view.cache.geometry.ptr_bucket(key.ptr().unwrap()).0;
        w.bump(bucket, 1);
    }),
    case!("gen of dirty data far ahead", "wb-dirty", ExtentDirtyStale, Same, |w| {
        let (_, _, key) = w.seen_extent();
        let bucket = w.view.cache.geometry.ptr_bucket(key.ptr().unwrap()).0;
        w.bump(bucket, 120);
    }),
    case!("gen of clean data far ahead", "wt-clean", ExtentTooStale, Same, |w| {
        let extent = w.view.extents(Pos::ZERO, Pos::MAX).flatten().find(|e| e.live().is_some()).unwrap();
        let bucket = w.view.cache.geometry.ptr_bucket(extent.live().unwrap()).0;
        w.bump(bucket, 120);
    }),
    // Uuid table.
    case!("uuid pointer outside", "wb-dirty", UuidPointer, Same, |w| w.jset(|b| put(
        b,
        0x38,
        u64::MAX >> 14
    ))),
    case!("uuid pointer none", "wb-dirty", UuidPointer, Same, |w| w.jset(|b| b[0x2f] &= 0x8f)),
    case!("uuid pointer to a node", "deep-btree", BucketTwice, Same, |w| {
        let Holds::Bset(root) = w.root()[0].kind else { panic!("no root") };
        w.jset(|b| put(b, 0x38, root.0));
    }),
    case!("uuid table unreadable", "wb-dirty", UuidUnreadable, Same, |w| {
        let region = w.region(Holds::Uuids);
        w.cache.spoil(region.byte);
    }),
    case!("uuid table zeroed", "wb-dirty", UuidLost, Same, |w| {
        let region = w.region(Holds::Uuids);
        w.cache.write(region.byte, &vec![0; region.len as usize]);
    }),
    case!("uuid slot zeroed", "two-backing-flash", UuidLost, Same, |w| w.uuid(0, |b| b.fill(0))),
    case!("uuid slot invalidated", "wb-dirty", UuidInvalidated, Same, |w| w.uuid(0, |b| b[0x38] = 1)),
    case!("uuid twice", "two-backing-flash", UuidDuplicate, Same, |w| {
        let region = w.region(Holds::Uuids);
        change(&mut w.cache, &region, |b| b.copy_within(0..ENTRY_BYTES, 5 * ENTRY_BYTES));
    }),
    case!("uuid volume too small", "two-backing-flash", UuidVolumeSize, Same, |w| w
        .uuid(2, |b| put(b, 0x40, 64))),
    // Btree.
    case!("root pointer none", "wb-dirty", RootPointer, Less, |w| w.jset(|b| b[0x6f] &= 0x8f)),
    case!("root pointer outside", "wb-dirty", RootPointer, Less, |w| w.jset(|b| put(
        b,
        0x78,
        u64::MAX >> 14
    ))),
    case!("root pointer elsewhere", "wb-dirty", NodeEmpty, Less, |w| {
        let at = (w.view.cache.geometry.bucket_start(bcache_format::BucketNr(900))).0;
        w.jset(|b| put(b, 0x78, Ptr::new(0, at, 1).0));
    }),
    case!("root level too high", "wb-dirty", RootLevel, Less, |w| w.jset(|b| b[0xa9] = 1)),
    case!("root level one more", "wb-dirty", NodePointer, Less, |w| w.jset(|b| b[0xa8] += 1)),
    case!("root level one less", "deep-btree", NodeLevel, Less, |w| w.jset(|b| b[0xa8] -= 1)),
    case!("root rots", "deep-btree", BsetChecksum, Less, |w| {
        let root = w.root()[0];
        rot(w, root, 40);
    }),
    case!("interior key dirty", "deep-btree", NodePointer, Less, |w| {
        change_child(w, |key| key.set_dirty(true));
    }),
    case!("interior key without size", "deep-btree", NodePointer, Less, |w| {
        change_child(w, |key| key.set_size(0));
    }),
    case!("interior key outside", "deep-btree", NodePointer, Less, |w| {
        change_child(w, |key| key.set_ptrs(&[Ptr::new(0, 1 << 40, 1)]));
    }),
    case!("interior key to another node", "deep-btree", NodeMisplaced, Less, |w| {
        let Holds::Bset(other) = w.leaf()[0].kind else { panic!("no leaf") };
        change_child(w, |key| key.set_ptrs(&[other]));
    }),
    case!("interior node without a child", "deep-btree", NodeNoChild, Less, |w| {
        change_children(w, |_, key| key.set_ptrs(&[Ptr::new(4095, 0, 0)]));
    }),
    case!("leaves that disagree", "deep-btree", NodesDisagree, Less, |w| {
        w.wipe_root();
        w.contradict();
    }),
    case!("last child lost", "deep-btree", NodeEnd, Less, |w| {
        change_children(w, |_, key| {
            if key.pos() == Pos::MAX {
                key.set_ptrs(&[Ptr::new(4095, 0, 0)]);
            }
        });
    }),
    case!("two children end together", "deep-btree", NodeOrder, Less, |w| {
        change_children(w, |live, key| {
            if key.pos() == live[1].pos() {
                key.set_inode(live[0].inode());
                key.set_offset(live[0].offset());
            }
        });
    }),
    case!("cycle", "deep-btree", NodeTwice, Less, |w| {
        let Holds::Bset(root) = w.root()[0].kind else { panic!("no root") };
        change_child(w, |key| key.set_ptrs(&[root]));
    }),
    case!("leaf unreadable", "deep-btree", NodeUnreadable, Less, |w| {
        let leaf = w.leaf()[0];
        w.cache.spoil(leaf.byte + 1024);
    }),
    case!("root unreadable", "deep-btree", NodeUnreadable, Less, |w| {
        let root = w.root()[0];
        w.cache.spoil(root.byte);
    }),
    case!("leaf gone", "deep-btree", NodeEmpty, Less, |w| {
        let leaf = w.leaf()[0];
        w.cache.write(leaf.byte, &[0; 4096]);
    }),
    case!("bset rots", "deep-btree", BsetChecksum, Less, |w| {
        let leaf = w.leaf()[0];
        rot(w, leaf, 64);
    }),
    case!("bset version", "deep-btree", BsetVersion, Less, |w| w.bset(|b| b[0x18] = 7)),
    case!("bset magic", "deep-btree", BsetMagic, Less, |w| w.bset(|b| b[8] ^= 1)),
    case!("bset size", "deep-btree", BsetSize, Less, |w| w.bset(|b| b[0x1e] = 3)),
    case!("bset key count", "deep-btree", BsetKeys, Less, |w| w.bset(|b| b[0x1c] -= 1)),
    case!("bset lost", "deep-btree", BsetLost, Less, |w| {
        // Of three bsets the second gets another life.
        let kinds: Vec<_> = w.regions.iter().map(|region| region.kind).collect();
        let of_three = |kind: &Holds| {
            matches!(kind, Holds::Bset(_)) && kinds.iter().filter(|other| *other == kind).count() >= 3
        };
        let mut sets =
            w.regions.iter().filter(|region| of_three(&region.kind) && region.kind != w.root()[0].kind);
        let second = *sets.nth(1).unwrap();
        change(&mut w.cache, &second, |b| b[0x10] ^= 1);
    }),
    case!("bset empty", "deep-btree", BsetEmpty, Less, |w| {
        let last = *w.leaf().last().unwrap();
        change(&mut w.cache, &last, |b| b[0x1c..0x20].fill(0));
    }),
    case!("keys out of order", "deep-btree", KeyOrder, Less, |w| {
        w.bset(|b| {
            let (first, second) = (b[32..56].to_vec(), b[56..80].to_vec());
            b[32..56].copy_from_slice(&second);
            b[56..80].copy_from_slice(&first);
        });
    }),
    // Extents.
    case!("key beyond its node", "deep-btree", KeyRange, Less, |w| {
        w.extent(|_, key| key.set_inode(300));
    }),
    case!("key longer than its end", "wb-dirty", KeySize, Less, |w| {
        w.extent(|_, key| key.set_offset(1));
    }),
    case!("pointer crosses its bucket", "wb-dirty", KeyPointer, Less, |w| {
        w.extent(|view, key| {
            let ptr = key.ptr().unwrap();
            let room = u64::from(view.cache.geometry.bucket_sectors);
            key.set_ptrs(&[Ptr::new(0, ptr.offset() / room * room + room - 1, ptr.generation())]);
        });
    }),
    case!("pointer before the first bucket", "wb-dirty", KeyPointer, Less, |w| {
        w.extent(|_, key| key.set_ptrs(&[Ptr::new(0, 0, 0)]));
    }),
    case!("pointer past the end", "wb-dirty", KeyPointer, Less, |w| {
        w.extent(|_, key| key.set_ptrs(&[Ptr::new(0, 1 << 40, 0)]));
    }),
    case!("key of a slot beyond the table", "wb-dirty", ExtentInode, Less, |w| {
        let (region, at, mut key) = w.last_extent();
        key.set_inode(5000);
        w.put_extent(&region, at, &key);
    }),
    case!("two extents share sectors", "wb-dirty", ExtentShared, Less, |w| {
        let other = w.view.extents(Pos::ZERO, Pos::MAX).flatten();
        let (_, _, seen) = w.seen_extent();
        let other = other.filter(|extent| extent.key.dirty() && extent.key.pos() != seen.pos());
        let ptr =
            other.filter_map(|extent| extent.live().filter(|_| extent.key.size() >= seen.size())).last();
        w.extent(|_, key| key.set_ptrs(&[ptr.unwrap()]));
    }),
    case!("pointer into the journal", "wb-dirty", ExtentMetadata, Less, |w| {
        w.extent(|view, key| {
            let at =
                view.cache.geometry.bucket_start(bcache_format::BucketNr(view.cache.geometry.first_bucket)).0;
            key.set_ptrs(&[Ptr::new(0, at, 0)]);
        });
    }),
    case!("pointer into a btree node", "deep-btree", ExtentMetadata, Less, |w| {
        let Holds::Bset(node) = w.root()[0].kind else { panic!("no root") };
        w.extent(|_, key| key.set_ptrs(&[node]));
    }),
    case!("pointer into the uuid table", "wb-dirty", ExtentMetadata, Less, |w| {
        let uuids = w.view.journal.newest().unwrap().jset.uuid_bucket.ptr().unwrap();
        let generation = w.view.gens.get(w.view.cache.geometry.ptr_bucket(uuids).0).unwrap();
        w.extent(|_, key| key.set_ptrs(&[Ptr::new(0, uuids.offset(), generation)]));
    }),
    case!("dirty data unreadable", "wb-dirty", DataUnreadable, Less, |w| {
        let (_, _, key) = w.seen_extent();
        w.cache.spoil(key.ptr().unwrap().offset() * 512);
    }),
    case!("clean data unreadable", "wt-clean", DataUnreadable, Same, |w| {
        let at = w.clean_data();
        w.cache.spoil(at);
    }),
    case!("clean data rots", "wt-clean", DataDiffers, Less, |w| {
        let at = w.clean_data();
        let byte = w.cache.bytes(at, 1)[0];
        w.cache.write(at, &[byte ^ 8]);
    }),
    case!("dirty data behind the end", "wb-dirty", ExtentBeyond, Less, |w| {
        let last =
            w.seen_extents().into_iter().map(|(.., key)| key).filter(Bkey::dirty).max_by_key(Bkey::offset);
        w.backings[0].truncate(last.unwrap().offset() * 512 - 4096);
    }),
    case!("a backing device that was cut off", "wb-dirty", BackingTooShort, Refused, |w| {
        w.backings[0].truncate(64 << 20);
    }),
    // Devices that do not belong together.
    case!("two caches", "wb-dirty", TwoCaches, Refused, |w| {
        let mut other = w.cache.clone();
        other.rename("other");
        w.backings.push(other);
    }),
    case!("a backing device and its copy", "wb-dirty", BackingTwice, Refused, |w| {
        let mut copy = w.backings[0].clone();
        copy.rename("copy");
        w.backings.push(copy);
    }),
    case!("a backing device of another set", "wb-dirty", BackingOtherSet, Refused, |w| {
        w.backing(|b| {
            b[0x28] ^= 1;
            b[0x38] ^= 1;
        });
    }),
    // Backing devices.
    case!("backing checksum", "wb-dirty", SbChecksum, Same, |w| w.backings[0].write(SB_OFFSET, &[1; 8])),
    case!("backing state none", "wb-dirty", BackingState, Less, |w| w.backing(|b| b[0x6f] &= 0x1f)),
    case!("backing set uuid", "wb-dirty", BackingSetUuid, Same, |w| w.backing(|b| b[0x38] ^= 1)),
    case!("backing uuid", "wb-dirty", UuidLost, Same, |w| w.backing(|b| b[0x28] ^= 1)),
    case!("backing magic", "wb-dirty", SbLost, Same, |w| w.backing(|b| b[0x18] ^= 1)),
    case!("backing version", "wb-dirty", SbVersion, Refused, |w| w.backing(|b| b[0x10] = 77)),
    case!("backing data offset", "block-4k", SbField, Refused, |w| w.backing(|b| put(b, 0xb8, 3))),
];

/// Changes the first live child of the root.
pub fn change_child(world: &mut World, change_key: impl Fn(&mut Bkey)) {
    let children: Vec<_> = world
        .regions
        .iter()
        .filter_map(|region| match region.kind {
            Holds::Bset(ptr) => Some(ptr),
            _ => None,
        })
        .collect();
    let root = children[0];
    let child = *children.iter().find(|ptr| **ptr != root).unwrap();
    change_children(world, |_, key| {
        if key.ptr() == Some(child) {
            change_key(key);
        }
    });
}

/// Changes keys of the root's live children; told of all of these, in their order.
fn change_children(world: &mut World, change_key: impl Fn(&[Bkey], &mut Bkey)) {
    let mut walk = Walk::new(&world.view.cache, world.view.root.unwrap(), Pos::ZERO, Pos::MAX);
    let Some(Step::Node(root)) = walk.step_settled(&world.view.gens) else { panic!("no root") };
    assert!(root.at.level > 0);
    let is_live = |key: &Bkey| key.pos() != Pos::ZERO && world.view.gens.stale_key(key) == 0;
    let live: Vec<Bkey> = root.keys.into_iter().filter(is_live).collect();
    for region in world.root() {
        let mut at = 32;
        let bytes = world.cache.bytes(region.byte, region.len);
        while let Some(mut key) = bytes.get(at..).and_then(Bkey::from_bytes) {
            let len = key.u64s() * 8;
            if live.contains(&key) {
                change_key(&live, &mut key);
                let new: Vec<u8> = key.words().flat_map(u64::to_le_bytes).collect();
                change(&mut world.cache, &region, |set| set[at..at + len].copy_from_slice(&new));
            }
            at += len;
        }
    }
}
