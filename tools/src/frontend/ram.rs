//! A volume in memory: for measuring front ends, and their tests.

use std::cell::{Cell, RefCell};

use bcache_engine::dev::{Buf, Shared};
use bcache_engine::volume::{Volume, VolumeError, VolumeFuture, VolumeId};
use uuid::Uuid;

/// Bytes of one allocation.
const CHUNK: u64 = 4096;

/// A volume of zeroes that remembers what is written, and forgets it with the process.
pub struct RamVolume {
    id: VolumeId,
    size: u64,
    /// Pages by number; empty ones read as zeroes.
    pages: RefCell<Vec<Option<Shared>>>,
    zeroes: Shared,
    flushes: Cell<u64>,
}

impl RamVolume {
    /// A volume of `size` bytes.
    pub fn new(name: &str, size: u64) -> RamVolume {
        let pages = usize::try_from(size.div_ceil(CHUNK)).unwrap_or(0);
        RamVolume {
            id: VolumeId { name: name.into(), label: format!("{name}-label"), uuid: Uuid::new_v4() },
            size,
            pages: RefCell::new(vec![None; pages]),
            zeroes: Buf::zeroed(CHUNK as usize).freeze(),
            flushes: Cell::new(0),
        }
    }

    /// Flushes asked for so far.
    pub fn flushes(&self) -> u64 {
        self.flushes.get()
    }

    fn check(&self, at: u64, len: u64) -> Result<(), VolumeError> {
        match at.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(VolumeError::new(libc::EINVAL, format!("{len} bytes at {at} are outside"))),
        }
    }

    fn get(&self, at: u64, len: u64) -> Vec<Shared> {
        let pages = self.pages.borrow();
        parts(at, len)
            .map(|(page, start, end)| match pages.get(page) {
                Some(Some(bytes)) => bytes.slice(start..end),
                _ => self.zeroes.slice(start..end),
            })
            .collect()
    }

    fn put(&self, at: u64, len: u64, data: Option<&Shared>) {
        let mut pages = self.pages.borrow_mut();
        let mut done = 0;
        for (page, start, end) in parts(at, len) {
            let Some(slot) = pages.get_mut(page) else { return };
            let whole = end - start == CHUNK as usize;
            let part = data.map(|data| match data.slice(done..done + (end - start)) {
                part if data.len() > CHUNK as usize => Buf::copied(&part).freeze(),
                part => part,
            });
            done += end - start;
            if whole {
                *slot = part;
                continue;
            }
            let mut bytes = Buf::copied(slot.as_ref().unwrap_or(&self.zeroes));
            match part {
                Some(part) => bytes[start..end].copy_from_slice(&part),
                None => bytes[start..end].fill(0),
            }
            *slot = Some(bytes.freeze());
        }
    }
}

/// The pages of a range, each with the bytes of it that are meant.
fn parts(at: u64, len: u64) -> impl Iterator<Item = (usize, usize, usize)> {
    let end = at + len;
    (at / CHUNK..end.div_ceil(CHUNK)).map(move |page| {
        let base = page * CHUNK;
        (page as usize, (at.max(base) - base) as usize, (end.min(base + CHUNK) - base) as usize)
    })
}

impl Volume for RamVolume {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> u32 {
        CHUNK as u32
    }

    fn id(&self) -> VolumeId {
        self.id.clone()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, at: u64, len: u32) -> VolumeFuture<'_, Vec<Shared>> {
        Box::pin(async move {
            self.check(at, u64::from(len))?;
            Ok(if len == 0 { Vec::new() } else { self.get(at, u64::from(len)) })
        })
    }

    fn write(&self, at: u64, data: Shared, _fua: bool) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            self.check(at, data.len() as u64)?;
            self.put(at, data.len() as u64, Some(&data));
            Ok(())
        })
    }

    fn flush(&self) -> VolumeFuture<'_, ()> {
        self.flushes.set(self.flushes.get() + 1);
        Box::pin(async { Ok(()) })
    }

    fn discard(&self, at: u64, len: u64) -> VolumeFuture<'_, ()> {
        self.write_zeroes(at, len, false, false)
    }

    fn write_zeroes(&self, at: u64, len: u64, _fua: bool, _no_hole: bool) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            self.check(at, len)?;
            self.put(at, len, None);
            Ok(())
        })
    }
}
