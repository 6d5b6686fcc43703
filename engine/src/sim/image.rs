//! The bytes on a simulated disk: sparse, and cheap to copy.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of one page, the unit of storage and sharing.
pub(super) const PAGE: u64 = 4096;
/// Sectors of one page.
pub(super) const SECTORS: usize = 8;
const SECTOR: usize = bcache_format::SECTOR_SIZE as usize;

/// A disk's content. Ranges never written read as zeroes and cost nothing; a clone shares all pages.
#[derive(Clone, Default)]
pub struct Image {
    pages: BTreeMap<u64, Arc<[u8; 4096]>>,
}

impl Image {
    /// An image of zeroes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fills `buf` with the bytes from `at` on.
    pub fn read(&self, mut at: u64, mut buf: &mut [u8]) {
        while !buf.is_empty() {
            let offset = (at % PAGE) as usize;
            let part = buf.len().min(PAGE as usize - offset);
            let (head, rest) = buf.split_at_mut(part);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => head.copy_from_slice(&page[offset..offset + part]),
                None => head.fill(0),
            }
            buf = rest;
            at += part as u64;
        }
    }

    /// Stores `data` from byte `at` on.
    pub fn write(&mut self, mut at: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let offset = (at % PAGE) as usize;
            let part = data.len().min(PAGE as usize - offset);
            let (head, rest) = data.split_at(part);
            self.page_mut(at / PAGE)[offset..offset + part].copy_from_slice(head);
            data = rest;
            at += part as u64;
        }
    }

    /// The page number `page`, made if it is not there.
    pub(super) fn page_mut(&mut self, page: u64) -> &mut [u8; 4096] {
        Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; 4096])))
    }

    /// Sets one sector of a page; `None` means zeroes.
    pub(super) fn set_sector(&mut self, page: u64, sector: usize, bytes: Option<&[u8]>) {
        if bytes.is_none() && !self.pages.contains_key(&page) {
            return;
        }
        let target = &mut self.page_mut(page)[sector * SECTOR..(sector + 1) * SECTOR];
        match bytes {
            Some(bytes) => target.copy_from_slice(bytes),
            None => target.fill(0),
        }
    }

    /// Numbers of the stored pages within `pages`.
    pub(super) fn pages_in(&self, pages: Range<u64>) -> Vec<u64> {
        self.pages.range(pages).map(|(page, _)| *page).collect()
    }

    /// Bytes that take up memory.
    pub fn stored_bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// Byte ranges of all stored pages, in order: what else there is are zeroes.
    pub fn stored(&self) -> impl Iterator<Item = (u64, &[u8; 4096])> {
        self.pages.iter().map(|(page, bytes)| (page * PAGE, &**bytes))
    }
}

impl PartialEq for Image {
    fn eq(&self, other: &Image) -> bool {
        let zero = [0u8; 4096];
        let same = |a: &Image, b: &Image| {
            a.pages.iter().all(|(at, page)| match b.pages.get(at) {
                Some(other) => Arc::ptr_eq(page, other) || page == other,
                None => **page == zero,
            })
        };
        same(self, other) && same(other, self)
    }
}

impl Eq for Image {}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} pages stored)", self.pages.len())
    }
}
