//! What a reader of one cached device or flash-only volume sees, piece by piece.

use super::devices::Backing;
use super::extents::{Extents, PtrState, SeenExtent};
use super::fault::{Fault, What};
use super::read_at::Device;
use super::set::SetView;
use crate::fsck::view::Refusal;
use crate::fsck::view::set::Attachment;
use crate::set::states::{Leaving, leaving};
use bcache_format::prio::GC_GEN_MAX;
use bcache_format::uuid_entry::UuidEntry;
use bcache_format::{BucketNr, Pos, SECTOR_SIZE, Sectors, Structure};
use std::sync::Arc;

impl SetView {
    /// Slots of the flash-only volumes, in their order.
    pub fn volumes(&self) -> impl Iterator<Item = (u32, &UuidEntry)> {
        (0u32..).zip(&self.uuids).filter(|(_, entry)| entry.is_flash_only() && !entry.is_free())
    }

    /// The content of a backing device as its cached device shows it.
    ///
    /// # Errors
    /// See [`Self::attachment`].
    pub fn cached_device<'v>(&'v self, backing: &'v Backing) -> Result<Content<'v>, Refusal> {
        Ok(match self.attachment(backing)? {
            Attachment::Alone => Content::backing_alone(backing),
            Attachment::Slot(slot) => Content::cached(self, backing, slot),
        })
    }

    /// The content of the flash-only volume `number`, counted from 0.
    ///
    /// # Errors
    /// There are not so many.
    pub fn volume(&self, number: usize) -> Result<Content<'_>, Refusal> {
        let found = self.volumes().nth(number);
        let (slot, entry) = found.ok_or_else(|| Refusal::NoVolume {
            cache: Arc::clone(&self.cache.name),
            count: self.volumes().count(),
            number,
        })?;
        Ok(Content::volume(self, slot, Sectors(entry.sectors.0)))
    }
}

/// The content of a backing device without a cache.
///
/// # Errors
/// It is attached, so that it may lack data.
pub fn backing_without_cache(backing: &Backing) -> Result<Content<'_>, Refusal> {
    match leaving(backing.sb.state(), false) {
        Leaving::AsItIs => Ok(Content::backing_alone(backing)),
        Leaving::SayStale | Leaving::NewestInCache => {
            Err(Refusal::NeedsCache { backing: Arc::clone(&backing.name), set: backing.sb.set_uuid })
        }
    }
}

/// One device's content.
pub struct Content<'v> {
    /// Its size in bytes, whole sectors.
    pub bytes: u64,
    /// Sector of the backing device where it starts; 0 for a volume.
    pub data_offset: Sectors,
    backing: Option<&'v Backing>,
    cached: Option<(&'v SetView, u32)>,
}

/// Where a run of bytes comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The cache device, from this byte on; with the extent.
    Cache(u64, SeenExtent),
    /// The backing device, from this byte on.
    Backing(u64),
    /// Nowhere: zeros.
    Zeros,
}

/// A run of bytes of the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first byte.
    pub byte: u64,
    /// Its length in bytes; whole sectors.
    pub bytes: u64,
    /// Where it comes from.
    pub source: Source,
}

