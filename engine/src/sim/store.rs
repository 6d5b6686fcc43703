//! What a simulated disk holds: what reads see, what is durable, and what hangs between the two.

use std::collections::BTreeMap;

use super::Survival;
use super::image::{Image, PAGE, SECTORS};
use crate::dev::Shared;
use crate::env::{Rng, mix};

const SECTOR: usize = bcache_format::SECTOR_SIZE as usize;

/// What an operation puts into its range.
#[derive(Clone)]
pub(super) enum Content {
    Data(Shared),
    Zeroes,
    /// Undefined bytes; every sector's follow from this number.
    Garbage(u64),
}

/// A change of a range of bytes, both ends on sector boundaries.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) content: Content,
}

/// The sectors of one page that a change touches.
struct Part {
    page: u64,
    /// First sector within the page, and how many.
    first: usize,
    count: usize,
}

impl Part {
    fn mask(&self) -> u8 {
        (((1u16 << self.count) - 1) << self.first) as u8
    }
}

impl Change {
    fn part(&self, page: u64) -> Part {
        let start = self.at.max(page * PAGE);
        let end = (self.at + self.len).min((page + 1) * PAGE);
        let first = ((start - page * PAGE) / bcache_format::SECTOR_SIZE) as usize;
        Part { page, first, count: ((end - start) / bcache_format::SECTOR_SIZE) as usize }
    }

    /// The pages touched. Only data makes pages: zeroes and garbage change those that are there.
    fn parts(&self, image: &Image) -> Vec<Part> {
        if self.len == 0 {
            return Vec::new();
        }
        let pages = self.at / PAGE..(self.at + self.len).div_ceil(PAGE);
        let numbers = match self.content {
            Content::Data(_) => pages.collect(),
            Content::Zeroes | Content::Garbage(_) => image.pages_in(pages),
        };
        numbers.into_iter().map(|page| self.part(page)).collect()
    }

    /// The content of one part, as a version of that page.
    fn version(&self, part: &Part, seq: u64) -> Version {
        let content = match &self.content {
            Content::Data(data) => {
                let start = (part.page * PAGE + (part.first * SECTOR) as u64 - self.at) as usize;
                Content::Data(data.slice(start..start + part.count * SECTOR))
            }
            other => other.clone(),
        };
        Version { seq, mask: part.mask(), first: part.first, content }
    }
}

/// One change's share of a page.
#[derive(Clone)]
struct Version {
    /// Order of application, counted over the whole disk.
    seq: u64,
    /// The sectors it still speaks for.
    mask: u8,
    /// The sector its data begin with.
    first: usize,
    content: Content,
}

impl Version {
    fn has(&self, sector: usize) -> bool {
        self.mask & (1 << sector) != 0
    }

    fn store(&self, image: &mut Image, page: u64, sector: usize) {
        match &self.content {
            Content::Data(data) => {
                let start = (sector - self.first) * SECTOR;
                image.set_sector(page, sector, Some(&data[start..start + SECTOR]));
            }
            Content::Zeroes => image.set_sector(page, sector, None),
            Content::Garbage(seed) => {
                let mut rng = Rng::new(mix(seed ^ (page * SECTORS as u64 + sector as u64)));
                let mut bytes = [0u8; SECTOR];
                for word in bytes.chunks_exact_mut(8) {
                    word.copy_from_slice(&rng.bits().to_le_bytes());
                }
                image.set_sector(page, sector, Some(&bytes));
            }
        }
    }

    fn store_all(&self, image: &mut Image, page: u64) {
        for sector in (0..SECTORS).filter(|sector| self.has(*sector)) {
            self.store(image, page, sector);
        }
    }
}

/// The bytes of a disk with a volatile cache.
#[derive(Clone)]
pub(super) struct Store {
    current: Image,
    durable: Image,
    /// For each page, the changes since it was last durable, in order of application.
    pending: BTreeMap<u64, Vec<Version>>,
    seq: u64,
    /// Sectors that survive together: a device does not tear its own blocks.
    unit: usize,
}

