//! `bcache status` and `bcache metrics`: what runs, for people and for programs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use bcache_engine::stats::Window;
use bytesize::ByteSize;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{Out, Outcome};
use crate::control::client::statuses;
use crate::{config, dm, expose, kernel};

/// Show sets, caches and devices: states, dirty data, hit ratios; those of the kernel's bcache, too
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bcache status\n  bcache status --watch 5")]
pub struct Args {
    /// One JSON object a line for each set instead
    #[arg(long)]
    json: bool,
    /// Again every so many seconds, until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    watch: Option<u64>,
}

/// Everything that runs.
pub(super) fn all() -> Result<Vec<Value>> {
    let mut all: Vec<Value> = statuses()?.into_iter().map(|(_, status)| status).collect();
    all.extend(kernel::sets());
    if let Some(alone) = alone() {
        all.push(alone);
    }
    Ok(all)
}

/// Devices that run without cache, as a set of none.
fn alone() -> Option<Value> {
    dm::available().ok()?;
    let mut devices = Vec::new();
    for (device, uuid) in expose::alone().ok()? {
        let table = dm::table(&device.name).unwrap_or_default();
        let below = table.first().and_then(dm::Target::below);
        let backing = below.and_then(|(below, _)| expose::kernel_name(below)).unwrap_or_default();
        devices.push(json!({
            "name": device.name,
            "path": format!("/dev/mapper/{}", device.name),
            "uuid": uuid,
            "backing": format!("/dev/{backing}"),
            "bytes": table.first().map_or(0, |target| target.sectors * 512),
            "state": "no cache",
        }));
    }
    (!devices.is_empty()).then(|| json!({"engine": "none", "state": "no cache", "devices": devices}))
}

/// Shows.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    loop {
        let all = all()?;
        if args.watch.is_some() && !args.json {
            // Clears the terminal: the cursor home, then all behind it.
            out.flush()?;
            out.get_mut().takes_data(true);
            write!(out, "\x1b[H\x1b[2J")?;
            out.flush()?;
            out.get_mut().takes_data(false);
        }
        if args.json {
            for status in &all {
                writeln!(out, "{status}")?;
            }
        } else if all.is_empty() {
            writeln!(out, "nothing is served; bcache-register DEV... starts a set")?;
        } else {
            for status in &all {
                write!(out, "{}", text_of(status))?;
            }
        }
        out.flush()?;
        match args.watch {
            Some(seconds) => std::thread::sleep(Duration::from_secs(seconds.max(1))),
            None => return Ok(ExitCode::SUCCESS),
        }
    }
}

pub(super) fn word<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn number(value: &Value, name: &str) -> Option<u64> {
    let value = value.get(name)?;
    value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok()))
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| ByteSize::b(bytes).display().iec().to_string())
}

/// Windows of time that hits are counted in, and their heads in tables.
const WINDOWS: [(Window, &str); 4] = [
    (Window::FiveMinute, "hits 5 min"),
    (Window::Hour, "hour"),
    (Window::Day, "day"),
    (Window::Total, "total"),
];

/// Hits of a device in a window, in per cent of all requests that could have been hits.
fn hit_ratio(device: &Value, window: Window) -> String {
    let count = |name| number(device.get("attributes")?, &format!("{}/{name}", window.name()));
    match (count("cache_hits"), count("cache_misses")) {
        (Some(hits), Some(misses)) if hits + misses > 0 => format!("{} %", hits * 100 / (hits + misses)),
        _ => "-".to_owned(),
    }
}

