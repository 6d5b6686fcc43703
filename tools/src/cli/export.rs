//! `bcache export`: the content of a cached device, read without the kernel.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use bcache_engine::fsck::view::{Content, Piece};
use bcache_format::SECTOR_SIZE;
use indicatif::{ProgressBar, ProgressStyle};

use super::choose::{Best, Of, Opened, sectors_of};
use super::output::{Output, Readers, finish_standard};
use super::{Out, Outcome};
use crate::devices::{InUse, each_has_data, each_once, open};

/// Bytes read and written at a time.
const CHUNK: u64 = 1 << 20;
/// Blocks of zeros of this size become holes.
const HOLE: usize = 4096;

/// Write out what a reader of a cached device or flash-only volume would see right now
///
/// The journal is replayed in memory and the cache's extents, dirty and clean, are laid over the backing device.
/// Nothing on the devices is changed. A damaged set is read as `bcache fsck -y` would leave it; what is lost by that is
/// listed, and so are sectors that cannot be read, which become zeros. Either makes the exit code 1. What cannot be put
/// together is refused with the reason.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bcache export -o disk.img /dev/sdb /dev/nvme0n1\n  \
    bcache export -o - --of volume:0 cache.img | sha256sum")]
pub struct Args {
    /// Write to this file, sparse where the content is zeros; `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Which content: a backing device's path, UUID or label, or the N-th flash-only volume as `volume:N`, from 0
    #[arg(long, value_name = "BACKING|volume:N")]
    of: Option<Of>,
    /// Cache and backing devices of one set, in any order
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// Exports.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    each_once(&args.devices)?;
    let mut devices = Vec::new();
    for path in &args.devices {
        devices.push(open(path, InUse::Lay)?);
    }
    each_has_data(&devices)?;
    let Best { opened, lost, complete } = Opened::best(&devices, args.of.as_ref())?;
    let (name, content) = opened.content(args.of.as_ref())?;
    let output = Output::create(&args.output, &args.devices, Readers::All, out)?;
    let progress = progress(&name, content.bytes);
    let to = || match args.output == Path::new("-") {
        true => "standard output".to_owned(),
        false => args.output.display().to_string(),
    };
    let bad = match output {
        Output::Standard(out) => {
            let bad = copy_around(&content, &mut Stream(&mut *out), &progress).with_context(to)?;
            finish_standard(out).with_context(to)?;
            bad
        }
        Output::Stream(file) => copy_around(&content, &mut Stream(file), &progress).with_context(to)?,
        Output::File(partial) => {
            partial.file().set_len(content.bytes).with_context(to)?;
            let bad = copy_around(&content, &mut Sparse(partial.file()), &progress).with_context(to)?;
            partial.finish().with_context(to)?;
            bad
        }
    };
    progress.finish_and_clear();
    for (from, to) in &bad {
        writeln!(std::io::stderr(), "cannot be read, zeros instead: sectors {from}..{to} of {name}")?;
    }
    let lost = match content.slot() {
        Some(slot) => sectors_of(&lost, slot, content.data_offset, content.bytes / SECTOR_SIZE),
        None => Vec::new(),
    };
    for (from, to) in &lost {
        writeln!(std::io::stderr(), "lost, or not in its newest state: sectors {from}..{to} of {name}")?;
    }
    Ok(if complete && bad.is_empty() && lost.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where content goes, in order and without gaps.
pub(super) trait Sink {
    fn data(&mut self, byte: u64, bytes: &[u8]) -> std::io::Result<()>;
    fn zeros(&mut self, bytes: u64) -> std::io::Result<()>;
}

pub(super) struct Stream<W>(pub(super) W);

impl<W: Write> Sink for Stream<W> {
    fn data(&mut self, _: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes)
    }
    fn zeros(&mut self, mut bytes: u64) -> std::io::Result<()> {
        let block = [0; 64 << 10];
        while bytes > 0 {
            let now = bytes.min(block.len() as u64);
            self.0.write_all(&block[..now as usize])?;
            bytes -= now;
        }
        Ok(())
    }
}

/// A file of the right length that reads as zeros where nothing is written.
pub(super) struct Sparse<'f>(pub(super) &'f File);

impl Sink for Sparse<'_> {
    fn data(&mut self, byte: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut at = byte;
        // Runs of blocks that are alike, zeros or not.
        for run in bytes.chunks(HOLE).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let len: usize = run.iter().map(|block| block.len()).sum();
            if !is_zero(run[0]) {
                let start = (at - byte) as usize;
                self.0.write_all_at(&bytes[start..start + len], at)?;
            }
            at += len as u64;
        }
        Ok(())
    }
    fn zeros(&mut self, _: u64) -> std::io::Result<()> {
        Ok(())
    }
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|&byte| byte == 0)
}

/// Copies all of the content, around sectors that cannot be read: they become zeros, and are told.
pub(super) fn copy_around(
    content: &Content<'_>,
    sink: &mut dyn Sink,
    bar: &ProgressBar,
) -> Result<Vec<(u64, u64)>> {
    let mut bad: Vec<(u64, u64)> = Vec::new();
    copy_with(content, sink, bar, &mut |content, piece, skip, bytes| {
        if content.read(&piece.source, skip, bytes).is_ok() {
            return Ok(());
        }
        for (index, sector) in bytes.chunks_mut(SECTOR_SIZE as usize).enumerate() {
            let at = skip + index as u64 * SECTOR_SIZE;
            if content.read(&piece.source, at, sector).is_ok() {
                continue;
            }
            sector.fill(0);
            let place = (piece.byte + at) / SECTOR_SIZE;
            match bad.last_mut().filter(|(_, to)| *to == place) {
                Some((_, to)) => *to += 1,
                None => bad.push((place, place + 1)),
            }
        }
        Ok(())
    })?;
    Ok(bad)
}

/// Reads a part of a piece, so many bytes behind its start.
type ReadPart<'r> = dyn FnMut(&Content<'_>, &Piece, u64, &mut [u8]) -> Result<()> + 'r;

fn copy_with(
    content: &Content<'_>,
    sink: &mut dyn Sink,
    bar: &ProgressBar,
    read: &mut ReadPart<'_>,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK as usize];
    for piece in content.pieces(0, content.bytes) {
        let piece = piece?;
        let mut skip = 0;
        while skip < piece.bytes {
            let left = piece.bytes - skip;
            let zeros = content.zeros(&piece.source, skip).min(left);
            let step = if zeros > 0 {
                sink.zeros(zeros)?;
                zeros
            } else {
                let step = left.min(CHUNK);
                let bytes = &mut buffer[..step as usize];
                read(content, &piece, skip, bytes)?;
                sink.data(piece.byte + skip, bytes)?;
                step
            };
            skip += step;
            bar.inc(step);
        }
    }
    Ok(())
}

/// A bar on standard error, when that is a terminal.
pub(super) fn progress(name: &str, bytes: u64) -> ProgressBar {
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes).with_style(style).with_message(name.to_owned())
}
