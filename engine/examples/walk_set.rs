//! Lists the extents of a cache that nobody uses: `walk_set CACHE`.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use bcache_engine::fsck::view::{Devices, FileDevice, SetView};
use bcache_format::Pos;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: walk_set CACHE")?;
    let mut devices = Devices::default();
    devices.push(Arc::new(FileDevice::open(&path)?))?;
    let cache = devices.caches.pop().ok_or("not a cache device")?;
    // Reads the whole btree, and refuses a set of which anything is wrong; `SetView::read` goes on and tells.
    let view = SetView::open(cache)?;
    for extent in view.extents(Pos::ZERO, Pos::MAX) {
        let key = extent?.key;
        let (dirty, inode) = (if key.dirty() { "dirty" } else { "clean" }, key.inode());
        println!("device {inode}, sectors {} to {}: {dirty}", key.start(), key.offset());
    }
    Ok(())
}
