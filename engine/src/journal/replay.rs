//! Finding the entries that must be replayed.

use crate::dev::Buf;
use crate::error::{Error, Result};
use crate::set::CacheDev;
use bcache_format::Seq;
use bcache_format::bkey::Bkey;
use bcache_format::jset::{JSET_MAX_BYTES, Jset, JsetHeader};
use bcache_format::{BucketNr, Problem};
use std::collections::BTreeMap;

/// Bytes read at once while looking through a journal bucket; at least the largest entry.
const CHUNK: u64 = 128 << 10;

/// What the journal holds.
pub struct FoundJournal {
    /// The newest entry: it names root, uuid table and prio sets.
    pub newest: Jset,
    /// Its checksum.
    pub csum: u64,
    /// The entries to replay, oldest first: number and keys.
    pub replay: Vec<(Seq, Vec<Bkey>)>,
    /// Newest entry of each journal bucket; 0 for none.
    pub newest_in: Vec<Seq>,
}

/// Reads the journal. Nothing when no bucket holds an entry.
///
/// A bucket ends at its first entry that is not whole: the newest write may be torn. From `last_seq` of the newest entry
/// to the newest none may be missing; with discard on, leading ones may, because their buckets were given up.
///
/// Entries are written one after the other, each durable before the next, so that a whole entry behind a damaged one says
/// that the damage came later: rot. It is refused, unless the number behind the damage was used again, elsewhere, by
/// somebody who went on from there.
///
/// # Errors
/// A read that fails, missing entries, or damaged ones.
pub async fn read(cache: &CacheDev, discard: bool) -> Result<Option<FoundJournal>> {
    let fields = cache.sb.borrow().cache().cloned();
    let Some(fields) = fields else { return Ok(None) };
    let mut entries = BTreeMap::new();
    let mut buckets = Vec::new();
    for i in 0..u64::from(fields.njournal_buckets) {
        let bucket = BucketNr(u64::from(fields.first_bucket) + i);
        buckets.push(read_bucket(cache, bucket, &mut entries).await?);
    }
    let newest = entries.last_key_value().map(|(seq, entry)| (*seq, entry.last_seq));
    if let Some((seq, _)) = newest.filter(|(seq, _)| *seq == 0 || *seq >= u64::MAX - 1) {
        return Err(cache.untrusted(format!("the newest journal entry has the number {seq}")));
    }
    let missing =
        |from: u64| (from..=newest.map_or(0, |(seq, _)| seq)).find(|seq| !entries.contains_key(seq));
    // An entry behind a damaged one can be newer than all that were found only where the newest is, and in the bucket that
    // comes next. Where discarded buckets may be missing, a damaged one must not pass for one of them.
    let suspects: Vec<usize> = match newest {
        Some((seq, last)) if !(discard && missing(last).is_some()) => {
            let current = buckets.iter().position(|bucket| bucket.newest == seq).unwrap_or(0);
            let next = (current + 1) % buckets.len();
            if next == current { vec![current] } else { vec![current, next] }
        }
        _ => (0..buckets.len()).collect(),
    };
    if !seeded_bug!(RotIsTheEnd) {
        for at in suspects {
            refuse_rot(cache, &buckets[at], &entries, newest).await?;
        }
    }
    let newest_in: Vec<Seq> = buckets.iter().map(|bucket| Seq(bucket.newest)).collect();
    let Some((_, newest)) = entries.last_key_value() else { return Ok(None) };
    let newest: Jset = newest.clone();
    let mut replay: Vec<(Seq, Vec<Bkey>)> = Vec::new();
    for (seq, entry) in entries.split_off(&newest.last_seq) {
        let expected = replay.last().map_or(newest.last_seq, |(last, _)| last.0 + 1);
        if seq != expected && !(replay.is_empty() && discard) {
            let what = format!("journal entries {expected}-{} are missing", seq - 1);
            return Err(cache.untrusted(what));
        }
        replay.push((Seq(seq), entry.keys));
    }
    let csum = buckets.iter().find(|bucket| bucket.newest == newest.seq).map_or(0, |bucket| bucket.csum);
    Ok(Some(FoundJournal { newest, csum, replay, newest_in }))
}

/// How far a journal bucket could be read.
struct Bucket {
    nr: BucketNr,
    /// Newest entry in it; 0 for none.
    newest: u64,
    /// Checksum of that entry.
    csum: u64,
    /// Bytes of whole entries that follow each other from its start on.
    whole: u64,
}

/// An error if whole entries that are needed, or newer than `newest`, stand behind the place where reading a bucket ended.
async fn refuse_rot(
    cache: &CacheDev,
    bucket: &Bucket,
    entries: &BTreeMap<u64, Jset>,
    newest: Option<(u64, u64)>,
) -> Result<()> {
    let geometry = &cache.geometry;
    let (start, block) = (geometry.bucket_start_byte(bucket.nr), geometry.block_bytes());
    let needed = newest.map_or(0, |(_, last)| last);
    // Somebody went on from the last whole entry: what is behind it here was given up then.
    if bucket.newest > 0 && entries.contains_key(&bucket.newest.saturating_add(1)) {
        return Ok(());
    }
    let mut at = bucket.whole;
    while at < geometry.bucket_bytes() {
        let len = (geometry.bucket_bytes() - at).min(CHUNK);
        let buf = cache.dev.read(start + at, Buf::recycled(len as usize)).await.map_err(Error::from)?;
        let last = at + len == geometry.bucket_bytes();
        // The largest entry that begins in this chunk may end in the next.
        let step = if last { len } else { len - JSET_MAX_BYTES };
        for from in (0..step).step_by(block as usize) {
            let Ok(entry) = Jset::parse(buf.get(from as usize..).unwrap_or_default(), cache.magic) else {
                continue;
            };
            if entry.seq >= needed && !entries.contains_key(&entry.seq) {
                return Err(cache.untrusted(format!(
                    "journal entry {} at byte {} is whole, but what is before it, at byte {}, is damaged: \
                     what was written from there on would be lost",
                    entry.seq,
                    start + at + from,
                    start + bucket.whole
                )));
            }
        }
        at += step;
    }
    Ok(())
}

async fn read_bucket(cache: &CacheDev, nr: BucketNr, entries: &mut BTreeMap<u64, Jset>) -> Result<Bucket> {
    let geometry = &cache.geometry;
    let (start, size) = (geometry.bucket_start_byte(nr), geometry.bucket_bytes());
    let mut bucket = Bucket { nr, newest: 0, csum: 0, whole: 0 };
    while bucket.whole < size {
        let done = bucket.whole;
        let len = (size - done).min(CHUNK);
        let buf = cache.dev.read(start + done, Buf::recycled(len as usize)).await.map_err(Error::from)?;
        let mut used = 0usize;
        loop {
            let rest = buf.get(used..).unwrap_or_default();
            match Jset::parse(rest, cache.magic) {
                Ok(entry) => {
                    let header = JsetHeader::read(rest);
                    let bytes = header.map_or(u64::MAX, |header| header.bytes());
                    used += bytes.next_multiple_of(geometry.block_bytes()) as usize;
                    if entry.seq > bucket.newest {
                        bucket.csum = header.map_or(0, |header| header.csum.get());
                    }
                    bucket.newest = bucket.newest.max(entry.seq);
                    bucket.whole = done + used as u64;
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
                Err(_) => return Ok(bucket),
            }
        }
    }
    Ok(bucket)
}
