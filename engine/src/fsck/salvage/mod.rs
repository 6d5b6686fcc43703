//! Dirty data of a damaged cache, as the check puts it together: see [`super::evidence`].
//!
//! Nodes do not say whether they are still in use: freed ones stay on the device until their bucket is used again.
//! Whenever a node is replaced (split, coalesced, rewritten) the first bset of the new one holds what the old one held
//! at its end, and that tells them apart: see [`lives`].

pub mod lives;
pub mod scan;

use super::check::{Checked, Options, check};
use super::kind::Kind;
use super::ranges::Ranges;
use super::repair::{Refused, each_extent};
use super::view::{Backing, Cache, SetView};
use bcache_format::{Bkey, Pos, SECTOR_SIZE, Sectors};
use std::collections::BTreeMap;

/// How far an extent can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Belief {
    /// Only one life of a node says anything about it.
    Sure,
    /// Two nodes that both may be in use say different things, or the node's newest keys cannot be read.
    Doubtful,
}

/// What was found.
pub struct Salvage {
    /// The cache.
    pub cache: Cache,
    /// Dirty extents of each slot, in order, without overlaps.
    pub slots: BTreeMap<u32, Vec<(Bkey, Belief)>>,
    /// Slots that a uuid table gives to a device, by its UUID.
    pub uuids: BTreeMap<uuid::Uuid, u32>,
    /// Flash-only volumes: slot and size.
    pub volumes: Vec<(u32, Sectors)>,
    /// Keys that are lost, or whose newest state is, without overlaps.
    pub lost: Vec<(Pos, Pos)>,
    /// Leaves that were found, and how many of them are in use.
    pub leaves: (usize, usize),
    /// Whether prio sets were found.
    pub prios: bool,
    /// Journal entries that were replayed.
    pub entries: usize,
}

impl Salvage {
    /// Scans a cache. `progress` is told of how much is done, and of all.
    ///
    /// # Errors
    /// There is no set on it, or a device that changes while it is read.
    pub fn scan(cache: &Cache, progress: &dyn Fn(u64, u64)) -> Result<Self, Refused> {
        let tell = |now: super::check::Progress| progress(now.done, now.of);
        let options = Options { progress: Some(&tell), ..Options::default() };
        Self::of(&check([std::sync::Arc::clone(&cache.device)], options))
    }

    /// What a check put together.
    ///
    /// # Errors
    /// There is no set, or a device that changed since it was checked.
    pub fn of(checked: &Checked) -> Result<Self, Refused> {
        let nothing = || {
            let first = checked.findings.first();
            let first = first.map(|finding| (finding.kind, finding.detail.clone()));
            let (kind, detail) = first.unwrap_or((Kind::JournalEmpty, "no set was found".to_owned()));
            Refused::Fatal(kind, detail)
        };
        let view = checked.set.as_ref().ok_or_else(nothing)?;
        // With the journal gone every place may have had a newer state. What the leaves say is the best there is.
        let of_nodes =
            |kind: Kind| !matches!(kind, Kind::JournalEmpty | Kind::JournalMissing | Kind::JournalHole);
        let of_nodes = checked.findings.iter().filter(|finding| of_nodes(finding.kind));
        let unsure: Ranges = of_nodes.flat_map(|finding| finding.lost.iter().copied()).collect();
        let mut slots: BTreeMap<u32, Vec<(Bkey, Belief)>> = BTreeMap::new();
        each_extent(checked, view, &mut |extent| {
            let bucket = extent.key.ptr().map(|ptr| view.cache.geometry.ptr_bucket(ptr));
            let revived = bucket.is_some_and(|bucket| checked.revived.contains(&bucket));
            let metadata = bucket.is_some_and(|bucket| checked.metadata.contains_key(&bucket));
            // What two extents share, and what cannot be read: a repair leaves it out as well.
            let dropped = checked.dropped.contains(&extent.key.pos());
            if extent.key.dirty() && (extent.live().is_some() || revived) && !metadata && !dropped {
                // Of a device that was cut off what is behind its end is lost.
                let Some(key) = view.cache.there(extent.key) else { return };
                let doubtful = unsure.touch((key.start_pos(), key.pos()));
                let belief = if doubtful { Belief::Doubtful } else { Belief::Sure };
                slots.entry(key.inode()).or_default().push((key, belief));
            }
        })?;
        let lost = not_known(checked, view);
        let named = (0u32..).zip(&view.uuids).filter(|(_, entry)| !entry.is_free() && !entry.is_detached());
        Ok(Self {
            cache: view.cache.clone(),
            slots,
            uuids: named.map(|(slot, entry)| (entry.uuid, slot)).collect(),
            volumes: view.volumes().map(|(slot, entry)| (slot, Sectors(entry.sectors.0))).collect(),
            lost,
            leaves: (checked.found_leaves.max(view.leaves.len()), view.used_leaves),
            prios: !view.prios.entries.is_empty(),
            entries: view.journal.entries.len(),
        })
    }

    /// The slot of a backing device: what a uuid table says, or the only one whose extents can be its.
    #[must_use]
    pub fn slot_of(&self, backing: &Backing) -> Option<u32> {
        if let Some(slot) = self.uuids.get(&backing.sb.uuid) {
            return Some(*slot);
        }
        let (start, end) = (backing.fields.data_offset.0, Sectors::from_bytes(backing.device.size()).0);
        let inside =
            |keys: &[(Bkey, Belief)]| keys.iter().all(|(key, _)| key.start() >= start && key.offset() <= end);
        let mut fit = self.slots.iter().filter(|(_, keys)| inside(keys)).map(|(slot, _)| *slot);
        match (fit.next(), fit.next()) {
            (Some(slot), None) => Some(slot),
            _ => None,
        }
    }
}

/// Keys that are lost, or whose newest state is; with the journal gone, where no leaf says anything.
#[must_use]
pub fn not_known(checked: &Checked, view: &SetView) -> Vec<(Pos, Pos)> {
    if checked.has(Kind::JournalEmpty) { view.sure.uncovered((Pos::ZERO, Pos::MAX)) } else { checked.lost() }
}

/// First byte of an extent's data on the cache.
#[must_use]
pub fn data_byte(key: &Bkey) -> u64 {
    key.ptr().map_or(0, |ptr| ptr.offset().saturating_mul(SECTOR_SIZE))
}
