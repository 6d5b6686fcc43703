//! Sets made of nothing but metadata, of any size: what checks are measured and fuzzed on.
//!
//! The device has a superblock, eight journal buckets of which the first has one entry, and behind them the btree, the
//! uuid table and the prio sets, as a repair would write them. The data that extents point at is not there.

use super::repair::{Content, Sink, rebuild};
use super::view::{Cache, Devices, MemDevice};
use bcache_format::feature::{Features, INCOMPAT_LOG_LARGE_BUCKET_SIZE};
use bcache_format::jset::{Jset, VERSION};
use bcache_format::prio::BucketDisk;
use bcache_format::superblock::{
    BackingFields, BackingState, CacheFields, Role, SB_BYTES, SB_OFFSET, Version,
};
use bcache_format::uuid_entry::UuidEntry;
use bcache_format::{Bkey, BucketNr, Geometry, Ptr, Sectors, Superblock};
use std::io;
use std::sync::Arc;
use uuid::Uuid;

/// Journal buckets.
const JOURNAL: u16 = 8;
/// Sectors of a block.
const BLOCK: u16 = 1;

const LARGE_BUCKETS: Features =
    Features { incompat: INCOMPAT_LOG_LARGE_BUCKET_SIZE, compat: 0, ro_compat: 0 };

/// The shape of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sectors of a bucket; a power of two.
    pub bucket_sectors: u32,
    /// Buckets of metadata, behind those of the journal.
    pub metadata: u64,
    /// Buckets of data, behind those of metadata.
    pub data: u64,
}

impl Shape {
    /// A shape with room for so many extents, each with `sectors` of data.
    #[must_use]
    pub fn of(extents: u64, sectors: u64, bucket_sectors: u32) -> Self {
        let mut shape = Self { bucket_sectors, metadata: 0, data: 0 };
        let per_bucket = (u64::from(bucket_sectors) / sectors).max(1);
        // What allocation needs free, and what Linux asks for at least.
        shape.data = extents.div_ceil(per_bucket) + 512;
        let room = shape.geometry().btree_node_bytes() * 3 / 4 / 24;
        let leaves = extents / room.saturating_sub(2).max(1) + 1;
        shape.metadata = leaves + leaves / 16 + 16;
        shape.metadata += 2 * shape.geometry().prio_buckets();
        shape
    }
    /// The first bucket behind the superblock, as make-bcache computes it.
    const fn first_bucket(&self) -> u64 {
        23 / self.bucket_sectors as u64 + 1
    }
    const fn first_metadata(&self) -> u64 {
        self.first_bucket() + JOURNAL as u64
    }
    /// The first bucket of data.
    #[must_use]
    pub const fn first_data(&self) -> BucketNr {
        BucketNr(self.first_metadata() + self.metadata)
    }
    /// Its geometry.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        Geometry {
            block_sectors: BLOCK as u32,
            bucket_sectors: self.bucket_sectors,
            first_bucket: self.first_bucket(),
            nbuckets: self.first_data().0 + self.data,
        }
    }
    /// Bytes of the device.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        let geometry = self.geometry();
        geometry.nbuckets * geometry.bucket_bytes()
    }
    /// Extent `i` of `count`, all of `sectors` sectors: places of data in turn, places of the cached device apart, so
    /// that no two extents merge; every other one is dirty.
    #[must_use]
    pub fn extent(&self, i: u64, count: u64, sectors: u64) -> Bkey {
        let per_bucket = (u64::from(self.bucket_sectors) / sectors).max(1);
        // A step that has no factor in common with the count goes over all data in a scattered order.
        let slot = if count > STEP { i * STEP % count } else { i };
        let bucket = self.first_data().0 + slot / per_bucket;
        let at = bucket * u64::from(self.bucket_sectors) + slot % per_bucket * sectors;
        let start = DATA_OFFSET + i * 2 * sectors;
        Bkey::extent(0, start + sectors, sectors, Ptr::new(0, at, 1), i.is_multiple_of(2))
    }
    /// The superblock of a dirty backing device whose extents a set of this shape has.
    #[must_use]
    pub fn backing(&self) -> Superblock {
        let fields = BackingFields { data_offset: Sectors(DATA_OFFSET), bucket_sectors: 8 };
        let mut sb = Superblock {
            version: Version::BackingWithOffset,
            features: Features::default(),
            uuid: BACKING,
            role: Role::Backing(fields),
            ..self.superblock()
        };
        sb.set_state(BackingState::Dirty);
        sb
    }
    fn superblock(&self) -> Superblock {
        let geometry = self.geometry();
        let large = self.bucket_sectors > u16::MAX.into();
        Superblock {
            version: if large { Version::CacheWithFeatures } else { Version::CacheWithUuid },
            uuid: Uuid::from_u128(1),
            set_uuid: Uuid::from_u128(0x5e7),
            label: Default::default(),
            flags: 1,
            seq: 1,
            features: if large { LARGE_BUCKETS } else { Features::default() },
            block_sectors: BLOCK,
            last_mount: 0,
            role: Role::Cache(CacheFields {
                nbuckets: geometry.nbuckets,
                bucket_sectors: self.bucket_sectors,
                nr_in_set: 1,
                nr_this_dev: 0,
                first_bucket: self.first_bucket() as u16,
                njournal_buckets: JOURNAL,
            }),
        }
    }
}

