//! Finding the entries that must be replayed.

use crate::dev::Buf;
use crate::error::{Error, Result};
use crate::set::CacheDev;
use bcache_format::bkey::Bkey;
use bcache_format::jset::{Jset, JsetHeader};
use bcache_format::{BucketNr, Problem};
use std::collections::BTreeMap;

/// Bytes read at once while looking through a journal bucket; at least the largest entry.
const CHUNK: u64 = 128 << 10;

/// What the journal holds.
pub struct Found {
    /// The newest entry: it names root, uuid table and prio sets.
    pub newest: Jset,
    /// The entries to replay, oldest first: number and keys.
    pub replay: Vec<(u64, Vec<Bkey>)>,
    /// Newest entry of each journal bucket; 0 for none.
    pub newest_in: Vec<u64>,
}

/// Reads the journal. Nothing when no bucket holds an entry.
///
/// A bucket ends at its first entry that is not whole: the newest write may be torn. From `last_seq` of the newest entry
/// to the newest none may be missing; with discard on, leading ones may, because their buckets were given up.
///
/// # Errors
/// A read that fails, or missing entries.
pub async fn read(cache: &CacheDev, discard: bool) -> Result<Option<Found>> {
    let sb = cache.sb.borrow().clone();
    let Some(fields) = sb.cache() else { return Ok(None) };
    let mut entries = BTreeMap::new();
    let mut newest_in = Vec::new();
    for i in 0..u64::from(fields.njournal_buckets) {
        let bucket = BucketNr(u64::from(fields.first_bucket) + i);
        newest_in.push(read_bucket(cache, bucket, &mut entries).await?);
    }
    let Some((_, newest)) = entries.last_key_value() else { return Ok(None) };
    let newest: Jset = newest.clone();
    let mut replay: Vec<(u64, Vec<Bkey>)> = Vec::new();
    for (seq, entry) in entries.split_off(&newest.last_seq) {
        let expected = replay.last().map_or(newest.last_seq, |(last, _)| last + 1);
        if seq != expected && !(replay.is_empty() && discard) {
            let what = format!("journal entries {expected}-{} are missing", seq - 1);
            return Err(cache.untrusted(what));
        }
        replay.push((seq, entry.keys));
    }
    Ok(Some(Found { newest, replay, newest_in }))
}

async fn read_bucket(cache: &CacheDev, bucket: BucketNr, entries: &mut BTreeMap<u64, Jset>) -> Result<u64> {
    let geometry = &cache.geometry;
    let (start, size) = (geometry.bucket_start_byte(bucket), geometry.bucket_bytes());
    let mut newest = 0;
    let mut done = 0;
    while done < size {
        let len = (size - done).min(CHUNK);
        let buf = cache.dev.read(start + done, Buf::recycled(len as usize)).await.map_err(Error::from)?;
        let mut used = 0usize;
        loop {
            let rest = buf.get(used..).unwrap_or_default();
            match Jset::parse(rest, cache.magic) {
                Ok(entry) => {
                    let bytes = JsetHeader::read(rest).map_or(u64::MAX, |header| header.bytes());
                    used += bytes.next_multiple_of(geometry.block_bytes()) as usize;
                    newest = newest.max(entry.seq);
                    entries.entry(entry.seq).or_insert(entry);
                }
                // The rest of the entry is in the next chunk, if there is one.
                Err(error)
                    if matches!(error.problem, Problem::Truncated { .. })
                        && done + len < size
                        && used > 0 =>
                {
                    break;
                }
                Err(_) => return Ok(newest),
            }
        }
        done += used as u64;
    }
    Ok(newest)
}
