//! Extents, and the buckets they use.

use super::super::finding::Finding;
use super::super::kind::Kind;
use super::super::view::extents::STALE_MAX;
use super::super::view::{Extent, Fault, SetView, State};
use super::{Checked, Options};
use bcache_format::{Bkey, BucketNr, Pos, Ptr, SECTOR_SIZE};
use std::collections::HashMap;
use std::sync::Arc;

/// Stale dirty extents remembered until all buckets' users are known.
const SUSPECTS_KEPT: usize = 1 << 20;
/// Bytes of data read at a time.
const CHUNK: usize = 1 << 20;

pub(super) fn pass(checked: &mut Checked, options: Options<'_>) {
    let Some(view) = checked.set.take() else { return };
    let mut suspects = Vec::new();
    // What cannot be read was found when the view was made.
    for extent in view.trusted_extents(Pos::ZERO, Pos::MAX).flatten() {
        one(checked, &view, &extent, &mut suspects);
    }
    for key in suspects {
        suspect(checked, &view, &key);
    }
    overfull(checked, &view);
    if options.data {
        data(checked, &view);
    }
    checked.set = Some(view);
}

/// Where a key's data is, for the place of a finding.
fn place(key: &Bkey) -> u64 {
    key.ptr().map_or(0, |ptr: Ptr| ptr.offset().saturating_mul(SECTOR_SIZE))
}

fn of_key(kind: Kind, view: &SetView, key: &Bkey, why: &str) -> Finding {
    let mut finding = Finding::new(kind, &view.cache.name, place(key), format!("{key}: {why}"));
    if key.dirty() {
        finding.lost.push((key.start_pos(), key.pos()));
    }
    finding
}

fn one(checked: &mut Checked, view: &SetView, extent: &Extent, suspects: &mut Vec<Bkey>) {
    let key = extent.key;
    if let State::Stale(stale) = extent.state {
        if key.dirty() && suspects.len() < SUSPECTS_KEPT {
            suspects.push(key);
        } else if stale > STALE_MAX {
            let detail = format!("{key}: stale by {stale}");
            checked.found(Finding::new(Kind::ExtentTooStale, &view.cache.name, place(&key), detail));
        }
        return;
    }
    let Some(ptr) = extent.live() else { return };
    if !view.uuids.is_empty() && key.inode() as usize >= view.uuids.len() {
        let why = format!("the uuid table has {} slots", view.uuids.len());
        checked.found(of_key(Kind::ExtentInode, view, &key, &why));
        return;
    }
    let bucket = view.cache.geometry.ptr_bucket(ptr);
    if let Some(other) = checked.metadata.get(&bucket).copied() {
        let why = format!("bucket {bucket} holds {}", other.name());
        checked.found(of_key(Kind::ExtentMetadata, view, &key, &why));
        return;
    }
    count(checked, bucket, &key);
}

/// Counts an extent as live.
fn count(checked: &mut Checked, bucket: BucketNr, key: &Bkey) {
    checked.data.add(bucket, key.size());
    if key.dirty() {
        checked.dirty.add(bucket, key.size());
    }
    let slot = checked.slots.entry(key.inode()).or_default();
    slot.start = if slot.all == 0 { key.start() } else { slot.start.min(key.start()) };
    slot.all += key.size();
    if key.dirty() {
        slot.dirty_start = if slot.dirty == 0 { key.start() } else { slot.dirty_start.min(key.start()) };
        slot.dirty += key.size();
        slot.dirty_end = slot.dirty_end.max(key.offset());
    }
    slot.end = slot.end.max(key.offset());
}

/// A stale dirty extent. It is right when its bucket was reused: the data was written back before, and a crash kept
/// the key from becoming clean. When nothing is in the bucket, its generation has no reason to be ahead.
fn suspect(checked: &mut Checked, view: &SetView, key: &Bkey) {
    let Some(ptr) = key.ptr() else { return };
    let bucket = view.cache.geometry.ptr_bucket(ptr);
    let revived = checked.revived.contains(&bucket);
    let stale = view.gens.stale_key(key);
    if !revived && (checked.data.get(bucket) > 0 || checked.metadata.contains_key(&bucket)) {
        if stale > STALE_MAX {
            checked.found(of_key(Kind::ExtentTooStale, view, key, &format!("stale by {stale}")));
        }
        return;
    }
    let why = format!("stale by {stale}, but bucket {bucket} has no other data");
    checked.found(Finding::new(
        Kind::ExtentDirtyStale,
        &view.cache.name,
        place(key),
        format!("{key}: {why}"),
    ));
    checked.revived.insert(bucket);
    count(checked, bucket, key);
}

