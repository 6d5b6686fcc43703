//! The engine as a subject: a cache set with backing devices and perhaps a volume, its shape drawn from the run's seed.

mod offline;
mod running;
mod switch;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bcache_engine::dev::Buf;
use bcache_engine::env::{Env, Rng};
use bcache_engine::fsck::view::{Device, ReadAt};
use bcache_engine::fsck::{self, Kind};
use bcache_engine::journal::Left;
use bcache_engine::settings::SetSettings;
use bcache_engine::sim::{Config, Disk, Fault, FaultOn, Image};
use bcache_format::Sectors;
use bcache_format::superblock::{
    BackingFields, BackingState, CacheFields, CacheMode, Replacement, Role, SB_BYTES, SB_OFFSET, Superblock,
    Version,
};
use uuid::Uuid;

use super::kept::Kept;
use super::load::Load;
use super::model::Model;
use super::run::Subject;
use running::RunningSet;

/// UUID of the set.
const SET_UUID: Uuid = Uuid::from_u128(0xca5e);
/// UUID of the flash-only volume.
const VOLUME_UUID: Uuid = Uuid::from_u128(0xf1a5);
/// Sectors of a backing device before its data.
pub const DATA_OFFSET: u64 = 16;

/// How often what is at rest is also written back offline.
const FLUSH_EVERY: u64 = 4;
/// The same of those of which only memory has some keys, which are repaired, too.
const REPAIR_EVERY: u64 = 8;

/// What runs are about. The default is a bit of everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Focus {
    /// Every device has this mode, and keeps it.
    pub mode: Option<CacheMode>,
    /// Volumes are larger than the cache, and requests spread over them.
    pub full: bool,
    /// Of 100 epochs, how many have something wrong with the disks; none of that when it is 0.
    pub spoilt: Option<u64>,
    /// Devices are detached, attached and served without their cache.
    pub moving: bool,
    /// Everything at once, at the worst time: see `RunningSet::disturb_wildly`.
    pub wild: bool,
    /// Clients outlive the process, and so do their keys.
    pub kept: bool,
}

/// A cache set and what is changed in its settings.
#[derive(Debug)]
pub struct CachedSet {
    block_sectors: u16,
    /// Logical block of the disks, in bytes.
    logical_block: u32,
    bucket_sectors: u32,
    nbuckets: u64,
    /// Mode and sectors of each backing device.
    backings: Vec<(CacheMode, u64)>,
    /// Sectors of the flash-only volume.
    volume: Option<u64>,
    replacement: Replacement,
    discard: bool,
    copy_gc: bool,
    always_rewrite: bool,
    btree_cache_bytes: usize,
    journal_delay_ms: u64,
    focus: Focus,
    /// Clients outlive the process: what is acknowledged survives its end.
    outlive: bool,
    /// Keys are kept in memory that outlives it, too.
    keep: bool,
    /// Many small extents from the start: a tree of three levels.
    deep: bool,
    /// Nanoseconds a read of the cache takes, and anything of a backing device, at most.
    slow: (u64, u64),
    /// Something is wrong with the disks in this epoch.
    spoilt: Cell<bool>,
    /// Times that disks at rest were looked at.
    looks: Cell<u64>,
}

/// Bytes of a disk for the check.
struct Bytes {
    name: String,
    size: u64,
    image: Image,
}

impl ReadAt for Bytes {
    fn name(&self) -> &str {
        &self.name
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.image.read(byte, buf);
        Ok(())
    }
}

impl CachedSet {
    fn superblock(&self, version: Version, uuid: u128, role: Role) -> Superblock {
        Superblock::new(version, Uuid::from_u128(uuid), SET_UUID, self.block_sectors, role)
    }

    fn cache_superblock(&self) -> Superblock {
        let fields = CacheFields {
            nbuckets: self.nbuckets,
            bucket_sectors: self.bucket_sectors,
            nr_in_set: 1,
            nr_this_dev: 0,
            first_bucket: (23 / self.bucket_sectors + 1) as u16,
            njournal_buckets: 0,
        };
        let mut superblock = self.superblock(Version::Cache, 1, Role::Cache(fields));
        superblock.set_discard(self.discard);
        superblock.set_replacement(self.replacement);
        superblock
    }

