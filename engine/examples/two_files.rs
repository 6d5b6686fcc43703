//! Caches a file in another: `two_files [CACHE BACKING]`, which are overwritten; without them, temporary files.

use std::error::Error;
use std::fs::File;
use std::path::PathBuf;
use std::rc::Rc;

use bcache_engine::dev::{Buf, OpenMode, open};
use bcache_engine::env::Runtime;
use bcache_engine::request::DeviceVolume;
use bcache_engine::set::CacheSet;
use bcache_engine::settings::SetSettings;
use bcache_engine::volume::Volume;
use bcache_format::superblock::CacheMode;

mod blank;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let cache = args.next().unwrap_or_else(|| dir.path().join("cache"));
    let backing = args.next().unwrap_or_else(|| dir.path().join("backing"));
    File::create(&cache)?.set_len(96 << 20)?;
    File::create(&backing)?.set_len(256 << 20)?;

    // All of a set runs on this one thread.
    let runtime = Runtime::new()?;
    let env = runtime.env();
    runtime.block_on(async {
        let cache = open(&env, &cache, OpenMode::READ_WRITE)?;
        let backing = open(&env, &backing, OpenMode::READ_WRITE)?;
        blank::cache(&*cache).await?;
        blank::backing(&*backing).await?;

        let set = CacheSet::start(env.clone(), cache, SetSettings::default()).await?;
        let device = set.attach(backing).await?;
        device.settings.cache_mode.set(CacheMode::Writeback);
        let volume = DeviceVolume::new(Rc::clone(&set), Rc::clone(&device), "example".to_owned());

        // This is in the cache alone when it is answered, and durable when the flush is.
        volume.write(1 << 20, Buf::copied(&[7; 4096]).freeze(), false).await?;
        volume.flush().await?;
        let read = volume.read(1 << 20, 4096).await?;
        assert!(read.iter().flat_map(|piece| piece.iter()).all(|byte| *byte == 7));
        println!("{} reads that hit", device.stats.cache_hits.get());
        let dirty = device.inode.get().map_or(0, |inode| set.dirty_sectors(inode));
        println!("{dirty} sectors that only the cache has");
        set.stop().await?;
        Ok(())
    })
}
