//! Prints what the superblock of a device or image says: `show_super DEV`.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;

use bcache_format::Superblock;
use bcache_format::superblock::{Role, SB_BYTES, SB_OFFSET};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: show_super DEV")?;
    let mut bytes = vec![0; SB_BYTES];
    File::open(path)?.read_exact_at(&mut bytes, SB_OFFSET)?;
    // Checked here: magic number, checksum, and every rule of the kernel's that needs nothing but these bytes.
    let superblock = Superblock::parse(&bytes)?;
    println!("version {}, set {}", superblock.version.number(), superblock.set_uuid);
    match &superblock.role {
        Role::Cache(cache) => {
            println!("cache of {} buckets of {} sectors", cache.nbuckets, cache.bucket_sectors);
        }
        Role::Backing(backing) => {
            println!("backing device {:?}, data from {} on", superblock.label.to_text(), backing.data_offset);
            println!("{:?}, {:?}", superblock.cache_mode(), superblock.state());
        }
    }
    Ok(())
}
