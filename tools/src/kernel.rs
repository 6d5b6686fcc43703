//! Sets that the kernel's bcache runs, as its sysfs tells.

use std::fs;
use std::path::Path;

use bcache_engine::stats::Window;
use serde_json::{Map, Value, json};

/// Where the kernel lists its sets.
const SETS: &str = "/sys/fs/bcache";
/// Settings and figures of a device, by their files' names.
const DEVICE: [&str; 6] =
    ["cache_mode", "sequential_cutoff", "writeback_percent", "writeback_rate", "writeback_running", "label"];
/// Counters of a device, below `stats_total`.
const STATS: [&str; 7] = [
    "cache_hits",
    "cache_misses",
    "cache_bypass_hits",
    "cache_bypass_misses",
    "cache_hit_ratio",
    "cache_miss_collisions",
    "bypassed",
];

fn text(dir: &Path, name: &str) -> Option<String> {
    Some(fs::read_to_string(dir.join(name)).ok()?.trim().to_owned())
}

/// `[writethrough] writeback`: the choice is in brackets.
fn chosen(text: String) -> String {
    match (text.find('['), text.find(']')) {
        (Some(start), Some(end)) if start < end => text[start + 1..end].to_owned(),
        _ => text,
    }
}

/// A size as the kernel writes it, such as `1.5M`, in bytes.
fn bytes(text: &str) -> Option<u64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let number: f64 = text.get(..unit)?.parse().ok()?;
    let power = match text.get(unit..)?.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    Some((number * 1024f64.powi(power)) as u64)
}

fn fields(dir: &Path, names: &[&str]) -> Value {
    let one = |name: &&str| Some(((*name).to_owned(), Value::from(chosen(text(dir, name)?))));
    Value::Object(names.iter().filter_map(one).collect::<Map<_, _>>())
}

/// Counters of all windows of time, named as engines name them: `stats_hour/cache_hits`.
fn windows(device: &Path) -> Value {
    let of = |window: &'static str| {
        let one =
            move |name: &&str| Some((format!("{window}/{name}"), text(&device.join(window), name)?.into()));
        STATS.iter().filter_map(one)
    };
    Value::Object(Window::ALL.into_iter().map(Window::name).flat_map(of).collect::<Map<_, _>>())
}

/// All sets of the kernel, in the shape that engines answer in.
#[must_use]
pub fn sets() -> Vec<Value> {
    let Ok(entries) = fs::read_dir(SETS) else { return Vec::new() };
    let mut sets = Vec::new();
    for entry in entries.flatten() {
        let Some(set) = entry.file_name().to_str().and_then(|name| name.parse::<uuid::Uuid>().ok()) else {
            continue;
        };
        sets.push(read_set(&entry.path(), set));
    }
    sets
}

fn read_set(dir: &Path, set: uuid::Uuid) -> Value {
    let mut devices = Vec::new();
    let cache = fs::canonicalize(dir.join("cache0")).ok();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| name.starts_with("bdev")) {
            continue;
        }
        let Ok(path) = fs::canonicalize(entry.path()) else { continue };
        let below =
            path.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
        let dev = fs::canonicalize(path.join("dev")).ok();
        let dev = dev.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
        devices.push(json!({
            "name": dev,
            "path": format!("/dev/{dev}"),
            "backing": format!("/dev/{below}"),
            "state": text(&path, "state"),
            "dirty_bytes": text(&path, "dirty_data").and_then(|text| bytes(&text)),
            "settings": fields(&path, &DEVICE),
            "stats": fields(&path.join("stats_total"), &STATS),
            "attributes": windows(&path),
        }));
    }
    let below = cache.as_deref().and_then(Path::parent).and_then(Path::file_name);
    let below = below.and_then(|name| name.to_str()).unwrap_or_default();
    json!({
        "set": set,
        "engine": "kernel",
        "state": "running",
        "cache": {
            "device": format!("/dev/{below}"),
            "bucket_bytes": text(dir, "bucket_size").and_then(|text| bytes(&text)),
            "in_use_percent": text(dir, "cache_available_percent")
                .and_then(|text| text.parse::<u64>().ok())
                .map(|available| 100u64.saturating_sub(available)),
        },
        "devices": devices,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(chosen("writethrough [writeback] none".into()), "writeback");
        assert_eq!(chosen("10".into()), "10");
        assert_eq!(bytes("1.5k"), Some(1536));
        assert_eq!(bytes("0"), Some(0));
        assert_eq!(bytes("x"), None);
    }
}
