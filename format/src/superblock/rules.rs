//! What the kernel asks of the fields that only caches, or only backing devices, have.

use super::{
    BLOCK_SECTORS_MAX, BUCKET_SECTORS_MIN, BackingFields, CacheFields, D_OFFSET, DATA_OFFSET_DEFAULT,
};
use super::{JOURNAL_BUCKETS_MAX, NBUCKETS_MIN, RawSuperblock, Role, Version};
use crate::error::{Error, Problem, Structure, field};
use crate::feature::Features;
use crate::units::Sectors;

pub(super) const fn features(raw: &RawSuperblock) -> Features {
    Features {
        compat: raw.feature_compat.get(),
        incompat: raw.feature_incompat.get(),
        ro_compat: raw.feature_ro_compat.get(),
    }
}

pub(super) fn backing(raw: &RawSuperblock, version: Version) -> Result<Role, Error> {
    let data_offset = if version == Version::Backing {
        DATA_OFFSET_DEFAULT
    } else {
        Sectors(raw.nbuckets_or_data_offset.get())
    };
    if data_offset < DATA_OFFSET_DEFAULT {
        let rule = "must be at least 16";
        return Err(field(Structure::Superblock, 0xb8, "data_offset", data_offset.0, rule));
    }
    Ok(Role::Backing(BackingFields { data_offset, bucket_sectors: raw.bucket_size.get() }))
}

pub(super) fn cache(raw: &RawSuperblock, version: Version) -> Result<Role, Error> {
    if version == Version::CacheWithFeatures
        && let Some((kind, bits)) = features(raw).unknown()
    {
        let byte = match kind {
            "compat" => 0x78,
            "incompat" => 0x80,
            _ => 0x88,
        };
        return Err(Error::new(Structure::Superblock, byte, Problem::Features { kind, bits }));
    }
    let err = |byte, name, value, rule| Err(field(Structure::Superblock, byte, name, value, rule));
    let (keys, nbuckets) = (raw.keys.get(), raw.nbuckets_or_data_offset.get());
    let (block, first) = (raw.block_size.get(), raw.first_bucket.get());
    if usize::from(keys) > JOURNAL_BUCKETS_MAX {
        return err(0xce, "njournal_buckets", keys.into(), "at most 256");
    }
    // The kernel takes up to LONG_MAX buckets; no device has more sectors than a pointer's 43 bits can name.
    if nbuckets > 1 << 43 {
        return err(0xb8, "nbuckets", nbuckets, "more than pointers can name");
    }
    if nbuckets < NBUCKETS_MIN {
        return err(0xb8, "nbuckets", nbuckets, "not enough: at least 128");
    }
    if !block.is_power_of_two() || block > BLOCK_SECTORS_MAX {
        return err(0xc0, "block_size", block.into(), "must be a power of two up to a page (8 sectors)");
    }
    let bucket_sectors = raw.bucket_sectors().unwrap_or(0);
    if !bucket_sectors.is_power_of_two() || bucket_sectors < BUCKET_SECTORS_MIN {
        let value = raw.bucket_size.get().into();
        return err(0xc2, "bucket_size", value, "must be a power of two of at least a page (8 sectors)");
    }
    if raw.set_uuid == [0; 16] {
        return err(0x38, "set_uuid", 0, "must not be zero");
    }
    let (nr_in_set, nr_this_dev) = (raw.nr_in_set.get(), raw.nr_this_dev.get());
    if nr_in_set == 0 || nr_in_set <= nr_this_dev || nr_in_set > crate::bkey::MAX_CACHES_PER_SET {
        return err(0xc4, "nr_in_set", nr_in_set.into(), "must be 1 to 8 and more than nr_this_dev");
    }
    for (i, bucket) in raw.d.iter().take(keys.into()).enumerate() {
        if bucket.get() != u64::from(first) + i as u64 {
            let byte = (D_OFFSET + 8 * i) as u64;
            return err(
                byte,
                "d",
                bucket.get(),
                "journal buckets must follow each other from first_bucket on",
            );
        }
    }
    if u64::from(first) + u64::from(keys) > nbuckets {
        return err(0xce, "njournal_buckets", keys.into(), "the journal leaves the device");
    }
    if u64::from(first).saturating_mul(bucket_sectors.into()) < 16 {
        return err(0xcc, "first_bucket", first.into(), "comes before the end of the superblock");
    }
    Ok(Role::Cache(CacheFields {
        nbuckets,
        bucket_sectors,
        nr_in_set,
        nr_this_dev,
        first_bucket: first,
        njournal_buckets: keys,
    }))
}
