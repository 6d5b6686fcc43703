//! `cargo quickstart`: a cache set at work on two files, without root and without the kernel's bcache.

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bcache_tests::nbd::Served;
use bcache_tests::{paths, sparse};
use comfy_table::{CellAlignment, Table, presets};

/// Bytes of a request.
const BLOCK: u64 = 4096;
/// Blocks that are read twice.
const BLOCKS: u64 = 1000;
/// Blocks that are written.
const WRITES: u64 = 4000;
/// What each access to the slow file costs, in milliseconds: a disk with an arm.
const DELAY: &str = "4";

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
    // Removed at the end, whatever happens.
    let scratch = paths::scratch()?;
    let dir = scratch.path();
    for (name, len) in [("ssd.img", 512 << 20), ("disk.img", 128 << 20)] {
        sparse::create(&dir.join(name), len).with_context(|| name.to_owned())?;
    }
    println!("Two sparse files in {} stand for an SSD and a slow disk.\n", dir.display());
    say("Format one as a cache and the other as a backing device:");
    call(dir, "make-bcache", &["--writeback", "--label", "quick", "-C", "ssd.img", "-B", "disk.img"])?;

    say(&format!("Serve them to NBD clients, each access to the slow file taking {DELAY} ms longer:"));
    println!("$ bcache serve --nbd socket --backing-delay {DELAY} ssd.img disk.img\n");
    let stats = dir.join("stats.json");
    let stats_option = stats.to_string_lossy();
    let options = ["--backing-delay", DELAY, "--stats-json", &*stats_option];
    let served = Served::start(dir, &options, &[dir.join("ssd.img"), dir.join("disk.img")])?;
    let mut client = served.client("quick").context("the server just started")?;
    let size = client.bytes;

    say("Read 1000 scattered blocks twice, then write 4000 blocks and make them durable:");
    let mut rows = Vec::new();
    for what in ["cold reads", "warm reads"] {
        let reads = (0..BLOCKS).map(|i| scattered(i, size));
        rows.push((what, timed(reads, |at| client.read(at, BLOCK as u32).map(drop))?));
        // What was missed is cached behind the client's back.
        std::thread::sleep(Duration::from_millis(200));
    }
    let written = timed(written_blocks(size), |at| client.write(at, &content(at), false))?;
    rows.push(("writes", written));
    rows.push(("flush", timed([0].into_iter(), |_| client.flush())?));
    println!("{}\n", latency_table(&rows));
    drop(client);
    let (status, took) = served.stop()?;
    if !status.success() {
        bail!("the server ended with {status}");
    }
    println!("It stopped within {} ms. What the cache did:\n{}\n", took.as_millis(), hit_table(&stats)?);

    say("The cache still holds what the slow file does not have. Read both without a server:");
    call(dir, "bcache", &["export", "-o", "content.img", "ssd.img", "disk.img"])?;
    let exported = sparse::sha256(File::open(dir.join("content.img"))?)?;
    if exported != sparse::sha256(&expected(size)[..])? {
        bail!("the export is not what the client wrote");
    }
    println!("{} bytes, sha256 {}: what the client wrote, to the byte.", exported.1, exported.0);
    Ok(())
}

/// The byte that block number `i` of a scattered sequence starts at.
fn scattered(i: u64, size: u64) -> u64 {
    i * 1_000_003 % (size / BLOCK) * BLOCK
}

/// What is written at a byte.
fn content(at: u64) -> Vec<u8> {
    at.to_le_bytes().repeat(BLOCK as usize / 8)
}

fn written_blocks(size: u64) -> impl Iterator<Item = u64> {
    (0..WRITES).map(move |i| scattered(i + 7 * BLOCKS, size))
}

/// All of the device after the writes.
fn expected(size: u64) -> Vec<u8> {
    let mut all = vec![0; size as usize];
    for at in written_blocks(size) {
        all[at as usize..(at + BLOCK) as usize].copy_from_slice(&content(at));
    }
    all
}

/// Durations of requests at these bytes, in order of length.
fn timed(
    places: impl Iterator<Item = u64>,
    mut request: impl FnMut(u64) -> std::io::Result<()>,
) -> Result<Vec<Duration>> {
    let mut all = Vec::new();
    for at in places {
        let begun = Instant::now();
        request(at)?;
        all.push(begun.elapsed());
    }
    all.sort_unstable();
    Ok(all)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn latency_table(rows: &[(&str, Vec<Duration>)]) -> Table {
    let mut table = table(&["", "requests", "median us", "99 % us", "worst us"]);
    for (what, all) in rows {
        let micros = |part: usize| all[(all.len() * part / 100).min(all.len() - 1)].as_micros().to_string();
        table.add_row([(*what).to_owned(), all.len().to_string(), micros(50), micros(99), micros(100)]);
    }
    table
}

fn hit_table(stats: &Path) -> Result<Table> {
    let stats: serde_json::Value = serde_json::from_reader(File::open(stats)?)?;
    let device = &stats["devices"][0];
    let number = |name: &str| device[name].as_u64().unwrap_or(0);
    let (hits, misses) = (number("cache_hits"), number("cache_misses"));
    let ratio = hits * 100 / (hits + misses).max(1);
    let bypassed = number("bypassed_sectors") / 2;
    let mut table = table(&["hits", "misses", "hit ratio", "bypassed KiB", "dirty KiB"]);
    table.add_row([hits.to_string(), misses.to_string(), format!("{ratio} %"), bypassed.to_string(), {
        (number("dirty_sectors") / 2).to_string()
    }]);
    Ok(table)
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
