//! A device with writes on top that exist in memory only.

use super::super::view::{Device, ReadAt};
use std::collections::BTreeMap;
use std::io;

const PAGE: u64 = 4096;

/// Reads as the device below, except where it was written.
#[derive(Clone)]
pub struct Scratch {
    base: Device,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Scratch {
    /// A device without any writes yet.
    #[must_use]
    pub const fn new(base: Device) -> Self {
        Self { base, pages: BTreeMap::new() }
    }
    /// Writes `bytes` at `byte`.
    ///
    /// # Errors
    /// The device below cannot be read where only a part of a page is written, or it ends before.
    pub fn write(&mut self, byte: u64, bytes: &[u8]) -> io::Result<()> {
        let end = byte.checked_add(bytes.len() as u64).filter(|&end| end <= self.base.size());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut at = byte;
        while at < end {
            let (page, offset) = (at / PAGE, at % PAGE);
            let len = (PAGE - offset).min(end - at);
            let skip = (at - byte) as usize;
            let source = bytes.get(skip..skip + len as usize).unwrap_or_default();
            let slot = match self.pages.entry(page) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    let start = page * PAGE;
                    let have = (self.base.size() - start).min(PAGE) as usize;
                    let mut content = vec![0; PAGE as usize];
                    // Of a page that is written whole nothing is needed, readable or not.
                    if let Some(part) = content.get_mut(..have).filter(|_| len < have as u64) {
                        self.base.read_at(start, part)?;
                    }
                    entry.insert(content.into())
                }
            };
            if let Some(target) = slot.get_mut(offset as usize..(offset + len) as usize) {
                target.copy_from_slice(source);
            }
            at += len;
        }
        Ok(())
    }
}

impl Scratch {
    /// Reads what was not written: only that, since below there may be something that cannot be read.
    fn below(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        if buf.is_empty() { Ok(()) } else { self.base.read_at(byte, buf) }
    }
}

impl ReadAt for Scratch {
    fn name(&self) -> &str {
        self.base.name()
    }
    fn size(&self) -> u64 {
        self.base.size()
    }
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = byte.saturating_add(buf.len() as u64);
        let mut at = byte;
        for (page, bytes) in self.pages.range(byte / PAGE..end.div_ceil(PAGE)) {
            let start = page * PAGE;
            let (from, to) = (start.max(byte), (start + PAGE).min(end));
            if let Some(below) = buf.get_mut((at - byte) as usize..(from - byte) as usize) {
                self.below(at, below)?;
            }
            let source = bytes.get((from - start) as usize..(to - start) as usize);
            let target = buf.get_mut((from - byte) as usize..(to - byte) as usize);
            if let (Some(source), Some(target)) = (source, target) {
                target.copy_from_slice(source);
            }
            at = to;
        }
        let rest = buf.get_mut((at - byte) as usize..).unwrap_or_default();
        self.below(at, rest)
    }
    fn is_metadata_only(&self) -> bool {
        self.base.is_metadata_only()
    }
    fn will_read(&self, byte: u64, len: u64) {
        self.base.will_read(byte, len);
    }
}