/// A set with what belongs to it, as lines.
fn text_of(status: &Value) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = match word(status, "engine") {
        "none" => writeln!(text, "no cache"),
        engine => writeln!(
            text,
            "set {}  {}{}",
            word(status, "set"),
            word(status, "state"),
            if engine == "kernel" { ", by the kernel" } else { "" }
        ),
    };
    if let Some(failure) = status.get("failure").and_then(Value::as_str) {
        let _ = writeln!(text, "  FAILED: {failure}");
    }
    for fault in status.get("config_faults").and_then(Value::as_array).into_iter().flatten() {
        let fault = super::escaped(fault.as_str().unwrap_or_default());
        let _ = writeln!(text, "  {}: {fault}", config::PATH);
    }
    if let Some(retired) = status.get("retired").and_then(Value::as_str) {
        let _ = writeln!(text, "  FAILING: {retired}");
    }
    // One that has nothing here is nobody's worry.
    let absent = status.get("absent").and_then(Value::as_array).into_iter().flatten();
    for absent in absent.filter(|absent| number(absent, "dirty_bytes") > Some(0)) {
        let _ = writeln!(
            text,
            "  device {} {:?} is not there; {} of it are in the cache alone",
            word(absent, "uuid"),
            word(absent, "label"),
            size(number(absent, "dirty_bytes")),
        );
    }
    for device in status.get("devices").and_then(Value::as_array).into_iter().flatten() {
        if let Some(error) = device.get("error").and_then(Value::as_str) {
            let _ = writeln!(text, "  {}  FAILED: {error}", word(device, "path"));
        }
    }
    for kept in status.get("kept").and_then(Value::as_array).into_iter().flatten() {
        let _ = writeln!(text, "  {}  {}", word(kept, "path"), super::escaped(word(kept, "standing")));
    }
    if let Some(cache) = status.get("cache") {
        let used = number(cache, "in_use_percent").map_or_else(|| "-".to_owned(), |used| format!("{used} %"));
        let _ = writeln!(
            text,
            "  cache {}  {} in buckets of {}, {used} in use",
            word(cache, "device"),
            size(number(cache, "buckets").zip(number(cache, "bucket_bytes")).map(|(a, b)| a * b)),
            size(number(cache, "bucket_bytes")),
        );
    }
    for part in status.get("parts").and_then(Value::as_array).into_iter().flatten() {
        match word(part, "standing") {
            "active" => {}
            "alone" => {
                let _ = writeln!(text, "  {}  goes on without cache", word(part, "device"));
            }
            "failed" => {
                let _ = writeln!(text, "  {}  FAILED: {}", word(part, "device"), word(part, "error"));
            }
            "waiting" => {
                let _ = writeln!(text, "  {}  waits for the cache of its set", word(part, "device"));
            }
            standing => {
                let _ = writeln!(text, "  {}  {standing}", word(part, "device"));
            }
        }
    }
    let devices = status.get("devices").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if !devices.is_empty() {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let columns = ["  device", "backing", "size", "state", "mode", "dirty"];
        table.set_header(columns.into_iter().chain(WINDOWS.map(|(_, head)| head)).chain(["bypassed"]));
        for device in devices {
            let empty = Value::Null;
            let (settings, stats) =
                (device.get("settings").unwrap_or(&empty), device.get("stats").unwrap_or(&empty));
            let backing = match word(device, "backing") {
                "" => "flash only",
                backing => backing,
            };
            let bypassed = number(stats, "bypassed_sectors")
                .map_or_else(|| word(stats, "bypassed").to_owned(), |sectors| size(Some(sectors * 512)));
            let cells = [
                format!("  {}", word(device, "path")),
                backing.to_owned(),
                size(number(device, "bytes")),
                match device.get("error").is_some_and(Value::is_string) {
                    true => "failed".to_owned(),
                    false => word(device, "state").to_owned(),
                },
                word(settings, "cache_mode").to_owned(),
                size(number(device, "dirty_bytes")),
            ];
            let ratios = WINDOWS.map(|(window, _)| hit_ratio(device, window));
            table.add_row(cells.into_iter().chain(ratios).chain([bypassed]));
        }
        let _ = writeln!(text, "{}", table.trim_fmt());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Value {
        json!({
            "set": "s", "engine": "user", "state": "running", "failure": null,
            "cache": {"device": "/dev/fast", "bucket_bytes": 524288, "buckets": 600, "in_use_percent": 3},
            "parts": [{"device": "/dev/late", "standing": "failed", "error": "gone"}],
            "kept": [{"path": "/dev/mapper/kept", "standing": "waits for its backing device"}],
            "devices": [{"name": "a\"b", "path": "/dev/mapper/a", "backing": "/dev/slow", "bytes": 1048576,
                "state": "dirty", "dirty_bytes": 4096, "settings": {"cache_mode": "writeback"},
                "attributes": {"stats_hour/cache_hits": "3", "stats_hour/cache_misses": "1"},
                "stats": {"cache_hits": 3, "cache_misses": 1, "bypassed_sectors": 2}}],
            "stats": {"journal_writes": 7},
        })
    }

    #[test]
    fn people_see_states_and_what_failed() {
        let text = text_of(&example());
        for part in [
            "set s  running",
            "300.0 MiB",
            "FAILED: gone",
            "dirty",
            "writeback",
            "75 %",
            "4.0 KiB",
            "/dev/mapper/kept  waits",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