impl<'v> Content<'v> {
    /// A backing device of which nothing is in a cache.
    #[must_use]
    pub fn backing_alone(backing: &'v Backing) -> Self {
        let data_offset = backing.fields.data_offset;
        let sectors = Sectors::from_bytes(backing.device.size()).0.saturating_sub(data_offset.0);
        Self { bytes: Sectors(sectors).bytes(), data_offset, backing: Some(backing), cached: None }
    }
    /// A backing device with its extents in the cache, whose inode is `slot`.
    #[must_use]
    pub fn cached(set: &'v SetView, backing: &'v Backing, slot: u32) -> Self {
        Self { cached: Some((set, slot)), ..Self::backing_alone(backing) }
    }
    /// A flash-only volume of `sectors`.
    #[must_use]
    pub fn volume(set: &'v SetView, slot: u32, sectors: Sectors) -> Self {
        Self { bytes: sectors.bytes(), data_offset: Sectors(0), backing: None, cached: Some((set, slot)) }
    }
    /// The pieces of `bytes` bytes from `byte` on, both multiples of a sector, without gaps; what is past the end is
    /// left out.
    #[must_use]
    pub fn pieces(&self, byte: u64, bytes: u64) -> Pieces<'v> {
        let end = byte.saturating_add(bytes).min(self.bytes);
        let extents = self.extents_between(byte, end);
        let on_backing = self.backing.is_some();
        let (set, data_offset) = (self.cached.map(|(set, _)| set), self.data_offset.bytes());
        Pieces { set, extents, next: byte, end, data_offset, on_backing, held: None }
    }
    fn extents_between(&self, byte: u64, end: u64) -> Option<Extents<'v>> {
        let (set, slot) = self.cached?;
        let pos = |byte: u64| Pos::new(slot, byte / SECTOR_SIZE + self.data_offset.0);
        Some(set.extents(pos(byte), pos(end)))
    }
    /// The extents of that range, misses included.
    pub fn extents(
        &self,
        byte: u64,
        bytes: u64,
    ) -> impl Iterator<Item = Result<SeenExtent, Fault>> + use<'v> {
        let end = byte.saturating_add(bytes).min(self.bytes);
        self.extents_between(byte, end).into_iter().flatten()
    }
    /// Name of the cache device, and the bucket of it that an extent's data is in.
    #[must_use]
    pub fn bucket_of(&self, extent: &SeenExtent) -> Option<(Arc<str>, BucketNr)> {
        let (set, _) = self.cached?;
        Some((Arc::clone(&set.cache.name), set.cache.geometry.ptr_bucket(extent.live()?)))
    }
    /// Slot of its keys, when it has any.
    #[must_use]
    pub fn slot(&self) -> Option<u32> {
        self.cached.map(|(_, slot)| slot)
    }
    /// Name of the backing device.
    #[must_use]
    pub fn backing_name(&self) -> Option<&str> {
        self.backing.map(|backing| &*backing.name)
    }
    /// Fills `buf` with bytes of the source a piece has, `skip` bytes after the piece's start.
    ///
    /// # Errors
    /// The device cannot be read there.
    pub fn read(&self, source: &Source, skip: u64, buf: &mut [u8]) -> Result<(), Fault> {
        let (device, name, byte): (&Device, &Arc<str>, u64) = match (source, self.cached, self.backing) {
            (Source::Cache(byte, _), Some((set, _)), _) => (&set.cache.device, &set.cache.name, *byte),
            (Source::Backing(byte), _, Some(backing)) => (&backing.device, &backing.name, *byte),
            _ => {
                buf.fill(0);
                return Ok(());
            }
        };
        let byte = byte.saturating_add(skip);
        // Data has no structure of its own; the key is what names it.
        device.read_at(byte, buf).map_err(|error| Fault::io(name, Structure::Bkey, byte, &error))
    }
    /// How many bytes of a piece, `skip` after its start, are known to be zeros without reading them.
    #[must_use]
    pub fn zeros(&self, source: &Source, skip: u64) -> u64 {
        match (source, self.cached, self.backing) {
            (Source::Cache(byte, _), Some((set, _)), _) => {
                set.cache.device.next_data(byte + skip).saturating_sub(byte + skip)
            }
            (Source::Backing(byte), _, Some(backing)) => {
                backing.device.next_data(byte + skip).saturating_sub(byte + skip)
            }
            _ => u64::MAX,
        }
    }
}

/// The pieces of a range, in order.
pub struct Pieces<'v> {
    set: Option<&'v SetView>,
    extents: Option<Extents<'v>>,
    next: u64,
    end: u64,
    data_offset: u64,
    on_backing: bool,
    /// An extent with data that comes behind the gap just given out.
    held: Option<(u64, SeenExtent)>,
}

impl Pieces<'_> {
    /// A run that is not in the cache.
    fn gap(&mut self, until: u64) -> Piece {
        let (byte, bytes) = (self.next, until - self.next);
        self.next = until;
        let source = if self.on_backing { Source::Backing(self.data_offset + byte) } else { Source::Zeros };
        Piece { byte, bytes, source }
    }
    /// The next extent that has data, with the byte of the content where it starts.
    fn next_live(&mut self) -> Option<Result<(u64, SeenExtent), Fault>> {
        if let Some(held) = self.held.take() {
            return Some(Ok(held));
        }
        let (set, extents) = (self.set, self.extents.as_mut()?);
        loop {
            match extents.next()? {
                Err(fault) => return Some(Err(fault)),
                Ok(extent) if extent.live().is_some() => {
                    let start = Sectors(extent.key.start()).bytes().saturating_sub(self.data_offset);
                    return Some(Ok((start, extent)));
                }
                Ok(extent) => {
                    if let Some(fault) = too_stale(set, &extent) {
                        return Some(Err(fault));
                    }
                }
            }
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Piece, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let (start, extent) = match self.next_live() {
            None => return Some(Ok(self.gap(self.end))),
            Some(Err(fault)) => return Some(Err(fault)),
            Some(Ok(found)) => found,
        };
        if start > self.next {
            self.held = Some((start, extent));
            return Some(Ok(self.gap(start)));
        }
        let bytes = Sectors(extent.key.size()).bytes();
        self.next = start.saturating_add(bytes);
        let at = extent.live().map_or(0, |ptr| Sectors(ptr.offset()).bytes());
        Some(Ok(Piece { byte: start, bytes, source: Source::Cache(at, extent) }))
    }
}

/// Generations so far apart cannot be compared, so nobody knows what is there. Linux stops the set.
fn too_stale(set: Option<&SetView>, extent: &SeenExtent) -> Option<Fault> {
    let PtrState::Stale(stale) = extent.state else { return None };
    if stale <= GC_GEN_MAX {
        return None;
    }
    let byte = extent.key.ptr().map_or(0, |ptr| Sectors(ptr.offset()).bytes());
    let what = What::TooStale { key: extent.key.to_string(), stale };
    Some(set?.cache.fault(Structure::Bkey, byte, what))
}
