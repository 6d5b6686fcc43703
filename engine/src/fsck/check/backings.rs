//! Backing devices against the cache.

use super::super::finding::Finding;
use super::super::kind::Kind;
use super::super::repair::{Link, Proof, is_proved, links, misfits, stand_in};
use super::super::view::{Backing, Cache, SeenExtent, SetView};
use super::Checked;
use bcache_format::superblock::{BackingState, SB_OFFSET};
use bcache_format::{Pos, Sectors};
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// Byte of the state flags and of the set's UUID in a superblock.
const FLAGS_AT: u64 = SB_OFFSET + 0x68;
const SET_UUID_AT: u64 = SB_OFFSET + 0x38;
const UUID_AT: u64 = SB_OFFSET + 0x28;

pub(super) fn pass(checked: &mut Checked) {
    if checked.table_found {
        take_misfits(checked);
        doubt_table(checked);
    }
    doubt_links(checked);
    duplicates(checked);
    let backings = checked.backings.clone();
    let mut seen: HashMap<Uuid, Arc<str>> = HashMap::new();
    for backing in &backings {
        if let Some(first) = seen.insert(backing.sb.uuid, Arc::clone(&backing.name)) {
            let detail = format!("{first} has the same UUID {}", backing.sb.uuid);
            checked.found(Finding::new(Kind::BackingTwice, &backing.name, UUID_AT, detail));
        }
        against_cache(checked, backing);
    }
    slots_without_uuid(checked);
    volumes(checked);
}

fn against_cache(checked: &mut Checked, backing: &Backing) {
    let Some(cache) = checked.cache.clone() else { return };
    let name = Arc::clone(&backing.name);
    let Some(view) = &checked.set else { return };
    let mut uuids = (0u32..).zip(&view.uuids);
    let slot = uuids.find(|(_, entry)| entry.uuid == backing.sb.uuid).map(|(slot, _)| slot);
    let ours = backing.sb.set_uuid == cache.sb.set_uuid;
    let state = backing.sb.state();
    let readable = !view.uuids.is_empty();
    match slot {
        Some(slot) => {
            let dirty = checked.slots.get(&slot).map_or(0, |used| used.dirty);
            if !ours && !rotted(backing, &cache) {
                let detail = format!(
                    "set {} is what it belongs to now, though slot {slot} of set {} was its",
                    backing.sb.set_uuid, cache.sb.set_uuid
                );
                checked.found(Finding::new(Kind::BackingOtherSet, &name, SET_UUID_AT, detail));
                return;
            }
            if !ours && state != BackingState::Stale {
                let detail = format!(
                    "set {}, but slot {slot} of set {} is its",
                    backing.sb.set_uuid, cache.sb.set_uuid
                );
                checked.found(Finding::new(Kind::BackingSetUuid, &name, SET_UUID_AT, detail));
            }
            // STALE is what a device says that ran without its cache: then the keys are what is out of date.
            if state == BackingState::None && dirty > 0 {
                let detail = format!("not attached, but slot {slot} has {dirty} dirty sectors for it");
                let mut finding = Finding::new(Kind::BackingState, &name, FLAGS_AT, detail);
                // Until now a reader sees the backing device alone.
                finding.lost.extend(dirty_range(checked, slot));
                checked.found(finding);
            }
            beyond(checked, backing, slot);
        }
        None if state.is_whole() => {}
        None if !ours => {
            let detail = format!(
                "it is attached to set {}, the cache is of set {} and has nothing of it",
                backing.sb.set_uuid, cache.sb.set_uuid
            );
            checked.found(Finding::new(Kind::BackingOtherSet, &name, SET_UUID_AT, detail));
        }
        None if readable && state == BackingState::Dirty => {
            let detail = format!("{state:?}, but no slot has its UUID {}", backing.sb.uuid).to_lowercase();
            let mut finding = Finding::new(Kind::UuidLost, &name, UUID_AT, detail);
            let index = checked.backings.iter().position(|other| other.name == name);
            let link = links(checked, view).into_iter().find(|link| Some(link.backing) == index);
            match link {
                Some(Link { slot, proof, .. }) => {
                    finding.detail.push_str(&format!("; {} slot {slot} is its", proof.words()));
                    if proof == Proof::State && !all_are_named(checked, view) {
                        finding.guess = true;
                        finding.detail.push_str(", unless it is that of a device that was not named");
                    }
                }
                None => finding.detail.push_str("; which is its nothing tells, and none is given to it"),
            }
            checked.found(finding);
        }
        None => {}
    }
}

