//! The uuid table as it should be.

use super::super::check::Checked;
use super::super::kind::Kind;
use super::super::usage::SlotUse;
use super::super::view::{Backing, SetView};
use bcache_format::superblock::BackingState;
use bcache_format::uuid_entry::{DETACHED_UUID, UuidEntry};
use bcache_format::{Pos, SECTOR_SIZE, Sectors};

/// Bits in which a rotted UUID may differ. Two different ones differ in 64, and less than this once in 10^18.
const ROTTED_BITS: u32 = 16;
/// Clean extents that are compared to find out whose they are.
const COMPARED: usize = 32;

/// The table, with backing devices linked to the slots whose keys are theirs.
pub(super) fn repaired(checked: &Checked, view: &SetView) -> Vec<UuidEntry> {
    let mut table = view.uuids.clone();
    table.resize(view.cache.geometry.nr_uuids(), UuidEntry::EMPTY);
    for slot in 0..table.len() {
        let used = checked.slots.get(&(slot as u32)).copied().unwrap_or_default();
        let uuid = table.get(slot).map(|entry| entry.uuid);
        let twice = table.iter().enumerate().any(|(other, entry)| other != slot && Some(entry.uuid) == uuid);
        let Some(entry) = table.get_mut(slot).filter(|entry| !entry.is_free() && !entry.is_detached()) else {
            continue;
        };
        entry.invalidated = 0;
        if twice && used.all == 0 && checked.has(Kind::UuidDuplicate) {
            entry.uuid = DETACHED_UUID;
        }
        if entry.is_flash_only() {
            entry.sectors = Sectors(entry.sectors.0.max(used.end));
        }
    }
    for backing in &checked.backings {
        link(checked, view, &mut table, backing);
    }
    // The next device to be attached would get the keys of a free slot.
    for (slot, entry) in (0u32..).zip(&mut table).filter(|(_, entry)| entry.is_free()) {
        if checked.slots.get(&slot).is_some_and(|used| used.all > 0) {
            entry.uuid = DETACHED_UUID;
            entry.invalidated = 1;
        }
    }
    table
}

/// Gives a backing device the one slot that can be its.
fn link(checked: &Checked, view: &SetView, table: &mut [UuidEntry], backing: &Backing) {
    let attached = matches!(backing.sb.state(), BackingState::Dirty | BackingState::Clean);
    let ours = backing.sb.set_uuid == view.cache.sb.set_uuid;
    if !attached || !ours || table.iter().any(|entry| entry.uuid == backing.sb.uuid) {
        return;
    }
    // A slot whose UUID is the device's except for some bits: those rotted.
    let rotted = |entry: &&mut UuidEntry| {
        (entry.uuid.as_u128() ^ backing.sb.uuid.as_u128()).count_ones() <= ROTTED_BITS
            && !entry.is_flash_only()
    };
    if let Some(entry) = table.iter_mut().find(rotted) {
        entry.uuid = backing.sb.uuid;
        return;
    }
    let free = |slot: u32| table.get(slot as usize).is_some_and(UuidEntry::is_free);
    let candidates: Vec<u32> = checked
        .slots
        .iter()
        .filter(|(slot, used)| used.all > 0 && free(**slot) && fits(view, backing, **slot, used))
        .map(|(slot, _)| *slot)
        .collect();
    if let [slot] = candidates.as_slice()
        && let Some(entry) = table.get_mut(*slot as usize)
    {
        entry.uuid = backing.sb.uuid;
        entry.label = backing.sb.label;
    }
}

/// Whether a slot's keys can be of this device: they lie inside it, and clean data is what the device has.
fn fits(view: &SetView, backing: &Backing, slot: u32, used: &SlotUse) -> bool {
    let end = Sectors::from_bytes(backing.device.size()).0;
    if used.start < backing.fields.data_offset.0 || used.end > end {
        return false;
    }
    let range = view.trusted_extents(Pos::new(slot, 0), Pos::new(slot + 1, 0)).flatten();
    let clean = range.filter(|extent| !extent.key.dirty() && extent.live().is_some()).take(COMPARED);
    clean.into_iter().all(|extent| {
        let bytes = usize::try_from(extent.key.size() * SECTOR_SIZE).unwrap_or(0);
        let (mut ours, mut theirs) = (vec![0; bytes], vec![0; bytes]);
        let at = extent.live().map_or(0, |ptr| ptr.offset() * SECTOR_SIZE);
        view.cache.device.read_at(at, &mut ours).is_ok()
            && backing.device.read_at(extent.key.start() * SECTOR_SIZE, &mut theirs).is_ok()
            && ours == theirs
    })
}
