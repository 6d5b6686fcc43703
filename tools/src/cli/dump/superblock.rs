//! `bcache dump super`.

use anyhow::Result;
use bcache_engine::fsck::view::{Device, Fault};
use bcache_format::superblock::{RawSuperblock, Role, SB_OFFSET};
use bcache_format::{Superblock, magic};
use serde_json::json;
use uuid::Uuid;

use super::{Printer, date, decode};
use crate::cli::escaped;

pub(super) fn print(device: &Device, to: &mut Printer<'_, '_>) -> Result<()> {
    let (raw, sb) = decode(device)?;
    let name = device.name().into();
    let checked = bcache_engine::fsck::view::devices::read_superblock(device, &name);
    let sb = match sb {
        Ok(sb) => sb,
        Err(error) => {
            to.fault(&Fault::format(&name, error, SB_OFFSET))?;
            return fields(&raw, to);
        }
    };
    let size = sb.check_device(device.size(), 0).map_err(|error| Fault::format(&name, error, SB_OFFSET));
    fields(&raw, to)?;
    meaning(&sb, to)?;
    for fault in checked.err().into_iter().chain(size.err()) {
        to.fault(&fault)?;
    }
    Ok(())
}

/// The words as they stand there.
fn fields(raw: &RawSuperblock, to: &mut Printer<'_, '_>) -> Result<()> {
    let csum = if raw.csum.get() == raw.expected_csum() { "right" } else { "WRONG" };
    let magic = if raw.magic == magic::SUPERBLOCK { "right" } else { "WRONG" };
    let word = |name: &str, value: String| format!("{name:<20}{value}");
    let json = json!({"kind": "raw",
        "csum": format!("{:016x}", raw.csum.get()), "csum_expected": format!("{:016x}", raw.expected_csum()),
        "offset": raw.offset.get(), "version": raw.version.get(), "magic": Uuid::from_bytes(raw.magic),
        "uuid": Uuid::from_bytes(raw.uuid), "set_uuid": Uuid::from_bytes(raw.set_uuid),
        "flags": raw.flags.get(), "seq": raw.seq.get(), "feature_compat": raw.feature_compat.get(),
        "feature_incompat": raw.feature_incompat.get(), "feature_ro_compat": raw.feature_ro_compat.get(),
        "nbuckets_or_data_offset": raw.nbuckets_or_data_offset.get(), "block_size": raw.block_size.get(),
        "bucket_size": raw.bucket_size.get(), "nr_in_set": raw.nr_in_set.get(),
        "nr_this_dev": raw.nr_this_dev.get(), "last_mount": raw.last_mount.get(),
        "first_bucket": raw.first_bucket.get(), "keys": raw.keys.get()});
    let lines = || {
        [
            word("checksum", format!("{:016x} {csum}", raw.csum.get())),
            word("offset", raw.offset.get().to_string()),
            word("version", raw.version.get().to_string()),
            word("magic", format!("{} {magic}", Uuid::from_bytes(raw.magic))),
            word("uuid", Uuid::from_bytes(raw.uuid).to_string()),
            word("set uuid", Uuid::from_bytes(raw.set_uuid).to_string()),
            word("flags", format!("{:#x}", raw.flags.get())),
            word("seq", raw.seq.get().to_string()),
        ]
        .join("\n")
    };
    to.line(lines, || json)
}

/// What they mean.
fn meaning(sb: &Superblock, to: &mut Printer<'_, '_>) -> Result<()> {
    let word = |name: &str, value: String| format!("{name:<20}{value}");
    let mut lines = vec![
        word("label", format!("\"{}\"", escaped(&sb.label.to_text()))),
        word("block size", format!("{} sectors", sb.block_sectors)),
    ];
    let json = match &sb.role {
        Role::Cache(cache) => {
            let policy = sb.replacement().map_or("unknown", |policy| policy.name());
            let journal = (cache.first_bucket.into(), cache.njournal_buckets.into());
            lines.extend([
                word("bucket size", format!("{} sectors", cache.bucket_sectors)),
                word("buckets", format!("{}, the first is {}", cache.nbuckets, cache.first_bucket)),
                word("journal", journal_buckets(journal.0, journal.1)),
                word("device", format!("{} of {}", cache.nr_this_dev, cache.nr_in_set)),
                word("sync", if sb.sync() { "yes" } else { "no: Linux starts the set empty" }.to_owned()),
                word("discard", if sb.discard() { "yes" } else { "no" }.to_owned()),
                word("replacement", policy.to_owned()),
                word("last mount", date(sb.last_mount)),
            ]);
            json!({"kind": "cache", "label": sb.label.to_text(), "block_sectors": sb.block_sectors,
                "bucket_sectors": cache.bucket_sectors, "nbuckets": cache.nbuckets,
                "first_bucket": cache.first_bucket, "journal_buckets": cache.njournal_buckets,
                "sync": sb.sync(), "discard": sb.discard(), "replacement": policy})
        }
        Role::Backing(backing) => {
            let mode = sb.cache_mode().map_or("unknown", |mode| mode.name());
            let state = format!("{:?}", sb.state()).to_lowercase();
            lines.extend([
                word("data offset", format!("{} sectors", backing.data_offset)),
                word("cache mode", mode.to_owned()),
                word("state", state.clone()),
            ]);
            json!({"kind": "backing", "label": sb.label.to_text(), "block_sectors": sb.block_sectors,
                "data_offset": backing.data_offset, "cache_mode": mode, "state": state})
        }
    };
    to.line(|| lines.join("\n"), || json)
}

fn journal_buckets(first: u64, count: u64) -> String {
    match count {
        0 => "none yet".to_owned(),
        count => format!("{count} buckets, {first} to {}", first + count - 1),
    }
}
