//! What can be asked of a running set and changed in it, by the kernel's sysfs names.

use super::{CacheSet, Device};
use crate::btree::Body;
use crate::error::{Error, Result};
use crate::settings::{BadSetting, Clamped, Shown};
use crate::stats::{Accounted, Timing, Window};
use bcache_format::bkey::KEY_WORDS;
use bcache_format::feature::{INCOMPAT_LOG_LARGE_BUCKET_SIZE, INCOMPAT_OBSO_LARGE_BUCKET};
use bcache_format::superblock::{BackingState, Label};
use bcache_format::{Geometry, SECTOR_SIZE};
use std::rc::Rc;

/// A name and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Name, with its directory where the kernel has one.
    pub name: String,
    /// Value.
    pub value: String,
}

/// Names of the kernel's documentation, and of its sysfs, that are not here, each with the reason.
pub const LEFT_OUT: &[(&str, &str)] = &[
    ("attach", "a command of its own"),
    ("detach", "a command of its own"),
    ("stop", "a command of its own"),
    ("unregister", "a command of its own"),
    ("flash_vol_create", "a command of its own (volume create)"),
    ("bdev<0..n>", "links; status lists the devices"),
    ("cache<0..n>", "links; status lists the cache"),
    ("readahead", "the kernel has no such file any more, and never read ahead by itself"),
    ("sequential_merge", "the kernel has no such file any more; streams are always recognised"),
    ("bset_tree_stats", "nodes are folded in memory, there are no auxiliary search trees"),
    ("btree_cache_max_chain", "the table of nodes has no chains"),
    ("btree sort times", "nothing is sorted: nodes in memory are in order"),
    ("errors", "a set that fails writes nothing any more, which is neither of the kernel's two choices"),
    ("io_disable", "for tests of the kernel's own; stopping and detaching are commands"),
    (
        "stop_when_cache_set_failed",
        "a clean device goes on without its cache, a dirty one answers with errors",
    ),
    ("cutoff_writeback", "for writes that nobody waits for, which nobody here can tell from others"),
    ("readahead_cache_policy", "front ends do not tell reading ahead from reading"),
    ("writeback_metadata", "the kernel keeps it, and never looks at it"),
    ("stripe_size", "data is written back in the order of the device, not by stripes"),
    ("partial_stripes_expensive", "data is written back in the order of the device, not by stripes"),
    ("btree_shrinker_disabled", "memory for nodes is bounded by btree_cache_bytes"),
    ("gc_after_writeback", "GC runs when buckets are wanted, and finds what was written back then"),
    ("reclaim", "the journal here has no such step to count"),
    ("reclaimed_journal_buckets", "the journal here has no such step to count"),
    ("flush_write", "the journal here has no such step to count"),
    ("writeback_keys_done", "sectors are counted, not keys: written_back_sectors of a device"),
    ("writeback_keys_failed", "errors are counted, not keys: backing_write_errors of a device"),
    ("verify", "only in kernels that are built for debugging"),
    ("key_merging_disabled", "only in kernels that are built for debugging"),
    ("expensive_debug_checks", "only in kernels that are built for debugging"),
    ("data_csum", "not compiled into any kernel"),
];

/// What can be done by writing to a name.
const SET_ACTIONS: [&str; 3] = ["trigger_gc", "prune_cache", "clear_stats"];

struct List(Vec<Attribute>);

