//! `bcache export`: the content of a cached device, read without the kernel.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bcache_engine::fsck::view::Content;
use indicatif::{ProgressBar, ProgressStyle};

use super::choose::{Of, Opened};
use super::devices::{InUse, open_all};
use super::{Out, Outcome};

/// Bytes read and written at a time.
const CHUNK: u64 = 1 << 20;
/// Blocks of zeros of this size become holes.
const HOLE: usize = 4096;

/// Write out what a reader of a cached device or flash-only volume would see right now
///
/// The journal is replayed in memory and the cache's extents, dirty and clean, are laid over the backing device.
/// Nothing on the devices is changed. A set that cannot be trusted is refused with the reason.
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
    let opened = Opened::new(open_all(&args.devices, InUse::Refuse)?, args.of.as_ref())?;
    let (name, content) = opened.content(args.of.as_ref())?;
    opened.must_be_sound()?;
    let progress = progress(&name, content.bytes);
    if args.output == Path::new("-") {
        if out.get_ref().is_terminal() {
            bail!("standard output is a terminal; name a file with -o");
        }
        copy(&content, &mut Stream(&mut *out), &progress)?;
        out.flush()?;
    } else {
        export_to(&args.output, &args.devices, &content, &progress)
            .with_context(|| args.output.display().to_string())?;
    }
    progress.finish_and_clear();
    Ok(ExitCode::SUCCESS)
}

/// Writes a file under a name of its own and moves it into place when it is whole, so that no half of an export is
/// ever taken for one.
fn export_to(output: &Path, devices: &[PathBuf], content: &Content<'_>, bar: &ProgressBar) -> Result<()> {
    if let Ok(meta) = std::fs::metadata(output) {
        if meta.file_type().is_block_device() {
            bail!("is a block device; use `-o -` and a tool that writes to devices");
        }
        for device in devices {
            let other = std::fs::metadata(device)?;
            if (other.dev(), other.ino()) == (meta.dev(), meta.ino()) {
                bail!("is one of the devices to read");
            }
        }
        if !meta.is_file() {
            let file = OpenOptions::new().write(true).open(output)?;
            return copy(content, &mut Stream(file), bar);
        }
    }
    let mut partial = output.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(partial);
    let file = OpenOptions::new().write(true).create_new(true).open(&partial)?;
    let written = file
        .set_len(content.bytes)
        .map_err(anyhow::Error::from)
        .and_then(|()| copy(content, &mut Sparse(&file), bar))
        .and_then(|()| Ok(file.sync_all()?))
        .and_then(|()| Ok(std::fs::rename(&partial, output)?));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&partial);
    }
    written
}

/// Where content goes, in order and without gaps.
pub(super) trait Sink {
    fn data(&mut self, byte: u64, bytes: &[u8]) -> std::io::Result<()>;
    fn zeros(&mut self, bytes: u64) -> std::io::Result<()>;
}

struct Stream<W>(W);

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

/// Copies all of the content.
pub(super) fn copy(content: &Content<'_>, sink: &mut dyn Sink, bar: &ProgressBar) -> Result<()> {
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
                content.read(&piece.source, skip, bytes)?;
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