/// Buckets with more live sectors than they have: some extents share sectors. Which of two dirty ones is right nobody
/// can tell; one is kept, and both are reported.
fn overfull(checked: &mut Checked, view: &SetView) {
    let geometry = view.cache.geometry;
    let over: HashMap<BucketNr, u32> = checked.data.over(geometry.bucket_sectors).into_iter().collect();
    if over.is_empty() {
        return;
    }
    let mut shared: Vec<(u64, Bkey)> = Vec::new();
    for extent in view.trusted_extents(Pos::ZERO, Pos::MAX).flatten() {
        let ptr =
            extent.key.ptr().filter(|ptr| ptr.is_device() && over.contains_key(&geometry.ptr_bucket(*ptr)));
        let revived = |ptr: Ptr| checked.revived.contains(&geometry.ptr_bucket(ptr)) && extent.key.dirty();
        if let Some(ptr) = ptr.filter(|ptr| extent.live().is_some() || revived(*ptr)) {
            shared.push((ptr.offset(), extent.key));
        }
    }
    // Dirty ones first, so that of a dirty and a clean one the dirty one stays.
    shared.sort_by_key(|(at, key)| (geometry.bucket_of(*at), !key.dirty(), *at));
    let mut kept: Vec<(u64, Bkey)> = Vec::new();
    for (at, key) in shared {
        let clash =
            kept.iter().rev().take_while(|(other, _)| geometry.bucket_of(*other) == geometry.bucket_of(at));
        let clash =
            clash.into_iter().find(|(other, one)| *other < at + key.size() && at < *other + one.size());
        let Some((_, other)) = clash else {
            kept.push((at, key));
            continue;
        };
        let mut finding = of_key(Kind::BucketOverfull, view, &key, &format!("shares sectors with {other}"));
        if key.dirty() {
            finding.lost.push((other.start_pos(), other.pos()));
        }
        checked.dropped.insert(key.pos());
        checked.found(finding);
    }
}

/// Reads all live data, and compares clean data with the backing device it came from.
fn data(checked: &mut Checked, view: &SetView) {
    let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
    for extent in view.trusted_extents(Pos::ZERO, Pos::MAX).flatten() {
        let Some(ptr) = extent.live() else { continue };
        let key = extent.key;
        let slot_uuid = view.uuids.get(key.inode() as usize).map(|entry| entry.uuid);
        let backing = checked.backings.iter().find(|backing| Some(backing.sb.uuid) == slot_uuid).cloned();
        let bytes = key.size() * SECTOR_SIZE;
        let mut done = 0;
        while done < bytes {
            let step = usize::try_from(bytes - done).unwrap_or(CHUNK).min(CHUNK);
            let (Some(ours), Some(theirs)) = (ours.get_mut(..step), theirs.get_mut(..step)) else { break };
            let at = ptr.offset() * SECTOR_SIZE + done;
            if let Err(error) = view.cache.device.read_at(at, ours) {
                let fault = Fault::io(&view.cache.name, bcache_format::Structure::Bkey, at, &error);
                let mut finding: Finding = fault.into();
                if key.dirty() {
                    finding.lost.push((key.start_pos(), key.pos()));
                }
                checked.found(finding);
                checked.dropped.insert(key.pos());
                break;
            }
            if let Some(backing) = backing.as_ref().filter(|_| !key.dirty()) {
                let from = key.start() * SECTOR_SIZE + done;
                if backing.device.read_at(from, theirs).is_ok() && ours != theirs {
                    let detail = format!("{key}: differs from {} at byte {from}", backing.name);
                    checked.found(Finding::new(Kind::DataDiffers, &Arc::clone(&view.cache.name), at, detail));
                    checked.dropped.insert(key.pos());
                    break;
                }
            }
            done += step as u64;
        }
    }
}
