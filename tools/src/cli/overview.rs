//! `bcache show` without a device, and `bcache tree`: everything of bcache on this machine, in the lines of bcache-tools 1.1,
//! which scripts take apart at white space.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::Value;

use super::{Out, Outcome, escaped, status};
use crate::scan::{self, Found};

/// How 1.1 calls what a device cannot have.
const NOTHING: &str = "N/A";

/// A device, as a row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    device: String,
    uuid: String,
    set: String,
    version: u64,
    is_cache: bool,
    /// `active` and `inactive` of a cache; of a backing device the kernel's word, and whether it is there.
    state: String,
    /// Name of the cached device.
    name: String,
    /// The cache that it is attached to.
    cache: String,
    /// And that one's set.
    attached: String,
}

/// What is found on devices, with what those who serve them say.
fn rows(found: &[Found], served: &[Value]) -> Vec<Row> {
    let caches: Vec<(String, String)> = found
        .iter()
        .filter(|one| one.superblock.cache().is_some())
        .map(|one| (one.superblock.set_uuid.to_string(), one.path.display().to_string()))
        .collect();
    found.iter().map(|one| row(one, &caches, served)).collect()
}

fn row(one: &Found, caches: &[(String, String)], served: &[Value]) -> Row {
    let (device, sb) = (one.path.display().to_string(), &one.superblock);
    let set = sb.set_uuid.to_string();
    let is_cache = sb.cache().is_some();
    let mut row = Row {
        device,
        uuid: sb.uuid.to_string(),
        version: sb.version.number(),
        is_cache,
        state: "inactive".to_owned(),
        name: if is_cache { NOTHING } else { "Non-Exist" }.to_owned(),
        cache: if is_cache { NOTHING } else { "Alone" }.to_owned(),
        attached: if is_cache { NOTHING } else { "Non-Exist" }.to_owned(),
        set,
    };
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    for status in served {
        let of = text(status, "set");
        if is_cache {
            let runs = of.as_deref() == Some(row.set.as_str()) && status["state"] == "running";
            row.state = if runs { "active".to_owned() } else { row.state };
            continue;
        }
        let devices = status.get("devices").and_then(Value::as_array).into_iter().flatten();
        let is_it = |device: &&Value| {
            text(device, "uuid").is_some_and(|uuid| uuid == row.uuid)
                || text(device, "backing").is_some_and(|backing| backing == row.device)
        };
        let Some(device) = devices.into_iter().find(is_it) else { continue };
        let word = device.get("attributes").and_then(|all| text(all, "state"));
        let word = word.or_else(|| text(device, "state")).unwrap_or_default();
        row.state = format!("{word}(running)");
        row.name = text(device, "name").unwrap_or_default();
        if let Some(of) = of {
            let cache = caches.iter().find(|(set, _)| *set == of);
            row.cache = cache.map_or_else(|| NOTHING.to_owned(), |(_, path)| path.clone());
            row.attached = of;
        }
    }
    row
}

fn all() -> Result<Vec<Row>> {
    Ok(rows(&scan::all(), &status::all()?))
}

fn table(rows: &[Row], more: bool) -> String {
    let mut text = if more {
        "Name\t\tUuid\t\t\t\t\tCset_Uuid\t\t\t\tType\t\tState\t\t\tBname\t\tAttachToDev\tAttachToCset\n"
            .to_owned()
    } else {
        "Name\t\tType\t\tState\t\t\tBname\t\tAttachToDev\n".to_owned()
    };
    for row in rows {
        let kind = if row.is_cache { "cache" } else { "data" };
        let (device, name) = (escaped(&row.device), escaped(&row.name));
        let what = format!("{} ({kind})\t{:<16}\t{name:<16}", row.version, row.state);
        text += &if more {
            format!("{device}\t{}\t{}\t{what}\t{:<16}{}\n", row.uuid, row.set, row.cache, row.attached)
        } else {
            format!("{device}\t{what}\t{}\n", row.cache)
        };
    }
    text
}

/// Caches in use, and below each what it caches.
fn branches(rows: &[Row]) -> String {
    let mut text = String::new();
    for cache in rows.iter().filter(|row| row.is_cache && row.state == "active") {
        text += &format!("{}\n", escaped(&cache.device));
        let mut devices = rows.iter().filter(|row| row.attached == cache.set).peekable();
        while let Some(row) = devices.next() {
            let branch = if devices.peek().is_some() { "├─" } else { "└─" };
            text += &format!("{branch}{} {}\n", escaped(&row.device), escaped(&row.name));
        }
    }
    if text.is_empty() { text } else { format!(".\n{text}") }
}

