//! Sets to measure checks, starts and flushes on; `tests/bench/run` does.
//!
//!     fsck_speed make FILE EXTENTS     a cache with so many extents in a sparse file, as scattered as can be, and its
//!                                      backing device, FILE.backing
//!     fsck_speed dirty DIR MIB         a cache and a backing device with so much contiguous dirty data
//!     fsck_speed check FILE            checks it: seconds, bytes of metadata a second, memory
//!     fsck_speed read FILE             reads what a check reads with O_DIRECT, as many reads at a time

use bcache_engine::fsck::made::{DATA_OFFSET, Shape, make};
use bcache_engine::fsck::view::{Device, FileDevice, ReadAt};
use bcache_engine::fsck::{Options, check};
use bcache_format::superblock::{SB_BYTES, SB_OFFSET};
use bcache_format::{Bkey, Ptr, Sectors};
use nix::time::ClockId;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Sectors of a bucket, 512 KiB.
const BUCKET: u32 = 1024;
/// Sectors of a scattered extent.
const EXTENT: u64 = 8;
/// Bytes read at a time, and what they are aligned to.
const CHUNK: u64 = 256 << 10;
const ALIGN: u64 = 4096;

fn create(path: &Path, bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.set_len(bytes)?;
    Ok(file)
}

fn make_scattered(path: &Path, extents: u64) -> io::Result<()> {
    let shape = Shape::of(extents, EXTENT, BUCKET);
    let file = create(path, shape.bytes())?;
    let mut keys = (0..extents).map(|i| shape.extent(i, extents, EXTENT));
    let bytes = make(shape, &mut keys, &mut |at, bytes| file.write_all_at(bytes, at))?;
    println!("made: {extents} extents, {bytes} bytes of metadata");
    file.sync_all()?;
    let mut backing = path.as_os_str().to_owned();
    backing.push(".backing");
    make_backing(Path::new(&backing), shape, Sectors(DATA_OFFSET + (extents + 1) * 2 * EXTENT).bytes())?;
    Ok(())
}

fn make_backing(path: &Path, shape: Shape, bytes: u64) -> io::Result<File> {
    let backing = create(path, bytes)?;
    let mut block = vec![0; SB_BYTES];
    shape.backing().write_to(&mut block).map_err(io::Error::other)?;
    backing.write_all_at(&block, SB_OFFSET)?;
    Ok(backing)
}

/// Extents of a whole bucket, one after the other on both devices.
fn make_dirty(dir: &Path, mib: u64) -> io::Result<()> {
    let sectors = u64::from(BUCKET);
    let extents = mib * 2048 / sectors;
    let shape = Shape::of(extents, sectors, BUCKET);
    let cache = create(&dir.join("cache"), shape.bytes())?;
    let first = shape.first_data().0 * sectors;
    let key = |i| {
        let ptr = Ptr::new(0, first + i * sectors, 1);
        Bkey::extent(0, DATA_OFFSET + (i + 1) * sectors, sectors, ptr, true)
    };
    make(shape, &mut (0..extents).map(key), &mut |at, bytes| cache.write_all_at(bytes, at))?;
    let data: Vec<u8> = (0..1u32 << 18).flat_map(|i| i.wrapping_mul(2_654_435_769).to_le_bytes()).collect();
    for i in 0..mib {
        cache.write_all_at(&data, first * 512 + (i << 20))?;
    }
    let backing = make_backing(&dir.join("backing"), shape, (mib << 20) + (1 << 20))?;
    // Space that is allocated already is written at the same speed by everyone.
    for i in 0..mib {
        backing.write_all_at(&data, DATA_OFFSET * 512 + (i << 20))?;
    }
    backing.sync_all()?;
    cache.sync_all()
}

fn check_it(path: &Path) -> io::Result<()> {
    let device: Device = Arc::new(FileDevice::open(path)?);
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    let checked = check([device], Options::default());
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
    if let Some(finding) = checked.findings.first() {
        println!("{finding:?}");
    }
    let tree = checked.set.map(|set| set.tree).unwrap_or_default();
    let bytes = tree.bytes as f64 / 1e9;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default().trim();
    println!(
        "checked: {} extents, {} nodes, {} bytes of bsets in {seconds:.3} s, {:.2} GB/s, {:.3} GB/s a core, {:.0} ns an \
         extent, peak memory {peak}",
        tree.extents,
        tree.nodes,
        tree.bytes,
        bytes / seconds,
        bytes / cpu,
        seconds * 1e9 / tree.extents as f64
    );
    Ok(())
}

/// Seconds of all cores that this process has used.
fn cpu_seconds() -> io::Result<f64> {
    Ok(Duration::from(ClockId::CLOCK_PROCESS_CPUTIME_ID.now()?).as_secs_f64())
}

/// A device that remembers what was read of it.
struct Recorder {
    device: FileDevice,
    reads: Mutex<BTreeMap<u64, u64>>,
}

impl ReadAt for Recorder {
    fn name(&self) -> &str {
        self.device.name()
    }
    fn size(&self) -> u64 {
        self.device.size()
    }
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        self.reads.lock().expect("no panic").insert(byte / ALIGN * ALIGN, byte + buf.len() as u64);
        self.device.read_at(byte, buf)
    }
}

fn read_it(path: &Path) -> io::Result<()> {
    let recorder = Arc::new(Recorder { device: FileDevice::open(path)?, reads: Mutex::default() });
    let device: Device = recorder.clone();
    check([device], Options::default());
    let mut pieces = Vec::new();
    let mut done = 0;
    for (start, end) in recorder.reads.lock().expect("no panic").iter() {
        let mut at = done.max(*start);
        while at < *end {
            let len = CHUNK.min((end - at).next_multiple_of(ALIGN));
            pieces.push((at, len as usize));
            at += len;
        }
        done = done.max(at);
    }
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let (next, threads) = (AtomicUsize::new(0), 4 * std::thread::available_parallelism()?.get());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut memory = vec![0u8; CHUNK as usize + ALIGN as usize];
                let skip = memory.as_ptr().align_offset(ALIGN as usize);
                while let Some((at, len)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    file.read_exact_at(&mut memory[skip..][..*len], *at).expect("a read");
                }
            });
        }
    });
    let (seconds, bytes) =
        (start.elapsed().as_secs_f64(), pieces.iter().map(|(_, len)| *len as u64).sum::<u64>());
    println!("read: {bytes} bytes with O_DIRECT in {seconds:.3} s, {:.2} GB/s", bytes as f64 / seconds / 1e9);
    Ok(())
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &str| text.parse().map_err(io::Error::other);
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["make", file, extents] => make_scattered(Path::new(file), number(extents)?),
        ["dirty", dir, mib] => make_dirty(Path::new(dir), number(mib)?),
        ["check", file] => check_it(Path::new(file)),
        ["read", file] => read_it(Path::new(file)),
        _ => Err(io::Error::other("make FILE EXTENTS, dirty DIR MIB, check FILE, or read FILE")),
    }
}
