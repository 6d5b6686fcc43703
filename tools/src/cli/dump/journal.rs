//! `bcache dump journal`.

use anyhow::Result;
use bcache_engine::fsck::view::Cache;
use bcache_engine::fsck::view::journal::{Depth, Entry, Reach, Scan, Stop, scan_bucket};
use bcache_format::{BucketNr, Problem};
use serde_json::json;

use super::{Printer, journal, key_json};

pub(super) fn print(cache: &Cache, keys: bool, to: &mut Printer<'_, '_>) -> Result<()> {
    let first = cache.geometry.first_bucket;
    for bucket in first..first + cache.njournal_buckets() {
        let mut printed = Ok(());
        let scan = scan_bucket(cache, BucketNr(bucket), Depth::Entries, &mut |entry, reach| {
            if printed.is_ok() && reach == Reach::Found {
                printed = print_entry(&entry, keys, to);
            }
        });
        printed?;
        print_end(&scan, to)?;
    }
    let journal = journal(cache, to)?;
    let Some(newest) = journal.newest() else { return Ok(()) };
    let jset = &newest.jset;
    let number = cache.sb.cache().map_or(0, |cache| usize::from(cache.nr_this_dev));
    let prio = jset.prio_bucket.get(number).copied().unwrap_or_default();
    let replayed: usize = journal.entries.values().map(|entry| entry.jset.keys.len()).sum();
    let torn = journal.torn_tail().is_some();
    let text = || {
        let tail = if torn { "\nthe entry after it was cut off by a crash, which is normal" } else { "" };
        format!(
            "newest entry {}: replay {}..{}, {} entries with {replayed} keys\n  root  level {} {}\n  uuids {}\n  \
             prios bucket {prio}{tail}",
            jset.seq,
            jset.last_seq,
            jset.seq,
            journal.entries.len(),
            jset.btree_level,
            jset.btree_root,
            jset.uuid_bucket,
        )
    };
    to.line(text, || {
        json!({"kind": "newest", "seq": jset.seq, "last_seq": jset.last_seq,
               "entries": journal.entries.len(), "keys": replayed, "torn_tail": torn,
               "level": jset.btree_level, "root": key_json(&jset.btree_root),
               "uuids": key_json(&jset.uuid_bucket), "prio_bucket": prio})
    })
}

fn print_entry(entry: &Entry, keys: bool, to: &mut Printer<'_, '_>) -> Result<()> {
    let jset = &entry.jset;
    let text = || {
        format!(
            "bucket {:<6} byte {:<12} seq {:<10} last_seq {:<10} keys {:<5} root level {}",
            entry.bucket,
            entry.byte,
            jset.seq,
            jset.last_seq,
            jset.keys.len(),
            jset.btree_level,
        )
    };
    to.line(text, || {
        let list = if keys { jset.keys.iter().map(key_json).collect() } else { Vec::new() };
        json!({"kind": "entry", "bucket": entry.bucket, "byte": entry.byte, "bytes": entry.bytes,
               "seq": jset.seq, "last_seq": jset.last_seq, "version": jset.version,
               "key_count": jset.keys.len(), "keys": list})
    })?;
    if keys && !to.json {
        for key in &jset.keys {
            to.line(|| format!("    {key}"), || json!(null))?;
        }
    }
    Ok(())
}

fn print_end(scan: &Scan, to: &mut Printer<'_, '_>) -> Result<()> {
    let why = match &scan.stopped {
        None => "full".to_owned(),
        Some(Stop::Fault(fault)) => {
            to.fault(fault)?;
            "unreadable".to_owned()
        }
        Some(Stop::Invalid { seq: Some(seq), error }) => {
            format!("entry {seq} is not whole: {}", error.problem)
        }
        Some(Stop::Invalid { error, .. }) if matches!(error.problem, Problem::Magic { .. }) => {
            "end".to_owned()
        }
        Some(Stop::Invalid { error, .. }) => error.problem.to_string(),
    };
    let range = scan.seqs.map_or_else(|| "no entries".to_owned(), |(a, b)| format!("seq {a}..{b}"));
    // Buckets never written are the most of a young journal, and say nothing.
    if scan.entries == 0 && why == "end" && !to.json {
        return Ok(());
    }
    to.line(
        || {
            format!(
                "bucket {:<6} byte {:<12} {range}, {} entries: {why}",
                scan.bucket, scan.end, scan.entries
            )
        },
        || {
            json!({"kind": "bucket", "bucket": scan.bucket, "entries": scan.entries, "seqs": scan.seqs,
                   "end": scan.end, "why": why})
        },
    )
}
