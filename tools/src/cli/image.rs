//! `bcache image`: the metadata of a device in a small file.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bcache_engine::fsck::image::{Image, MAGIC, MARK, MARK_AT, take};
use bcache_engine::fsck::view::ReadAt;

use super::devices::{InUse, open};
use super::{Out, Outcome};

/// Metadata that an image may unpack to: more than the largest cache has, less than what stops a machine.
const UNPACKED_MAX: u64 = 4 << 30;

/// Save the metadata of a device to a small file, for a bug report
///
/// The file has what a check reads of the device, compressed, and nothing of the cached data; `bcache fsck -n` and
/// `bcache dump` take it in place of the device. Labels and UUIDs are in it. With --restore the file becomes a sparse
/// image of the device's size again, which says of itself that it has no data, so that none is taken from it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bcache image -o cache.bcimg /dev/nvme0n1\n  \
    bcache image --restore -o cache.img cache.bcimg")]
pub struct Args {
    /// Make a sparse image of a metadata image
    #[arg(long)]
    restore: bool,
    /// The file to write; it must not exist yet
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The device, or with --restore the metadata image
    #[arg(value_name = "DEV")]
    device: PathBuf,
}

/// Saves, or restores.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    let file = || {
        let file = OpenOptions::new().write(true).create_new(true).open(&args.output);
        file.with_context(|| args.output.display().to_string())
    };
    if args.restore {
        let Some(image) = unpack(&args.device)? else {
            bail!("{}: not a metadata image", args.device.display());
        };
        let file = file()?;
        file.set_len(image.size())?;
        for (byte, bytes) in image.ranges() {
            file.write_all_at(bytes, byte)?;
        }
        // What is not metadata reads as zeros, and must not be taken for anybody's data.
        file.write_all_at(MARK, MARK_AT)?;
        file.sync_all()?;
        return Ok(ExitCode::SUCCESS);
    }
    // Of a device that is written to, what is read is of no single moment.
    let image = take(&open(&args.device, InUse::Refuse)?);
    let packed =
        ruzstd::encoding::compress_to_vec(image.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
    let mut file = file()?;
    file.write_all(MAGIC)?;
    file.write_all(&packed)?;
    file.sync_all()?;
    let bytes = MAGIC.len() + packed.len();
    writeln!(out, "{} bytes of metadata in {bytes}", image.len())?;
    Ok(ExitCode::SUCCESS)
}

/// The metadata image in a file; nothing when the file is something else.
pub fn unpack(path: &Path) -> Result<Option<Image>> {
    let name = path.display().to_string();
    let mut file = std::fs::File::open(path).with_context(|| name.clone())?;
    let mut magic = [0; MAGIC.len()];
    if file.read_exact(&mut magic).is_err() || magic != MAGIC {
        return Ok(None);
    }
    let damaged = || format!("{name}: not a whole metadata image");
    let stream = std::io::BufReader::new(file);
    let decoder = ruzstd::decoding::StreamingDecoder::new(stream).with_context(damaged)?;
    let mut bytes = Vec::new();
    decoder.take(UNPACKED_MAX).read_to_end(&mut bytes).with_context(damaged)?;
    Ok(Some(Image::parse(&bytes, &name).with_context(damaged)?))
}
