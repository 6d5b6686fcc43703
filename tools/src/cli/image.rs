//! `bcache image`: the metadata of a device in a small file.

use crate::devices::unpack;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use bcache_engine::fsck::image::{Image, MAGIC, MARK, MARK_AT, take};
use bcache_engine::fsck::view::ReadAt;

use super::export::{Sink, Sparse, Stream};
use super::output::{Output, Readers, finish_standard};
use super::{Out, Outcome};
use crate::devices::{InUse, open};

/// Save the metadata of a device to a small file, for a bug report
///
/// The file has all metadata that a check reads, compressed, and nothing of the cached data; `bcache fsck -n` and
/// `bcache dump` take it in place of the device. Labels and UUIDs are in it. With --restore the file becomes a sparse
/// image of the device's size again, which says of itself that it has no data, so that none is taken from it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bcache image -o cache.bcimg /dev/nvme0n1\n  \
    bcache image --restore -o cache.img cache.bcimg")]
pub struct Args {
    /// Make a sparse image of a metadata image
    #[arg(long)]
    restore: bool,
    /// The file to write; `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The device, or with --restore the metadata image
    #[arg(value_name = "DEV")]
    device: PathBuf,
}

/// Saves, or restores.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let name = || args.output.display().to_string();
    let reads = std::slice::from_ref(&args.device);
    let readers = Readers::All;
    if args.restore {
        let Some(image) = unpack(&args.device)? else {
            bail!("{}: not a metadata image", args.device.display());
        };
        match Output::create(&args.output, reads, readers, out)? {
            Output::Standard(out) => {
                restore(&image, &mut Stream(&mut *out))
                    .and_then(|()| finish_standard(out))
                    .with_context(name)?;
            }
            Output::Stream(file) => restore(&image, &mut Stream(file)).with_context(name)?,
            Output::File(partial) => {
                partial.file().set_len(image.size()).with_context(name)?;
                restore(&image, &mut Sparse(partial.file())).with_context(name)?;
                partial.finish().with_context(name)?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Of a device that is written to, what is read is of no single moment.
    let device = open(&args.device, InUse::Tell)?;
    let output = Output::create(&args.output, reads, readers, out)?;
    let image = take(&device);
    let packed =
        ruzstd::encoding::compress_to_vec(image.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
    let bytes = [MAGIC, packed.as_slice()].concat();
    output.write_whole(&bytes).with_context(name)?;
    if args.output != Path::new("-") {
        writeln!(out, "{} bytes of metadata in {}", image.len(), bytes.len())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes out what the image has. What is not metadata reads as zeros, and must not be taken for anybody's data: the
/// mark says so.
fn restore(image: &Image, sink: &mut dyn Sink) -> std::io::Result<()> {
    let marked = MARK_AT..MARK_AT + MARK.len() as u64;
    let mut at = 0;
    let zeros = |sink: &mut dyn Sink, from: u64, to: u64| -> std::io::Result<()> {
        if from <= marked.start && marked.end <= to {
            sink.zeros(marked.start - from)?;
            sink.data(marked.start, MARK)?;
            return sink.zeros(to - marked.end);
        }
        sink.zeros(to - from)
    };
    for (byte, bytes) in image.ranges() {
        zeros(sink, at, byte)?;
        sink.data(byte, bytes)?;
        at = byte + bytes.len() as u64;
    }
    zeros(sink, at, image.size().max(at))
}
