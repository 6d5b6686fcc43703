//! A cache whose device has become longer gets the buckets that there is room for now.
//!
//! Prio sets for all buckets, the new ones too, are written into free buckets, and one journal entry makes them the set's.
//! Whoever reads the set as short as its superblock says until then reads the beginning of them, which is the same as before.
//! The superblock comes last: from then on the new buckets count.

use super::super::check::{Checked, Options, check};
use super::super::view::{Cache, Device, SetView};
use super::plan::Plan;
use super::{Refused, bucket_entries, judge, room, simulate, write_superblock};
use bcache_format::Superblock;
use bcache_format::superblock::{CacheFields, Role};
use std::sync::Arc;

/// How a cache becomes larger.
#[derive(Debug)]
pub struct Enlargement {
    /// What is written.
    pub plan: Plan,
    /// Buckets before.
    pub before: u64,
    /// Buckets afterwards.
    pub after: u64,
}

/// Computes how the cache among `devices` gets all whole buckets of its device, and proves it. Nothing if it has them.
///
/// # Errors
/// Something is wrong with the set, which has to be repaired before; or there is no room for new metadata.
pub fn enlarge(devices: &[Device]) -> Result<Option<Enlargement>, Refused> {
    let checked = check(devices.iter().cloned(), Options::default());
    if let Some(finding) = checked.findings.first() {
        return Err(Refused::Fatal(finding.kind, finding.detail.clone()));
    }
    let Some(cache) = &checked.cache else { return Ok(None) };
    let Some(grown) = grown(cache) else { return Ok(None) };
    let mut plan = match &checked.set {
        Some(view) => metadata(&checked, cache, &grown, view)?,
        // Nothing is laid out before the first run.
        None => Plan::default(),
    };
    plan.push(
        "say how many buckets there are",
        vec![write_superblock(&cache.device, &cache.name, &grown.sb)?],
    );
    let again = check(simulate(devices, &plan)?, Options::default());
    if let Some(finding) = again.findings.first() {
        return Err(Refused::Unproved(finding.kind, finding.detail.clone()));
    }
    if let (Some(before), Some(after)) = (&checked.set, &again.set) {
        let changed = judge::changes(&checked, before, after)?;
        if let Some((from, _)) = changed.iter().next() {
            return Err(Refused::Content(format!("{from}")));
        }
    }
    let (before, after) = (cache.geometry.nbuckets, grown.geometry.nbuckets);
    Ok(Some(Enlargement { plan, before, after }))
}

/// The cache with all buckets that its device has room for; nothing if it has them.
fn grown(cache: &Cache) -> Option<Cache> {
    let buckets = cache.device.size() / cache.geometry.bucket_bytes().max(1);
    let fields = cache.sb.cache().filter(|fields| buckets > fields.nbuckets)?;
    let role = Role::Cache(CacheFields { nbuckets: buckets, ..fields.clone() });
    let sb = Superblock { role, ..cache.sb.clone() };
    Some(Cache { geometry: sb.geometry()?, sb, ..cache.clone() })
}

fn metadata(checked: &Checked, cache: &Cache, grown: &Cache, view: &SetView) -> Result<Plan, Refused> {
    let why = "write prio sets for all buckets, the new ones too";
    let plan = room::prios_alone(checked, cache, grown, view, (why, bucket_entries(grown, view, &[])))?;
    plan.ok_or_else(|| Refused::NoJournal { cache: Arc::clone(&cache.name) })
}
