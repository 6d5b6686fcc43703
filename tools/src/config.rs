//! `/etc/bcache/bcache.conf`: settings of sets and devices that last.
//!
//! The file is TOML: tables `set.NAME` and `device.NAME`, where the name is a UUID, the label of a device, or `*` for all,
//! and in them settings by the kernel's names. What is wrong in it is told with its place, and costs nothing but itself: all
//! else counts, and serving goes on.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;

use bcache_engine::settings::{BadSetting, DeviceSettings, SetSettings};
use serde::{Deserialize, Serialize};
use toml_edit::{Document, DocumentMut, Item, Key, TableLike, Value};
use uuid::Uuid;

/// Where it is.
pub const PATH: &str = "/etc/bcache/bcache.conf";
/// Bytes of it at most.
const LONGEST: u64 = 1 << 20;
/// What stands for all sets, or all devices.
const ALL: &str = "*";

/// What settings are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A cache set.
    Set,
    /// A backing device or a volume.
    Device,
}

impl Kind {
    const BOTH: [Kind; 2] = [Kind::Set, Kind::Device];

    /// The table that they stand in.
    #[must_use]
    pub const fn table(self) -> &'static str {
        match self {
            Kind::Set => "set",
            Kind::Device => "device",
        }
    }

    /// Whether there is such a setting.
    #[must_use]
    pub fn has(self, name: &str) -> bool {
        let help = if self == Kind::Set { SetSettings::HELP } else { DeviceSettings::HELP };
        help.iter().any(|(known, _)| *known == name)
    }

    /// How a setting shows a value that it has been given.
    #[must_use]
    pub fn shown(self, name: &str, value: &str) -> Option<String> {
        let (set, device) = (SetSettings::default(), DeviceSettings::default());
        let list = match self {
            Kind::Set => set.assign(name, value).map(|_| set.list()),
            Kind::Device => device.assign(name, value).map(|_| device.list()),
        };
        list.ok()?.into_iter().find(|shown| shown.name == name).map(|shown| shown.value)
    }

    /// Whether the setting is there and takes the value: tried on settings that nobody uses.
    fn check(self, name: &str, value: &str) -> Result<(), BadSetting> {
        match self {
            Kind::Set => SetSettings::default().assign(name, value).map(drop),
            Kind::Device => DeviceSettings::default().assign(name, value).map(drop),
        }
    }
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    kind: Kind,
    /// A UUID, a label, or [`ALL`].
    whose: String,
    name: String,
    value: String,
}

/// Something wrong in the file, with its place: line and column, from 1 on, or nothing if it is the file as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Fault {
    /// Line and column.
    pub place: Option<(usize, usize)>,
    /// What it is.
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((line, column)) => write!(f, "line {line}, column {column}: {}", self.why),
            None => self.why.fmt(f),
        }
    }
}

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    entries: Vec<Entry>,
    /// What is wrong in it.
    pub faults: Vec<Fault>,
}

/// Reads the file; one that is not there says nothing.
#[must_use]
pub fn read(path: &Path) -> Config {
    match text(path) {
        Ok(text) => parse(&text),
        Err(error) => {
            Config { entries: Vec::new(), faults: vec![Fault { place: None, why: error.to_string() }] }
        }
    }
}

fn text(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    match std::fs::File::open(path) {
        Ok(file) => file.take(LONGEST + 1).read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    if text.len() as u64 > LONGEST {
        return Err(io::Error::other(format!("longer than {LONGEST} bytes")));
    }
    Ok(text)
}

/// Understands a text.
#[must_use]
pub fn parse(text: &str) -> Config {
    let mut config = Config::default();
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(error) => {
            config.faults.push(fault(text, error.span(), error.message().to_owned()));
            return config;
        }
    };
    for (key, item) in keys(document.as_table()) {
        let Some(kind) = Kind::BOTH.into_iter().find(|kind| kind.table() == key.get()) else {
            let why = format!("{:?}: there are the tables set and device", key.get());
            config.faults.push(fault(text, key.span(), why));
            continue;
        };
        let Some(table) = item.as_table_like() else {
            config.faults.push(fault(text, key.span(), no_table(kind)));
            continue;
        };
        for (whose, item) in keys(table) {
            match item.as_table_like() {
                Some(table) => config.add(text, kind, whose, table),
                None => config.faults.push(fault(text, whose.span(), no_table(kind))),
            }
        }
    }
    config
}

fn no_table(kind: Kind) -> String {
    let name = kind.table();
    format!("settings stand in a table of their {name}: [{name}.\"UUID\"]")
}

fn keys(table: &dyn TableLike) -> impl Iterator<Item = (&Key, &Item)> {
    table.iter().filter_map(|(name, _)| table.get_key_value(name))
}

