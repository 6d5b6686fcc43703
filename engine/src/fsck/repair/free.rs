//! Buckets that new metadata can be written to without touching anything that is needed, now or for rescue.

use super::super::check::Checked;
use super::super::view::Cache;
use bcache_format::BucketNr;

/// Free buckets: those first that were never used, because others may hold data that damage makes look free.
#[must_use]
pub(super) fn free_buckets(checked: &Checked, cache: &Cache, want: usize) -> Vec<BucketNr> {
    let first = cache.geometry.first_bucket + cache.njournal_buckets();
    let free = |bucket: &BucketNr| checked.is_free(*bucket) && !checked.reserved.contains(bucket);
    let generation =
        |bucket: BucketNr| checked.set.as_ref().and_then(|set| set.gens.get(bucket.0)).unwrap_or(0);
    let all = || (first..cache.geometry.nbuckets).map(BucketNr).filter(free);
    let mut found: Vec<_> = all().filter(|bucket| generation(*bucket) == 0).take(want).collect();
    let more = want - found.len();
    found.extend(all().filter(|bucket| generation(*bucket) != 0).take(more));
    found
}
