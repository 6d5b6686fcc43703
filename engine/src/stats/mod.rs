//! Counters, and what they said lately.

mod timing;
mod windows;

pub use timing::Timing;
pub use windows::{Accounted, TICK, Window, Windows};

use std::cell::Cell;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.set(self.0.get().wrapping_add(n));
    }
    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

macro_rules! counters {
    ($(#[$outer:meta])* $name:ident { $(#[doc = $doc:literal] $field:ident),+ $(,)? }) => {
        $(#[$outer])*
        #[derive(Debug, Default)]
        pub struct $name { $(#[doc = $doc] pub $field: Counter),+ }

        impl $name {
            /// What each counts, by its name.
            pub const HELP: &'static [(&'static str, &'static str)] = &[$((stringify!($field), $doc)),+];

            /// Names and values, in order.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field.get())),+]
            }
        }
    };
}

/// How long work inside a set takes.
#[derive(Debug, Default)]
pub struct Timings {
    /// Passes of GC.
    pub btree_gc: Timing,
    /// Splits and other rewriting of nodes.
    pub btree_split: Timing,
    /// Reads of nodes.
    pub btree_read: Timing,
}

counters! {
    /// What a cache set did since it was started.
    SetStats {
        /// Journal entries written.
        journal_writes,
        /// Times the journal had to wait for leaves to be written.
        journal_full,
        /// Btree nodes read.
        node_reads,
        /// Bsets written.
        node_writes,
        /// Sectors of bsets written.
        node_sectors_written,
        /// Nodes split or compacted.
        splits,
        /// Chains of prio sets written.
        prio_writes,
        /// Buckets with clean data that were emptied.
        invalidated,
        /// GC passes.
        gc_passes,
        /// Nodes that GC wrote anew or joined with others.
        gc_rewrites,
        /// Sectors of data written to the cache device.
        sectors_written,
        /// Reads whose bucket was reused while they ran, and which were done again.
        cache_read_races,
        /// Reads of the cache device that failed.
        cache_read_errors,
        /// Writes of data to the cache device that failed.
        cache_write_errors,
        /// Sectors of metadata other than bsets written: journal, prio sets, uuid tables.
        other_metadata_sectors_written,
    }
}

counters! {
    /// What was asked of a device, by the kernel's names.
    DeviceStats {
        /// Reads that the cache served whole. Writes are neither hits nor misses.
        cache_hits,
        /// Reads of which the cache did not have everything.
        cache_misses,
        /// Hits of reads that were not to be cached.
        cache_bypass_hits,
        /// Misses of reads that were not to be cached.
        cache_bypass_misses,
        /// Misses whose data was not cached because a write came in between.
        cache_miss_collisions,
        /// Sectors of reads and writes that were not to be cached.
        bypassed_sectors,
        /// Sectors written back.
        written_back_sectors,
        /// Writes of the backing device that failed.
        backing_write_errors,
        /// Reads of the backing device that failed.
        backing_read_errors,
        /// Reads.
        reads,
        /// Writes.
        writes,
        /// Flushes.
        flushes,
    }
}
