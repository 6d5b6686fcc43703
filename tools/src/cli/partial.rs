//! What was not there to be looked at.

use std::io::Write;

use anyhow::Result;
use bcache_engine::fsck::check::Absent;
use serde_json::json;

/// What was not named, and therefore not checked.
pub(super) fn partial(absent: &[Absent], json: bool, out: &mut dyn Write) -> Result<()> {
    for absent in absent {
        if !json {
            writeln!(out, "partial: {absent}")?;
            continue;
        }
        let value = match absent {
            Absent::Cache { set, of } => json!({"kind": "absent", "role": "cache", "set": set, "of": &**of}),
            Absent::Rest { of, bytes, whole } => {
                json!({"kind": "absent", "role": "rest", "of": &**of, "bytes": bytes, "whole": whole})
            }
            Absent::Backing { slot, uuid, label, dirty } => {
                json!({"kind": "absent", "role": "backing", "uuid": uuid, "label": label.to_text(),
                       "slot": slot, "dirty_sectors": dirty})
            }
        };
        writeln!(out, "{value}")?;
    }
    Ok(())
}
