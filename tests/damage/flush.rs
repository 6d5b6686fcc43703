//! Writing all dirty data back offline, with crashes in the middle.

use std::cell::Cell;
use std::io;
use std::sync::{Arc, Mutex};

use bcache_engine::fsck::flush::{Flush, FlushError};
use bcache_engine::fsck::repair::{WriteAt, apply};
use bcache_engine::fsck::view::{Device, Devices, ReadAt, SetView};
use bcache_engine::fsck::{Options, check};
use bcache_format::superblock::BackingState;
use bcache_format::{Pos, Sectors};
use bcache_tests::golden::Set;
use bcache_tests::sparse;

use crate::mutations::Random;
use crate::patched::Patched;

/// A device that is written to, until its writes are used up: then the machine is gone.
#[derive(Clone)]
struct Live {
    name: String,
    device: Arc<Mutex<Patched>>,
}

thread_local! {
    static WRITES_LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

impl ReadAt for Live {
    fn name(&self) -> &str {
        &self.name
    }
    fn size(&self) -> u64 {
        self.device.lock().unwrap().size()
    }
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        self.device.lock().unwrap().read_at(byte, buf)
    }
}

impl WriteAt for Live {
    fn write_at(&self, byte: u64, bytes: &[u8]) -> io::Result<()> {
        WRITES_LEFT.set(WRITES_LEFT.get().checked_sub(1).ok_or(io::ErrorKind::Other)?);
        self.device.lock().unwrap().write(byte, bytes);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

fn live(set: &str) -> Vec<Live> {
    let wrap =
        |device: Patched| Live { name: device.name().to_owned(), device: Arc::new(Mutex::new(device)) };
    Patched::all_of(set).into_iter().map(wrap).collect()
}

fn devices(live: &[Live]) -> Vec<Device> {
    live.iter().map(|device| Arc::new(device.clone()) as Device).collect()
}

/// Flushes with so many writes. False when they did not suffice.
fn flush(live: &[Live], writes: u64) -> bool {
    WRITES_LEFT.set(writes);
    let devices = devices(live);
    let flush = Flush::new(&devices).unwrap();
    let targets: Vec<_> = live.iter().map(|device| (device.name.as_str(), device as &dyn WriteAt)).collect();
    let mut random = Random::new(3);
    match flush.copy(&targets, &mut |_| {}) {
        Err(FlushError::Device { .. }) => return false,
        other => other.unwrap(),
    }
    let plan = flush.finish(&devices, &mut || random.next()).unwrap();
    apply(&plan, &targets).is_ok()
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

/// Stops after each of some writes; told how many there are.
fn crash_at(set: &Set, stops: impl Fn(u64) -> Vec<u64>) {
    let fresh = live(&set.name);
    assert!(flush(&fresh, u64::MAX), "{}", set.name);
    let all = u64::MAX - WRITES_LEFT.get();
    for stop in stops(all).into_iter().filter(|stop| *stop < all) {
        let live = live(&set.name);
        assert!(!flush(&live, stop), "{}: {stop} of {all} writes are enough", set.name);
        assert!(flush(&live, u64::MAX), "{}: after {stop} writes", set.name);
        is_flushed(set, &live);
    }
}

#[test]
fn a_crash_at_any_write_costs_nothing() {
    // The last of the metadata's writes, and some of the many that copy data.
    let stops = |all: u64| vec![0, all / 2, all.saturating_sub(3), all.saturating_sub(2), all - 1];
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
            // All of the metadata's writes; of those that copy data, which are all alike, as many more.
            crash_at(&set, |all| {
                (0..all).filter(|stop| all - stop <= 64 || stop % (all / 64 + 1) == 0).collect()
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