/// Bits in which a rotted UUID may differ.
const ROTTED_BITS: u32 = 8;

/// Whether the UUID of the set in a superblock is the cache's, but for what rotted of it, or is no UUID.
fn rotted(backing: &Backing, cache: &Cache) -> bool {
    let (theirs, ours) = (backing.sb.set_uuid.as_u128(), cache.sb.set_uuid.as_u128());
    theirs == 0 || (theirs ^ ours).count_ones() <= ROTTED_BITS
}

/// Where a slot has dirty data.
fn dirty_range(checked: &Checked, slot: u32) -> Option<(Pos, Pos)> {
    let used = checked.slots.get(&slot).filter(|used| used.dirty > 0)?;
    Some((Pos::new(slot, used.dirty_start), Pos::new(slot, used.dirty_end)))
}

/// Dirty data outside a backing device.
fn beyond(checked: &mut Checked, backing: &Backing, slot: u32) {
    let Some(used) = checked.slots.get(&slot).copied() else { return };
    let end = Sectors::from_bytes(backing.device.size()).0;
    let start = backing.fields.data_offset.0;
    if used.dirty > 0 && (used.dirty_end > end || used.dirty_start < start) {
        let detail = format!(
            "slot {slot} has dirty sectors {}..{}, the device {start}..{end}",
            used.dirty_start, used.dirty_end
        );
        // One key in the wrong place is rot. Several are where the device was when they were written.
        let attached = !backing.sb.state().is_whole();
        let cut_off = attached && dirty_from(checked, slot, end).take(2).count() > 1;
        let kind = if cut_off { Kind::BackingTooShort } else { Kind::ExtentBeyond };
        let mut finding = Finding::new(kind, &backing.name, 0, detail);
        let pos = |sector| Pos::new(slot, sector);
        finding.lost.push((pos(used.dirty_start.min(start)), pos(start)));
        finding.lost.push((pos(end), pos(used.dirty_end.max(end))));
        finding.lost.retain(|(from, to)| from < to);
        checked.found(finding);
    }
}

/// Where dirty data of a slot is from a sector on, as far as it can be read.
fn dirty_from(checked: &Checked, slot: u32, sector: u64) -> impl Iterator<Item = SeenExtent> {
    let range = (Pos::new(slot, sector), Pos::new(slot, u64::MAX));
    let extents = checked.set.iter().flat_map(move |view| view.extents(range.0, range.1));
    extents.flatten().filter(|extent| extent.key.dirty() && extent.live().is_some())
}

/// Live keys of slots that are free: the next device to be attached would get them.
fn slots_without_uuid(checked: &mut Checked) {
    let Some(view) = &checked.set else { return };
    let free = |slot: &u32| view.uuids.get(*slot as usize).is_some_and(|entry| entry.is_free());
    let lost: Vec<_> = checked
        .slots
        .iter()
        .filter(|(slot, used)| used.all > 0 && free(slot))
        .map(|(s, u)| (*s, *u))
        .collect();
    let (name, geometry) = (Arc::clone(&view.cache.name), view.cache.geometry);
    let bucket = view.journal.newest().and_then(|newest| newest.jset.uuid_bucket.ptr());
    let byte = bucket.map_or(0, |ptr| geometry.bucket_start_byte(geometry.ptr_bucket(ptr)));
    for (slot, used) in lost {
        let detail =
            format!("slot {slot} is free, but has {} sectors, {} of them dirty", used.all, used.dirty);
        let mut finding = Finding::new(Kind::UuidLost, &name, byte, detail);
        if checked.table_found {
            finding.guess = true;
            finding.detail.push_str("; the table is older than that");
        }
        checked.found(finding);
    }
}

