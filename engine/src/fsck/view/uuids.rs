//! The uuid table (`uuid_read`).

use super::devices::Cache;
use super::fault::{Fault, What};
use super::journal::Entry;
use bcache_format::Structure;
use bcache_format::uuid_entry::{UuidEntry, parse_table};

/// Byte of the uuid table's key in a journal entry.
const KEY_AT: u64 = 0x28;

/// The table that a journal entry names; a slot's index is the inode in keys.
///
/// # Errors
/// A key that cannot be followed, or a table that cannot be read.
pub fn read_table(cache: &Cache, entry: &Entry) -> Result<Vec<UuidEntry>, Fault> {
    let key = &entry.jset.uuid_bucket;
    let bad = |why| {
        let what = What::Pointer { key: key.to_string(), why };
        cache.fault(Structure::UuidTable, entry.byte.saturating_add(KEY_AT), what)
    };
    if let Some(why) = cache.metadata_key_problem(key) {
        return Err(bad(why));
    }
    let ptr = key.ptr().filter(|ptr| ptr.is_device()).ok_or_else(|| bad("pointer to no device"))?;
    let byte = ptr.offset().saturating_mul(bcache_format::SECTOR_SIZE);
    let bytes = cache.read(Structure::UuidTable, byte, cache.geometry.meta_bucket_bytes())?;
    // A table has no magic of its own; everything else has, where the first slot has half of its UUID.
    let magic = bytes.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    if [cache.magic.bset(), cache.magic.jset(), cache.magic.prio_set()].map(Some).contains(&magic) {
        return Err(bad("something else than a uuid table is there"));
    }
    parse_table(&bytes, entry.jset.version, cache.geometry.nr_uuids())
        .map_err(|error| Fault::format(&cache.name, error, byte))
}
