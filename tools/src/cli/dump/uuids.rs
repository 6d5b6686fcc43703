//! `bcache dump uuids`.

use anyhow::Result;
use bcache_engine::fsck::view::Cache;
use bcache_engine::fsck::view::uuids::read_table;
use serde_json::json;

use super::{Printer, date, journal};
use crate::cli::escaped;

pub(super) fn print(cache: &Cache, to: &mut Printer<'_, '_>) -> Result<()> {
    let journal = journal(cache, to)?;
    let Some(newest) = journal.newest() else { return Ok(()) };
    let table = match read_table(cache, newest) {
        Ok(table) => table,
        Err(fault) => return to.fault(&fault),
    };
    for (slot, entry) in table.iter().enumerate().filter(|(_, entry)| !entry.is_free()) {
        let kind = if entry.is_detached() {
            "detached"
        } else if entry.is_flash_only() {
            "volume"
        } else {
            "backing"
        };
        let label = entry.label.to_text();
        let text = || {
            let size =
                if entry.is_flash_only() { format!(", {} sectors", entry.sectors) } else { String::new() };
            let gone = match entry.invalidated {
                0 => String::new(),
                seconds => format!(", gone since {}", date(seconds)),
            };
            format!(
                "slot {slot}: {kind} {} \"{}\"{size}\n  registered {}, last {}{gone}",
                entry.uuid,
                escaped(&label),
                date(entry.first_reg),
                date(entry.last_reg),
            )
        };
        to.line(text, || {
            json!({"kind": kind, "slot": slot, "uuid": entry.uuid, "label": label,
                   "first_reg": entry.first_reg, "last_reg": entry.last_reg,
                   "invalidated": entry.invalidated, "flags": entry.flags, "sectors": entry.sectors})
        })?;
    }
    Ok(())
}
