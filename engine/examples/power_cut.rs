//! Writes to a set on simulated disks, cuts the power, and starts the set again from what is left: `power_cut [SEED]`.

use std::error::Error;
use std::rc::Rc;

use bcache_engine::dev::{BlockDev, Buf};
use bcache_engine::env::Env;
use bcache_engine::request::DeviceVolume;
use bcache_engine::set::CacheSet;
use bcache_engine::settings::SetSettings;
use bcache_engine::sim::{Config, Disk, Image, Outcome, Power, Runtime, Survival};
use bcache_engine::volume::Volume;
use bcache_format::superblock::CacheMode;

mod blank;

/// Starts the set. Whoever has the volume has it all.
async fn start(
    env: &Env,
    cache: Rc<dyn BlockDev>,
    backing: Rc<dyn BlockDev>,
) -> Result<DeviceVolume, Box<dyn Error>> {
    let set = CacheSet::start(env.clone(), cache, SetSettings::default()).await?;
    let device = set.attach(backing).await?;
    device.settings.cache_mode.set(CacheMode::Writeback);
    Ok(DeviceVolume::new(set, device, "example".to_owned()))
}

fn main() -> Result<(), Box<dyn Error>> {
    // Another seed is another order of tasks, other latencies, and other sectors that survive.
    let seed = std::env::args().nth(1).map_or(Ok(1), |seed| seed.parse())?;
    let (runtime, power) = (Runtime::new(seed), Power::new());
    let cache = Disk::new(&runtime, &power, Config::new("cache", 96 << 20));
    let backing = Disk::new(&runtime, &power, Config::new("backing", 64 << 20));
    let env = runtime.env();

    let before = runtime.run(&power, async {
        blank::cache(&*cache.dev()).await?;
        blank::backing(&*backing.dev()).await?;
        let volume = start(&env, cache.dev(), backing.dev()).await?;
        volume.write(0, Buf::copied(&[1; 4096]).freeze(), false).await?;
        volume.flush().await?;
        // From here on anything may be lost but what was flushed: here, at the 5000th start or end of an I/O.
        power.cut_at(power.events() + 5000);
        loop {
            volume.write(4096, Buf::copied(&[2; 4096]).freeze(), false).await?;
        }
        #[allow(unreachable_code)]
        Ok::<(), Box<dyn Error>>(())
    });
    assert!(matches!(before, Outcome::Cut), "the power was cut");

    // The next world begins with what each disk kept; its own seed decides about each sector.
    let left: [Image; 2] = [cache.crash(Survival::Seeded), backing.crash(Survival::Seeded)];
    let (runtime, power) = (Runtime::new(seed + 1), Power::new());
    let [cache, backing] =
        [("cache", 96 << 20, &left[0]), ("backing", 64 << 20, &left[1])].map(|(name, bytes, image)| {
            Disk::with_image(&runtime, &power, Config::new(name, bytes), image.clone())
        });
    let env = runtime.env();
    runtime.block_on(async {
        let volume = start(&env, cache.dev(), backing.dev()).await?;
        let read = volume.read(0, 8192).await?;
        let bytes: Vec<u8> = read.iter().flat_map(|piece| piece.iter().copied()).collect();
        assert!(bytes.iter().take(4096).all(|byte| *byte == 1), "what was flushed is there");
        let second = bytes.get(4096).copied().unwrap_or_default();
        println!(
            "seed {seed}: the write that was not flushed is {}",
            if second == 2 { "there" } else { "lost" }
        );
        Ok(())
    })
}
