//! Superblocks of all devices.

use super::super::finding::{Finding, Findings};
use super::super::kind::Kind;
use super::super::lost;
use super::super::ranges::Ranges;
use super::super::view::{Backing, Cache, Device, Devices, Fault};
use super::Checked;
use bcache_format::error::Problem;
use bcache_format::superblock::{BackingState, DATA_OFFSET_DEFAULT, RawSuperblock, SB_BYTES, SB_OFFSET};
use bcache_format::{Bkey, Pos, Structure, Superblock};
use std::sync::Arc;

pub(super) fn pass(checked: &mut Checked, devices: impl IntoIterator<Item = Device>) {
    let mut known = Devices::default();
    for device in devices {
        let name: Arc<str> = device.name().into();
        match look(&device, &name) {
            Ok((sb, fault)) => {
                if let Some(fault) = fault {
                    checked.found(fault.into());
                }
                known.push_with(device, sb);
            }
            Err(fault) => checked.found(fault.into()),
        }
    }
    checked.backings = known.backings;
    let mut caches = known.caches.into_iter();
    checked.cache = caches.next();
    for second in caches {
        let detail = "a second cache".to_owned();
        checked.found(Finding::new(Kind::TwoCaches, &second.name, SB_OFFSET, detail));
    }
}

/// Sectors of a cache that is looked at although the device is smaller: what has more is no cache that was cut off.
const CUT_OFF_MOST: u64 = 1 << 37;

/// The superblock, if it says what it can say; with a fault when only its checksum is wrong, or only the device is cut off.
fn look(device: &Device, name: &Arc<str>) -> Result<(Superblock, Option<Fault>), Fault> {
    let bytes =
        super::super::view::devices::read(device, name, Structure::Superblock, SB_OFFSET, SB_BYTES as u64)?;
    let at = |error| Fault::format(name, error, SB_OFFSET);
    let (sb, fault) = match Superblock::parse(&bytes) {
        Ok(sb) => (sb, None),
        Err(error) if matches!(error.problem, Problem::Checksum { .. }) => {
            let raw = RawSuperblock::read(&bytes).ok_or_else(|| at(error.clone()))?;
            // Worth a look when all else is as it must be; otherwise the checksum is the least of it.
            (Superblock::decode(&raw).map_err(at)?, Some(at(error)))
        }
        Err(error) => return Err(at(error)),
    };
    match sb.check_device(device.size(), 0) {
        Ok(()) => Ok((sb, fault)),
        Err(error) => {
            let sectors = sb.cache().map(|cache| cache.nbuckets.saturating_mul(cache.bucket_sectors.into()));
            let cut_off = fault.is_none() && sectors.is_some_and(|sectors| sectors <= CUT_OFF_MOST);
            if cut_off { Ok((sb, Some(at(error)))) } else { Err(at(error)) }
        }
    }
}

/// Tells of a cache that was cut off which dirty data was behind its end.
pub(super) fn behind_end(checked: &mut Checked) {
    let (Some(cache), Some(view)) = (&checked.cache, &checked.set) else { return };
    if !cache.is_cut_off() {
        return;
    }
    let mut gone = Ranges::default();
    let revived =
        |key: &Bkey| key.ptr().is_some_and(|ptr| checked.revived.contains(&cache.geometry.ptr_bucket(ptr)));
    let extents = view.trusted_extents(Pos::ZERO, Pos::MAX).flatten();
    let dirty =
        extents.filter(|extent| extent.key.dirty() && (extent.live().is_some() || revived(&extent.key)));
    for (there, key) in dirty.map(|extent| (cache.there(extent.key), extent.key)) {
        gone.add((there.map_or(key.start_pos(), |there| there.pos()), key.pos()));
    }
    let name = Arc::clone(&cache.name);
    checked.findings.lose(&name, Kind::SbTooBig, gone.iter());
}

/// Tells superblocks whose checksum is wrong, and of which the rest of the set says otherwise or nothing, from those
/// that it confirms.
pub(super) fn doubt(checked: &mut Checked) {
    let wrong: Vec<Arc<str>> = checked
        .findings
        .iter()
        .filter(|finding| finding.kind == Kind::SbChecksum)
        .map(|finding| Arc::clone(&finding.device))
        .collect();
    for name in wrong {
        let of_cache = checked.cache.as_ref().is_some_and(|cache| cache.name == name);
        let backing = checked.backings.iter().find(|backing| backing.name == name);
        let confirmed = if of_cache { cache_confirmed(checked) } else { backing_confirmed(checked, backing) };
        if !confirmed {
            checked.findings.turn(&name, Kind::SbChecksum, Kind::SbDoubtful);
        }
    }
}

/// Tells superblocks without a magic number that are still those of the set from those of devices that were given up, and
/// perhaps taken for something else. Before a superblock of ours there is nothing.
pub(super) fn doubt_wiped(checked: &Checked, devices: &[Device], findings: &mut Findings) {
    for device in devices {
        let of_cache = checked.cache.as_ref().is_some_and(|cache| *cache.name == *device.name());
        let backing = checked.backings.iter().find(|backing| *backing.name == *device.name());
        let known = if of_cache { cache_confirmed(checked) } else { is_known(checked, backing) };
        let empty = lost::nothing_before(device);
        let why = match (known, empty) {
            (true, true) => continue,
            (_, false) => "something stands before it, as if the device were used for something else now",
            (false, true) => "nothing else says that the device is still in use",
        };
        findings.doubt(Kind::SbWiped, Some(device.name()), why);
    }
}

/// Whether the cache has a slot for the device.
fn is_known(checked: &Checked, backing: Option<&Backing>) -> bool {
    let (Some(backing), Some(view)) = (backing, &checked.set) else { return false };
    backing.sb.set_uuid == view.cache.sb.set_uuid
        && view.uuids.iter().any(|entry| entry.uuid == backing.sb.uuid)
}

/// Whether a journal and a btree are where the cache's superblock says, with its set's magic.
fn cache_confirmed(checked: &Checked) -> bool {
    let alone = |cache: &Cache| {
        cache.sb.cache().is_some_and(|fields| fields.nr_in_set == 1 && fields.nr_this_dev == 0)
    };
    checked.cache.as_ref().is_some_and(alone)
        && checked.journal.newest().is_some()
        && checked.set.as_ref().is_some_and(|view| view.root.is_some())
}

/// Whether the cache knows the device and agrees with its state.
fn backing_confirmed(checked: &Checked, backing: Option<&Backing>) -> bool {
    let (Some(backing), Some(view)) = (backing, &checked.set) else { return false };
    let slot = (0u32..).zip(&view.uuids).find(|(_, entry)| entry.uuid == backing.sb.uuid);
    let Some((slot, _)) = slot else { return false };
    let dirty = checked.slots.get(&slot).map_or(0, |used| used.dirty);
    let state = match backing.sb.state() {
        BackingState::Dirty => dirty > 0,
        BackingState::Clean => dirty == 0,
        BackingState::None | BackingState::Stale => false,
    };
    let offset = backing.fields.data_offset == DATA_OFFSET_DEFAULT;
    backing.sb.set_uuid == view.cache.sb.set_uuid && state && offset
}
