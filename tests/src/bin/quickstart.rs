//! `cargo quickstart`: the programs at work on files, without root and without the kernel's bcache.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use bcache_tests::{paths, sparse};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let dir = paths::kept("quickstart")?;
    for (name, len) in [("cache.img", 512 << 20), ("disk.img", 2 << 30)] {
        sparse::create(&dir.join(name), len).with_context(|| name.to_owned())?;
    }
    println!("Two sparse files in {} stand for an SSD and a disk.\n", dir.display());
    say("Format one as a cache of 512 KiB buckets and the other as a backing device:");
    call(&dir, "make-bcache", &["--writeback", "--label", "quick", "-C", "cache.img", "-B", "disk.img"])?;
    say("Show what is on them now:");
    call(&dir, "bcache-super-show", &["cache.img", "disk.img"])?;
    Ok(())
}

fn say(text: &str) {
    println!("# {text}");
}

/// Prints a command line and runs it, so that what is seen can be typed again.
fn call(dir: &Path, program: &str, args: &[&str]) -> Result<()> {
    println!("$ {program} {}", args.join(" "));
    let status = Command::new(paths::program(program)?)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .status()
        .with_context(|| program.to_owned())?;
    println!();
    if !status.success() {
        bail!("{program}: {status}");
    }
    Ok(())
}
