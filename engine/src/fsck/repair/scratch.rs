//! A device with writes on top that exist in memory only.

use super::super::ranges::Ranges;
use super::super::view::{Device, ReadAt};
use std::collections::BTreeMap;
use std::io;

const PAGE: u64 = 4096;

/// Reads as the device below, except where it was written.
#[derive(Clone)]
pub struct Scratch {
    base: Device,
    pages: BTreeMap<u64, Box<[u8]>>,
    /// Bytes that are zeros, where no page says otherwise: they may be far more than memory has room for.
    zeros: Ranges<u64>,
}

impl Scratch {
    /// A device without any writes yet.
    #[must_use]
    pub fn new(base: Device) -> Self {
        Self { base, pages: BTreeMap::new(), zeros: Ranges::default() }
    }
    /// Writes `bytes` at `byte`.
    ///
    /// # Errors
    /// The device below cannot be read where only a part of a page is written, or it ends before.
    pub fn write(&mut self, byte: u64, bytes: &[u8]) -> io::Result<()> {
        let end = self.end(byte, bytes.len() as u64)?;
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
                        below(&self.base, &self.zeros, start, part)?;
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
    /// Writes so many zeros at `byte`.
    ///
    /// # Errors
    /// The device below ends before.
    pub fn clear(&mut self, byte: u64, count: u64) -> io::Result<()> {
        let end = self.end(byte, count)?;
        for (page, bytes) in self.pages.range_mut(byte / PAGE..end.div_ceil(PAGE)) {
            let start = page * PAGE;
            let (from, to) = (start.max(byte), (start + PAGE).min(end));
            if let Some(part) = bytes.get_mut((from - start) as usize..(to - start) as usize) {
                part.fill(0);
            }
        }
        self.zeros.add((byte, end));
        Ok(())
    }
    /// Where a write ends.
    fn end(&self, byte: u64, len: u64) -> io::Result<u64> {
        let end = byte.checked_add(len).filter(|&end| end <= self.base.size());
        Ok(end.ok_or(io::ErrorKind::UnexpectedEof)?)
    }
}

/// Reads what no page has: only that, since on the device there may be something that cannot be read.
fn below(base: &Device, zeros: &Ranges<u64>, byte: u64, buf: &mut [u8]) -> io::Result<()> {
    let end = byte.saturating_add(buf.len() as u64);
    let place = |from: u64, to: u64| (from - byte) as usize..(to - byte) as usize;
    for (from, to) in zeros.inside((byte, end)) {
        if let Some(part) = buf.get_mut(place(from, to)) {
            part.fill(0);
        }
    }
    for (from, to) in zeros.outside((byte, end)) {
        if let Some(part) = buf.get_mut(place(from, to)) {
            base.read_at(from, part)?;
        }
    }
    Ok(())
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
                self::below(&self.base, &self.zeros, at, below)?;
            }
            let source = bytes.get((from - start) as usize..(to - start) as usize);
            let target = buf.get_mut((from - byte) as usize..(to - byte) as usize);
            if let (Some(source), Some(target)) = (source, target) {
                target.copy_from_slice(source);
            }
            at = to;
        }
        let rest = buf.get_mut((at - byte) as usize..).unwrap_or_default();
        below(&self.base, &self.zeros, at, rest)
    }
    fn is_metadata_only(&self) -> bool {
        self.base.is_metadata_only()
    }
    fn will_read(&self, byte: u64, len: u64) {
        self.base.will_read(byte, len);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::view::MemDevice;
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// A device of which some pages cannot be read.
    struct Bad(MemDevice, u64);

    impl ReadAt for Bad {
        fn name(&self) -> &str {
            "bad"
        }
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
            let bad = self.1 * PAGE..(self.1 + 1) * PAGE;
            if byte < bad.end && bad.start < byte + buf.len() as u64 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.0.read_at(byte, buf)
        }
    }

    const SIZE: u64 = 5 * PAGE + 512;

    proptest! {
        #[test]
        fn what_was_written_last_is_read(
            steps in prop::collection::vec((any::<bool>(), 0..SIZE, 0..3 * PAGE, 1u8..), 0..12),
            look in prop::collection::vec((0..SIZE, 0..SIZE), 4),
        ) {
            let mut want = vec![9; SIZE as usize];
            let mut scratch = Scratch::new(Arc::new(MemDevice::new("d", want.clone())));
            for (clear, at, len, byte) in steps {
                let len = len.min(SIZE - at);
                let byte = if clear { 0 } else { byte };
                want[at as usize..(at + len) as usize].fill(byte);
                match clear {
                    true => scratch.clear(at, len).unwrap(),
                    false => scratch.write(at, &vec![byte; len as usize]).unwrap(),
                }
            }
            for (from, to) in look {
                let (from, to) = (from.min(to), from.max(to));
                let mut got = vec![1; (to - from) as usize];
                scratch.read_at(from, &mut got).unwrap();
                prop_assert!(got == want[from as usize..to as usize]);
            }
        }
    }

    #[test]
    fn what_was_cleared_is_not_looked_for_below() {
        let mut scratch = Scratch::new(Arc::new(Bad(MemDevice::new("d", vec![9; SIZE as usize]), 2)));
        let mut page = vec![1; PAGE as usize];
        assert!(scratch.read_at(2 * PAGE, &mut page).is_err() && scratch.write(2 * PAGE, &[5]).is_err());
        scratch.clear(2 * PAGE, PAGE).unwrap();
        scratch.write(2 * PAGE, &[5]).unwrap();
        scratch.read_at(2 * PAGE, &mut page).unwrap();
        assert!(page[0] == 5 && page[1..].iter().all(|byte| *byte == 0));
        assert!(scratch.clear(SIZE - 1, 2).is_err());
    }
}
