//! Superblocks put right in place: the last writes of a repair, because they make a set usable.
//!
//! A superblock is larger than what a device writes at once; see [`come_last`].

use super::super::check::Checked;
use super::super::kind::Kind;
use super::super::view::Device;
use super::Refused;
use super::plan::{Plan, Write};
use bcache_format::superblock::{BackingState, SB_BYTES, SB_OFFSET};
use bcache_format::{SECTOR_SIZE, Superblock};
use std::collections::BTreeMap;
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

/// Where a superblock ends.
const SB_END: u64 = SB_OFFSET + SB_BYTES as u64;

/// Moves what a plan writes to superblocks behind all else: they make a set usable, and with a cut before that nobody
/// takes it for one. Those of backing devices come first, for they wait for their cache, and without it are not shown; the
/// cache's comes last. Of each the first sector is a step of its own behind the others: only with it the checksum is right,
/// so that a superblock is there whole or not at all, and of all that was to be changed in it all or nothing.
pub(in super::super) fn come_last(plan: &mut Plan, devices: &[Device], cache: Option<&Arc<str>>) {
    let mut superblocks: BTreeMap<(bool, Arc<str>), Plan> = BTreeMap::new();
    for step in &mut plan.steps {
        let (ours, others) = std::mem::take(&mut step.writes).into_iter().partition(|write| {
            write.byte >= SB_OFFSET && write.byte.saturating_add(write.bytes.len()) <= SB_END
        });
        step.writes = others;
        for write in ours {
            let of = (cache == Some(&write.device), Arc::clone(&write.device));
            superblocks.entry(of).or_default().push(step.why, vec![write]);
        }
    }
    plan.steps.retain(|step| !step.writes.is_empty());
    for ((_, name), writes) in superblocks {
        let device = devices.iter().find(|device| *device.name() == *name);
        in_order(plan, device, &name, &writes);
    }
}

/// Writes a superblock so that it counts when all of it is there.
pub(in super::super) fn in_order(plan: &mut Plan, device: Option<&Device>, name: &Arc<str>, writes: &Plan) {
    // What is written twice counts as it is written last.
    let mut sectors: BTreeMap<u64, (&[u8], &str)> = BTreeMap::new();
    for write in writes.writes() {
        for (at, bytes) in
            (write.byte..).step_by(SECTOR_SIZE as usize).zip(write.bytes.pieces(SECTOR_SIZE as usize))
        {
            sectors.insert(at, (bytes, &write.what));
        }
    }
    let mut now = [0; SECTOR_SIZE as usize];
    sectors.retain(|at, (bytes, _)| {
        !device.is_some_and(|device| device.read_at(*at, &mut now).is_ok() && now == **bytes)
    });
    let head = sectors.remove(&SB_OFFSET);
    let write = |byte, bytes: &[u8], what: &str| Write {
        device: Arc::clone(name),
        byte,
        bytes: bytes.to_vec().into(),
        what: what.to_owned(),
    };
    let rest = sectors.into_iter().map(|(at, (bytes, what))| write(at, bytes, what));
    plan.push("write what a superblock has behind its first sector", rest.collect());
    let head = head.map(|(bytes, what)| write(SB_OFFSET, bytes, what));
    plan.push("make the superblock count", head.into_iter().collect());
}

/// The write of a superblock, with all bytes of the block that it does not own as they are.
pub(in super::super) fn write(device: &Device, name: &Arc<str>, sb: &Superblock) -> Result<Write, Refused> {
    let refused = |message: String| Refused::Read { device: Arc::clone(name), byte: SB_OFFSET, message };
    let mut bytes = vec![0; SB_BYTES];
    device.read_at(SB_OFFSET, &mut bytes).map_err(|error| refused(error.to_string()))?;
    sb.write_to(&mut bytes).map_err(|error| refused(error.to_string()))?;
    Ok(Write {
        device: Arc::clone(name),
        byte: SB_OFFSET,
        bytes: bytes.into(),
        what: "superblock".to_owned(),
    })
}
