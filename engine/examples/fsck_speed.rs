//! How fast a check reads metadata: `cargo run --release --example fsck_speed -- FILE [EXTENTS]`.
//!
//! Makes a set with so many extents in a sparse file, unless it is there already, and checks it. Prints bytes of
//! metadata a second, and the memory it took.

use bcache_engine::fsck::made::{Shape, make};
use bcache_engine::fsck::view::{Device, FileDevice};
use bcache_engine::fsck::{Options, check};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Sectors of a bucket, 512 KiB, and of an extent.
const BUCKET: u32 = 1024;
const EXTENT: u64 = 8;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("FILE [EXTENTS]");
    let extents: u64 = args.next().map_or(10_000_000, |text| text.parse().expect("a number"));
    let shape = Shape::of(extents, EXTENT, BUCKET);
    if !Path::new(&path).exists() {
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        file.set_len(shape.bytes())?;
        let mut keys = (0..extents).map(|i| shape.extent(i, extents, EXTENT));
        let bytes = make(shape, &mut keys, &mut |at, bytes| file.write_all_at(bytes, at))?;
        file.sync_all()?;
        println!("made: {extents} extents, {bytes} bytes of metadata");
    }
    let device: Device = Arc::new(FileDevice::open(Path::new(&path))?);
    let start = Instant::now();
    let checked = check([device], Options::default());
    let seconds = start.elapsed().as_secs_f64();
    if let Some(finding) = checked.findings.first() {
        println!("{finding:?}");
    }
    let tree = checked.set.map(|set| set.tree).unwrap_or_default();
    let rate = tree.bytes as f64 / seconds / 1e9;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!(
        "{} extents, {} nodes, {} bytes of bsets: checked in {seconds:.3} s, {rate:.2} GB/s; {peak}",
        tree.extents, tree.nodes, tree.bytes
    );
    Ok(())
}
