//! Writes stamped blocks to a device, or checks them: see the library's `stamp` module.
//!
//!     stamp write DEVICE BLOCK_SECTORS RANGE_SECTORS COUNT SEED rand|seq SYNC_EVERY [ACK_FILE | -- PROGRAM]
//!     stamp check DEVICE BLOCK_SECTORS RANGE_SECTORS COUNT SEED rand|seq ACKED
//!
//! After each flush the number of writes that are durable goes to ACK_FILE, or PROGRAM is run with it.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use bcache_tests::stamp::{self, Load, Mode};

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
            "usage: stamp write|check DEVICE BLOCK_SECTORS RANGE_SECTORS COUNT SEED rand|seq SYNC_EVERY|ACKED [ACK_FILE | -- PROGRAM]"
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
            let every = number(last)?;
            let written = match rest {
                [] => load.write(path, every, |_| Ok(())),
                [ack] => {
                    let ack = File::create(ack).with_context(|| ack.clone())?;
                    load.write(path, every, |durable| stamp::note(&ack, durable))
                }
                [dashes, program] if dashes == "--" => {
                    load.write(path, every, |durable| succeed(program, durable))
                }
                _ => bail!("ACK_FILE or -- PROGRAM"),
            };
            written.with_context(|| device.clone())?;
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

fn succeed(program: &str, durable: u64) -> io::Result<()> {
    let status = Command::new(program).arg(durable.to_string()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{program}: {status}"))) }
}