impl Store {
    pub(super) fn new(image: Image, block: u32) -> Store {
        let store =
            Store { current: image.clone(), durable: image, pending: BTreeMap::new(), seq: 0, unit: 1 };
        store.with_blocks(block)
    }

    /// Says what the device's blocks are.
    pub(super) fn with_blocks(self, block: u32) -> Store {
        let unit = if u64::from(block) < PAGE { 1 } else { SECTORS };
        Store { unit, ..self }
    }

    pub(super) fn current(&self) -> &Image {
        &self.current
    }

    pub(super) fn durable(&self) -> &Image {
        &self.durable
    }

    /// What a flush beginning now promises to make durable.
    pub(super) fn mark(&self) -> u64 {
        self.seq
    }

    /// Applies a change. `torn` leaves each sector out by the throw of a coin.
    pub(super) fn apply(&mut self, change: &Change, durable: bool, mut torn: Option<&mut Rng>) {
        self.seq += 1;
        for part in change.parts(&self.current) {
            let mut version = change.version(&part, self.seq);
            if let Some(rng) = &mut torn {
                version.mask &= if self.unit == 1 {
                    rng.bits() as u8
                } else if rng.chance(1, 2) {
                    0
                } else {
                    u8::MAX
                };
            }
            version.store_all(&mut self.current, part.page);
            if durable {
                version.store_all(&mut self.durable, part.page);
                self.forget(part.page, |older| older.mask &= !version.mask);
            } else if version.mask != 0 {
                self.pending.entry(part.page).or_default().push(version);
            }
        }
    }

    fn forget(&mut self, page: u64, mut cut: impl FnMut(&mut Version)) {
        if let Some(versions) = self.pending.get_mut(&page) {
            versions.iter_mut().for_each(&mut cut);
            versions.retain(|version| version.mask != 0);
            if versions.is_empty() {
                self.pending.remove(&page);
            }
        }
    }

    /// Makes everything applied up to `mark` durable.
    pub(super) fn flush(&mut self, mark: u64) {
        let durable = &mut self.durable;
        self.pending.retain(|page, versions| {
            versions.retain(|version| {
                let due = version.seq <= mark;
                if due {
                    version.store_all(durable, *page);
                }
                !due
            });
            !versions.is_empty()
        });
    }

    /// A flush that failed: of some pages the writes are dropped for good, though reads still see them.
    pub(super) fn fail_flush(&mut self, mark: u64, rng: &mut Rng) {
        self.pending.retain(|_, versions| {
            if rng.chance(1, 2) {
                versions.retain(|version| version.seq > mark);
            }
            !versions.is_empty()
        });
    }

    /// What the disk holds after a power cut, with `in_flight` begun but not completed.
    pub(super) fn survivors(&self, in_flight: &[Change], survival: Survival, rng: &mut Rng) -> Image {
        let mut image = self.durable.clone();
        let mut versions = match survival {
            Survival::None => return image,
            _ => self.pending.clone(),
        };
        if survival != Survival::Completed {
            for change in in_flight {
                for part in change.parts(&self.current) {
                    let version = change.version(&part, u64::MAX);
                    versions.entry(part.page).or_default().push(version);
                }
            }
        }
        // How much got through before the power went, in eighths.
        let got_through = [1, 4, 7][rng.below(3) as usize];
        for (page, versions) in &versions {
            for first in (0..SECTORS).step_by(self.unit) {
                let candidates: Vec<&Version> = versions.iter().filter(|v| v.has(first)).collect();
                let Some(newest) = candidates.last() else { continue };
                let chosen = match survival {
                    Survival::Seeded if !rng.chance(got_through, 8) => None,
                    Survival::Seeded if rng.chance(1, 2) => {
                        Some(candidates[rng.below(candidates.len() as u64) as usize])
                    }
                    _ => Some(*newest),
                };
                if let Some(version) = chosen {
                    (first..first + self.unit).for_each(|sector| version.store(&mut image, *page, sector));
                }
            }
        }
        image
    }
}
