//! Writes stamped blocks to a device, or checks them: see the library's `stamp` module.
//!
//!     stamp write DEVICE BLOCK_SECTORS RANGE_SECTORS COUNT SEED rand|seq SYNC_EVERY [ACK_FILE]
//!     stamp check DEVICE BLOCK_SECTORS RANGE_SECTORS COUNT SEED rand|seq ACKED

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bcache_tests::stamp::{Load, Mode};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("stamp: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &[String]) -> Result<bool> {
    let [verb, device, block, range, count, seed, mode, last, rest @ ..] = args else {
        bail!(
            "usage: stamp write|check DEVICE BLOCK_SECTORS RANGE_SECTORS COUNT SEED rand|seq SYNC_EVERY|ACKED [ACK_FILE]"
        );
    };
    let number = |text: &String| text.parse::<u64>().with_context(|| format!("{text}: not a number"));
    let load = Load {
        block_sectors: number(block)?,
        range_sectors: number(range)?,
        count: number(count)?,
        seed: number(seed)?,
        mode: match mode.as_str() {
            "rand" => Mode::Rand,
            "seq" => Mode::Seq,
            _ => bail!("{mode}: rand or seq"),
        },
    };
    let path = Path::new(device);
    match verb.as_str() {
        "write" => {
            load.write(path, number(last)?, rest.first().map(Path::new)).with_context(|| device.clone())?;
            Ok(true)
        }
        "check" => {
            let content =
                BufReader::with_capacity(1 << 20, File::open(path).with_context(|| device.clone())?);
            let report = load.check(content, number(last)?).with_context(|| device.clone())?;
            println!("{report}");
            Ok(report.bad == 0)
        }
        _ => bail!("{verb}: write or check"),
    }
}
