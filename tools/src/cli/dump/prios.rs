//! `bcache dump prios`.

use anyhow::Result;
use bcache_engine::fsck::view::Cache;
use bcache_engine::fsck::view::prio::PrioChain;
use bcache_format::prio::BTREE_PRIO;
use serde_json::json;

use super::{Printer, journal};

pub(super) fn print(cache: &Cache, to: &mut Printer<'_, '_>) -> Result<()> {
    let journal = journal(cache, to)?;
    let Some(newest) = journal.newest() else { return Ok(()) };
    let number = cache.sb.cache().map_or(0, |cache| usize::from(cache.nr_this_dev));
    let first = newest.jset.prio_bucket.get(number).copied().unwrap_or_default();
    let chain = PrioChain::read(cache, first, newest.byte);
    for (bucket, seq) in &chain.buckets {
        to.line(
            || format!("prio set in bucket {bucket}, seq {seq}"),
            || json!({"kind": "prio_set", "bucket": bucket, "seq": seq}),
        )?;
    }
    let mut next = 0;
    // Runs of buckets that are alike: a cache has millions of buckets.
    for run in chain.entries.chunk_by(|a, b| a == b) {
        let (from, to_bucket) = (next, next + run.len() - 1);
        next += run.len();
        let Some(entry) = run.first() else { continue };
        let prio = entry.prio.get();
        let note = if prio == BTREE_PRIO { " (btree)" } else { "" };
        to.line(
            || {
                let range = if from == to_bucket { from.to_string() } else { format!("{from}..{to_bucket}") };
                format!("buckets {range:<20} gen {:<4} prio {prio}{note}", entry.generation)
            },
            || {
                json!({"kind": "buckets", "first": from, "last": to_bucket, "gen": entry.generation,
                       "prio": prio})
            },
        )?;
    }
    if let Some(fault) = &chain.broken {
        to.fault(fault)?;
    }
    Ok(())
}
