//! Plays a trace on a device, one request at a time: see the library's `trace` module.
//!
//!     trace streams|evictions DEVICE

use std::path::Path;

use anyhow::{Context, Result, bail};
use bcache_tests::trace::{Kind, play};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kind, device] = &args[..] else { bail!("usage: trace streams|evictions DEVICE") };
    let kind = Kind::from_name(kind).with_context(|| format!("{kind}: streams or evictions"))?;
    play(Path::new(device), kind).with_context(|| device.clone())
}
