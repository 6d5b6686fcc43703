//! What each bucket is used for.

use bcache_format::BucketNr;
use std::collections::HashMap;

const PAGE: u64 = 1024;

/// A number a bucket, most of them 0: memory grows with the buckets that are used, not with what a superblock claims.
#[derive(Clone, Debug, Default)]
pub struct PerBucket {
    pages: HashMap<u64, Box<[u32]>>,
}

impl PerBucket {
    /// Of a bucket.
    #[must_use]
    pub fn get(&self, bucket: BucketNr) -> u32 {
        let page = self.pages.get(&(bucket.0 / PAGE));
        page.and_then(|page| page.get((bucket.0 % PAGE) as usize)).copied().unwrap_or(0)
    }
    /// Buckets with more than `limit`, in order.
    #[must_use]
    pub fn over(&self, limit: u32) -> Vec<(BucketNr, u32)> {
        let mut over = Vec::new();
        for (page, counts) in &self.pages {
            let numbered = (page * PAGE..).map(BucketNr).zip(counts.iter().copied());
            over.extend(numbered.filter(|(_, count)| *count > limit));
        }
        over.sort_unstable();
        over
    }
    /// Adds to it; stays at the largest number.
    pub fn add(&mut self, bucket: BucketNr, count: u64) {
        let page = self.pages.entry(bucket.0 / PAGE).or_insert_with(|| vec![0; PAGE as usize].into());
        if let Some(slot) = page.get_mut((bucket.0 % PAGE) as usize) {
            *slot = slot.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        }
    }
}

/// What a bucket of metadata holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Journal entries.
    Journal,
    /// A prio set.
    Prio,
    /// The uuid table.
    Uuids,
    /// A btree node.
    Node,
}

impl Use {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Journal => "the journal",
            Self::Prio => "a prio set",
            Self::Uuids => "the uuid table",
            Self::Node => "a btree node",
        }
    }
}
