//! Mistakes that tests can switch on, one for each rule, to know that they would be found. Compiled only into
//! the engine's own unit tests and with `--cfg sim_bugs`.

use std::cell::Cell;

macro_rules! mistakes {
    ($($bug:ident,)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Bug { $($bug,)* }

        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$bug,)*];
        }
    };
}

mistakes! {
    JournalWithoutFlush,
    LeafWithoutFlush,
    FlushWithoutJournal,
    FlushWithoutBacking,
    ReclaimPinnedJournal,
    LeafWithoutPin,
    ChildNotDurable,
    NewSetSyncFirst,
    GcWithoutLeaves,
    ReuseBeforeGen,
    InvalidateDirty,
    NoGenRecheck,
    CleanWithoutFlush,
    MissOverwritesWrite,
    DirtyWithoutSuperblock,
    CleanTooEarly,
    OldForLostDirty,
    AloneWithoutStale,
    AbandonWithoutStale,
    AttachKeepsSlot,
    StaleCleanCopy,
    WritebackBeforeJournal,
    FreeWithoutBlock,
    NewNodeUnpinned,
    StopLeavesNodes,
    SuperblockBeforeDurable,
    FailureToldOnce,
    FailureToldToAnother,
    GivenBackNotAvailable,
    ClockGrows,
    ReadLeftBehind,
    MissLeftBehind,
    RangesUnfair,
    SyncLost,
    StaleDirtyUnseen,
    ReplayNotDurable,
    StaleDirtyCounts,
    RotIsTheEnd,
    WritesBehindTheEnd,
    WritebackHoldsLate,
    DoubtsTheFlushed,
    DoubtInMemory,
    WaitsForEver,
    StopWaitsForBuckets,
    PriosFromTheGeneralList,
    PathNotHeld,
    PartsOfBlocks,
    AttachTwice,
    UuidsBeforeDurable,
    DetachForgetsFailure,
    DetachHearsForClients,
    SuperblockUnlocked,
    TwoOwners,
    FailuresForgotten,
    LeftButMarked,
    FormerRequestsLeft,
    RateClampPanics,
    NobodyFinishes,
    MovingInThePass,
    PriosOverRoots,
    CleanNotRetried,
    TailBeforeData,
    TailReplayedTwice,
    TailInTheWrongOrder,
    TailOverNewer,
    TailReusedEarly,
    TailOfAnotherBoot,
    TailOfAnotherJournal,
    TailWithoutNotes,
    TailWithGaps,
    TailForgotten,
    TailAfterFailedFlush,
    TailOfAnOlderCopy,
}

thread_local!(static BUG: Cell<Option<Bug>> = const { Cell::new(None) });

/// Switches one on, or all off, for this thread.
pub fn set(bug: Option<Bug>) {
    BUG.set(bug);
}

/// Whether it is on.
pub fn on(bug: Bug) -> bool {
    BUG.get() == Some(bug)
}
