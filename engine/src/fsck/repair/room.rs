//! Room for new metadata on a cache that is full.
//!
//! Clean data is only a copy. Its buckets' generations are raised in new prio sets, which one journal entry makes the
//! set's; everything else stays as it is. From then on nothing points into these buckets any more, and the new
//! metadata can be written there, crash or not.

use super::super::check::Checked;
use super::super::kind::Kind;
use super::super::view::{Cache, SetView};
use super::plan::Plan;
use super::rebuild::Sink;
use super::{Refused, bucket_entries, dirty_buckets, free, name_prios, place_entry, rebuild};
use bcache_format::BucketNr;
use bcache_format::prio::BucketDisk;
use std::collections::VecDeque;
use std::sync::Arc;

/// Frees `want` buckets of clean data.
///
/// # Errors
/// There are not so many, or the journal cannot take an entry that leaves the rest as it is.
pub(super) fn make(checked: &Checked, cache: &Cache, view: &SetView, want: usize) -> Result<Plan, Refused> {
    let no_room = || Refused::NoRoom { cache: Arc::clone(&cache.name) };
    let journal_is_whole =
        ![Kind::JournalHole, Kind::JournalMissing, Kind::JournalHidden, Kind::JournalOrder]
            .iter()
            .any(|kind| checked.has(*kind));
    let first = cache.geometry.first_bucket + cache.njournal_buckets();
    let dirty = dirty_buckets(checked, view)?;
    let clean = |bucket: &BucketNr| {
        checked.has_data(*bucket)
            && !dirty.contains(bucket)
            && !checked.metadata.contains_key(bucket)
            && !checked.reserved.contains(bucket)
    };
    let victims: Vec<_> = (first..cache.geometry.nbuckets).map(BucketNr).filter(clean).take(want).collect();
    if victims.len() < want || !journal_is_whole {
        return Err(no_room());
    }
    let mut entries = bucket_entries(cache, view, &[]);
    for victim in &victims {
        let slot = usize::try_from(victim.0).ok().and_then(|victim| entries.get_mut(victim));
        let entry = slot.ok_or_else(no_room)?;
        entry.generation = entry.generation.wrapping_add(1);
    }
    let why = "write prio sets in which buckets of clean data are free";
    prios_alone(checked, cache, cache, view, (why, entries))?.ok_or_else(no_room)
}

/// New prio sets of `entries` in free buckets, and the journal entry that makes them the set's; everything else stays as it
/// is. They are as many as `shape` wants, which is the cache as it is going to be. Nothing if the journal cannot be gone on
/// with.
///
/// # Errors
/// There is no room for them.
pub(super) fn prios_alone(
    checked: &Checked,
    cache: &Cache,
    shape: &Cache,
    view: &SetView,
    (why, entries): (&'static str, Vec<BucketDisk>),
) -> Result<Option<Plan>, Refused> {
    let no_room = || Refused::NoRoom { cache: Arc::clone(&cache.name) };
    let seq = view.prios.buckets.first().map_or(1, |(_, seq)| seq.wrapping_add(1));
    let sets = usize::try_from(shape.geometry.prio_buckets()).map_err(|_| no_room())?;
    // Only where there are buckets now, too.
    let mut free: VecDeque<BucketNr> = free::free_buckets(checked, cache, sets).into();
    let mut writes = Vec::new();
    let sink =
        Sink { free: &mut || free.pop_front(), random: &mut || 0, write: &mut |write| writes.push(write) };
    let bucket = rebuild::prios(shape, entries, seq, sink).ok_or_else(no_room)?;
    // The newest entry once more, without its keys: those are replayed from where they are. What only memory has is in none,
    // and memory does not continue this one.
    let mut jset = view.journal.newest().ok_or_else(no_room)?.jset.clone();
    jset.seq = jset.seq.checked_add(1).ok_or_else(no_room)?;
    jset.keys.clone_from(&checked.kept);
    name_prios(&mut jset, cache, bucket).ok_or_else(no_room)?;
    let placed = place_entry(checked, cache, view, &jset)?;
    if !placed.found {
        return Ok(None);
    }
    let mut plan = Plan::default();
    plan.push(why, writes);
    plan.push("make them the set's", vec![placed.write]);
    Ok(Some(plan))
}
