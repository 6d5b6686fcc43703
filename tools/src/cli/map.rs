//! `bcache map`: where one sector of a cached device lives.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bcache_engine::fsck::view::overlay::Layer;
use bcache_engine::fsck::view::{Content, Piece, PtrState, SeenExtent, Source};
use bcache_format::bkey::KEY_SIZE_MAX;
use bcache_format::{SECTOR_SIZE, Sectors};
use serde_json::{Value, json};

use super::choose::{Of, Opened};
use super::{Out, Outcome};
use crate::devices::{InUse, open_all};

/// Say where a sector of a cached device or flash-only volume lives: which key, bucket, clean or dirty
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache map 2048 /dev/sdb /dev/nvme0n1")]
pub struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Which device the sector is of: a backing device's path, UUID or label, or `volume:N`
    #[arg(long, value_name = "BACKING|volume:N")]
    of: Option<Of>,
    /// Sector of 512 bytes, counted from the start of the cached device's content
    sector: u64,
    /// Cache and backing devices of one set, in any order
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// Says where.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let opened = Opened::new(open_all(&args.devices, InUse::Allow)?, args.of.as_ref())?;
    let (name, content) = opened.content(args.of.as_ref())?;
    let byte = Sectors(args.sector).bytes();
    if byte >= content.bytes {
        bail!("{name} has {} sectors: there is no sector {}", content.bytes / SECTOR_SIZE, args.sector);
    }
    let piece = content.pieces(byte, SECTOR_SIZE).next().context("an empty device")??;
    let key = key_at(&content, byte)?;
    if args.json {
        writeln!(out, "{}", as_json(&name, args.sector, &content, &piece, key.as_ref()))?;
    } else {
        writeln!(out, "sector {} of {name}", args.sector)?;
        as_text(out, &content, &piece, key.as_ref())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The whole extent, with data or without, that the sector at `byte` is in.
fn key_at(content: &Content<'_>, byte: u64) -> Result<Option<SeenExtent>> {
    // No extent is longer than this, so the one that is looked for is not cut at either end.
    let reach = Sectors(KEY_SIZE_MAX).bytes();
    let start = byte.saturating_sub(reach);
    let sector = byte / SECTOR_SIZE + content.data_offset.0;
    for extent in content.extents(start, byte - start + reach) {
        let extent = extent?;
        if extent.key.start() <= sector && sector < extent.key.offset() {
            return Ok(Some(extent));
        }
    }
    Ok(None)
}

fn as_text(out: &mut Out, content: &Content<'_>, piece: &Piece, key: Option<&SeenExtent>) -> Result<()> {
    match &piece.source {
        Source::Cache(at, extent) => {
            let extent = key.unwrap_or(extent);
            let state = if extent.key.dirty() { "dirty: only the cache has it" } else { "clean" };
            writeln!(out, "  is in the cache, {state}")?;
            writeln!(out, "  key     {}, {}", extent.key, layer(extent))?;
            if let Some((name, bucket)) = content.bucket_of(extent) {
                writeln!(out, "  place   {name}: bucket {bucket}, sector {}, byte {at}", at / SECTOR_SIZE)?;
            }
        }
        Source::Backing(at) => {
            writeln!(out, "  is not in the cache")?;
            if let Some(extent) = key {
                writeln!(out, "  key     {}, {}: {}", extent.key, layer(extent), why(extent.state))?;
            }
            let name = content.backing_name().unwrap_or_default();
            writeln!(out, "  place   {name}: sector {}, byte {at}", at / SECTOR_SIZE)?;
        }
        Source::Zeros => writeln!(out, "  is nowhere: it was never written and reads as zeros")?,
    }
    Ok(())
}

fn as_json(name: &str, sector: u64, content: &Content<'_>, piece: &Piece, key: Option<&SeenExtent>) -> Value {
    let object = |extent: &SeenExtent| {
        json!({"inode": extent.key.inode(), "start": extent.key.start(), "sectors": extent.key.size(),
               "dirty": extent.key.dirty(), "from": layer(extent), "text": extent.key.to_string()})
    };
    match &piece.source {
        Source::Cache(at, extent) => {
            let extent = key.unwrap_or(extent);
            let place = content.bucket_of(extent);
            json!({"of": name, "sector": sector, "in": "cache", "dirty": extent.key.dirty(),
                   "key": object(extent), "device": place.as_ref().map(|(name, _)| name.to_string()),
                   "bucket": place.map(|(_, bucket)| bucket), "byte": at})
        }
        Source::Backing(at) => {
            json!({"of": name, "sector": sector, "in": "backing", "dirty": false,
                   "device": content.backing_name(), "byte": at, "key": key.map(object),
                   "miss": key.map(|extent| why(extent.state))})
        }
        Source::Zeros => json!({"of": name, "sector": sector, "in": "nowhere", "dirty": false}),
    }
}

fn layer(extent: &SeenExtent) -> &'static str {
    match extent.layer {
        Layer::Older => "from the btree",
        Layer::Newer => "from the journal",
    }
}

fn why(state: PtrState) -> String {
    match state {
        PtrState::Stale(by) => format!("its bucket was reused since, {by} generations ago"),
        PtrState::Empty => "it says that the cache has nothing here".to_owned(),
        PtrState::NoDevice => "the placeholder of a cache miss".to_owned(),
        PtrState::Live(_) => "it has the data".to_owned(),
    }
}
