//! A golden device with changes on top.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use bcache_engine::fsck::view::{Cache, Device, Devices, FileDevice, ReadAt};
use bcache_tests::golden::Set;

const PAGE: u64 = 4096;

/// A device that reads as another does, except for what was written to this one.
#[derive(Clone)]
pub struct Patched {
    base: Device,
    name: String,
    pages: BTreeMap<u64, Vec<u8>>,
    size: u64,
    /// Sectors that cannot be read until they are written.
    bad: BTreeSet<u64>,
}

const SECTOR: u64 = 512;

impl Patched {
    /// The image at `path`, unchanged.
    pub fn open(path: &Path) -> Self {
        let base: Device = Arc::new(FileDevice::open(path).unwrap());
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        Self { size: base.size(), base, name, pages: BTreeMap::new(), bad: BTreeSet::new() }
    }
    /// The cache of a golden set.
    pub fn cache_of(set: &str) -> Self {
        Self::open(&Set::open(set).unwrap().path("cache.img"))
    }
    /// All devices of a golden set, the cache first.
    pub fn all_of(set: &str) -> Vec<Self> {
        let set = Set::open(set).unwrap();
        let mut devices: Vec<_> = set.paths().iter().map(|path| Self::open(path)).collect();
        devices.sort_by_key(|device| device.name != "cache");
        devices
    }
    /// Copies the device onto a larger one, which has zeros behind it.
    pub fn grow(&mut self, size: u64) {
        self.size = size;
    }
    /// Cuts the device off.
    pub fn truncate(&mut self, size: u64) {
        self.size = size;
    }
    /// Gives the device another name.
    pub fn rename(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }
    /// The sector of `byte` cannot be read any more, until it is written.
    pub fn spoil(&mut self, byte: u64) {
        self.bad.insert(byte / SECTOR);
    }
    /// `len` bytes from `byte` on.
    pub fn bytes(&self, byte: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.read_at(byte, &mut bytes).unwrap();
        bytes
    }
    /// Writes `bytes` at `byte`.
    pub fn write(&mut self, byte: u64, bytes: &[u8]) {
        let end = byte + bytes.len() as u64;
        self.bad.retain(|sector| sector * SECTOR < byte || (sector + 1) * SECTOR > end);
        let (mut at, mut rest) = (byte, bytes);
        while !rest.is_empty() {
            let (page, offset) = (at / PAGE, (at % PAGE) as usize);
            let (now, later) = rest.split_at(rest.len().min(PAGE as usize - offset));
            let base = &self.base;
            let page = self.pages.entry(page).or_insert_with(|| {
                let mut bytes = vec![0; PAGE as usize];
                let there = base.size().saturating_sub(page * PAGE).min(PAGE) as usize;
                base.read_at(page * PAGE, &mut bytes[..there]).unwrap();
                bytes
            });
            page[offset..offset + now.len()].copy_from_slice(now);
            (at, rest) = (at + now.len() as u64, later);
        }
    }
    /// What was written, by its place.
    pub fn changes(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pages.iter().map(|(page, bytes)| (page * PAGE, bytes.as_slice()))
    }
    /// The device without the changes.
    pub fn base(&self) -> Device {
        Arc::clone(&self.base)
    }
    /// As a device.
    pub fn device(&self) -> Device {
        Arc::new(self.clone())
    }
    /// As a cache; its superblock must be right.
    pub fn cache(&self) -> Cache {
        Devices::open([self.device()]).unwrap().caches.remove(0)
    }
}

impl ReadAt for Patched {
    fn name(&self) -> &str {
        &self.name
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = byte.checked_add(buf.len() as u64).filter(|&end| end <= self.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        if self.bad.range(byte / SECTOR..end.div_ceil(SECTOR)).next().is_some() {
            return Err(io::Error::other("a sector that cannot be read"));
        }
        buf.fill(0);
        let there = self.base.size().saturating_sub(byte).min(buf.len() as u64) as usize;
        if there > 0 {
            self.base.read_at(byte, &mut buf[..there])?;
        }
        for (page, bytes) in self.pages.range(byte / PAGE..end.div_ceil(PAGE)) {
            let start = page * PAGE;
            let (from, to) = (start.max(byte), (start + PAGE).min(end));
            let source = &bytes[(from - start) as usize..(to - start) as usize];
            buf[(from - byte) as usize..(to - byte) as usize].copy_from_slice(source);
        }
        Ok(())
    }
}
