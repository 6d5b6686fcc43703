//! What was done, in a table for people and as JSON for programs.

use std::fmt::Write as _;
use std::rc::Rc;

use bcache_engine::dev::Counts;
use bcache_engine::set::Device;
use serde_json::{Map, Value, json};

use super::Service;
use crate::frontend::nbd;

/// Everything counted, as JSON: `set`, `devices`, `block_devices` and `nbd`.
#[must_use]
pub fn json(service: Option<&Service>, nbd: &nbd::Stats) -> Value {
    let mut report = Map::new();
    if let Some(service) = service {
        report.insert("set".to_owned(), counters(service.set.stats.list()));
        report.insert("failure".to_owned(), service.set.failure().as_deref().into());
        let devices = service.exports.iter().filter_map(|export| {
            let of = export.device.as_ref()?;
            let mut device = counters(of.stats.list());
            device["name"] = export.name.as_str().into();
            device["uuid"] = of.uuid.to_string().into();
            let inode = of.inode.get();
            device["dirty_sectors"] = inode.map_or(0, |inode| service.set.dirty_sectors(inode)).into();
            Some(device)
        });
        report.insert("devices".to_owned(), devices.collect());
        let block = service.counts.iter().map(|(name, counts)| block_device(name, counts.get()));
        report.insert("block_devices".to_owned(), block.collect());
    }
    report.insert("nbd".to_owned(), front_end(nbd));
    Value::Object(report)
}

fn counters(list: Vec<(&'static str, u64)>) -> Value {
    Value::Object(list.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect())
}

fn block_device(name: &str, counts: Counts) -> Value {
    json!({
        "name": name,
        "reads": counts.reads,
        "read_bytes": counts.read_bytes,
        "writes": counts.writes,
        "written_bytes": counts.written_bytes,
        "fua_writes": counts.fua_writes,
        "flushes": counts.flushes,
        "discards": counts.discards,
        "zeroings": counts.zeroings,
    })
}

fn front_end(stats: &nbd::Stats) -> Value {
    json!({
        "clients": stats.clients.get(),
        "reads": stats.reads.get(),
        "read_bytes": stats.read_bytes.get(),
        "writes": stats.writes.get(),
        "written_bytes": stats.written_bytes.get(),
        "flushes": stats.flushes.get(),
        "trims": stats.trims.get(),
        "errors": stats.errors.get(),
    })
}

/// A report as an indented list, the zeros left out.
#[must_use]
pub fn text(report: &Value) -> String {
    let mut text = String::new();
    walk(&mut text, report, 0);
    text
}

fn walk(text: &mut String, value: &Value, depth: usize) {
    let Value::Object(map) = value else { return };
    for (name, value) in map.iter().filter(|(name, _)| *name != "name") {
        let pad = depth * 2;
        // Writing to a string does not fail.
        let _ = match value {
            Value::Object(_) => {
                let _ = writeln!(text, "{:pad$}{name}", "");
                walk(text, value, depth + 1);
                Ok(())
            }
            Value::Array(items) => {
                for item in items {
                    let of = crate::text::escaped(item["name"].as_str().unwrap_or_default());
                    let _ = writeln!(text, "{:pad$}{name} {of}", "");
                    walk(text, item, depth + 1);
                }
                Ok(())
            }
            Value::Null => Ok(()),
            Value::Number(number) if number.as_u64() == Some(0) => Ok(()),
            Value::Number(number) => writeln!(text, "{:pad$}{name:<32}{number:>14}", ""),
            Value::String(string) => writeln!(text, "{:pad$}{name:<16}{string:>30}", ""),
            Value::Bool(flag) => writeln!(text, "{:pad$}{name:<32}{flag:>14}", ""),
        };
    }
}

/// One line of progress: what the cache has done for its devices so far.
#[must_use]
pub fn line(service: Option<&Service>, nbd: &nbd::Stats) -> String {
    let mut line =
        format!("{} reads, {} writes, {} flushes", nbd.reads.get(), nbd.writes.get(), nbd.flushes.get());
    let Some(service) = service else { return line };
    let devices = || service.exports.iter().filter_map(|export| export.device.as_ref());
    let sum = |pick: &dyn Fn(&Rc<Device>) -> u64| devices().map(pick).sum::<u64>();
    let hits = sum(&|device| device.stats.cache_hits.get());
    let misses = sum(&|device| device.stats.cache_misses.get());
    let percent = (hits * 100).checked_div(hits + misses).unwrap_or(0);
    let dirty = sum(&|device| device.inode.get().map_or(0, |inode| service.set.dirty_sectors(inode)));
    let _ = write!(line, "; {percent}% of {} in the cache; {} KiB dirty", hits + misses, dirty / 2);
    line
}