    fn backing_superblock(&self, index: usize) -> Superblock {
        let fields = BackingFields { data_offset: Sectors(DATA_OFFSET), bucket_sectors: 1024 };
        let mut superblock = self.superblock(Version::Backing, 0x100 + index as u128, Role::Backing(fields));
        superblock.set_cache_mode(self.backings[index].0);
        superblock
    }

    /// Whether keys are kept in memory.
    fn keeps(&self) -> bool {
        self.outlive && self.keep
    }

    fn settings(&self) -> SetSettings {
        let settings = SetSettings::default();
        settings.journal_delay_ms.set(self.journal_delay_ms);
        settings.copy_gc_enabled.set(self.copy_gc);
        settings.gc_always_rewrite.set(self.always_rewrite);
        settings.btree_cache_bytes.set(self.btree_cache_bytes);
        settings
    }

    fn devices(&self, disks: &[Image]) -> Vec<Device> {
        let bytes = |(config, image): (Config, &Image)| -> Device {
            Arc::new(Bytes { name: config.name, size: config.geometry.bytes, image: image.clone() })
        };
        self.disks().into_iter().zip(disks).map(bytes).collect()
    }
}

impl CachedSet {
    /// Many devices, sparse data, little memory, everything slow that may be.
    fn draw_wild(rng: &mut Rng, focus: &Focus) -> Self {
        let deep = rng.chance(1, 40);
        let bucket_sectors = if deep { 8 } else { [8, 8, 16, 64][rng.below(4) as usize] };
        let nbuckets = if deep { 4096 } else { [513, 600, 1024, 1500][rng.below(4) as usize] };
        let block_sectors = if rng.chance(1, 4) && !deep { 8 } else { 1 };
        let logical_block = if block_sectors == 8 && rng.chance(1, 2) { 4096 } else { 512 };
        let count = if deep { 1 } else { rng.between(1, 3) };
        let sizes: Vec<u64> = (0..count)
            .map(|_| if deep { 27_000 } else { [256, 1024, 4096, 8192][rng.below(4) as usize] })
            .collect();
        CachedSet {
            block_sectors,
            logical_block,
            bucket_sectors: bucket_sectors as u32,
            nbuckets,
            backings: sizes.into_iter().map(|size| (draw_mode(rng, focus), size)).collect(),
            // Now and then one that the cache has no room for.
            volume: match rng.below(16) {
                0 if !deep && bucket_sectors == 8 => Some(nbuckets * bucket_sectors),
                1..8 => Some(512),
                _ => None,
            },
            replacement: Replacement::ALL[rng.below(3) as usize],
            discard: rng.chance(1, 4),
            copy_gc: rng.chance(1, 3),
            always_rewrite: rng.chance(1, 8),
            btree_cache_bytes: [1, 16 << 10, 64 << 10, 1 << 30][rng.below(4) as usize],
            journal_delay_ms: [1, 10, 100, 5000][rng.below(4) as usize],
            focus: *focus,
            outlive: rng.chance(1, 2) || focus.kept,
            keep: rng.chance(2, 3) || focus.kept,
            deep,
            slow: (
                [200_000, 3_000_000, 30_000_000][rng.below(3) as usize],
                [300_000, 3_000_000, 30_000_000][rng.below(3) as usize],
            ),
            spoilt: Cell::new(false),
            looks: Cell::new(0),
        }
    }
}

async fn put(disk: &Disk, superblock: &Superblock) -> Result<(), String> {
    let mut block = Buf::zeroed(SB_BYTES);
    superblock.write_to(&mut block).map_err(|error| error.to_string())?;
    disk.dev().write(SB_OFFSET, block.freeze(), true).await.map_err(|error| error.to_string())
}

fn draw_mode(rng: &mut Rng, focus: &Focus) -> CacheMode {
    let modes = [1, 1, 1, 0, 0, 2, 2, 3];
    let drawn = CacheMode::ALL[modes[rng.below(modes.len() as u64) as usize]];
    focus.mode.unwrap_or(drawn)
}

impl Subject for CachedSet {
    type Running = RunningSet;