/// The table of `bcache show`.
pub fn show(more: bool, out: &mut Out) -> Outcome {
    write!(out, "{}", table(&all()?, more))?;
    Ok(ExitCode::SUCCESS)
}

/// Show the caches that are in use, and below each the devices that it caches
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache tree")]
pub struct TreeArgs {}

/// Shows.
pub fn run_tree(_args: TreeArgs, out: &mut Out) -> Outcome {
    write!(out, "{}", branches(&all()?))?;
    Ok(ExitCode::SUCCESS)
}

/// Print which bcache-tools these commands are like, and the version of this program
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bcache version")]
pub struct VersionArgs {}

/// Prints.
pub fn run_version(_args: VersionArgs, out: &mut Out) -> Outcome {
    writeln!(out, "bcache-tools 1.1 (ubcache {})", env!("CARGO_PKG_VERSION"))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bcache_format::superblock::{
        BackingFields, CacheFields, DATA_OFFSET_DEFAULT, Role, Superblock, Version,
    };
    use serde_json::json;
    use uuid::Uuid;

    const SET: Uuid = Uuid::from_u128(0xa);

    fn found(path: &str, uuid: u128, cache: bool) -> Found {
        let role = if cache {
            Role::Cache(CacheFields {
                nbuckets: 1000,
                bucket_sectors: 128,
                nr_in_set: 1,
                nr_this_dev: 0,
                first_bucket: 1,
                njournal_buckets: 8,
            })
        } else {
            Role::Backing(BackingFields { data_offset: DATA_OFFSET_DEFAULT, bucket_sectors: 128 })
        };
        let version = if cache { Version::CacheWithUuid } else { Version::Backing };
        Found { path: path.into(), superblock: Superblock::new(version, Uuid::from_u128(uuid), SET, 8, role) }
    }

    fn machine() -> Vec<Row> {
        let found = [
            found("/dev/sda", 1, true),
            found("/dev/sdb", 2, false),
            found("/dev/sdc", 3, false),
            found("/dev/sdd", 4, false),
            found("/dev/sde", 5, false),
        ];
        let served = [
            json!({"set": SET, "state": "running", "devices": [
                {"uuid": Uuid::from_u128(2), "name": "data", "backing": "/dev/sdb", "attributes": {"state": "dirty"}},
                {"uuid": Uuid::from_u128(3), "name": "bcache0", "attributes": {"state": "clean"}},
            ]}),
            json!({"engine": "none", "devices": [
                {"uuid": Uuid::from_u128(4), "name": "a\u{1b}b", "state": "no cache"},
            ]}),
        ];
        rows(&found, &served)
    }

    #[test]
    fn the_table_has_the_lines_of_bcache_tools() {
        let nothing = "inactive        \tNon-Exist       ";
        assert_eq!(
            table(&machine(), false),
            format!(
                "Name\t\tType\t\tState\t\t\tBname\t\tAttachToDev\n\
                /dev/sda\t3 (cache)\tactive          \tN/A             \tN/A\n\
                /dev/sdb\t1 (data)\tdirty(running)  \tdata            \t/dev/sda\n\
                /dev/sdc\t1 (data)\tclean(running)  \tbcache0         \t/dev/sda\n\
                /dev/sdd\t1 (data)\tno cache(running)\ta\\u{{1b}}b        \tAlone\n\
                /dev/sde\t1 (data)\t{nothing}\tAlone\n"
            )
        );
        let more = table(&machine(), true);
        let line = format!(
            "/dev/sdb\t{}\t{SET}\t1 (data)\tdirty(running)  \tdata            \t/dev/sda        {SET}",
            Uuid::from_u128(2)
        );
        assert_eq!(more.lines().nth(2), Some(line.as_str()));
        let words: Vec<&str> = more.lines().next().unwrap_or_default().split_whitespace().collect();
        assert_eq!(
            words,
            ["Name", "Uuid", "Cset_Uuid", "Type", "State", "Bname", "AttachToDev", "AttachToCset"]
        );
    }

    #[test]
    fn the_tree_has_what_is_in_use() {
        assert_eq!(branches(&machine()), ".\n/dev/sda\n├─/dev/sdb data\n└─/dev/sdc bcache0\n");
        assert_eq!(branches(&rows(&[found("/dev/sda", 1, true)], &[])), "");
    }
}
