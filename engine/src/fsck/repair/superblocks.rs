//! Superblocks put right in place: the last writes of a repair, because they make a set usable.

use super::super::check::Checked;
use super::super::kind::Kind;
use super::super::view::Device;
use super::Refused;
use super::plan::{Plan, Write};
use bcache_format::Superblock;
use bcache_format::superblock::{BackingState, SB_BYTES, SB_OFFSET};
use std::sync::Arc;

pub(super) fn repair(plan: &mut Plan, checked: &Checked) -> Result<(), Refused> {
    let found = |kind: Kind, name: &str| {
        checked.findings.iter().any(|finding| finding.kind == kind && &*finding.device == name)
    };
    let wrong_csum = |name: &str| found(Kind::SbChecksum, name);
    if let Some(cache) = &checked.cache
        && (wrong_csum(&cache.name) || found(Kind::SbSync, &cache.name))
    {
        let mut sb = cache.sb.clone();
        sb.set_sync(sb.sync() || found(Kind::SbSync, &cache.name));
        plan.push("put the cache's superblock right", vec![write(&cache.device, &cache.name, &sb)?]);
    }
    let mut writes = Vec::new();
    for backing in &checked.backings {
        let mut sb = backing.sb.clone();
        if found(Kind::BackingState, &backing.name) {
            sb.set_state(BackingState::Dirty);
        }
        if let Some(cache) = checked.cache.as_ref().filter(|_| found(Kind::BackingSetUuid, &backing.name)) {
            sb.set_uuid = cache.sb.set_uuid;
        }
        if sb != backing.sb || wrong_csum(&backing.name) {
            writes.push(write(&backing.device, &backing.name, &sb)?);
        }
    }
    plan.push("put superblocks of backing devices right", writes);
    Ok(())
}

/// The write of a superblock, with all bytes of the block that it does not own as they are.
pub(in super::super) fn write(device: &Device, name: &Arc<str>, sb: &Superblock) -> Result<Write, Refused> {
    let refused = |message: String| Refused::Read { device: Arc::clone(name), byte: SB_OFFSET, message };
    let mut bytes = vec![0; SB_BYTES];
    device.read_at(SB_OFFSET, &mut bytes).map_err(|error| refused(error.to_string()))?;
    sb.write_to(&mut bytes).map_err(|error| refused(error.to_string()))?;
    Ok(Write { device: Arc::clone(name), byte: SB_OFFSET, bytes, what: "superblock".to_owned() })
}
