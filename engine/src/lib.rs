//! The cache engine.
//!
//! One cache set runs on one thread as cooperating tasks; see [`set::CacheSet`]. Code here sees devices only as
//! [`dev::BlockDev`] and everything else that is not determined only through [`env::Env`], so that the same code runs in
//! production and in the simulator ([`sim`]).
//!
//! # A set at rest
//!
//! What a cache has, without starting it; here one that is made in memory.
//!
//! ```
//! use bcache_engine::fsck::made::{Shape, make};
//! use bcache_engine::fsck::view::{Devices, MemDevice, SetView};
//! use bcache_format::Pos;
//! # use std::sync::Arc;
//!
//! # let shape = Shape::of(100, 8, 128);
//! # let mut bytes = vec![0; usize::try_from(shape.bytes())?];
//! # make(shape, &mut (0..100).map(|i| shape.extent(i, 100, 8)), &mut |at, data| {
//! #     bytes[at as usize..at as usize + data.len()].copy_from_slice(data);
//! #     Ok(())
//! # })?;
//! let mut devices = Devices::default();
//! // `FileDevice::open` is the same for a file or a block device.
//! devices.push(Arc::new(MemDevice::new("cache", bytes)))?;
//! let view = SetView::open(devices.caches.pop().expect("a cache"))?;
//! let extents = view.extents(Pos::ZERO, Pos::MAX).collect::<Result<Vec<_>, _>>()?;
//! assert_eq!(extents.len(), 100);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A set that runs
//!
//! On two files. `env::Runtime` is the production one; with [`sim::Runtime`] and [`sim::Disk`] the rest stays as it is.
//!
//! ```
//! use std::rc::Rc;
//! use bcache_engine::dev::{Buf, OpenMode, open};
//! use bcache_engine::request::DeviceVolume;
//! use bcache_engine::set::CacheSet;
//! use bcache_engine::settings::SetSettings;
//! use bcache_engine::volume::Volume;
//!
//! # mod blank { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/blank/mod.rs")); }
//! # let dir = tempfile::tempdir()?;
//! # for (name, bytes) in [("cache", 96 << 20), ("backing", 64 << 20)] {
//! #     std::fs::File::create(dir.path().join(name))?.set_len(bytes)?;
//! # }
//! let runtime = bcache_engine::env::Runtime::new()?;
//! let env = runtime.env();
//! runtime.block_on(async {
//!     let cache = open(&env, &dir.path().join("cache"), OpenMode::READ_WRITE)?;
//!     let backing = open(&env, &dir.path().join("backing"), OpenMode::READ_WRITE)?;
//!     // As `make-bcache` makes them; examples/blank has this.
//!     blank::cache(&*cache).await?;
//!     blank::backing(&*backing).await?;
//!     let set = CacheSet::start(env.clone(), cache, SetSettings::default()).await?;
//!     let device = set.attach(backing).await?;
//!     let volume = DeviceVolume::new(Rc::clone(&set), device, "example".to_owned());
//!     volume.write(0, Buf::copied(&[7; 4096]).freeze(), true).await?;
//!     let read = volume.read(0, 4096).await?;
//!     assert!(read.iter().flat_map(|piece| piece.iter()).all(|byte| *byte == 7));
//!     set.stop().await?;
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A power cut
//!
//! A disk that forgets what was not flushed. `examples/power_cut.rs` does this to a whole set.
//!
//! ```
//! use bcache_engine::dev::Buf;
//! use bcache_engine::sim::{Config, Disk, Outcome, Power, Runtime, Survival};
//!
//! let (runtime, power) = (Runtime::new(1), Power::new());
//! let disk = Disk::new(&runtime, &power, Config::new("disk", 1 << 20));
//! let outcome = runtime.run(&power, async {
//!     let dev = disk.dev();
//!     dev.write(0, Buf::copied(&[1; 512]).freeze(), false).await?;
//!     dev.flush().await?;
//!     dev.write(0, Buf::copied(&[2; 512]).freeze(), false).await?;
//!     power.cut();
//!     dev.write(512, Buf::copied(&[3; 512]).freeze(), false).await
//! });
//! assert!(matches!(outcome, Outcome::Cut));
//! let mut left = [0; 512];
//! disk.crash(Survival::None).read(0, &mut left);
//! assert_eq!(left, [1; 512]);
//! ```

#![warn(unreachable_pub)]

/// Whether a mistake of `sim_bugs` is switched on; never, where they are not compiled in.
macro_rules! seeded_bug {
    ($bug:ident) => {{
        #[cfg(any(test, sim_bugs))]
        let on = crate::sim_bugs::on(crate::sim_bugs::Bug::$bug);
        #[cfg(not(any(test, sim_bugs)))]
        let on = false;
        on
    }};
}

// The harness of power cuts names this crate from outside; its unit tests include it, to switch mistakes on.
#[cfg(test)]
extern crate self as bcache_engine;

pub mod alloc;
pub mod btree;
pub mod dev;
pub mod env;
pub mod error;
pub mod fsck;
pub mod gc;
pub mod journal;
pub mod net;
mod raw;
pub mod request;
#[cfg(test)]
mod rules;
pub mod set;
pub mod settings;
pub mod sim;
#[cfg(any(test, sim_bugs))]
pub mod sim_bugs;
pub mod stats;
pub mod sync;
pub mod ublk;
pub mod volume;
pub mod writeback;

pub use error::{Error, Result};
