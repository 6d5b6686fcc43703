//! A block device that does nothing: `ublk-null BYTES`. Reads are zeros, writes are dropped. It is the most that a device
//! can do whose requests are answered by a process, for measuring what the engine adds to that.

use bcache_engine::ublk::Mark;
use std::rc::Rc;

use anyhow::Context;
use bcache_engine::dev::{Buf, Shared};
use bcache_engine::env::{Runtime, Signals};
use bcache_engine::volume::{Volume, VolumeFuture, VolumeId};
use bcache_tools::frontend::ublk;
use uuid::Uuid;

const DEPTH: u16 = 128;
/// Bytes of the largest request.
const LARGEST: usize = 1 << 20;

struct Null {
    bytes: u64,
    zeros: Shared,
}

impl Volume for Null {
    fn size_bytes(&self) -> u64 {
        self.bytes
    }
    fn block_size(&self) -> u32 {
        4096
    }
    fn id(&self) -> VolumeId {
        VolumeId { name: "null".into(), label: String::new(), uuid: Uuid::nil() }
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, _at: u64, len: u32) -> VolumeFuture<'_, Vec<Shared>> {
        let zeros = self.zeros.slice(0..(len as usize).min(LARGEST));
        Box::pin(async move { Ok(vec![zeros]) })
    }
    fn write(&self, _at: u64, _data: Shared, _fua: bool) -> VolumeFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    fn flush(&self) -> VolumeFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    fn discard(&self, _at: u64, _len: u64) -> VolumeFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    fn write_zeroes(&self, _at: u64, _len: u64, _fua: bool, _no_hole: bool) -> VolumeFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

fn main() -> anyhow::Result<()> {
    let bytes = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).context("usage: ublk-null BYTES")?;
    let runtime = Runtime::new()?;
    let env = runtime.env();
    ublk::available(runtime.backend())?;
    let signals = Signals::termination(&env)?;
    runtime.block_on(async {
        let volume = Rc::new(Null { bytes, zeros: Buf::zeroed(LARGEST).freeze() });
        let device = ublk::Device::create(&env, volume, DEPTH, 0, Mark(1)).await?;
        println!("/dev/ublkb{}", device.id());
        signals.next().await?;
        device.remove().await?;
        Ok(())
    })
}
