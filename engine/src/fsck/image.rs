//! Metadata images: all of a device that a check reads, and nothing else. For bug reports.
//!
//! What belongs into an image is not listed anywhere: a check runs over a device that remembers what was read of it.
//! So an image gives the findings that the device gives.
//!
//! ```text
//! name length u32, name, size of the device u64, ranges u64,
//! { first byte u64, length u64, readable u8, bytes if readable } * ranges, checksum u64 over everything before
//! ```

pub use super::mark::{MARK, MARK_AT, MARKED};

use super::check::{Options, check};
use super::view::{Device, ReadAt};
use bcache_format::csum::{SEED_ONES, crc64};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// First bytes of an image file; what follows is compressed.
pub const MAGIC: &[u8] = b"ubcache image 1\n";

/// A device that remembers what was read of it.
struct Recorder {
    device: Device,
    /// Start and end of what was read, merged.
    ranges: Mutex<BTreeMap<u64, u64>>,
}

impl ReadAt for Recorder {
    fn name(&self) -> &str {
        self.device.name()
    }
    fn size(&self) -> u64 {
        self.device.size()
    }
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut start, mut end) = (byte, byte.saturating_add(buf.len() as u64));
        while let Some((&from, &to)) = ranges.range(..=end).next_back().filter(|(_, to)| **to >= start) {
            ranges.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        ranges.insert(start, end);
        self.device.read_at(byte, buf)
    }
    fn peek_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        // Not metadata until it is known to be.
        self.device.peek_at(byte, buf)
    }
    fn will_read(&self, byte: u64, len: u64) {
        self.device.will_read(byte, len);
    }
}

/// The image of a device, uncompressed.
#[must_use]
pub fn take(device: &Device) -> Vec<u8> {
    let recorder = Arc::new(Recorder { device: Arc::clone(device), ranges: Mutex::default() });
    let shared: Device = recorder.clone();
    check([shared], Options::default());
    let ranges = recorder.ranges.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut out = Vec::new();
    out.extend_from_slice(&(device.name().len() as u32).to_le_bytes());
    out.extend_from_slice(device.name().as_bytes());
    out.extend_from_slice(&device.size().to_le_bytes());
    out.extend_from_slice(&(ranges.len() as u64).to_le_bytes());
    for (start, end) in ranges {
        let end = end.min(device.size()).max(start);
        let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(0)];
        let readable = device.read_at(start, &mut bytes).is_ok();
        out.extend_from_slice(&start.to_le_bytes());
        out.extend_from_slice(&(end - start).to_le_bytes());
        out.push(readable.into());
        if readable {
            out.extend_from_slice(&bytes);
        }
    }
    let csum = crc64(SEED_ONES, &out);
    out.extend_from_slice(&csum.to_le_bytes());
    out
}

/// A range of the device that an image has: where it starts, its length, its bytes unless it could not be read.
type Range = (u64, u64, Option<Vec<u8>>);

/// An image in place of its device. What it does not have reads as zeros.
pub struct Image {
    name: String,
    size: u64,
    ranges: Vec<Range>,
}

impl Image {
    /// The image that `bytes` hold, uncompressed; called `name`. Nothing when they are not a whole image.
    #[must_use]
    pub fn parse(bytes: &[u8], name: &str) -> Option<Self> {
        let (body, csum) = bytes.split_last_chunk::<8>()?;
        if crc64(SEED_ONES, body) != u64::from_le_bytes(*csum) {
            return None;
        }
        let mut rest = body;
        let len = u32::from_le_bytes(*rest.split_off(..4)?.first_chunk()?);
        rest.split_off(..usize::try_from(len).ok()?)?;
        let (size, count) = (number(&mut rest)?, number(&mut rest)?);
        let mut ranges: Vec<Range> = Vec::new();
        for _ in 0..count {
            let (start, len) = (number(&mut rest)?, number(&mut rest)?);
            let end = start.checked_add(len).filter(|&end| end <= size)?;
            let readable = *rest.split_off_first()? != 0;
            let bytes =
                if readable { Some(rest.split_off(..usize::try_from(len).ok()?)?.to_vec()) } else { None };
            // In order and apart, as they were written: reading relies on it.
            if end < start || ranges.last().is_some_and(|(last, len, _)| last + len > start) {
                return None;
            }
            ranges.push((start, len, bytes));
        }
        rest.is_empty().then(|| Self { name: name.to_owned(), size, ranges })
    }
    /// The ranges the image has, with their bytes.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.ranges.iter().filter_map(|(start, _, bytes)| Some((*start, bytes.as_deref()?)))
    }
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*rest.split_off(..8)?.first_chunk()?))
}

impl ReadAt for Image {
    fn name(&self) -> &str {
        &self.name
    }
    fn is_metadata_only(&self) -> bool {
        true
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = byte.checked_add(buf.len() as u64).filter(|&end| end <= self.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.fill(0);
        let first = self.ranges.partition_point(|(start, len, _)| start + len <= byte);
        for (start, len, bytes) in self.ranges.iter().skip(first).take_while(|(start, _, _)| *start < end) {
            let (from, to) = ((*start).max(byte), (start + len).min(end));
            let bytes = bytes
                .as_ref()
                .ok_or_else(|| io::Error::other("could not be read when the image was taken"))?;
            let source = bytes.get((from - start) as usize..(to - start) as usize);
            let target = buf.get_mut((from - byte) as usize..(to - byte) as usize);
            if let (Some(source), Some(target)) = (source, target) {
                target.copy_from_slice(source);
            }
        }
        Ok(())
    }
}
