//! The uuid table as it should be.

use super::super::check::Checked;
use super::super::kind::Kind;
use super::super::view::slot::SlotUse;
use super::super::view::{Backing, SetView};
use bcache_format::superblock::BackingState;
use bcache_format::uuid_entry::{DETACHED_UUID, UuidEntry};
use bcache_format::{Pos, SECTOR_SIZE, Sectors};
use uuid::Uuid;

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
        // Of slots without keys the first stays.
        let twice = table.iter().enumerate().any(|(other, entry)| {
            let has_keys = checked.slots.get(&(other as u32)).is_some_and(|used| used.all > 0);
            other != slot && Some(entry.uuid) == uuid && (other < slot || has_keys)
        });
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
    for link in links(checked, view) {
        if let (Some(entry), Some(backing)) =
            (table.get_mut(link.slot as usize), checked.backings.get(link.backing))
        {
            entry.uuid = backing.sb.uuid;
            entry.label = if link.proof == Proof::Uuid { entry.label } else { backing.sb.label };
        }
    }
    // The next device to be attached would get the keys of a free slot. Whose they are may show when it is named.
    for (slot, entry) in (0u32..).zip(&mut table).filter(|(_, entry)| entry.is_free()) {
        if checked.slots.get(&slot).is_some_and(|used| used.all > 0) {
            *entry = stand_in(slot);
        }
    }
    table
}

/// UUIDs of slots whose device is not known begin with this and end with the slot's number: no device has one.
const STAND_IN: u128 = 0xf5c0_05e5_6c6f_8000_8000_7374_0000_0000;

/// Keeps a slot for a device whose UUID is lost.
pub(in super::super) fn stand_in(slot: u32) -> UuidEntry {
    let uuid = Uuid::from_u128(STAND_IN | u128::from(slot));
    UuidEntry { uuid, ..UuidEntry::EMPTY }
}

/// Whether a slot is kept for a device whose UUID is lost.
fn is_stand_in(entry: &UuidEntry) -> bool {
    entry.uuid.as_u128() >> 32 == STAND_IN >> 32
}

/// Why a slot is taken for a device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Proof {
    /// The slot's UUID is the device's but for some bits.
    Uuid,
    /// The slot's clean data is what the device has.
    Data,
    /// The device is dirty, and no other slot has dirty data of which nobody knows whose it is.
    State,
}

impl Proof {
    /// In words.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Uuid => "by its UUID but for some bits",
            Self::Data => "by clean data that is the same",
            Self::State => "by being dirty, as nothing else is",
        }
    }
}

/// A slot of which the table does not say whose it is, and the device that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Link {
    pub backing: usize,
    pub slot: u32,
    pub proof: Proof,
}

/// Gives devices that are attached and have no slot those that are theirs.
pub(in super::super) fn links(checked: &Checked, view: &SetView) -> Vec<Link> {
    let known = |uuid: Uuid| view.uuids.iter().any(|entry| entry.uuid == uuid);
    let without_slot: Vec<(usize, &Backing)> = checked
        .backings
        .iter()
        .enumerate()
        .filter(|(_, backing)| {
            let attached = matches!(backing.sb.state(), BackingState::Dirty | BackingState::Clean);
            attached && backing.sb.set_uuid == view.cache.sb.set_uuid && !known(backing.sb.uuid)
        })
        .collect();
    let nobodys =
        |slot: &u32| view.uuids.get(*slot as usize).is_none_or(|entry| entry.is_free() || is_stand_in(entry));
    let open: Vec<(u32, &SlotUse)> = checked
        .slots
        .iter()
        .filter(|(slot, used)| used.all > 0 && nobodys(slot))
        .map(|(slot, used)| (*slot, used))
        .collect();
    // What each may be of: device, slot, and how it fits. Data is read for it, once.
    let mut fitting: Vec<(usize, u32, Fit)> = Vec::new();
    for (index, backing) in &without_slot {
        // A device that is not dirty has nothing dirty in the cache.
        let dirty = backing.sb.state() == BackingState::Dirty;
        for (slot, used) in open.iter().filter(|(_, used)| dirty || used.dirty == 0) {
            match fits(view, backing, *slot, used, 0) {
                Fit::Unknown if used.dirty == 0 => {}
                fit => fitting.push((*index, *slot, fit)),
            }
        }
    }
    let all = |fit: Fit| fitting.iter().filter(move |(.., other)| *other == fit);
    without_slot
        .iter()
        .filter_map(|(index, backing)| {
            let link = |slot, proof| Some(Link { backing: *index, slot, proof });
            let rotted = |entry: &UuidEntry| {
                !entry.is_free()
                    && !entry.is_flash_only()
                    && !is_stand_in(entry)
                    && (entry.uuid.as_u128() ^ backing.sb.uuid.as_u128()).count_ones() <= ROTTED_BITS
            };
            if let Some(slot) = view.uuids.iter().position(rotted) {
                return link(u32::try_from(slot).ok()?, Proof::Uuid);
            }
            let of_this = |fit: Fit| all(fit).filter(|(of, ..)| of == index).map(|(_, slot, _)| *slot);
            let mut ours = of_this(Fit::Same);
            if let Some(slot) = ours.next() {
                // Devices that began as copies of one image have much in common: what several could be is nobody's.
                let only = ours.next().is_none()
                    && all(Fit::Same).filter(|(_, other, _)| *other == slot).count() == 1;
                return only.then_some(slot).and_then(|slot| link(slot, Proof::Data));
            }
            let can_be: Vec<u32> = of_this(Fit::Unknown).collect();
            let other_dirty = without_slot
                .iter()
                .any(|(other, device)| other != index && device.sb.state() == BackingState::Dirty);
            match can_be.as_slice() {
                [slot] if !other_dirty => link(*slot, Proof::State),
                _ => None,
            }
        })
        .collect()
}