impl List {
    fn add(&mut self, name: &str, value: impl ToString) {
        self.0.push(Attribute { name: name.to_owned(), value: value.to_string() });
    }
    fn settings(&mut self, shown: Vec<Shown>) {
        self.0.extend(
            shown.into_iter().map(|Shown { name, value }| Attribute { name: name.to_owned(), value }),
        );
    }
    fn accounted(&mut self, window: Window, stats: &Accounted) {
        let mut add = |name: &str, value: u64| self.add(&format!("{}/{name}", window.name()), value);
        add("bypassed", stats.bypassed * SECTOR_SIZE);
        add("cache_hits", stats.cache_hits);
        add("cache_misses", stats.cache_misses);
        add("cache_hit_ratio", stats.hit_ratio());
        add("cache_bypass_hits", stats.cache_bypass_hits);
        add("cache_bypass_misses", stats.cache_bypass_misses);
        add("cache_miss_collisions", stats.cache_miss_collisions);
    }
    /// In the units of the kernel's names.
    fn timing(
        &mut self,
        name: &str,
        timing: &Timing,
        now: u64,
        duration: (&str, u64),
        frequency: (&str, u64),
    ) {
        let mut add = |what: &str, unit: &str, nanos: u64, per: u64| {
            self.add(&format!("internal/{name}_{what}_{unit}"), nanos / per);
        };
        add("average_frequency", frequency.0, timing.average_frequency(), frequency.1);
        add("average_duration", duration.0, timing.average_duration(), duration.1);
        add("max_duration", duration.0, timing.max_duration(), duration.1);
        if let Some(since) = timing.since_last(now) {
            add("last", frequency.0, since, frequency.1);
        }
    }
}

const SEC: (&str, u64) = ("sec", 1_000_000_000);
const MS: (&str, u64) = ("ms", 1_000_000);
const US: (&str, u64) = ("us", 1000);

impl CacheSet {
    /// Everything that can be asked of the set, its cache device included.
    #[must_use]
    pub fn attributes(&self) -> Vec<Attribute> {
        let mut list = List(Vec::new());
        list.settings(self.settings.list());
        let geometry = &self.cache.geometry;
        list.add("synchronous", 1);
        list.add("block_size", geometry.block_bytes());
        list.add("bucket_size", geometry.bucket_bytes());
        list.add("nbuckets", geometry.nbuckets);
        let dirty: u64 = self.dirty_inodes().iter().map(|(_, sectors)| sectors).sum();
        list.add("dirty_data", dirty * SECTOR_SIZE);
        list.add("cache_available_percent", 100 - self.alloc.in_use_percent());
        list.add("congested", u8::from(self.congestion.limit(self.env.now(), 0).is_some()));
        self.tree_attributes(&mut list, geometry);
        let stats = &self.stats;
        list.add("io_errors", self.io_errors.get());
        list.add("written", stats.sectors_written.get() * SECTOR_SIZE);
        list.add("btree_written", stats.node_sectors_written.get() * SECTOR_SIZE);
        let other = stats.other_metadata_sectors_written.get();
        list.add("metadata_written", (stats.node_sectors_written.get() + other) * SECTOR_SIZE);
        list.add("freelist_percent", self.alloc.free_count() as u64 * 100 / geometry.nbuckets.max(1));
        list.add("priority_stats", self.priority_stats());
        list.add(
            "internal/active_journal_entries",
            self.journal.open_seq().behind(self.journal.last_seq()).unwrap_or(0),
        );
        let features = self.cache.sb.borrow().features;
        list.add("internal/feature_compat", "");
        list.add("internal/feature_ro_compat", "");
        list.add("internal/feature_incompat", incompat(features.incompat));
        list.add("internal/cache_read_races", stats.cache_read_races.get());
        let (now, timings) = (self.env.now(), &self.timings);
        list.timing("btree_gc", &timings.btree_gc, now, MS, SEC);
        list.timing("btree_split", &timings.btree_split, now, US, SEC);
        list.timing("btree_read", &timings.btree_read, now, US, MS);
        for window in Window::ALL {
            let devices = self.devices();
            let read = devices.iter().map(|device| device.windows.read(&device.stats, window));
            list.accounted(window, &read.fold(Accounted::default(), Accounted::plus));
        }
        list.0
    }

