//! Buckets of metadata, and the uuid table's own rules.

use super::super::finding::Finding;
use super::super::kind::Kind;
use super::super::usage::Use;
use super::Checked;
use bcache_format::{BucketNr, SECTOR_SIZE};
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

pub(super) fn pass(checked: &mut Checked) {
    metadata(checked);
    uuids(checked);
}

/// Who uses the buckets of metadata; nobody shares.
fn metadata(checked: &mut Checked) {
    let Some(view) = &checked.set else { return };
    let (cache, newest) = (&view.cache, view.journal.newest());
    let first = cache.geometry.first_bucket;
    let journal = (first..first + cache.njournal_buckets()).map(|bucket| (BucketNr(bucket), Use::Journal));
    let prios = view.prios.buckets.iter().map(|(bucket, _)| (*bucket, Use::Prio));
    let uuids = newest.and_then(|newest| newest.jset.uuid_bucket.ptr()).filter(|ptr| ptr.is_device());
    let uuids = uuids.map(|ptr| (cache.geometry.ptr_bucket(ptr), Use::Uuids));
    let nodes = view.nodes.iter().map(|bucket| (*bucket, Use::Node));
    let mut twice = Vec::new();
    let mut used: HashMap<BucketNr, Use> = HashMap::new();
    for (bucket, what) in journal.chain(prios).chain(uuids).chain(nodes) {
        if let Some(other) = used.insert(bucket, what) {
            twice.push((bucket, format!("used for {} and for {}", other.name(), what.name())));
        }
    }
    let (name, geometry) = (Arc::clone(&cache.name), cache.geometry);
    checked.metadata = used;
    for (bucket, detail) in twice {
        checked.found(Finding::new(Kind::BucketTwice, &name, geometry.bucket_start_byte(bucket), detail));
    }
}

fn uuids(checked: &mut Checked) {
    let Some(view) = &checked.set else { return };
    let ptr = view.journal.newest().and_then(|newest| newest.jset.uuid_bucket.ptr()).unwrap_or_default();
    let byte =
        |slot: usize| ptr.offset() * SECTOR_SIZE + (slot * bcache_format::uuid_entry::ENTRY_BYTES) as u64;
    let name = Arc::clone(&view.cache.name);
    let mut findings = Vec::new();
    let mut seen: HashMap<Uuid, usize> = HashMap::new();
    for (slot, entry) in view.uuids.iter().enumerate() {
        if entry.is_free() || entry.is_detached() {
            continue;
        }
        if let Some(first) = seen.insert(entry.uuid, slot) {
            let detail = format!("slots {first} and {slot} are both {}", entry.uuid);
            findings.push(Finding::new(Kind::UuidDuplicate, &name, byte(slot), detail));
        }
        if entry.invalidated != 0 {
            let detail = format!("slot {slot}, {}", entry.uuid);
            findings.push(Finding::new(Kind::UuidInvalidated, &name, byte(slot), detail));
        }
    }
    findings.into_iter().for_each(|finding| checked.found(finding));
}