impl Config {
    fn add(&mut self, text: &str, kind: Kind, whose: &Key, table: &dyn TableLike) {
        if kind == Kind::Set && whose.get() != ALL && whose.get().parse::<Uuid>().is_err() {
            let why = format!("{:?} is no set's UUID, nor \"{ALL}\"", whose.get());
            self.faults.push(fault(text, whose.span(), why));
            return;
        }
        for (name, item) in keys(table) {
            let Some(value) = item.as_value().and_then(plain) else {
                let why = format!("{}: not a number, a text, true or false", name.get());
                self.faults.push(fault(text, item.span().or(name.span()), why));
                continue;
            };
            let span = |error: &BadSetting| match error {
                BadSetting::Unknown(_) => name.span(),
                BadSetting::Value { .. } => item.span(),
            };
            match kind.check(name.get(), &value) {
                Ok(()) => self.entries.push(Entry {
                    kind,
                    whose: whose.get().to_owned(),
                    name: name.get().to_owned(),
                    value,
                }),
                Err(error) => self.faults.push(fault(text, span(&error), error.to_string())),
            }
        }
    }

    /// Settings of a set, names and values: first those of all sets.
    #[must_use]
    pub fn of_set(&self, set: Uuid) -> Vec<(&str, &str)> {
        self.of(Kind::Set, &[&|whose| whose == ALL, &|whose| whose.parse() == Ok(set)])
    }

    /// Settings of a device: first those of all devices, then those of its label, then those of its UUID.
    #[must_use]
    pub fn of_device(&self, uuid: Uuid, label: &str) -> Vec<(&str, &str)> {
        let labelled = |whose: &str| !label.is_empty() && whose == label;
        self.of(Kind::Device, &[&|whose| whose == ALL, &labelled, &|whose| whose.parse() == Ok(uuid)])
    }

    /// Later ones win.
    fn of(&self, kind: Kind, fits: &[&dyn Fn(&str) -> bool]) -> Vec<(&str, &str)> {
        let mut found: Vec<(&str, &str)> = Vec::new();
        for fits in fits {
            for entry in self.entries.iter().filter(|entry| entry.kind == kind && fits(&entry.whose)) {
                found.retain(|(name, _)| *name != entry.name);
                found.push((&entry.name, &entry.value));
            }
        }
        found
    }
}

/// A value as settings take it.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::Integer(number) => Some(number.value().to_string()),
        Value::Boolean(flag) => Some(u8::from(*flag.value()).to_string()),
        Value::String(text) => Some(text.value().clone()),
        _ => None,
    }
}

fn fault(text: &str, span: Option<Range<usize>>, why: String) -> Fault {
    let place = span.and_then(|span| text.get(..span.start)).map(|before| {
        let line = before.split('\n').next_back().unwrap_or_default();
        (before.matches('\n').count() + 1, line.chars().count() + 1)
    });
    // The parser's own words may have several lines.
    Fault { place, why: why.trim_end().replace('\n', ", ") }
}

/// The text of a file in which a setting has a value now; all else in it, comments too, stays as it is.
///
/// # Errors
/// The text cannot be understood, or has something else where the setting belongs.
pub fn with(text: &str, kind: Kind, whose: &str, name: &str, value: &str) -> Result<String, Fault> {
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| fault(text, error.span(), error.message().to_owned()))?;
    let taken = || Fault { place: None, why: no_table(kind) };
    let mut table: &mut dyn TableLike = document.as_table_mut();
    for key in [kind.table(), whose] {
        let item = table.entry(key).or_insert_with(|| {
            let mut fresh = toml_edit::Table::new();
            // No line of its own for a table that has nothing but tables.
            fresh.set_implicit(key == kind.table());
            Item::Table(fresh)
        });
        table = item.as_table_like_mut().ok_or_else(taken)?;
    }
    let value = match value.parse::<i64>() {
        Ok(number) => Value::from(number),
        Err(_) => Value::from(value),
    };
    match table.get_mut(name).and_then(Item::as_value_mut) {
        Some(old) => {
            let decor = old.decor().clone();
            *old = value;
            *old.decor_mut() = decor;
        }
        None => drop(table.insert(name, Item::Value(value))),
    }
    Ok(document.to_string())
}