    fn tree_attributes(&self, list: &mut List, geometry: &Geometry) {
        let root = self.tree.root();
        let node_words = self.node_words().max(1);
        list.add("tree_depth", root.level);
        let words = match &root.state().body {
            Body::Leaf { map, .. } => map.words(),
            Body::Interior { children, .. } => children.len() * KEY_WORDS,
        };
        list.add("root_usage_percent", words * 100 / node_words);
        list.add("btree_cache_size", self.tree.bytes());
        let extents = self.tree.extents().max(1) as u64;
        let used = self.alloc.buckets.borrow().data_sectors();
        list.add("average_key_size", used * SECTOR_SIZE / extents);
        list.add("internal/btree_nodes", self.tree.len());
        let room = (self.tree.len().max(1) * node_words) as u64;
        list.add("internal/btree_used_percent", (extents * KEY_WORDS as u64 * 100 / room).min(100));
        list.add("btree_node_size", geometry.btree_node_bytes());
    }

    /// Parts of the cache in per cent, and the priorities of buckets with data.
    fn priority_stats(&self) -> String {
        let buckets = self.alloc.buckets.borrow();
        let parts = buckets.count_marks();
        let all = buckets.geometry().nbuckets.max(1);
        let percent = |count: u64| count * 100 / all;
        format!(
            "Unused: {}% Clean: {}% Dirty: {}% Metadata: {}% Average: {}",
            percent(parts.free),
            percent(parts.clean),
            percent(parts.dirty),
            percent(parts.metadata),
            parts.average_prio
        )
    }

    /// Everything that can be asked of a device of the set.
    #[must_use]
    pub fn device_attributes(&self, device: &Device) -> Vec<Attribute> {
        let mut list = List(Vec::new());
        list.settings(device.settings.list());
        list.add("backing_dev_uuid", device.uuid);
        if let Some(backing) = device.backing() {
            list.add("backing_dev_name", backing.dev.dev.name().rsplit('/').next().unwrap_or_default());
            list.add("writeback_rate_debug", self.writeback_rate_debug(device));
        }
        list.add("label", device.label.get().to_text());
        list.add("running", 1);
        list.add("size", device.bytes());
        let dirty = device.inode.get().map_or(0, |inode| self.dirty_sectors(inode));
        list.add("dirty_data", dirty * SECTOR_SIZE);
        list.add("state", device_state(device, dirty));
        list.add("io_errors", device.io_errors.get());
        for window in Window::ALL {
            list.accounted(window, &device.windows.read(&device.stats, window));
        }
        list.0
    }

    /// Changes a setting of the set, or does what writing to the name does: `trigger_gc`, `prune_cache`, `clear_stats`.
    /// Settings that the kernel keeps in the superblock are kept there.
    ///
    /// # Errors
    /// There is no such setting, it does not take the value, or the superblock could not be written.
    pub fn set_attribute(
        self: &Rc<Self>,
        name: &str,
        value: &str,
    ) -> impl Future<Output = Result<Option<Clamped>>> + use<> {
        let (set, name, value) = (Rc::clone(self), name.to_owned(), value.to_owned());
        self.env.finish(async move { set.set_attribute_now(&name, &value).await })
    }

    async fn set_attribute_now(self: &Rc<Self>, name: &str, value: &str) -> Result<Option<Clamped>> {
        match name {
            "trigger_gc" => {
                self.collect_garbage().await;
                return self.check().map(|()| None);
            }
            "prune_cache" => {
                self.tree.prune();
                return Ok(None);
            }
            "clear_stats" => {
                self.io_errors.clear();
                self.devices().iter().for_each(|device| device.clear_stats());
                return Ok(None);
            }
            _ => {}
        }
        let clamped = taken(self.settings.assign(name, value))?;
        let settings = &self.settings;
        match name {
            "cache_replacement_policy" | "discard" => {
                let (policy, discard) = (settings.cache_replacement_policy.get(), settings.discard.get());
                let change = |sb: &mut bcache_format::superblock::Superblock| {
                    sb.set_replacement(policy);
                    sb.set_discard(discard);
                };
                self.cache.update_sb(change).await.inspect_err(|error| self.fail(error.clone()))?;
            }
            "btree_cache_bytes" => {
                self.tree.set_limit(settings.btree_cache_bytes.get());
                self.tree.evict();
            }
            _ => {}
        }
        Ok(clamped)
    }

