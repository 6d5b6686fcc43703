//! What becomes of a backing device, by what its superblock says: for whoever attaches it, reads it, serves it or lets it
//! go.
//!
//! | it says | attached to its set, which knows it | to its set, which does not | to another set | used without its cache |
//! |---|---|---|---|---|
//! | none, stale | a new slot, the old one is invalid | a new slot | a new slot | as it is |
//! | clean | its slot | a new slot | refused | stale from then on |
//! | dirty | its slot | refused: its data is elsewhere | refused | refused, but to who gives that data up |
//!
//! One that is of no set, or ran without its cache, is whole by itself: what a cache has of it is out of date.

use bcache_format::superblock::BackingState;

/// What attaching a backing device means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attaching {
    /// It goes on with the slot that it has.
    ItsSlot,
    /// It gets a slot that nobody had. What another slot has of it counts no more.
    NewSlot,
    /// Refused: it is of another set.
    OtherSet,
    /// Refused: its dirty data is in a cache that this is not.
    NotKnown,
}

/// What using a backing device without its cache means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Its superblock says so already.
    AsItIs,
    /// Its superblock must say stale first: a cache that comes back later must forget what it has of it.
    SayStale,
    /// Refused: its newest data is in the cache.
    NewestInCache,
}

/// Attaching to a set, which may be `its` by the superblock, and whose uuid table may have it (`known`).
#[must_use]
pub const fn attaching(state: BackingState, its: bool, known: bool) -> Attaching {
    match (state, its, known) {
        (BackingState::None | BackingState::Stale, ..) => Attaching::NewSlot,
        (_, false, _) => Attaching::OtherSet,
        (_, true, true) => Attaching::ItsSlot,
        (BackingState::Clean, true, false) => Attaching::NewSlot,
        (BackingState::Dirty, true, false) => Attaching::NotKnown,
    }
}

/// Using without a cache, perhaps by somebody who gives up what only the cache has.
#[must_use]
pub const fn leaving(state: BackingState, lose_dirty: bool) -> Leaving {
    match state {
        BackingState::None | BackingState::Stale => Leaving::AsItIs,
        BackingState::Dirty if !lose_dirty => Leaving::NewestInCache,
        BackingState::Clean | BackingState::Dirty => Leaving::SayStale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_is_so() {
        use {Attaching::*, BackingState::*, Leaving::*};
        let rows = [
            (None, NewSlot, NewSlot, NewSlot, AsItIs, AsItIs),
            (Stale, NewSlot, NewSlot, NewSlot, AsItIs, AsItIs),
            (Clean, ItsSlot, NewSlot, OtherSet, SayStale, SayStale),
            (Dirty, ItsSlot, NotKnown, OtherSet, NewestInCache, SayStale),
        ];
        for (state, known, unknown, other, kept, lost) in rows {
            assert_eq!(attaching(state, true, true), known, "{state:?}");
            assert_eq!(attaching(state, true, false), unknown, "{state:?}");
            assert_eq!(
                [attaching(state, false, true), attaching(state, false, false)],
                [other; 2],
                "{state:?}"
            );
            assert_eq!((leaving(state, false), leaving(state, true)), (kept, lost), "{state:?}");
        }
    }
}
