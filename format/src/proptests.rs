//! Properties of all parsers: what is written is read back the same, and no bytes make them panic.

use crate::bkey::{Bkey, Ptr};
use crate::bset::{self, Bset};
use crate::feature::{Features, INCOMPAT_LOG_LARGE_BUCKET_SIZE};
use crate::jset::{self, Jset};
use crate::magic::SetMagic;
use crate::node;
use crate::prio::{self, BucketDisk, PrioSet};
use crate::superblock::{
    BackingFields, CacheFields, Label, RawSuperblock, Role, SB_BYTES, Superblock, Version,
};
use crate::units::{BucketNr, Sectors};
use crate::uuid_entry::{self, UuidEntry};
use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

fn magic() -> SetMagic {
    SetMagic::of(&Uuid::from_u128(0xfeed_beef))
}

fn bkey() -> impl Strategy<Value = Bkey> {
    (any::<u64>(), any::<u64>(), vec(any::<u64>(), 0..=6)).prop_map(|(high, low, ptrs)| {
        let mut key = Bkey::ZERO;
        (key.high, key.low) = (high, low);
        key.set_ptrs(&ptrs.into_iter().map(Ptr).collect::<Vec<_>>());
        key
    })
}

fn label() -> impl Strategy<Value = Label> {
    any::<[u8; 32]>().prop_map(Label)
}

fn uuid() -> impl Strategy<Value = Uuid> {
    (1..=u128::MAX).prop_map(Uuid::from_u128)
}

fn superblock() -> impl Strategy<Value = Superblock> {
    let cache = (0..3usize, 128..1u64 << 40, 3..31u32, 0..8u16, 8..u16::MAX - 256, 0..=256u16).prop_map(
        |(version, nbuckets, log, nr_this_dev, first_bucket, njournal_buckets)| {
            let version = [Version::Cache, Version::CacheWithUuid, Version::CacheWithFeatures]
                [if log > 15 { 2 } else { version }];
            let nbuckets = nbuckets.max(1 << 17);
            let incompat =
                if version == Version::CacheWithFeatures { INCOMPAT_LOG_LARGE_BUCKET_SIZE } else { 0 };
            let fields = CacheFields {
                nbuckets,
                bucket_sectors: 1 << log,
                nr_in_set: nr_this_dev + 1,
                nr_this_dev,
                first_bucket,
                njournal_buckets,
            };
            (version, Features { compat: 0, incompat, ro_compat: 0 }, Role::Cache(fields))
        },
    );
    let backing = (0..3usize, 16..u64::MAX, any::<u16>()).prop_map(|(version, offset, bucket_sectors)| {
        let version = [Version::Backing, Version::BackingWithOffset, Version::BackingWithFeatures][version];
        let data_offset = Sectors(if version == Version::Backing { 16 } else { offset });
        (version, Features::default(), Role::Backing(BackingFields { data_offset, bucket_sectors }))
    });
    let common = (uuid(), uuid(), label(), any::<u64>(), any::<u64>(), 0..4u32, any::<u32>());
    (prop_oneof![cache, backing], common).prop_map(
        |((version, features, role), (uuid, set_uuid, label, flags, seq, block, last_mount))| Superblock {
            version,
            uuid,
            set_uuid,
            label,
            flags,
            seq,
            features,
            block_sectors: 1 << block,
            last_mount,
            role,
        },
    )
}

fn uuid_entry() -> impl Strategy<Value = UuidEntry> {
    let pad = vec(any::<u8>(), 56).prop_map(|pad| <[u8; 56]>::try_from(pad).unwrap());
    (any::<u128>(), label(), any::<[u32; 4]>(), any::<u64>(), pad).prop_map(
        |(uuid, label, [first_reg, last_reg, invalidated, flags], sectors, pad)| UuidEntry {
            uuid: Uuid::from_u128(uuid),
            label,
            first_reg,
            last_reg,
            invalidated,
            flags,
            sectors: Sectors(sectors),
            pad,
        },
    )
}

fn jset() -> impl Strategy<Value = Jset> {
    (any::<[u64; 2]>(), any::<u32>(), [bkey(), bkey()], any::<u16>(), any::<[u64; 8]>(), vec(bkey(), 0..60))
        .prop_map(|([seq, last_seq], version, [uuid_bucket, btree_root], btree_level, prio, keys)| Jset {
            seq,
            last_seq,
            version,
            uuid_bucket,
            btree_root,
            btree_level,
            prio_bucket: prio.map(BucketNr),
            keys,
        })
}