    /// The same for a device: also `label` (kept in its superblock and in the set's uuid table) and `clear_stats`.
    ///
    /// # Errors
    /// As for the set.
    pub fn set_device_attribute(
        self: &Rc<Self>,
        device: &Rc<Device>,
        name: &str,
        value: &str,
    ) -> impl Future<Output = Result<Option<Clamped>>> + use<> {
        let (set, device) = (Rc::clone(self), Rc::clone(device));
        let (name, value) = (name.to_owned(), value.to_owned());
        self.env.finish(async move { set.set_device_attribute_now(&device, &name, &value).await })
    }

    async fn set_device_attribute_now(
        self: &Rc<Self>,
        device: &Rc<Device>,
        name: &str,
        value: &str,
    ) -> Result<Option<Clamped>> {
        match name {
            "clear_stats" => {
                device.clear_stats();
                return Ok(None);
            }
            "label" => return self.set_label(device, value).await.map(|()| None),
            _ => {}
        }
        let before = device.settings.cache_mode.get();
        let clamped = taken(device.settings.assign(name, value))?;
        device.writeback.wake();
        if name == "cache_mode"
            && let Some(backing) = device.backing()
        {
            let mode = device.settings.cache_mode.get();
            let kept = backing.update(|sb| sb.set_cache_mode(mode)).await;
            kept.inspect_err(|_| device.settings.cache_mode.set(before))?;
        }
        Ok(clamped)
    }

    async fn set_label(&self, device: &Device, text: &str) -> Result<()> {
        let Some(label) = Label::new(text) else {
            return Err(Error::refused(format!("label: {text:?} is longer than 32 bytes")));
        };
        if let Some(backing) = device.backing() {
            backing.update(|sb| sb.label = label).await?;
        }
        device.label.set(label);
        let Some(inode) = device.inode.get() else { return Ok(()) };
        self.change_uuids(|entries| {
            if let Some(entry) = entries.get_mut(inode as usize) {
                entry.label = label;
            }
            Ok(())
        })
        .await
    }

    /// Names that [`Self::set_attribute`] takes besides settings.
    #[must_use]
    pub const fn actions() -> &'static [&'static str] {
        &SET_ACTIONS
    }
}

impl Device {
    fn clear_stats(&self) {
        self.windows.clear(&self.stats);
        self.io_errors.set(0);
    }
}

/// A setting's new value, with what has to be said about it.
fn taken(assigned: std::result::Result<Option<Clamped>, BadSetting>) -> Result<Option<Clamped>> {
    let clamped = assigned.map_err(|error| Error::refused(error.to_string()))?;
    if let Some(clamped) = &clamped {
        tracing::warn!("{clamped}");
    }
    Ok(clamped)
}

/// Features of a cache as the kernel lists them: all that it knows, and those that are in use in brackets.
fn incompat(bits: u64) -> String {
    let known =
        [(INCOMPAT_OBSO_LARGE_BUCKET, "obso_large_bucket"), (INCOMPAT_LOG_LARGE_BUCKET_SIZE, "large_bucket")];
    let named = known.map(|(bit, name)| if bits & bit == 0 { name.to_owned() } else { format!("[{name}]") });
    named.join(" ")
}

/// In the kernel's words.
fn device_state(device: &Device, dirty: u64) -> &'static str {
    let Some(backing) = device.backing() else { return "clean" };
    match backing.sb.borrow().state() {
        _ if device.inode.get().is_none() => "no cache",
        // Not one of the kernel's words: there it says dirty as ever, and nobody knows why all fails.
        _ if device.is_given_up() => "failed",
        BackingState::Stale => "inconsistent",
        _ if dirty > 0 => "dirty",
        BackingState::Dirty => "dirty",
        BackingState::None | BackingState::Clean => "clean",
    }
}
