//! `bcache metrics`: what is counted, as Prometheus reads it.
//!
//! Names that begin with `node_bcache_` are those of node_exporter's collector for the kernel's bcache, with its help and its
//! labels: boards and alerts written for that read these as well. It tells of the kernel's sets itself, so they are here for
//! sets of engines only. It has names of one kind for what the kernel shows; all else begins with `bcache_`.
//!
//! Long because it is the list of all metrics.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, Read as _, Write as _};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::Result;
use bcache_engine::stats::{DeviceStats, SetStats};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::Value;

use super::status::{all, number, word};
use super::{Out, Outcome};

/// What is read of a request at most.
const REQUEST_BYTES: u64 = 8 << 10;
/// A client that says nothing for so many seconds is left.
const PATIENCE: i64 = 10;

/// Print figures of all running sets as Prometheus reads them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bcache metrics > /var/lib/prometheus/node-exporter/bcache.prom\n  \
    systemctl enable --now bcache-metrics.socket && curl http://localhost:9926/metrics")]
pub struct Args {
    /// Answer one HTTP request, which is read from standard input: for bcache-metrics.socket of systemd
    #[arg(long)]
    http: bool,
}

/// Prints.
pub fn run(args: Args, out: &mut Out) -> Outcome {
    if args.http {
        let stdin = std::io::stdin();
        // Standard input that is no socket has no such limit, and needs none.
        let limit = TimeVal::seconds(PATIENCE);
        let _ = setsockopt(&stdin.as_fd(), sockopt::ReceiveTimeout, &limit);
        let _ = setsockopt(&stdin.as_fd(), sockopt::SendTimeout, &limit);
        let request = read_request(stdin.lock());
        // Lines end as HTTP has it, and whoever asks counts the bytes.
        out.flush()?;
        out.get_mut().takes_data(true);
        out.write_all(answer(&request, || Ok(text(&all()?))).as_bytes())?;
    } else {
        write!(out, "{}", text(&all()?))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A request up to the empty line behind its head, or as much as came of it.
fn read_request(from: impl BufRead) -> Vec<u8> {
    let mut request = Vec::new();
    for byte in from.take(REQUEST_BYTES).bytes() {
        let Ok(byte) = byte else { break };
        request.push(byte);
        if request.ends_with(b"\r\n\r\n") || request.ends_with(b"\n\n") {
            break;
        }
    }
    request
}

/// The answer to a request, head included.
fn answer(request: &[u8], figures: impl FnOnce() -> Result<String>) -> String {
    let line = request.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_ascii_whitespace();
    let (method, path, version) = (words.next(), words.next(), words.next());
    let whole = version.is_some_and(|version| version.starts_with("HTTP/1."));
    let path = path.and_then(|path| path.split('?').next()).unwrap_or_default();
    let text = "text/plain; charset=utf-8";
    let (status, kind, body) = match (method.unwrap_or_default(), path) {
        _ if !whole => ("400 Bad Request", text, "no request of HTTP/1\n".to_owned()),
        ("GET" | "HEAD", "/metrics") => match figures() {
            Ok(figures) => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", figures),
            Err(error) => ("500 Internal Server Error", text, format!("{error:#}\n")),
        },
        ("GET" | "HEAD", _) => ("404 Not Found", text, "the figures are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", text, "GET and HEAD are answered\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if method == Some("HEAD") { head } else { head + &body }
}

/// What a metric is.
#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// Samples of one metric; each is what follows the metric's name.
struct Metric {
    kind: Kind,
    help: String,
    samples: Vec<String>,
}

/// Metrics by name. All samples of a metric stand behind its help and its type.
#[derive(Default)]
struct Metrics(BTreeMap<String, Metric>);

impl Metrics {
    fn metric(&mut self, kind: Kind, name: &str, help: &str) -> &mut Vec<String> {
        let new = || Metric { kind, help: help.trim().to_owned(), samples: Vec::new() };
        &mut self.0.entry(name.to_owned()).or_insert_with(new).samples
    }

    fn add(&mut self, kind: Kind, name: &str, help: &str, labels: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            let sample = format!("{{{labels}}} {}", value.to_string());
            self.metric(kind, name, help).push(sample);
        }
    }

    fn gauge(&mut self, name: &str, help: &str, labels: &str, value: Option<impl ToString>) {
        self.add(Kind::Gauge, name, help, labels, value);
    }

    fn counter(&mut self, name: &str, help: &str, labels: &str, value: Option<impl ToString>) {
        self.add(Kind::Counter, name, help, labels, value);
    }

    /// Counters that an engine lists, under names made of theirs.
    fn counters(&mut self, prefix: &str, help: &[(&str, &str)], labels: &str, stats: &Value) {
        for (name, help) in help {
            self.counter(&format!("{prefix}_{name}_total"), help, labels, number(stats, name));
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, Metric { kind, help, samples }) in &self.0 {
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP {name} {}", help.replace('\\', "\\\\").replace('\n', "\\n"));
            let _ = writeln!(text, "# TYPE {name} {}", kind.name());
            for sample in samples {
                let _ = writeln!(text, "{name}{sample}");
            }
        }
        text
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{}\"", escaped(value))
}

/// Figures of sets, in what `bcache status --json` tells of them.
#[must_use]
pub fn text(all: &[Value]) -> String {
    let mut metrics = Metrics::default();
    for status in all {
        of_set(&mut metrics, status);
        if word(status, "engine") == "user" {
            node_exporter(&mut metrics, status);
        }
    }
    metrics.text()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn said(value: &Value, name: &str) -> u8 {
    value.get(name).is_some_and(Value::is_string).into()
}

/// What only ubcache tells.
fn of_set(metrics: &mut Metrics, status: &Value) {
    let set = label("set", word(status, "set"));
    if let Some(stats) = status.get("stats") {
        metrics.counters("bcache_set", SetStats::HELP, &set, stats);
    }
    let running = u8::from(word(status, "state") == "running");
    metrics.gauge("bcache_set_running", "Whether the set has its cache and is served.", &set, Some(running));
    if let Some(cache) = status.get("cache") {
        for (name, help) in [
            ("in_use_percent", "Buckets that are in use."),
            ("free_buckets", "Buckets that are free."),
            ("btree_nodes_in_memory", "Btree nodes in memory."),
            ("btree_bytes_in_memory", "Memory that btree nodes take."),
        ] {
            metrics.gauge(&format!("bcache_cache_{name}"), help, &set, number(cache, name));
        }
        let failed = "Whether the set has failed, and writes nothing any more.";
        metrics.gauge("bcache_set_failed", failed, &set, Some(said(status, "failure")));
        let retired = "Whether the cache device had too many errors, and takes nothing new.";
        metrics.gauge("bcache_cache_retired", retired, &set, Some(said(status, "retired")));
    }
    if status.get("parts").is_some() {
        let failed = list(status, "parts").iter().filter(|part| word(part, "standing") == "failed").count();
        metrics.gauge(
            "bcache_set_failed_parts",
            "Devices of the set that cannot be used.",
            &set,
            Some(failed),
        );
        let absent =
            list(status, "absent").iter().filter_map(|absent| number(absent, "dirty_bytes")).sum::<u64>();
        let help = "Dirty data in the cache of backing devices that are not there.";
        metrics.gauge("bcache_set_absent_dirty_bytes", help, &set, Some(absent));
    }
    for device in list(status, "devices") {
        let labels = format!("{set},{}", label("device", word(device, "name")));
        for (name, help) in
            [("bytes", "Size of the device."), ("dirty_bytes", "Data of the device that only the cache has.")]
        {
            metrics.gauge(&format!("bcache_device_{name}"), help, &labels, number(device, name));
        }
        let help = "Whether every request on the device fails.";
        metrics.gauge("bcache_device_failed", help, &labels, Some(said(device, "error")));
        if let Some(stats) = device.get("stats") {
            metrics.counters("bcache_device", DeviceStats::HELP, &labels, stats);
        }
        for (operation, times) in device.get("latency").and_then(Value::as_object).into_iter().flatten() {
            histogram(metrics, &format!("{labels},{}", label("operation", operation)), times);
        }
    }
}

/// How long requests took.
fn histogram(metrics: &mut Metrics, labels: &str, times: &Value) {
    let name = "bcache_device_request_duration_seconds";
    let help = "How long requests took, from where they reach the engine.";
    let samples = metrics.metric(Kind::Histogram, name, help);
    let numbers = |name| list(times, name).iter().map(|value| value.as_u64().unwrap_or_default());
    let mut sum = 0;
    for (bound, count) in numbers("bounds_us").zip(numbers("counts")) {
        sum += count;
        samples.push(format!("_bucket{{{labels},le=\"{}\"}} {sum}", bound as f64 / 1e6));
    }
    let all: u64 = numbers("counts").sum();
    samples.push(format!("_bucket{{{labels},le=\"+Inf\"}} {all}"));
    samples.push(format!("_sum{{{labels}}} {}", number(times, "sum_ns").unwrap_or_default() as f64 / 1e9));
    samples.push(format!("_count{{{labels}}} {all}"));
}

/// A figure out of a text such as `rate: 512/sec dirty: 0`.
fn figure(text: &str, name: &str) -> Option<i64> {
    let behind = text.split_once(name)?.1.trim_start();
    let end = behind.find(|c: char| !(c.is_ascii_digit() || c == '-')).unwrap_or(behind.len());
    behind.get(..end)?.parse().ok()
}

/// What node_exporter tells of a set of the kernel.
fn node_exporter(metrics: &mut Metrics, status: &Value) {
    let Some(attributes) = status.get("attributes") else { return };
    let uuid = label("uuid", word(status, "set"));
    let of_set = |name| number(attributes, name);
    for (name, help, value) in [
        (
            "average_key_size_sectors",
            "Average data per key in the btree (sectors).",
            of_set("average_key_size").map(|bytes| bytes / 512),
        ),
        (
            "btree_cache_size_bytes",
            "Amount of memory currently used by the btree cache.",
            of_set("btree_cache_size"),
        ),
        (
            "cache_available_percent",
            "Percentage of cache device without dirty data, usable for writeback (may contain clean cached data).",
            of_set("cache_available_percent"),
        ),
        ("congested", "Congestion.", of_set("congested")),
        (
            "root_usage_percent",
            "Percentage of the root btree node in use (tree depth increases if too high).",
            of_set("root_usage_percent"),
        ),
        ("tree_depth", "Depth of the btree.", of_set("tree_depth")),
        (
            "active_journal_entries",
            "Number of journal entries that are newer than the index.",
            of_set("internal/active_journal_entries"),
        ),
        ("btree_nodes", "Total nodes in the btree.", of_set("internal/btree_nodes")),
    ] {
        metrics.gauge(&format!("node_bcache_{name}"), help, &uuid, value);
    }
    metrics.gauge(
        "node_bcache_btree_read_average_duration_seconds",
        "Average btree read duration.",
        &uuid,
        of_set("internal/btree_read_average_duration_us").map(|micros| micros as f64 / 1e6),
    );
    metrics.counter(
        "node_bcache_cache_read_races_total",
        "Counts instances where while data was being read from the cache, the bucket was reused and invalidated - i.e. \
         where the pointer was stale after the read completed.",
        &uuid,
        of_set("internal/cache_read_races"),
    );
    let backed = list(status, "devices").iter().filter(|device| !word(device, "backing").is_empty());
    for (index, device) in backed.enumerate() {
        let labels = format!("{uuid},{}", label("backing_device", &format!("bdev{index}")));
        node_exporter_device(metrics, &labels, device);
    }
    let labels = format!("{uuid},{}", label("cache_device", "cache0"));
    metrics.gauge(
        "node_bcache_io_errors",
        "Number of errors that have occurred, decayed by io_error_halflife.",
        &labels,
        of_set("io_errors"),
    );
    metrics.counter(
        "node_bcache_metadata_written_bytes_total",
        "Sum of all non data writes (btree writes and all other metadata).",
        &labels,
        of_set("metadata_written"),
    );
    metrics.counter(
        "node_bcache_written_bytes_total",
        "Sum of all data that has been written to the cache.",
        &labels,
        of_set("written"),
    );
    let priorities = word(attributes, "priority_stats");
    metrics.gauge(
        "node_bcache_priority_stats_unused_percent",
        "The percentage of the cache that doesn't contain any data.",
        &labels,
        figure(priorities, "Unused:"),
    );
    metrics.gauge(
        "node_bcache_priority_stats_metadata_percent",
        "Bcache's metadata overhead.",
        &labels,
        figure(priorities, "Metadata:"),
    );
}

fn node_exporter_device(metrics: &mut Metrics, labels: &str, device: &Value) {
    let Some(attributes) = device.get("attributes") else { return };
    metrics.gauge(
        "node_bcache_dirty_data_bytes",
        "Amount of dirty data for this backing device in the cache.",
        labels,
        number(attributes, "dirty_data"),
    );
    let rate = word(attributes, "writeback_rate_debug");
    for (name, help, value) in [
        ("dirty_target_bytes", "Current dirty data target threshold in bytes.", "target:"),
        ("writeback_rate", "Current writeback rate in bytes.", "rate:"),
        // So it is spelt there.
        (
            "writeback_rate_proportinal_term",
            "Current result of proportional controller, part of writeback rate",
            "proportional:",
        ),
        (
            "writeback_rate_integral_term",
            "Current result of integral controller, part of writeback rate",
            "integral:",
        ),
    ] {
        metrics.gauge(&format!("node_bcache_{name}"), help, labels, figure(rate, value));
    }
    for (name, help, attribute) in [
        (
            "bypassed_bytes_total",
            "Amount of IO (both reads and writes) that has bypassed the cache.",
            "bypassed",
        ),
        ("cache_hits_total", "Hits counted per individual IO as bcache sees them.", "cache_hits"),
        ("cache_misses_total", "Misses counted per individual IO as bcache sees them.", "cache_misses"),
        ("cache_bypass_hits_total", "Hits for IO intended to skip the cache.", "cache_bypass_hits"),
        ("cache_bypass_misses_total", "Misses for IO intended to skip the cache.", "cache_bypass_misses"),
        (
            "cache_miss_collisions_total",
            "Instances where data insertion from cache miss raced with write (data already present).",
            "cache_miss_collisions",
        ),
    ] {
        let value = number(attributes, &format!("stats_total/{attribute}"));
        metrics.counter(&format!("node_bcache_{name}"), help, labels, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn example() -> Value {
        json!({
            "set": "s", "engine": "user", "state": "running", "failure": null,
            "cache": {"device": "/dev/fast", "in_use_percent": 3},
            "attributes": {"io_errors": "2", "average_key_size": "4096", "priority_stats": "Unused: 97% Metadata: 1%"},
            "devices": [{"name": "a\"b", "backing": "/dev/slow", "bytes": 1048576, "dirty_bytes": 4096,
                "attributes": {"stats_total/cache_hits": "3",
                    "writeback_rate_debug": "rate: 512/sec dirty: 0 target: 7 proportional: -8 integral: 9 next io: 1ms"},
                "latency": {"read": {"bounds_us": [20, 50], "counts": [1, 2, 4], "sum_ns": 1500}},
                "stats": {"cache_hits": 3, "cache_misses": 1}}],
            "stats": {"journal_writes": 7},
        })
    }

    #[test]
    fn metrics_are_escaped_and_told_once() {
        let text = text(&[example(), example()]);
        assert!(text.contains("\nbcache_device_cache_hits_total{set=\"s\",device=\"a\\\"b\"} 3\n"), "{text}");
        assert_eq!(text.matches("# TYPE bcache_set_journal_writes_total counter\n").count(), 1);
        for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = name.split(' ').next().unwrap_or_default();
            assert_eq!(text.matches(&format!("# HELP {name} ")).count(), 1, "{name}");
        }
    }

    #[test]
    fn counts_of_a_histogram_add_up() {
        let text = text(&[example()]);
        let labels = "set=\"s\",device=\"a\\\"b\",operation=\"read\"";
        for (end, value) in [
            ("_bucket{LABELS,le=\"0.00002\"}", "1"),
            ("_bucket{LABELS,le=\"0.00005\"}", "3"),
            ("_bucket{LABELS,le=\"+Inf\"}", "7"),
            ("_count{LABELS}", "7"),
            ("_sum{LABELS}", "0.0000015"),
        ] {
            let line = format!(
                "\nbcache_device_request_duration_seconds{} {value}\n",
                end.replace("LABELS", labels)
            );
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }

    #[test]
    fn boards_for_node_exporter_find_their_names_for_engines_and_not_for_the_kernels_sets() {
        let told = text(&[example()]);
        for line in [
            "node_bcache_io_errors{uuid=\"s\",cache_device=\"cache0\"} 2",
            "node_bcache_average_key_size_sectors{uuid=\"s\"} 8",
            "node_bcache_cache_hits_total{uuid=\"s\",backing_device=\"bdev0\"} 3",
            "node_bcache_writeback_rate{uuid=\"s\",backing_device=\"bdev0\"} 512",
            "node_bcache_writeback_rate_proportinal_term{uuid=\"s\",backing_device=\"bdev0\"} -8",
            "node_bcache_priority_stats_metadata_percent{uuid=\"s\",cache_device=\"cache0\"} 1",
        ] {
            assert!(told.contains(&format!("\n{line}\n")), "{line}\n{told}");
        }
        let mut kernels = example();
        kernels["engine"] = "kernel".into();
        let told = text(&[kernels]);
        assert!(!told.contains("node_bcache") && told.contains("bcache_device_bytes"), "{told}");
    }

    #[test]
    fn http_requests_are_answered_whatever_they_are() {
        let ask = |request: &[u8]| answer(request, || Ok("figures\n".to_owned()));
        let full = ask(b"GET /metrics?x=y HTTP/1.1\r\nHost: here\r\n\r\n");
        assert!(full.starts_with("HTTP/1.1 200 OK\r\n") && full.ends_with("\r\n\r\nfigures\n"), "{full}");
        assert!(full.contains("\r\nContent-Length: 8\r\n"), "{full}");
        let head = ask(b"HEAD /metrics HTTP/1.0\r\n\r\n");
        assert!(head.contains("Content-Length: 8\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        for (request, status) in [
            (&b""[..], "400"),
            (b"\xff\xfe\0", "400"),
            (b"GET /metrics\r\n\r\n", "400"),
            (b"GET / HTTP/1.1\r\n\r\n", "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        ] {
            assert!(ask(request).starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}");
        }
        let failed = answer(b"GET /metrics HTTP/1.1\r\n\r\n", || anyhow::bail!("nothing there"));
        assert!(failed.starts_with("HTTP/1.1 500 ") && failed.ends_with("nothing there\n"), "{failed}");
        // No more is read than a head, and of an endless one no more than that.
        assert_eq!(read_request(&b"GET / HTTP/1.1\n\nbody"[..]).len(), 16);
        assert_eq!(read_request(std::io::BufReader::new(std::io::repeat(b'x'))).len() as u64, REQUEST_BYTES);
    }
}