proptest! {
    #[test]
    fn superblocks_round_trip(sb in superblock(), junk in vec(any::<u8>(), SB_BYTES)) {
        for mut block in [vec![0; SB_BYTES], junk] {
            sb.write_to(&mut block).unwrap();
            prop_assert_eq!(&Superblock::parse(&block).unwrap(), &sb);
        }
    }

    #[test]
    fn keys_round_trip(key in bkey()) {
        let words: Vec<u64> = key.words().collect();
        prop_assert_eq!(Bkey::from_words(&words), Some(key));
        let mut bytes = Vec::new();
        key.write_to(&mut bytes);
        prop_assert_eq!(Bkey::from_bytes(&bytes), Some(key));
        prop_assert_eq!(bytes.len(), key.u64s() * 8);
        prop_assert_eq!(Bkey::from_bytes(&bytes[..bytes.len() - 1]), None);
    }

    #[test]
    fn bsets_and_nodes_round_trip(keys in vec(vec(bkey(), 1..20), 1..5), seq in 1..u64::MAX, ptr in any::<u64>(), version in 0..2u32) {
        let mut bytes = Vec::new();
        for keys in &keys {
            bytes.extend(bset::write(keys, seq, version, Ptr(ptr), magic()).unwrap());
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        let first = Bset::parse(&bytes, Ptr(ptr), magic()).unwrap();
        prop_assert_eq!(&first.keys().collect::<Result<Vec<_>, _>>().unwrap(), &keys[0]);
        bytes.resize(64 << 10, 0);
        let node = node::parse(&bytes, Ptr(ptr), magic(), 512).unwrap();
        let read: Result<Vec<Vec<Bkey>>, _> = node.sets.iter().map(|(_, set)| set.keys().collect()).collect();
        prop_assert_eq!(read.unwrap(), keys);
    }

    #[test]
    fn journal_entries_round_trip(jset in jset(), block in prop_oneof![Just(512u64), Just(4096)]) {
        let bytes = jset.write(magic(), block).unwrap();
        prop_assert_eq!(bytes.len() as u64 % block, 0);
        prop_assert_eq!(Jset::parse(&bytes, magic()).unwrap(), jset);
    }

    #[test]
    fn prio_sets_round_trip(seq in any::<u64>(), next in any::<u64>(), entries in vec((any::<u16>(), any::<u8>()), 1352)) {
        let entries: Vec<_> = entries.into_iter().map(|(prio, generation)| BucketDisk { prio: prio.into(), generation }).collect();
        let set = PrioSet { seq, version: 0, next_bucket: BucketNr(next), entries };
        let bytes = set.write(magic(), 4096);
        prop_assert_eq!(PrioSet::parse(&bytes, magic()).unwrap(), set);
    }

    #[test]
    fn uuid_tables_round_trip(entries in vec(uuid_entry(), 32)) {
        let bytes = uuid_entry::write_table(&entries, 4096);
        prop_assert_eq!(uuid_entry::parse_table(&bytes, 1, 32).unwrap(), entries);
    }

    #[test]
    fn old_uuid_entries_are_widened(entries in vec(any::<[u8; 32]>(), 64)) {
        let bytes: Vec<u8> = entries.iter().flat_map(|half| [*half, *half].concat()).collect();
        let table = uuid_entry::parse_table(&bytes, 0, 64).unwrap();
        prop_assert_eq!(table.len(), 64);
        for (entry, half) in table.iter().zip(&entries) {
            prop_assert_eq!(entry.uuid.as_bytes(), &half[..16]);
            prop_assert_eq!((entry.flags, entry.sectors), (0, Sectors(0)));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in vec(any::<u8>(), 0..6000), ptr in any::<u64>(), plant in any::<bool>()) {
        if plant {
            // Past the magic and the checksum, so that the checks behind them are reached as well.
            plant_everywhere(&mut bytes, Ptr(ptr));
        }
        let _ = Superblock::parse(&bytes);
        let _ = Bset::parse(&bytes, Ptr(ptr), magic()).map(|set| set.keys().count());
        let _ = node::parse(&bytes, Ptr(ptr), magic(), 512);
        let _ = Jset::parse(&bytes, magic());
        let _ = PrioSet::parse(&bytes, magic());
        for version in 0..3 {
            let _ = uuid_entry::parse_table(&bytes, version, bytes.len() / 64);
        }
        let _ = Bkey::from_bytes(&bytes);
    }
}

/// Makes the bytes pass for one structure after the other and parses each.
fn plant_everywhere(bytes: &mut [u8], ptr: Ptr) {
    if bytes.len() < 0x8d2 {
        return;
    }
    bytes[0x18..0x28].copy_from_slice(&crate::magic::SUPERBLOCK);
    bytes[8..16].copy_from_slice(&8u64.to_le_bytes());
    let version = u64::from(bytes[0x10] % 7).to_le_bytes();
    bytes[0x10..0x18].copy_from_slice(&version);
    let csum = RawSuperblock::read(bytes).unwrap().expected_csum();
    bytes[..8].copy_from_slice(&csum.to_le_bytes());
    let _ = Superblock::parse(bytes);
    for (value, seal) in [(magic().bset(), 0), (magic().jset(), 1), (magic().prio_set(), 2)] {
        bytes[8..16].copy_from_slice(&value.to_le_bytes());
        let version = u32::from(bytes[0x18] % 2).to_le_bytes();
        bytes[0x18..0x1c].copy_from_slice(&version);
        let keys = u32::from(bytes[0x1c]);
        bytes[0x1c..0x20].copy_from_slice(&keys.to_le_bytes());
        match seal {
            0 => {
                let end = (bset::HEADER_BYTES + keys as usize * 8).min(bytes.len());
                bset::seal(&mut bytes[..end], ptr);
                let set = Bset::parse(bytes, ptr, magic()).unwrap();
                let _ = set.keys().count();
                let _ = node::parse(bytes, ptr, magic(), 512);
            }
            1 => {
                jset::seal(bytes);
                let _ = Jset::parse(bytes, magic());
            }
            _ => {
                prio::seal(bytes);
                PrioSet::parse(bytes, magic()).unwrap();
            }
        }
    }
}
