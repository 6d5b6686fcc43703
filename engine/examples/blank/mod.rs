// A cache device and a backing device as `make-bcache` leaves them.

use std::error::Error;

use bcache_engine::dev::{BlockDev, Buf};
use bcache_format::superblock::{BackingFields, CacheFields, Role, SB_BYTES, SB_OFFSET, Superblock, Version};
use bcache_format::{SECTOR_SIZE, Sectors};
use uuid::Uuid;

/// Sectors of a bucket: 128 KiB.
const BUCKET: u32 = 256;

/// Makes the whole of a device a new cache.
pub async fn cache(dev: &dyn BlockDev) -> Result<(), Box<dyn Error>> {
    let fields = CacheFields {
        nbuckets: dev.geometry().bytes / SECTOR_SIZE / u64::from(BUCKET),
        bucket_sectors: BUCKET,
        nr_in_set: 1,
        nr_this_dev: 0,
        first_bucket: 1,
        njournal_buckets: 0,
    };
    write(dev, &new(Version::Cache, 1, Role::Cache(fields))).await
}

/// Makes a device a new backing device: its data begins at sector 16.
pub async fn backing(dev: &dyn BlockDev) -> Result<(), Box<dyn Error>> {
    let fields = BackingFields { data_offset: Sectors(16), bucket_sectors: BUCKET as u16 };
    write(dev, &new(Version::Backing, 2, Role::Backing(fields))).await
}

/// The UUIDs of real devices are random.
fn new(version: Version, uuid: u128, role: Role) -> Superblock {
    Superblock::new(version, Uuid::from_u128(uuid), Uuid::from_u128(3), 8, role)
}

async fn write(dev: &dyn BlockDev, superblock: &Superblock) -> Result<(), Box<dyn Error>> {
    let mut block = vec![0; SB_BYTES];
    superblock.write_to(&mut block)?;
    dev.write(SB_OFFSET, Buf::copied(&block).freeze(), true).await?;
    Ok(())
}
