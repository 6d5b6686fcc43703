//! Writing all dirty data back offline, with crashes in the middle.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bcache_engine::fsck::flush::{Copied, Flush, FlushError};
use bcache_engine::fsck::repair::{self, Refused, WriteAt, apply};
use bcache_engine::fsck::view::{Device, Devices, ReadAt, SetView};
use bcache_engine::fsck::{Options, check};
use bcache_format::superblock::BackingState;
use bcache_format::{Bkey, Pos, Sectors};
use bcache_tests::golden::Set;
use bcache_tests::sparse;

use crate::cases::World;
use crate::mutations::Random;
use crate::patched::Patched;

/// Device, byte, bytes.
type Written = (String, u64, Vec<u8>);

/// What is written to all devices of a machine.
#[derive(Default)]
struct Log {
    /// Writes that there still are.
    left: u64,
    /// All writes since the last flush began.
    written: Vec<Written>,
    /// How many of them there were when all were made durable.
    durable: Vec<usize>,
    /// The machine is gone.
    gone: bool,
    /// Bytes of the cache that cannot be read any more.
    unreadable: Option<Range<u64>>,
    /// Bytes of the first backing device that cannot be written.
    unwritable: Option<Range<u64>>,
}

/// A device that is written to, until the machine's writes are used up: then the machine is gone.
#[derive(Clone)]
struct Live {
    name: String,
    device: Arc<Mutex<Patched>>,
    log: Arc<Mutex<Log>>,
}

impl ReadAt for Live {
    fn name(&self) -> &str {
        &self.name
    }
    fn size(&self) -> u64 {
        self.device.lock().unwrap().size()
    }
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        let unreadable = self.log.lock().unwrap().unreadable.clone().filter(|_| self.name == "cache");
        if unreadable.is_some_and(|bytes| bytes.start < byte + buf.len() as u64 && byte < bytes.end) {
            return Err(io::ErrorKind::Other.into());
        }
        self.device.lock().unwrap().read_at(byte, buf)
    }
}

