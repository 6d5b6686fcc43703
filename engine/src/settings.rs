//! Settings, by the kernel's sysfs names and with its defaults.

use bcache_format::superblock::{CacheMode, Replacement};
use std::cell::Cell;

/// A setting.
pub type Setting<T> = Cell<T>;

/// Settings of a cache set.
#[derive(Debug)]
pub struct SetSettings {
    /// Milliseconds after which keys that nobody waits for are written to the journal.
    pub journal_delay_ms: Setting<u64>,
    /// Discard buckets before they are reused. Persistent.
    pub discard: Setting<bool>,
    /// Which buckets are reused first. Persistent.
    pub replacement: Setting<Replacement>,
    /// Microseconds of a read of the cache device beyond which it counts as congested; 0: never.
    pub congested_read_threshold_us: Setting<u64>,
    /// The same for writes.
    pub congested_write_threshold_us: Setting<u64>,
    /// Errors of the cache device after which the set stops.
    pub io_error_limit: Setting<u64>,
    /// Whether GC moves data out of little used buckets.
    pub copy_gc_enabled: Setting<bool>,
    /// GC writes every node anew, needed or not.
    pub gc_always_rewrite: Setting<bool>,
    /// Write back at full speed while nothing else is asked for.
    pub idle_max_writeback_rate: Setting<bool>,
    /// Bytes of btree nodes kept in memory.
    pub btree_cache_bytes: Setting<usize>,
}

impl Default for SetSettings {
    fn default() -> Self {
        Self {
            journal_delay_ms: Cell::new(100),
            discard: Cell::new(false),
            replacement: Cell::new(Replacement::Lru),
            congested_read_threshold_us: Cell::new(2000),
            congested_write_threshold_us: Cell::new(20000),
            io_error_limit: Cell::new(8),
            copy_gc_enabled: Cell::new(false),
            gc_always_rewrite: Cell::new(false),
            idle_max_writeback_rate: Cell::new(true),
            btree_cache_bytes: Cell::new(1 << 30),
        }
    }
}

/// Settings of a backing device.
#[derive(Debug)]
pub struct DeviceSettings {
    /// What happens to writes. Persistent.
    pub cache_mode: Setting<CacheMode>,
    /// Bytes of a sequential stream after which it bypasses the cache; 0: never.
    pub sequential_cutoff: Setting<u64>,
    /// Whether dirty data is written back in the background.
    pub writeback_running: Setting<bool>,
    /// Per cent of the cache that may be dirty before writing back goes faster than the least.
    pub writeback_percent: Setting<u64>,
    /// Seconds that dirty data stays before it is written back.
    pub writeback_delay: Setting<u64>,
    /// Sectors a second, at present.
    pub writeback_rate: Setting<u64>,
    /// The least of it.
    pub writeback_rate_minimum: Setting<u64>,
    /// Seconds between changes of the rate.
    pub writeback_rate_update_seconds: Setting<u64>,
    /// Inverse of the proportional term.
    pub writeback_rate_p_term_inverse: Setting<u64>,
    /// Inverse of the integral term.
    pub writeback_rate_i_term_inverse: Setting<u64>,
}

impl Default for DeviceSettings {
    fn default() -> Self {
        Self {
            cache_mode: Cell::new(CacheMode::Writethrough),
            sequential_cutoff: Cell::new(4 << 20),
            writeback_running: Cell::new(true),
            writeback_percent: Cell::new(10),
            writeback_delay: Cell::new(30),
            writeback_rate: Cell::new(1024),
            writeback_rate_minimum: Cell::new(8),
            writeback_rate_update_seconds: Cell::new(5),
            writeback_rate_p_term_inverse: Cell::new(40),
            writeback_rate_i_term_inverse: Cell::new(10000),
        }
    }
}