/// Slots of which the owner is another one in `after`. Whose a slot is of which the table says nothing, or only nearly
/// says it, is not changed by saying so.
pub(super) fn moved(checked: &Checked, view: &SetView, after: &[UuidEntry]) -> Vec<u32> {
    let rotted: Vec<u32> = links(checked, view).iter().map(|link| link.slot).collect();
    let first = |table: &[UuidEntry], uuid: Uuid| {
        (0u32..).zip(table).find(|(_, entry)| entry.uuid == uuid).map(|(slot, _)| slot)
    };
    let mut moved = Vec::new();
    for (slot, entry) in (0u32..).zip(&view.uuids) {
        if entry.is_free() || entry.is_detached() || is_stand_in(entry) || rotted.contains(&slot) {
            continue;
        }
        let owner = first(&view.uuids, entry.uuid) == Some(slot);
        let stays = after.get(slot as usize).is_some_and(|now| now.uuid == entry.uuid)
            && first(after, entry.uuid) == Some(slot);
        if owner != stays {
            moved.push(slot);
        }
    }
    moved
}

/// Slots with keys of devices that were named of which the keys cannot be: they leave the device, or clean data is not
/// what it has.
pub(in super::super) fn misfits(checked: &Checked, view: &SetView) -> Vec<u32> {
    let of = |(slot, entry): (u32, &UuidEntry)| {
        let used = checked.slots.get(&slot).filter(|used| used.all > 0)?;
        let backing = checked.backings.iter().find(|backing| backing.sb.uuid == entry.uuid)?;
        (fits(view, backing, slot, used, 0) == Fit::Not).then_some(slot)
    };
    (0u32..).zip(&view.uuids).filter_map(of).collect()
}

/// Whether a table that was found, perhaps an older one, says of all slots with keys whose they are. A slot with dirty keys
/// may have been given up since by a device that ran without its cache: so the device has to say that it is dirty, or clean
/// data has to be what it has. A volume's slot is given up only when nothing of it is left.
pub(in super::super) fn is_proved(checked: &Checked, view: &SetView) -> bool {
    each_is_whose(checked, view, |backing, used, fit| match fit {
        Fit::Not => false,
        Fit::Unknown => used.dirty > 0 && backing.is_some_and(|it| it.sb.state() == BackingState::Dirty),
        Fit::Same => backing.is_some_and(|it| !it.sb.state().is_whole()),
    })
}

/// Whether such a table is right if no device ran without its cache since: enough to go on with where somebody says yes.
pub(in super::super) fn is_likely(checked: &Checked, view: &SetView) -> bool {
    each_is_whose(checked, view, |_, used, fit| fit == Fit::Same || used.dirty > 0)
}

/// Whether the table gives each slot with keys to a volume, or to a device of which `is_its` holds.
fn each_is_whose(
    checked: &Checked,
    view: &SetView,
    is_its: impl Fn(Option<&Backing>, &SlotUse, Fit) -> bool,
) -> bool {
    checked.slots.iter().filter(|(_, used)| used.all > 0).all(|(slot, used)| {
        let entry = view.uuids.get(*slot as usize).filter(|entry| !entry.is_free() && !is_stand_in(entry));
        let Some(entry) = entry else { return false };
        let backing = checked.backings.iter().find(|backing| backing.sb.uuid == entry.uuid);
        let fit = backing.map_or(Fit::Unknown, |backing| fits(view, backing, *slot, used, 0));
        entry.is_flash_only() || is_its(backing, used, fit)
    })
}

/// What is known of whether a slot's keys are a device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Fit {
    /// They leave the device, or clean data is not what it has.
    Not,
    /// There is no clean data to compare.
    Unknown,
    /// Clean data is what the device has.
    Same,
}

/// Whether a slot's keys can be of this device: they lie inside it, and clean data is what the device has. Zeros in its
/// first `wiped` sectors say nothing.
pub(in super::super) fn fits(
    view: &SetView,
    backing: &Backing,
    slot: u32,
    used: &SlotUse,
    wiped: u64,
) -> Fit {
    let end = Sectors::from_bytes(backing.device.size()).0;
    if used.start < backing.fields.data_offset.0 || used.end > end {
        return Fit::Not;
    }
    let range = view.trusted_extents(Pos::new(slot, 0), Pos::new(slot + 1, 0)).flatten();
    let clean = range.filter(|extent| !extent.key.dirty() && extent.live().is_some()).take(COMPARED);
    let mut fit = Fit::Unknown;
    for extent in clean {
        let bytes = usize::try_from(extent.key.size() * SECTOR_SIZE).unwrap_or(0);
        let (mut ours, mut theirs) = (vec![0; bytes], vec![0; bytes]);
        let at = extent.live().map_or(0, |ptr| ptr.offset() * SECTOR_SIZE);
        let same = view.cache.device.read_at(at, &mut ours).is_ok()
            && backing.device.read_at(extent.key.start() * SECTOR_SIZE, &mut theirs).is_ok()
            && ours == theirs;
        if !same && extent.key.start() < wiped && theirs.iter().all(|byte| *byte == 0) {
            continue;
        }
        if !same {
            return Fit::Not;
        }
        // Zeros are everywhere, and prove nothing.
        if ours.iter().any(|byte| *byte != 0) {
            fit = Fit::Same;
        }
    }
    fit
}