impl WriteAt for Live {
    fn write_at(&self, byte: u64, bytes: &[u8]) -> io::Result<()> {
        let mut log = self.log.lock().unwrap();
        let end = byte + bytes.len() as u64;
        let unwritable = log.unwritable.as_ref().filter(|_| self.name == "backing");
        if unwritable.is_some_and(|bad| bad.start < end && byte < bad.end) {
            return Err(io::ErrorKind::Other.into());
        }
        log.gone |= log.left == 0;
        log.left = log.left.checked_sub(1).ok_or(io::ErrorKind::Other)?;
        self.device.lock().unwrap().write(byte, bytes);
        log.written.push((self.name.clone(), byte, bytes.to_vec()));
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        let mut log = self.log.lock().unwrap();
        let writes = log.written.len();
        log.durable.push(writes);
        if log.gone { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }
}

fn live(set: &str) -> Vec<Live> {
    machine(Patched::all_of(set))
}

fn machine(devices: impl IntoIterator<Item = Patched>) -> Vec<Live> {
    let log = Arc::default();
    let wrap = |device: Patched| Live {
        name: device.name().to_owned(),
        device: Arc::new(Mutex::new(device)),
        log: Arc::clone(&log),
    };
    devices.into_iter().map(wrap).collect()
}

fn devices(live: &[Live]) -> Vec<Device> {
    live.iter().map(|device| Arc::new(device.clone()) as Device).collect()
}

fn targets(live: &[Live]) -> Vec<(&str, &dyn WriteAt)> {
    live.iter().map(|device| (device.name.as_str(), device as &dyn WriteAt)).collect()
}

/// Flushes with so many writes. False when they did not suffice.
fn flush(live: &[Live], writes: u64) -> bool {
    *live[0].log.lock().unwrap() = Log { left: writes, ..Log::default() };
    let devices = devices(live);
    let flush = Flush::new(&devices).unwrap();
    let targets = targets(live);
    let mut random = Random::new(3);
    let copied = match flush.copy(&targets, &|_| {}) {
        Err(FlushError::Device { .. }) => return false,
        other => other.unwrap(),
    };
    assert_eq!(copied, Copied::default());
    let plan = flush.finish(&devices, &copied, &mut || random.next()).unwrap();
    apply(&plan, &targets).is_ok()
}

/// What the last flush wrote.
fn written(live: &[Live]) -> Vec<Written> {
    std::mem::take(&mut live[0].log.lock().unwrap().written)
}

fn hash(device: &Live, offset: Sectors, bytes: u64) -> String {
    let mut content = vec![0; bytes as usize];
    device.read_at(offset.bytes(), &mut content).unwrap();
    sparse::sha256(content.as_slice()).unwrap().0
}

/// Every backing device has its content, its superblock says so, and nothing of it is dirty any more.
fn is_flushed(set: &Set, live: &[Live]) {
    let devices = devices(live);
    let checked = check(devices.iter().cloned(), Options::default());
    assert_eq!(*checked.findings, [], "{}", set.name);
    let opened = Devices::open(devices).unwrap();
    for backing in &opened.backings {
        assert_ne!(backing.sb.state(), BackingState::Dirty, "{}", set.name);
        let name = format!("{}.img", backing.name);
        let content = set.entry.content.iter().find(|content| content.of == name).unwrap();
        let device = live.iter().find(|device| *device.name == *backing.name).unwrap();
        assert_eq!(hash(device, backing.fields.data_offset, content.bytes), content.sha256, "{}", set.name);
    }
    let view = SetView::open(opened.caches[0].clone()).unwrap();
    for extent in view.extents(Pos::ZERO, Pos::MAX).flatten() {
        let entry = &view.uuids[extent.key.inode() as usize];
        let may = entry.is_flash_only() || entry.is_detached();
        assert!(may || !extent.key.dirty(), "{}: {:?}", set.name, extent.key);
    }
}

#[test]
fn golden_sets_end_clean_with_their_content() {
    for set in Set::all().unwrap() {
        if set.entry.content.is_empty() || set.name == "detached-fifo" {
            continue;
        }
        let live = live(&set.name);
        assert!(flush(&live, u64::MAX), "{}", set.name);
        is_flushed(&set, &live);
        // Nothing is left to do.
        assert!(flush(&live, 0), "{}: a second run writes", set.name);
    }
}

/// The extents of the set's cache.
fn extents(live: &[Live]) -> Vec<Bkey> {
    let view = SetView::open(Devices::open(devices(live)).unwrap().caches[0].clone()).unwrap();
    view.extents(Pos::ZERO, Pos::MAX).map(|extent| extent.unwrap().key).collect()
}

/// After a crash in a flush, a second one leads to what a flush without a crash does. Told how many writes there are, and
/// how many of them copy data, `stops` says after which the crash is.
fn crash_at(set: &Set, stops: impl Fn(usize, usize) -> Vec<usize>) {
    let fresh = live(&set.name);
    assert!(flush(&fresh, u64::MAX), "{}", set.name);
    is_flushed(set, &fresh);
    let durable = std::mem::take(&mut fresh[0].log.lock().unwrap().durable);
    let written = written(&fresh);
    let mut random = Random::new(23);
    let (expected, all) = (extents(&fresh), written.len());
    let copies = written.iter().position(|(name, ..)| name == "cache").unwrap_or(all);
    let stops = stops(all, copies);
    println!("{}: {all} writes, {} crashes", set.name, stops.len());
    // What is on the devices after the first writes.
    let (cut, mut done) = (live(&set.name), 0);
    for stop in stops.into_iter().filter(|stop| *stop < all) {
        for (name, byte, bytes) in &written[done..stop] {
            let device = cut.iter().find(|device| device.name == *name).unwrap();
            device.device.lock().unwrap().write(*byte, bytes);
        }
        done = stop;
        let again = machine(cut.iter().map(|live| live.device.lock().unwrap().clone()));
        // Of what is not durable yet some arrived, and some is torn.
        let until = durable.iter().copied().find(|until| *until > stop).unwrap_or(all).min(stop + 8);
        for (name, byte, bytes) in &written[stop..until] {
            let device = again.iter().find(|device| device.name == *name).unwrap();
            let how = random.below(3);
            for (at, sector) in (*byte..).step_by(512).zip(bytes.chunks(512)) {
                if how == 0 || how == 1 && random.below(2) == 0 {
                    device.device.lock().unwrap().write(at, sector);
                }
            }
        }
        let place = format!("{}: after {stop} of {all} writes", set.name);
        assert!(flush(&again, u64::MAX), "{place}");
        assert_eq!(*check(devices(&again), Options::default()).findings, [], "{place}");
        assert!(extents(&again) == expected, "{place}: other extents");
        for (ours, theirs) in again.iter().zip(&fresh).filter(|(device, _)| device.name != "cache") {
            let (ours, theirs) = (ours.device.lock().unwrap(), theirs.device.lock().unwrap());
            assert!(ours.changes().eq(theirs.changes()), "{place}: {} differs", ours.name());
        }
    }
}

/// Bad sectors of either device cost what is in them: the rest is copied and clean, they stay dirty, and once they are
/// sound again a second flush has everything.
#[test]
fn a_flush_goes_around_bad_sectors_and_leaves_those_dirty() {
    for set in ["wb-dirty", "block-4k"] {
        goes_around_bad_sectors(set);
    }
}

fn goes_around_bad_sectors(set: &str) {
    let live = live(set);
    let devices = devices(&live);
    let (cache, backing) = (&live[0], live.iter().find(|device| device.name == "backing").unwrap());
    let block: u64 = Devices::open(devices.iter().cloned()).unwrap().caches[0].sb.block_sectors.into();
    let before: u64 = dirty(&live).iter().map(Bkey::size).sum();
    // A sector of one extent that cannot be read, two of another that cannot be written.
    let extents: Vec<Bkey> = dirty(&live).into_iter().filter(|key| key.size() >= 8).collect();
    let (unread, unwritten) = (extents[0], extents[extents.len() / 2]);
    assert_ne!(unread, unwritten);
    let bad_read = Sectors(unread.ptr().unwrap().offset() + 2).bytes();
    let bad_write = Sectors(unwritten.start() + 5).bytes();
    *cache.log.lock().unwrap() = Log {
        left: u64::MAX,
        unreadable: Some(bad_read..bad_read + 512),
        unwritable: Some(bad_write..bad_write + 1024),
        ..Log::default()
    };
    let mut random = Random::new(3);
    let targets = targets(&live);
    let mut left_after = |spared: &mut Vec<(u64, u64)>| {
        let flush = Flush::new(&devices).unwrap();
        let copied = flush.copy(&targets, &|_| {}).unwrap();
        spared.extend(copied.left().map(|left| (left.from, left.to)));
        let plan = flush.finish(&devices, &copied, &mut || random.next()).unwrap();
        apply(&plan, &targets).unwrap();
        assert_eq!(*check(devices.iter().cloned(), Options::default()).findings, []);
        let opened = Devices::open(devices.iter().cloned()).unwrap();
        (dirty(&live), opened.backings[0].sb.state())
    };
    // What cannot be written may be a part of a larger sector of the disk.
    let page = |sector: u64| sector / 8 * 8;
    let unwritten = (page(unwritten.start() + 5), page(unwritten.start() + 6) + 8);
    let mut bad = [(unread.start() + 2, unread.start() + 3), unwritten];
    bad.sort_unstable();
    let blocks = bad.iter().flat_map(|(from, to)| from - from % block..to.next_multiple_of(block));
    let blocks: Vec<u64> = blocks.collect();
    for round in 0..2 {
        let mut told = Vec::new();
        let (left, state) = left_after(&mut told);
        assert_eq!(told, bad, "{set}, round {round}");
        // What is left may be in more than one extent.
        let mut sectors: Vec<u64> = left.iter().flat_map(|key| key.start()..key.offset()).collect();
        sectors.sort_unstable();
        assert_eq!(sectors, blocks, "{set}, round {round}");
        assert!((sectors.len() as u64) < before);
        assert_eq!(state, BackingState::Dirty, "it does not have everything");
    }
    *cache.log.lock().unwrap() = Log { left: u64::MAX, ..Log::default() };
    let (left, state) = left_after(&mut Vec::new());
    assert_eq!((left, state), (Vec::new(), BackingState::Clean));
    is_flushed(&Set::open(set).unwrap(), &live);
    assert!(backing.device.lock().unwrap().changes().next().is_some());
}

/// The dirty extents of a set's cache.
fn dirty(live: &[Live]) -> Vec<Bkey> {
    let view = SetView::open(Devices::open(devices(live)).unwrap().caches[0].clone()).unwrap();
    let live = view.extents(Pos::ZERO, Pos::MAX).flatten().filter(|extent| extent.live().is_some());
    live.map(|extent| extent.key).filter(Bkey::dirty).collect()
}

/// A device that does not take a write ends the flush there, whatever is under way.
#[test]
fn a_write_that_fails_ends_a_flush() {
    let whole = live("wb-dirty");
    assert!(flush(&whole, u64::MAX));
    let all = written(&whole);
    for stop in [0, all.len() / 2, all.len() - 1] {
        let live = live("wb-dirty");
        assert!(!flush(&live, stop as u64), "{stop} of {} writes are enough", all.len());
        let written = written(&live);
        assert_eq!(written.len(), stop);
        assert!(written.iter().all(|write| all.contains(write)), "after {stop} of {} writes", all.len());
    }
}

/// A leaf that can be read when the set is checked and not a moment later has keys all the same: nothing may be made of
/// the others alone.
#[test]
fn a_leaf_that_fails_after_the_check_ends_a_flush() {
    let live = live("wb-dirty");
    let devices = devices(&live);
    let targets = targets(&live);
    let view = SetView::open(Devices::open(devices.clone()).unwrap().caches[0].clone()).unwrap();
    let leaf = view.leaves[view.leaves.len() / 2].key;
    let byte = Sectors(leaf.ptr().unwrap().offset()).bytes();
    let fail = |fails| live[0].log.lock().unwrap().unreadable = Some(byte..byte + 512).filter(|_| fails);
    live[0].log.lock().unwrap().left = u64::MAX;

    let flush = Flush::new(&devices).unwrap();
    fail(true);
    let copied = flush.copy(&targets, &|_| {}).unwrap_err();
    assert!(matches!(&copied, FlushError::Fault(fault) if fault.byte == byte), "{copied}");
    fail(false);
    let copied = flush.copy(&targets, &|_| {}).unwrap();
    fail(true);
    let refused = flush.finish(&devices, &copied, &mut || 3).unwrap_err();
    assert!(matches!(&refused, Refused::Read { byte: at, .. } if *at == byte), "{refused}");

    // A repair, too: one that writes all metadata anew, because the bucket of a prio set is damaged.
    fail(false);
    live[0].device.lock().unwrap().write(28 * 65536 + 100, b"rot");
    let checked = check(devices.iter().cloned(), Options::default());
    repair::plan(&devices, &checked, &mut || 3).unwrap();
    fail(true);
    let refused = repair::plan(&devices, &checked, &mut || 3).unwrap_err();
    assert!(matches!(&refused, Refused::Read { byte: at, .. } if *at == byte), "{refused}");
}

/// Neither may a leaf become another one.
#[test]
fn a_flush_copies_all_that_was_dirty_when_it_was_checked() {
    let live = live("wb-dirty");
    let devices = devices(&live);
    let targets = targets(&live);
    live[0].log.lock().unwrap().left = u64::MAX;
    let flush = Flush::new(&devices).unwrap();
    let mut world = World::of("wb-dirty");
    let (set, at, mut key) = world.seen_extent();
    key.set_dirty(false);
    world.put_extent(&set, at, &key);
    *live[0].device.lock().unwrap() = world.cache;
    let error = flush.copy(&targets, &|_| {}).unwrap_err();
    let FlushError::Fewer { copied, dirty, .. } = error else { panic!("{error}") };
    assert_eq!(dirty - copied, key.size());
}

#[test]
fn a_crash_at_any_write_costs_nothing() {
    // The last of the metadata's writes, and some of the many that copy data.
    let stops = |all: usize, _| vec![0, all / 2, all.saturating_sub(3), all.saturating_sub(2), all - 1];
    for set in ["wb-dirty", "two-backing-flash"] {
        crash_at(&Set::open(set).unwrap(), stops);
    }
}

mod long {
    use super::{Set, crash_at};

    #[test]
    #[ignore = "takes long"]
    fn a_crash_at_any_write_of_a_flush() {
        for set in Set::all().unwrap() {
            if set.entry.content.is_empty() || set.name == "detached-fifo" {
                continue;
            }
            // All of the metadata's; of those that copy data, which are alike, some.
            crash_at(&set, |all, copies| {
                (0..all).filter(|stop| *stop >= copies || stop % (copies / 64 + 1) == 0).collect()
            });
        }
    }
}

#[test]
fn a_damaged_set_is_not_flushed() {
    let live = live("wb-dirty");
    live[0].device.lock().unwrap().write(28 * 65536 + 100, b"rot");
    assert!(matches!(Flush::new(&devices(&live)), Err(FlushError::Findings("prio-checksum", _))));
}