    fn draw(rng: &mut Rng, focus: &Focus) -> Self {
        if focus.wild {
            return CachedSet::draw_wild(rng, focus);
        }
        let bucket_sectors = 1 << [3, 3, 4, 5, 6][rng.below(5) as usize];
        let nbuckets = if rng.chance(1, 2) { 513 } else { rng.between(513, 700) };
        let full = focus.full || rng.chance(1, 8);
        let block_sectors = if rng.chance(1, 4) { 8 } else { 1 };
        // In full runs all volumes together are half as large again as the cache.
        let all = nbuckets * bucket_sectors * 3 / 2;
        let count = rng.between(1, 2);
        let mut sectors = || match full {
            true => (all / count) / 8 * 8,
            false => [256, 512, 1024, 2048][rng.below(4) as usize],
        };
        let sizes: Vec<u64> = (0..count).map(|_| sectors()).collect();
        CachedSet {
            block_sectors,
            logical_block: if block_sectors == 8 && rng.chance(1, 2) { 4096 } else { 512 },
            bucket_sectors: bucket_sectors as u32,
            nbuckets,
            backings: sizes.into_iter().map(|size| (draw_mode(rng, focus), size)).collect(),
            volume: rng.chance(1, 3).then_some(512),
            replacement: Replacement::ALL[rng.below(3) as usize],
            discard: rng.chance(1, 4),
            copy_gc: rng.chance(1, 4),
            always_rewrite: rng.chance(1, 8),
            btree_cache_bytes: [16 << 10, 64 << 10, 1 << 30][rng.below(3) as usize],
            journal_delay_ms: [1, 10, 100][rng.below(3) as usize],
            focus: Focus { full, ..*focus },
            outlive: rng.chance(1, 2) || focus.kept,
            keep: rng.chance(2, 3) || focus.kept,
            deep: false,
            slow: (0, 0),
            spoilt: Cell::new(false),
            looks: Cell::new(0),
        }
    }

    fn disks(&self) -> Vec<Config> {
        let disk = |name: String, sectors: u64| {
            let mut config = Config::new(&name, sectors * 512);
            config.geometry.logical_block = self.logical_block;
            config
        };
        let mut cache = disk("cache".to_owned(), self.nbuckets * u64::from(self.bucket_sectors));
        if self.focus.full {
            // Long enough for a bucket to be reused while it is read.
            cache.read_ns = 20_000..=3_000_000;
        }
        if self.slow.0 > 0 {
            cache.read_ns = 20_000..=self.slow.0;
        }
        let backings = self.backings.iter().enumerate();
        let backings = backings.map(|(i, (_, sectors))| {
            let mut backing = disk(format!("backing{i}"), DATA_OFFSET + sectors);
            if self.slow.1 > 0 {
                backing.read_ns = 20_000..=self.slow.1;
                backing.write_ns = 20_000..=self.slow.1;
                backing.flush_ns = 50_000..=self.slow.1 * 2;
            }
            backing
        });
        std::iter::once(cache).chain(backings).collect()
    }

    fn sectors(&self) -> Vec<u64> {
        self.backings.iter().map(|(_, sectors)| *sectors).chain(self.volume).collect()
    }

    fn align(&self) -> u64 {
        self.block_sectors.into()
    }

    fn kills(&self) -> bool {
        self.outlive
    }

    fn deep(&self) -> bool {
        self.deep
    }

    fn wild(&self) -> bool {
        self.focus.wild
    }

    fn load(&self, load: Load) -> Load {
        if self.focus.wild {
            return load;
        }
        if self.focus.full {
            return Load { hot: 10, max_sectors: 256, operations: load.operations * 2, ..load };
        }
        load
    }

    async fn format(&self, disks: &[Disk]) -> Result<(), String> {
        put(&disks[0], &self.cache_superblock()).await?;
        for (i, disk) in disks.iter().skip(1).enumerate() {
            put(disk, &self.backing_superblock(i)).await?;
        }
        Ok(())
    }

    async fn start(
        &self,
        env: &Env,
        disks: &[Disk],
        kept: &Rc<Kept>,
        rng: &mut Rng,
    ) -> Result<RunningSet, String> {
        RunningSet::start(self, env, disks, kept, rng).await
    }

