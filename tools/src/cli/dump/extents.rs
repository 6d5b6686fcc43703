//! `bcache dump extents`.

use anyhow::Result;
use bcache_engine::fsck::view::overlay::Layer;
use bcache_engine::fsck::view::{Cache, PtrState, SetView};
use bcache_format::Pos;
use serde_json::json;

use super::Printer;

pub(super) fn print(cache: Cache, to: &mut Printer<'_, '_>) -> Result<()> {
    if cache.njournal_buckets() == 0 {
        return super::journal(&cache, to).map(drop);
    }
    let mut printed = Ok(());
    let view = SetView::read(cache, &mut |fault| {
        if printed.is_ok() {
            printed = to.fault(&fault);
        }
    });
    printed?;
    let header = || {
        format!(
            "{:<6} {:>14} {:>6}  {:<5} {:>14} {:>10} {:>4}  {}",
            "inode", "start", "size", "state", "cache sector", "bucket", "gen", "from"
        )
    };
    if !to.json {
        to.line(header, || json!(null))?;
    }
    for extent in view.extents(Pos::ZERO, Pos::MAX) {
        let extent = match extent {
            Ok(extent) => extent,
            Err(fault) => {
                to.fault(&fault)?;
                continue;
            }
        };
        let key = &extent.key;
        let state = match extent.state {
            PtrState::Live(_) if key.dirty() => "dirty",
            PtrState::Live(_) => "clean",
            PtrState::Stale(_) => "stale",
            PtrState::Empty => "empty",
            PtrState::NoDevice => "nodev",
        };
        let from = if extent.layer == Layer::Newer { "journal" } else { "btree" };
        let ptr = key.ptr().filter(|ptr| ptr.is_device());
        let bucket = ptr.map(|ptr| view.cache.geometry.ptr_bucket(ptr));
        let text = || {
            let at = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            format!(
                "{:<6} {:>14} {:>6}  {state:<5} {:>14} {:>10} {:>4}  {from}",
                key.inode(),
                key.start(),
                key.size(),
                at(ptr.map(|ptr| ptr.offset().to_string())),
                at(bucket.map(|bucket| bucket.to_string())),
                at(ptr.map(|ptr| ptr.generation().to_string())),
            )
        };
        to.line(text, || {
            json!({"kind": "extent", "inode": key.inode(), "start": key.start(), "sectors": key.size(),
                   "state": state, "dirty": key.dirty(), "sector": ptr.map(|ptr| ptr.offset()),
                   "bucket": bucket, "gen": ptr.map(|ptr| ptr.generation()), "from": from})
        })?;
    }
    Ok(())
}