/// A prime.
const STEP: u64 = 999_983;
/// Where data starts on the backing device, in sectors.
pub const DATA_OFFSET: u64 = 16;
/// The backing device.
const BACKING: Uuid = Uuid::from_u128(3);

/// Writes a set with these extents, in order, to a device that reads as zeros. Tells how many bytes of metadata.
///
/// # Errors
/// What `write` says, or that the shape has no room for the extents.
pub fn make(
    shape: Shape,
    keys: &mut dyn Iterator<Item = Bkey>,
    write: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let no_room = || io::Error::other("the shape has no room for so many extents");
    let mut block = vec![0; SB_BYTES];
    shape.superblock().write_to(&mut block).map_err(io::Error::other)?;
    let cache = cache(&block)?;
    let mut buckets = vec![BucketDisk::default(); usize::try_from(shape.geometry().nbuckets).unwrap_or(0)];
    let data = usize::try_from(shape.first_data().0).unwrap_or(usize::MAX);
    buckets.iter_mut().skip(data).for_each(|bucket| bucket.generation = 1);
    let mut uuids = vec![UuidEntry::EMPTY; cache.geometry.nr_uuids()];
    if let Some(slot) = uuids.first_mut() {
        slot.uuid = BACKING;
    }
    let (mut free, mut life, mut bytes, mut failed) =
        (shape.first_metadata()..shape.first_data().0, 0, 0, None);
    let sink = Sink {
        free: &mut || free.next().map(BucketNr),
        random: &mut || {
            life += 1;
            life
        },
        write: &mut |one| {
            let mut at = one.byte;
            for piece in one.bytes.pieces(usize::MAX) {
                failed = failed.take().or_else(|| write(at, piece).err());
                at += piece.len() as u64;
            }
            bytes += one.bytes.len();
        },
    };
    let content = Content { keys, uuids: &uuids, buckets, prio_seq: 1 };
    let rebuilt = rebuild(&cache, content, sink).ok_or_else(no_room)?;
    failed.map_or(Ok(()), Err)?;
    let mut prio_bucket = [BucketNr(0); 8];
    prio_bucket[0] = rebuilt.prio_bucket;
    let jset = Jset {
        seq: 1,
        last_seq: 1,
        version: VERSION,
        uuid_bucket: rebuilt.uuids,
        btree_root: rebuilt.root.0,
        btree_level: rebuilt.root.1,
        prio_bucket,
        keys: Vec::new(),
    };
    let entry = jset.write(cache.magic, cache.geometry.block_bytes()).map_err(io::Error::other)?;
    write(cache.geometry.bucket_start_byte(BucketNr(shape.first_bucket())), &entry)?;
    write(SB_OFFSET, &block)?;
    Ok(bytes + entry.len() as u64 + SB_BYTES as u64)
}

/// The cache that a superblock describes, without its device.
fn cache(block: &[u8]) -> io::Result<Cache> {
    let sb = Superblock::parse(block).map_err(io::Error::other)?;
    let mut devices = Devices::default();
    devices.push_with(Arc::new(MemDevice::new("cache", Vec::new())), sb);
    devices.caches.pop().ok_or_else(|| io::Error::other("not a cache"))
}

#[cfg(test)]
mod tests {
    use super::super::{Options, check};
    use super::*;

    #[test]
    fn a_made_set_has_no_finding() {
        for (extents, bucket_sectors) in [(0, 8), (1, 8), (3000, 8), (3000, 1024)] {
            let shape = Shape::of(extents, 8, bucket_sectors);
            let mut bytes = vec![0; usize::try_from(shape.bytes()).unwrap()];
            let mut keys = (0..extents).map(|i| shape.extent(i, extents, 8));
            make(shape, &mut keys, &mut |at, from| {
                bytes[usize::try_from(at).unwrap()..][..from.len()].copy_from_slice(from);
                Ok(())
            })
            .unwrap();
            let checked = check([Arc::new(MemDevice::new("cache", bytes)) as _], Options::default());
            assert_eq!(*checked.findings, [], "{extents} extents");
            assert_eq!(checked.slots.values().map(|used| used.all).sum::<u64>(), extents * 8);
        }
    }
}