/// Writes a setting into a file, which is made where there is none, and replaced in one step.
///
/// # Errors
/// It cannot be read or written, or is not understood: it is as it was.
pub fn keep(path: &Path, kind: Kind, whose: &str, name: &str, value: &str) -> anyhow::Result<()> {
    use anyhow::Context;
    use std::io::Write;
    let file = || path.display().to_string();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    // A link stays one.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let old = text(&path).with_context(file)?;
    let text = with(&old, kind, whose, name, value).with_context(file)?;
    let fresh = path.with_extension("conf.new");
    let mut written = std::fs::File::create(&fresh).with_context(|| fresh.display().to_string())?;
    if let Ok(meta) = std::fs::metadata(&path) {
        written.set_permissions(meta.permissions()).with_context(file)?;
    }
    written.write_all(text.as_bytes()).and_then(|()| written.sync_all()).with_context(file)?;
    std::fs::rename(&fresh, &path).with_context(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: Uuid = Uuid::from_u128(0xa);
    const DEVICE: Uuid = Uuid::from_u128(0xb);

    fn told(text: &str) -> Vec<String> {
        parse(text).faults.iter().map(Fault::to_string).collect()
    }

    #[test]
    fn what_is_more_of_its_own_wins() {
        let config = parse(&format!(
            "# all\n[set.'*']\njournal_delay_ms = 5\ndiscard = true\n[set.\"{SET}\"]\njournal_delay_ms = 7\n\
             [device.'*']\nwriteback_percent = 20\ncache_mode = 'writeback'\n[device.{DEVICE}]\nwriteback_percent = 30\n\
             [device.films]\nwriteback_percent = 25\nsequential_cutoff = '8M'\n"
        ));
        assert_eq!(config.faults, []);
        assert_eq!(config.of_set(SET), [("discard", "1"), ("journal_delay_ms", "7")]);
        assert_eq!(config.of_set(DEVICE), [("journal_delay_ms", "5"), ("discard", "1")]);
        let all = [("cache_mode", "writeback"), ("sequential_cutoff", "8M"), ("writeback_percent", "30")];
        assert_eq!(config.of_device(DEVICE, "films"), all);
        assert_eq!(config.of_device(SET, ""), [("writeback_percent", "20"), ("cache_mode", "writeback")]);
    }

    #[test]
    fn what_is_wrong_has_its_place_and_spoils_nothing_else() {
        for (text, said) in [
            ("[set", "line 1, column "),
            ("[device.a]\nwriteback_percent = = 3\n", "line 2, column "),
            ("[device.a]\n  nothing = 3\n", "line 2, column 3: there is no setting \"nothing\""),
            (
                "[device.\"\u{e4}\"]\nwriteback_delay = 'soon'\n",
                "line 2, column 19: writeback_delay: \"soon\" is not a number",
            ),
            (
                "[device.a]\nwriteback_delay = 1.5\n",
                "line 2, column 19: writeback_delay: not a number, a text",
            ),
            (
                "[device.a]\nwriteback_delay = -1\n",
                "line 2, column 19: writeback_delay: \"-1\" is not a number",
            ),
            ("[set.films]\ndiscard = true\n", "line 1, column 6: \"films\" is no set's UUID"),
            ("[sets.a]\n", "line 1, column 2: \"sets\": there are the tables set and device"),
            ("device = 1\n", "line 1, column 1: settings stand in a table"),
            (
                "[device]\ncache_mode = 'none'\n",
                "line 2, column 1: settings stand in a table of their device",
            ),
        ] {
            let faults = told(text);
            assert_eq!(faults.len(), 1, "{text:?}: {faults:?}");
            assert!(faults[0].starts_with(said), "{text:?}: {faults:?}");
            assert!(!faults[0].contains('\n'), "{faults:?}");
        }
        let config = parse("[device.a]\nwriteback_delay = 1\nnothing = 2\nwriteback_percent = 3\n");
        assert_eq!(config.faults.len(), 1);
        assert_eq!(config.of_device(SET, "a"), [("writeback_delay", "1"), ("writeback_percent", "3")]);
        assert_eq!(told(""), [""; 0]);
    }

    #[test]
    fn a_setting_is_written_where_it_belongs() {
        let text = "# mine\n[device.films] # the archive\nwriteback_percent = 20 # enough\n";
        let with = |text: &str, whose: &str, name: &str, value: &str| {
            with(text, Kind::Device, whose, name, value).unwrap()
        };
        let once = with(text, "films", "writeback_percent", "30");
        assert_eq!(once, "# mine\n[device.films] # the archive\nwriteback_percent = 30 # enough\n");
        let twice = with(&once, "films", "sequential_cutoff", "8M");
        assert_eq!(twice, format!("{once}sequential_cutoff = \"8M\"\n"));
        let other = with(&twice, &DEVICE.to_string(), "cache_mode", "writeback");
        let config = parse(&other);
        assert_eq!(config.faults, []);
        assert_eq!(config.of_device(DEVICE, ""), [("cache_mode", "writeback")]);
        assert_eq!(with("", "a b", "io_error_limit", "1"), "[device.\"a b\"]\nio_error_limit = 1\n");
        assert!(super::with("[device", Kind::Set, "*", "discard", "1").is_err());
        assert!(super::with("device = 3", Kind::Device, "a", "io_error_limit", "1").is_err());
    }

    #[test]
    fn the_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bcache/bcache.conf");
        assert_eq!(read(&path), Config::default());
        keep(&path, Kind::Set, "*", "journal_delay_ms", "9").unwrap();
        keep(&path, Kind::Set, "*", "discard", "1").unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "[set.\"*\"]\njournal_delay_ms = 9\ndiscard = 1\n"
        );
        std::fs::write(&path, "[set").unwrap();
        let error = format!("{:#}", keep(&path, Kind::Set, "*", "discard", "1").unwrap_err());
        assert!(error.contains("bcache.conf: line 1, column"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[set");
        std::fs::write(&path, [0xff, b'\n']).unwrap();
        assert_eq!(read(&path).faults.len(), 1);
    }
}
