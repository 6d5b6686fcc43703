//! What a process before this one has kept of the journal's tail, and where this one keeps it.

use super::cache_dev::CacheDev;
use crate::error::{Error, Result};
use crate::journal::{EntryId, Journal, Left, Tail, TailFault, TailPlace};
use bcache_format::bkey::Bkey;

/// The keys that the journal does not have, whose newest entry is `newest`, but a process before this one has kept in `place`.
/// From here on the journal keeps its keys there, if it can.
///
/// # Errors
/// There are some that cannot be had, or not safely: whoever wants the set without them takes that memory away.
pub(super) fn take_over(
    journal: &Journal,
    cache: &CacheDev,
    place: TailPlace,
    newest: EntryId,
) -> Result<Vec<Bkey>> {
    let set = cache.sb.borrow().set_uuid;
    let device = cache.dev.name();
    let refuse = |what: &dyn std::fmt::Display| {
        Error::refused(format!(
            "{device}: what an engine before this one kept of the journal in memory: {what}; moving that file away gives \
             it up"
        ))
    };
    let bytes = place.store.read().map_err(|error| refuse(&error))?;
    let left = bytes.map(|bytes| Left::parse(&bytes, place.boot, set).and_then(|left| left.behind(newest)));
    let behind = match left.transpose() {
        Ok(behind) => behind.unwrap_or_default(),
        Err(fault @ TailFault::Doubtful { .. }) => return Err(refuse(&fault)),
        Err(fault) => {
            if fault == TailFault::OtherBoot {
                tracing::warn!(device, "the journal's tail in memory is not used: {fault}");
            } else {
                tracing::error!(device, "the journal's tail in memory is not used, and set aside: {fault}");
            }
            if let Err(error) = place.store.set_aside() {
                tracing::warn!(device, %error, "the journal's tail in memory cannot be set aside");
            }
            keep_anew(journal, cache, place, newest);
            return Ok(Vec::new());
        }
    };
    if behind.damaged > 0 {
        let damaged = behind.damaged;
        tracing::error!(device, "{damaged} keys in the journal's tail in memory are damaged, and lost");
    }
    if behind.keys.is_empty() || seeded_bug!(TailForgotten) {
        keep_anew(journal, cache, place, newest);
        return Ok(Vec::new());
    }
    tracing::info!(device, "{} keys are taken over that the journal does not have yet", behind.keys.len());
    journal.keep(Tail::carry(place, set, newest, &behind).map_err(|error| refuse(&error))?);
    Ok(behind.keys)
}

/// Keeps the keys of a journal that has all of its own.
pub(super) fn keep_anew(journal: &Journal, cache: &CacheDev, place: TailPlace, newest: EntryId) {
    let set = cache.sb.borrow().set_uuid;
    match Tail::create(place, set, newest) {
        Ok(tail) => journal.keep(tail),
        Err(error) => tracing::warn!(
            device = cache.dev.name(),
            %error,
            "there is no memory that outlives the process: writes wait for the journal"
        ),
    }
}
