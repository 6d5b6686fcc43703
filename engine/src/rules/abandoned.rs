//! Devices that part with a set in disorder: what the cache has of them is never served again.

use super::arranged::{arranged, survives};
use super::crash::{Rig, Shape};
use super::tree::LARGE;
use crate::dev::Buf;
use crate::request::AloneVolume;
use crate::sim::{Fault, FaultOn};
use crate::sim_bugs::Bug;
use crate::volume::Volume;
use bcache_format::superblock::CacheMode;
use std::rc::Rc;

/// The cache fails under a device with nothing dirty, which goes on without it; then the power fails and the cache is back.
#[test]
fn rule_9_a_device_that_a_failed_set_has_abandoned_says_stale() {
    let scene = || -> Result<(), String> {
        let rig = Rig::new(&Shape { mode: CacheMode::Writethrough, ..LARGE });
        let written = rig.run(|it| async move {
            it.write(0, 8, 1).await;
            it.write(64, 8, 1).await;
            it.volume.flush().await.map_err(|error| error.to_string())?;
            it.cached_at(0).await;
            // A leaf has the keys: of those that only the journal has a start trusts none that says clean.
            it.set.checkpoint().await.map_err(|error| error.to_string())?;
            assert!(!it.set.can_abandon(&it.device), "it works");
            it.cache.inject(Fault::eio(FaultOn::Any, 0..u64::MAX));
            // A write has to forget the clean copy in the cache first, which is the end of the set.
            while it.set.failure().is_none() {
                let _ = it.try_write(0, 8, 1).await;
                let _ = it.volume.flush().await;
            }
            it.set.abandon(&it.device).await.map_err(|error| error.to_string())?;
            let alone = AloneVolume::of(Rc::clone(&it.device)).ok_or("it is of the set still")?;
            alone
                .write(0, Buf::copied(&[2; 4096]).freeze(), false)
                .await
                .map_err(|error| error.to_string())?;
            alone.flush().await.map_err(|error| error.to_string())?;
            Ok::<_, String>(vec![(0, 2), (64, 1)])
        })?;
        survives(rig.images(), &written)
    };
    arranged(Bug::AbandonWithoutStale, scene);
}

/// What only the cache has is not given up.
#[test]
fn rule_9_a_device_with_dirty_data_is_not_abandoned() {
    let rig = Rig::new(&Shape { mode: CacheMode::Writeback, ..LARGE });
    rig.run(|it| async move {
        it.device.settings.writeback_running.set(false);
        it.write(0, 8, 1).await;
        it.cache.inject(Fault::eio(FaultOn::Write, 0..u64::MAX));
        while it.set.failure().is_none() {
            let _ = it.try_write(0, 8, 2).await;
            let _ = it.volume.flush().await;
            let _ = it.volume.discard(1 << 20, 1 << 20).await;
        }
        assert!(!it.set.can_abandon(&it.device));
        assert!(it.set.abandon(&it.device).await.is_err());
        assert!(AloneVolume::of(Rc::clone(&it.device)).is_none());
    });
}

/// A slot that is given up leaves neither keys nor dirty data, and only in so many words.
#[test]
fn a_device_that_never_comes_back_is_forgotten() {
    let rig = Rig::new(&Shape { mode: CacheMode::Writeback, ..LARGE });
    let uuid = rig.run(|it| async move {
        it.device.settings.writeback_running.set(false);
        for i in 0..200 {
            it.write(i * 16, 8, 7).await;
        }
        assert!(it.set.absent().is_empty());
        it.set.stop().await.expect("a clean stop");
        it.device.uuid
    });
    let again = Rig::with(&LARGE, rig.images());
    let runtime = &again.runtime;
    let env = runtime.env();
    let cache = again.cache.dev();
    runtime.block_on(async move {
        let settings = crate::settings::SetSettings::default();
        let set = crate::set::CacheSet::start(env, cache, settings).await.expect("it starts");
        let absent = set.absent();
        assert_eq!(absent.len(), 1);
        assert_eq!((absent[0].uuid, absent[0].dirty_sectors), (uuid, 1600));
        assert!(set.forget_device(uuid, false).await.is_err());
        assert_eq!(set.absent().len(), 1);
        set.forget_device(uuid, true).await.expect("in so many words");
        assert!(set.absent().is_empty());
        assert!(set.dirty_inodes().is_empty());
        assert_eq!(set.audit().await.expect("an audit"), Vec::<String>::new());
        set.stop().await.expect("a clean stop");
    });
}
