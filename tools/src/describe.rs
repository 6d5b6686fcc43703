//! A superblock in words that a program can read: what `--json` prints, one shape for all programs.

use bcache_format::superblock::{RawSuperblock, Role, Superblock};
use serde::Serialize;

/// A superblock as JSON. Fields are only ever added, never renamed or given another meaning.
#[derive(Debug, Clone, Serialize)]
pub struct Description {
    /// The device's path, as it was given.
    pub device: String,
    /// `cache` or `backing`; absent when the version is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Superblock version.
    pub version: u64,
    /// The checksum as stored, 16 hex digits.
    pub csum: String,
    /// The checksum as it should be.
    pub csum_expected: String,
    /// Why a kernel would not take this superblock; absent when it would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// UUID of the device.
    pub uuid: uuid::Uuid,
    /// UUID of the cache set.
    pub set_uuid: uuid::Uuid,
    /// Label, empty if there is none.
    pub label: String,
    /// Counts the writes of a cache's superblock.
    pub seq: u64,
    /// Block size in sectors of 512 bytes.
    pub block_sectors: u16,
    /// Bucket size in sectors; without meaning on a backing device.
    pub bucket_sectors: u32,
    /// Seconds since 1970 of the last mount, 0 if never recorded.
    pub last_mount: u32,
    /// What only a cache has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// What only a backing device has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<Backing>,
}

/// What only a cache's superblock has.
#[derive(Debug, Clone, Serialize)]
pub struct Cache {
    /// Buckets of the device, those before the first usable one included.
    pub nbuckets: u64,
    /// The first bucket that is used.
    pub first_bucket: u16,
    /// Journal buckets, 0 before the first run.
    pub njournal_buckets: u16,
    /// Caches in the set.
    pub nr_in_set: u16,
    /// Number of this cache in the set.
    pub nr_this_dev: u16,
    /// The set has run: its metadata is on disk.
    pub sync: bool,
    /// Buckets are discarded before reuse.
    pub discard: bool,
    /// `lru`, `fifo` or `random`; absent if the number is none of theirs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replacement: Option<&'static str>,
    /// Feature words of version 5.
    pub features: bcache_format::feature::Features,
}

/// What only a backing device's superblock has.
#[derive(Debug, Clone, Serialize)]
pub struct Backing {
    /// Where the data starts, in sectors.
    pub data_offset_sectors: u64,
    /// `writethrough`, `writeback`, `writearound` or `none`; absent if the number is none of theirs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_mode: Option<&'static str>,
    /// `none`, `clean`, `dirty` or `stale`.
    pub state: bcache_format::superblock::BackingState,
}

impl Description {
    /// Describes a superblock. One that cannot be decoded keeps what its bytes say by themselves.
    pub fn new(device: &str, raw: &RawSuperblock) -> Description {
        let decoded = Superblock::decode(raw);
        let (mut cache, mut backing) = (None, None);
        if let Ok(sb) = &decoded {
            match &sb.role {
                Role::Cache(fields) => cache = Some(Cache::new(sb, fields)),
                Role::Backing(fields) => {
                    backing = Some(Backing {
                        data_offset_sectors: fields.data_offset.0,
                        cache_mode: sb.cache_mode().map(|mode| mode.name()),
                        state: sb.state(),
                    });
                }
            }
        }
        let version = bcache_format::superblock::Version::from_number(raw.version.get());
        Description {
            device: device.to_owned(),
            role: version.map(|version| if version.is_backing() { "backing" } else { "cache" }),
            version: raw.version.get(),
            csum: format!("{:016x}", raw.csum.get()),
            csum_expected: format!("{:016x}", raw.expected_csum()),
            refused: decoded.err().map(|error| error.to_string()),
            uuid: uuid::Uuid::from_bytes(raw.uuid),
            set_uuid: uuid::Uuid::from_bytes(raw.set_uuid),
            label: bcache_format::superblock::Label(raw.label).to_text(),
            seq: raw.seq.get(),
            block_sectors: raw.block_size.get(),
            bucket_sectors: raw.bucket_sectors().unwrap_or(0),
            last_mount: raw.last_mount.get(),
            cache,
            backing,
        }
    }
}

impl Cache {
    fn new(sb: &Superblock, fields: &bcache_format::superblock::CacheFields) -> Cache {
        Cache {
            nbuckets: fields.nbuckets,
            first_bucket: fields.first_bucket,
            njournal_buckets: fields.njournal_buckets,
            nr_in_set: fields.nr_in_set,
            nr_this_dev: fields.nr_this_dev,
            sync: sb.sync(),
            discard: sb.discard(),
            replacement: sb.replacement().map(|policy| policy.name()),
            features: sb.features,
        }
    }
}
