//! The on-disk format of bcache: bytes to values and back.
//!
//! No I/O, no unsafe code, and no panic on any bytes: every parser answers a value or an [`Error`] that names the
//! structure, the byte and what is wrong there.
//!
//! ```
//! use bcache_format::Superblock;
//! use bcache_format::superblock::{CacheFields, Role, SB_BYTES, Version};
//! # use uuid::Uuid;
//!
//! # let fields = CacheFields { nbuckets: 1000, bucket_sectors: 1024, nr_in_set: 1, nr_this_dev: 0, first_bucket: 1,
//! #     njournal_buckets: 0 };
//! # let new = Superblock::new(Version::Cache, Uuid::from_u128(1), Uuid::from_u128(2), 8, Role::Cache(fields));
//! # let mut bytes = vec![0; SB_BYTES];
//! # new.write_to(&mut bytes)?;
//! // `bytes` are those of a device from byte 4096 (`SB_OFFSET`) on.
//! let superblock = Superblock::parse(&bytes)?;
//! let geometry = superblock.geometry().expect("a cache has one");
//! assert_eq!((geometry.nbuckets, geometry.bucket_bytes()), (1000, 512 << 10));
//!
//! // A flipped bit is an error that says where.
//! bytes[0x40] ^= 1;
//! let error = Superblock::parse(&bytes).expect_err("the checksum is wrong");
//! assert!(error.to_string().starts_with("superblock at byte"), "{error}");
//! # Ok::<(), bcache_format::Error>(())
//! ```
//!
//! # The disk
//!
//! A **cache device** is cut into buckets of `bucket_sectors` (a power of two, at least 4 KiB). All numbers are
//! little-endian, all offsets in 512-byte sectors unless a name says bytes.
//!
//! ```text
//!   bucket 0                first_bucket .. +njournal        ... nbuckets
//!  +--------+-------------+---------+---------+-------------------------------------+
//!  | unused | superblock  | journal | journal |  btree nodes, data, prio_sets,      |
//!  | 0..4K  | at byte 4096| bucket  | bucket  |  uuid table: one use a bucket       |
//!  +--------+-------------+---------+---------+-------------------------------------+
//!
//!  superblock (superblock.rs) -- names geometry, set UUID, journal buckets
//!    journal bucket: jset | jset | jset ...      (jset.rs) entries never cross a bucket
//!      newest jset -- names --> btree root, uuid table, first prio bucket; last_seq: oldest entry to replay
//!        prio bucket: prio_set + 3 bytes a bucket (prio.rs) -- next_bucket --> next prio bucket
//!        uuid bucket: uuid_entry[nr_uuids]        (uuid_entry.rs) the slot's number is the inode in keys
//!        btree node:  bset | bset | ...           (bset.rs, node.rs) a log of sorted sets, newest wins
//!           interior keys point at nodes, leaf keys (bkey.rs) are extents: (inode, end offset, size) -> ptr
//! ```
//!
//! A **backing device** has a superblock at byte 4096 and its data from `data_offset` on, untouched.
//!
//! Where the facts come from: the layouts in Linux's `bcache_ondisk.h`, and for every rule the kernel applies when
//! it reads a structure, the function that applies it (named at the rule).

#![forbid(unsafe_code)]
#![warn(unreachable_pub)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, clippy::expect_used)
)]

pub mod bkey;
pub mod bset;
pub mod csum;
pub mod error;
pub mod feature;
pub mod geometry;
pub mod jset;
pub mod label;
pub mod magic;
pub mod mend;
pub mod node;
pub mod prio;
pub mod superblock;
pub mod units;
pub mod uuid_entry;

#[cfg(test)]
mod proptests;

pub use bkey::{Bkey, Pos, Ptr};
pub use error::{Error, Problem, Structure};
pub use geometry::Geometry;
pub use superblock::Superblock;
pub use units::{BucketNr, SECTOR_SIZE, Sector, Sectors, Seq, Span};