/// Takes slots from devices whose data says that they are not theirs: a table that was found may be so old that a slot
/// has since been given up.
fn take_misfits(checked: &mut Checked) {
    let Some(view) = &checked.set else { return };
    let misfits = misfits(checked, view);
    let Some(view) = &mut checked.set else { return };
    for slot in misfits {
        if let Some(entry) = view.uuids.get_mut(slot as usize) {
            *entry = stand_in(slot);
        }
    }
}

/// Tells that a table that was found may be too old, unless all that has keys shows that it is not.
fn doubt_table(checked: &mut Checked) {
    if checked.set.as_ref().is_some_and(|view| is_proved(checked, view)) {
        return;
    }
    for kind in [Kind::UuidPointer, Kind::UuidUnreadable, Kind::UuidLost] {
        checked.findings.doubt(kind, None, "a table that nothing leads to is taken, perhaps an older one");
    }
}

/// Tells that with no table at all a slot is given to a device because nothing else is dirty: a device that was not named,
/// or a volume, may be what it is of.
fn doubt_links(checked: &mut Checked) {
    let Some(view) = checked.set.as_ref().filter(|view| view.uuids.is_empty()) else { return };
    if links(checked, view).iter().all(|link| link.proof != Proof::State) {
        return;
    }
    for kind in [Kind::UuidPointer, Kind::UuidUnreadable, Kind::UuidLost] {
        let why = "a slot is given to a device because nothing else that was named is dirty";
        checked.findings.doubt(kind, None, why);
    }
}

/// Of slots with one UUID the first counts. Where its keys are in another, that one counts after a repair.
fn duplicates(checked: &mut Checked) {
    let Some(view) = checked.set.as_ref().filter(|_| checked.has(Kind::UuidDuplicate)) else { return };
    let mut first: HashMap<Uuid, bool> = HashMap::new();
    let mut changes = false;
    for (slot, entry) in (0u32..).zip(&view.uuids).filter(|(_, entry)| !entry.is_free()) {
        let has_keys = checked.slots.get(&slot).is_some_and(|used| used.all > 0);
        let first_has = *first.entry(entry.uuid).or_insert(has_keys);
        changes |= !entry.is_detached() && has_keys && !first_has;
    }
    if changes {
        let why = "the keys are in the later one, which nobody looks at until then";
        checked.findings.doubt(Kind::UuidDuplicate, None, why);
    }
}

/// Whether each slot with keys is a volume's, that of a device that was named, or linked to one: then what is left over
/// is somebody's by that alone.
fn all_are_named(checked: &Checked, view: &SetView) -> bool {
    let linked: Vec<u32> = links(checked, view).iter().map(|link| link.slot).collect();
    let named = |slot: u32| {
        let entry = view.uuids.get(slot as usize);
        entry.is_some_and(|entry| {
            entry.is_flash_only() || checked.backings.iter().any(|backing| backing.sb.uuid == entry.uuid)
        })
    };
    let with_keys = checked.slots.iter().filter(|(_, used)| used.all > 0);
    with_keys.map(|(slot, _)| *slot).all(|slot| named(slot) || linked.contains(&slot))
}

/// Volumes that end before their data.
fn volumes(checked: &mut Checked) {
    let Some(view) = &checked.set else { return };
    let name = Arc::clone(&view.cache.name);
    let mut findings = Vec::new();
    for (slot, entry) in view.volumes() {
        let end = checked.slots.get(&slot).map_or(0, |used| used.end);
        if end > entry.sectors.0 {
            let detail = format!("slot {slot} has {} sectors, its data ends at {end}", entry.sectors);
            findings.push(Finding::new(Kind::UuidVolumeSize, &name, 0, detail));
        }
    }
    findings.into_iter().for_each(|finding| checked.found(finding));
}
