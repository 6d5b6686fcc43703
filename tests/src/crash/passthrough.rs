//! The simplest subject: a volume that is its disk. Right as it is, and wrong in ways to be chosen, so that it is known
//! what the judge can see.

use std::cell::Cell;
use std::rc::Rc;

use bcache_engine::dev::{BlockDev, Buf, Shared};
use bcache_engine::env::{Env, Rng};
use bcache_engine::sim::{Config, Disk};
use bcache_engine::volume::{Volume, VolumeFuture, VolumeId};

use super::kept::Kept;
use super::run::{Running, Subject, Volumes};
use super::set::Focus;

/// What is wrong with a [`Passthrough`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassthroughBug {
    /// Nothing.
    None,
    /// Flushes are acknowledged and not made.
    FlushIsALie,
    /// FUA is dropped.
    FuaIsDropped,
    /// Writes are acknowledged when they begin.
    AckBeforeWrite,
    /// One of sixty-four writes goes eight sectors too far.
    WrongPlace,
    /// The start writes an old sector back.
    RecoveryUndoes,
    /// One of thirty-two reads waits for ever.
    Hang,
}

/// A volume of 1 MiB that is its disk; `BUG` says what is wrong with it.
#[derive(Debug)]
pub struct Passthrough<const BUG: u8>;

impl<const BUG: u8> Passthrough<BUG> {
    fn bug() -> PassthroughBug {
        use PassthroughBug::*;
        [None, FlushIsALie, FuaIsDropped, AckBeforeWrite, WrongPlace, RecoveryUndoes, Hang][usize::from(BUG)]
    }
}

const BYTES: u64 = 1 << 20;

impl<const BUG: u8> Subject for Passthrough<BUG> {
    type Running = Through;

    fn draw(_rng: &mut Rng, _focus: &Focus) -> Self {
        Passthrough
    }

    fn disks(&self) -> Vec<Config> {
        vec![Config::new("disk", BYTES)]
    }

    fn sectors(&self) -> Vec<u64> {
        vec![BYTES / 512]
    }

    async fn format(&self, disks: &[Disk]) -> Result<(), String> {
        let disk = disks[0].dev();
        disk.write_zeroes(0, BYTES).await.map_err(|error| error.to_string())?;
        disk.flush().await.map_err(|error| error.to_string())
    }

    async fn start(
        &self,
        env: &Env,
        disks: &[Disk],
        _kept: &Rc<Kept>,
        _rng: &mut Rng,
    ) -> Result<Through, String> {
        let disk = disks[0].dev();
        disk.read(0, Buf::zeroed(4096)).await.map_err(|error| error.to_string())?;
        if Self::bug() == PassthroughBug::RecoveryUndoes {
            let zeroes = Buf::zeroed(512).freeze();
            disk.write(0, zeroes, true).await.map_err(|error| error.to_string())?;
        }
        Ok(Through { env: env.clone(), disk, bug: Self::bug(), count: Rc::default() })
    }
}

/// A started [`Passthrough`].
#[derive(Clone)]
pub struct Through {
    env: Env,
    disk: Rc<dyn BlockDev>,
    bug: PassthroughBug,
    count: Rc<Cell<u64>>,
}

impl Through {
    /// True once in `of` calls.
    fn sometimes(&self, of: u64) -> bool {
        self.count.set(self.count.get() + 1);
        self.count.get().is_multiple_of(of)
    }
}

impl Running for Through {
    fn volumes(&self) -> Volumes {
        vec![Some(Rc::new(self.clone()))]
    }

    async fn stop(&self) -> Result<bool, String> {
        self.disk.flush().await.map_err(|error| error.to_string()).map(|()| true)
    }
}

impl Volume for Through {
    fn size_bytes(&self) -> u64 {
        BYTES
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn id(&self) -> VolumeId {
        VolumeId { name: "through".into(), label: String::new(), uuid: Default::default() }
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, at: u64, len: u32) -> VolumeFuture<'_, Vec<Shared>> {
        Box::pin(async move {
            if self.bug == PassthroughBug::Hang && self.sometimes(32) {
                std::future::pending::<()>().await;
            }
            Ok(vec![self.disk.read(at, Buf::zeroed(len as usize)).await?.freeze()])
        })
    }

    fn write(&self, at: u64, data: Shared, fua: bool) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            let fua = fua && self.bug != PassthroughBug::FuaIsDropped;
            let lost = self.bug == PassthroughBug::WrongPlace && self.sometimes(64);
            let far = at + data.len() as u64 + 4096 <= BYTES;
            let at = if lost && far { at + 4096 } else { at };
            if self.bug == PassthroughBug::AckBeforeWrite {
                let disk = Rc::clone(&self.disk);
                let write = async move { drop(disk.write(at, data, fua).await) };
                self.env.spawn(write).detach();
                return Ok(());
            }
            Ok(self.disk.write(at, data, fua).await?)
        })
    }

    fn flush(&self) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            if self.bug == PassthroughBug::FlushIsALie {
                return Ok(());
            }
            Ok(self.disk.flush().await?)
        })
    }

    fn discard(&self, at: u64, len: u64) -> VolumeFuture<'_, ()> {
        Box::pin(async move { Ok(self.disk.discard(at, len).await?) })
    }

    fn write_zeroes(&self, at: u64, len: u64, fua: bool, _no_hole: bool) -> VolumeFuture<'_, ()> {
        Box::pin(async move {
            self.disk.write_zeroes(at, len).await?;
            if fua {
                self.disk.flush().await?;
            }
            Ok(())
        })
    }
}
