//! `cargo quickstart`: the programs at work on files, without root and without the kernel's bcache.

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use bcache_tests::golden::Set;
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
    for (name, len) in [("ssd.img", 512 << 20), ("disk.img", 2 << 30)] {
        sparse::create(&dir.join(name), len).with_context(|| name.to_owned())?;
    }
    println!("Two sparse files in {} stand for an SSD and a disk.\n", dir.display());
    say("Format one as a cache of 512 KiB buckets and the other as a backing device:");
    call(&dir, "make-bcache", &["--writeback", "--label", "quick", "-C", "ssd.img", "-B", "disk.img"])?;
    say("Show what is on them now:");
    call(&dir, "bcache-super-show", &["ssd.img", "disk.img"])?;
    let set = Set::open("two-backing-flash")?;
    println!("A set that Linux left dirty: the cache holds writes that its two disks do not have yet.\n");
    // Copies, so that what is typed after them cannot harm the ones that tests read.
    set.copy_to(&dir)?;
    say("Read the first disk as its user would see it, cache and all, without the kernel's bcache:");
    call(
        &dir,
        "bcache",
        &["export", "-o", "content.img", "--of", "backing.img", "cache.img", "backing.img", "backing2.img"],
    )?;
    let (hash, bytes) = sparse::sha256(File::open(dir.join("content.img"))?)?;
    println!("{bytes} bytes, sha256 {hash}");
    if !set.entry.content.iter().any(|content| content.of == "backing.img" && content.sha256 == hash) {
        bail!("that is not what Linux read from it");
    }
    println!("which is what Linux read from /dev/bcache0.");
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