    fn spoil(&self, disks: &[Disk], rng: &mut Rng) -> bool {
        self.spoilt.set(false);
        if !rng.chance(self.focus.spoilt.unwrap_or(10), 100) {
            return false;
        }
        for _ in 0..rng.between(1, 3) {
            let which = rng.below(disks.len() as u64) as usize;
            let bytes = self.disks()[which].geometry.bytes;
            let from = rng.below(bytes / 512) * 512;
            let range = from..from.saturating_add(512 << rng.below(10));
            let on = [FaultOn::Read, FaultOn::Write, FaultOn::Write, FaultOn::Flush, FaultOn::Any]
                [rng.below(5) as usize];
            let fault = match rng.below(4) {
                0 => Fault::slow(on, range, std::time::Duration::from_millis(rng.below(3000))),
                1 => Fault::eio(on, range),
                _ => Fault::eio(on, 0..bytes).times(rng.between(1, 3) as u32),
            };
            self.spoilt.set(self.spoilt.get() || fault.errno.is_some());
            disks[which].inject(fault);
        }
        self.spoilt.get()
    }

    fn look(&self, disks: &[Image], models: &mut [Model], kept: &Kept, clean: bool) -> Result<(), String> {
        // A detached device is none of the set's, and a stale one has every right to differ.
        let state = |image: &Image| {
            let mut block = vec![0; SB_BYTES];
            image.read(SB_OFFSET, &mut block);
            Superblock::parse(&block).map(|superblock| superblock.state()).ok()
        };
        let states: Vec<_> = disks.iter().skip(1).map(state).collect();
        let data = clean && !states.contains(&Some(BackingState::Stale));
        let devices = self.devices(disks).into_iter().enumerate();
        let devices = devices.filter(|(i, _)| *i == 0 || states[i - 1] != Some(BackingState::None));
        let devices: Vec<_> = devices.map(|(_, device)| device).collect();
        let left = |set| Left::parse(&kept.bytes()?, kept.boot(), set).ok();
        let options = fsck::Options { data, kept: Some(&left), ..fsck::Options::default() };
        let checked = fsck::check(devices.iter().cloned(), options);
        // Before the first start is complete nothing on the cache counts.
        let counts = checked.superblock().is_some_and(Superblock::sync);
        let crashed = |kind| matches!(kind, Kind::JournalTailTorn | Kind::JournalKept);
        let spoilt = |kind| kind == Kind::JournalKeptDamaged;
        let legal = |kind| !clean && (crashed(kind) || spoilt(kind) || !counts);
        let newest = checked.journal.newest().map(|entry| (entry.jset.seq, entry.jset.last_seq));
        if clean && newest.is_some_and(|(seq, last_seq)| seq != last_seq) {
            return Err(format!("after a clean stop entries are to be replayed: {newest:?}"));
        }
        let wrong = checked.findings.iter().filter(|finding| !legal(finding.kind));
        let wrong: Vec<String> = wrong
            .take(5)
            .map(|f| format!("{}: {} at byte {}: {}", f.kind, f.device, f.byte, f.detail))
            .collect();
        if !wrong.is_empty() {
            return Err(format!("fsck finds {}", wrong.join("; ")));
        }
        // What memory has that cannot be had is nobody's: such a set is refused.
        let seq = newest.map_or(0, |(seq, _)| seq);
        let more = left(SET_UUID).map_or(0, |left| left.count_behind(seq));
        if more > checked.kept.len() as u64 {
            return Ok(());
        }
        let at_rest = offline::AtRest { shape: self, disks, states: &states, checked: &checked, options };
        at_rest.judge(models)?;
        self.looks.set(self.looks.get() + 1);
        let with_kept = !checked.kept.is_empty();
        if !self.looks.get().is_multiple_of(if with_kept { REPAIR_EVERY } else { FLUSH_EVERY }) {
            return Ok(());
        }
        if with_kept && counts {
            at_rest.judge_repaired(&devices, models)?;
        }
        at_rest.judge_salvaged(models)?;
        at_rest.judge_flushed(models)
    }
}
