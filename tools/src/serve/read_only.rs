//! Serving what is there without writing anything: devices are opened for reading only, the journal is replayed in
//! memory, and reads go through the same code as `bcache export`.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bcache_engine::dev::{Buf, Shared};
use bcache_engine::env::Env;
use bcache_engine::fsck::view::{Backing, Content, SetView, content, set};
use bcache_engine::volume::{Volume, VolumeError, VolumeFuture, VolumeId};
use bcache_format::{Pos, Sectors};
use uuid::Uuid;

use super::shorter_by;
use crate::devices::{InUse, must_have_data, open_all};
use crate::text::note;

/// What all volumes look at.
struct Seen {
    set: Option<SetView>,
    backings: Vec<Backing>,
}

/// Which content of [`Seen`].
#[derive(Clone, Copy)]
enum Which {
    Backing(usize),
    Volume(usize),
}

impl Seen {
    fn content(&self, which: Which) -> Result<Content<'_>> {
        Ok(match (which, &self.set) {
            (Which::Volume(number), Some(set)) => set.volume(number)?,
            (Which::Volume(_), None) => bail!("a volume without a cache"),
            (Which::Backing(index), set) => {
                let backing = self.backings.get(index).context("no such backing device")?;
                let alone = backing.sb.state().is_whole();
                match set {
                    Some(set) if !alone => set.cached_device(backing)?,
                    _ => content::backing_without_cache(backing)?,
                }
            }
        })
    }

    fn read(&self, which: Which, at: u64, len: u32) -> Result<Buf> {
        let content = self.content(which)?;
        let mut buf = Buf::zeroed(len as usize);
        for piece in content.pieces(at, u64::from(len)) {
            let piece = piece?;
            let start = usize::try_from(piece.byte - at)?;
            let end = start + usize::try_from(piece.bytes)?;
            let part = buf.get_mut(start..end).context("a piece beyond its range")?;
            content.read(&piece.source, 0, part)?;
        }
        Ok(buf)
    }
}

/// A device or volume of a set at rest.
pub struct SeenVolume {
    env: Env,
    seen: Arc<Seen>,
    which: Which,
    bytes: u64,
    id: VolumeId,
}

/// Opens the devices of a set for reading only, and gives what can be served. Nothing is written, now or later.
///
/// # Errors
/// A device is in use, or the set cannot be trusted.
pub fn volumes(env: &Env, paths: &[PathBuf]) -> Result<Vec<Rc<dyn Volume>>> {
    let devices = open_all(paths, InUse::Refuse)?;
    must_have_data(&devices)?;
    let attached = |backing: &Backing| !backing.sb.state().is_whole();
    let needed = devices.backings.iter().any(attached);
    // A cache that was never used has nothing to show; the backing devices beside it may still be alone.
    let cache = set::single_cache(&devices)?.filter(|cache| needed || cache.sb.sync()).cloned();
    let set = cache.map(SetView::open).transpose()?;
    let seen = Arc::new(Seen { set, backings: devices.backings });
    for backing in seen.backings.iter().filter(|backing| attached(backing)) {
        let missing = seen.set.as_ref().map_or(0, |set| missing_sectors(set, backing));
        if let Some(short) = shorter_by(missing, &backing.name) {
            note("bcache", &short);
        }
    }
    let mut volumes: Vec<Rc<dyn Volume>> = Vec::new();
    let mut add = |which, name: String, label: String, uuid: Uuid| -> Result<()> {
        let bytes = seen.content(which).with_context(|| name.clone())?.bytes;
        let id = VolumeId { name, label, uuid };
        volumes.push(Rc::new(SeenVolume { env: env.clone(), seen: Arc::clone(&seen), which, bytes, id }));
        Ok(())
    };
    for (index, backing) in seen.backings.iter().enumerate() {
        let label = backing.sb.label.to_text();
        let file = Path::new(&*backing.name).file_name().map(|name| name.to_string_lossy().into_owned());
        let name = if label.is_empty() { file.unwrap_or_default() } else { label.clone() };
        add(Which::Backing(index), name, label, backing.sb.uuid)?;
    }
    let entries: Vec<(String, Uuid)> = seen
        .set
        .iter()
        .flat_map(SetView::volumes)
        .map(|(_, entry)| (entry.label.to_text(), entry.uuid))
        .collect();
    for (number, (label, uuid)) in entries.into_iter().enumerate() {
        add(Which::Volume(number), format!("volume:{number}"), label, uuid)?;
    }
    if volumes.is_empty() {
        bail!("no backing device was named, and the cache has no volume");
    }
    Ok(volumes)
}

/// By how many sectors a backing device is too short for its dirty data.
fn missing_sectors(set: &SetView, backing: &Backing) -> u64 {
    let slot = set.uuids.iter().position(|entry| entry.uuid == backing.sb.uuid);
    let Some(slot) = slot.and_then(|slot| u32::try_from(slot).ok()) else { return 0 };
    let end = Sectors::from_bytes(backing.device.size()).0;
    let behind = set.extents(Pos::new(slot, end), Pos::new(slot, u64::MAX)).flatten();
    let dirty = behind.filter(|extent| extent.live().is_some() && extent.key.dirty());
    dirty.map(|extent| extent.key.pos().offset.saturating_sub(end)).max().unwrap_or(0)
}

impl SeenVolume {
    fn refuse(&self) -> VolumeFuture<'_, ()> {
        Box::pin(async {
            Err(VolumeError::new(libc::EROFS, format!("{} is served read-only", self.id.name)))
        })
    }
}

impl Volume for SeenVolume {
    fn size_bytes(&self) -> u64 {
        self.bytes
    }

    fn block_size(&self) -> u32 {
        4096
    }

    fn id(&self) -> VolumeId {
        self.id.clone()
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read(&self, at: u64, len: u32) -> VolumeFuture<'_, Vec<Shared>> {
        Box::pin(async move {
            let (seen, which) = (Arc::clone(&self.seen), self.which);
            let read = self.env.offload(move || seen.read(which, at, len)).await;
            match read {
                Ok(buf) => Ok(vec![buf.freeze()]),
                Err(error) => Err(VolumeError::new(libc::EIO, format!("{error:#}"))),
            }
        })
    }

    fn write(&self, _at: u64, _data: Shared, _fua: bool) -> VolumeFuture<'_, ()> {
        self.refuse()
    }

    fn flush(&self) -> VolumeFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn discard(&self, _at: u64, _len: u64) -> VolumeFuture<'_, ()> {
        self.refuse()
    }

    fn write_zeroes(&self, _at: u64, _len: u64, _fua: bool, _no_hole: bool) -> VolumeFuture<'_, ()> {
        self.refuse()
    }
}
