//! Every kind of finding: its id, how bad it is, what it means for the data, and what repair does about it.

use std::fmt;

/// How bad a finding is, and with that who may repair it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Normal after a crash. Repaired by `-p`.
    Harmless,
    /// Everything can be put right without losing anything. Repaired by `-p`.
    Lossless,
    /// Data is lost, or may be. Repaired by `-y`.
    Loss,
    /// Cannot be repaired here.
    Fatal,
}

impl Severity {
    /// Its word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Harmless => "harmless",
            Self::Lossless => "lossless",
            Self::Loss => "loss",
            Self::Fatal => "fatal",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

macro_rules! kinds {
    ($($variant:ident $id:literal $severity:ident $means:literal $repair:literal;)*) => {
        /// The kinds of findings.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Kind {
            $(#[doc = $means] $variant,)*
        }

        impl Kind {
            /// All of them, in the order of the passes that find them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name a finding goes by everywhere; never changes.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self { $(Self::$variant => $id,)* }
            }
            /// How bad it is.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)* }
            }
            /// What it means for the data.
            #[must_use]
            pub const fn means(self) -> &'static str {
                match self { $(Self::$variant => $means,)* }
            }
            /// What repair does.
            #[must_use]
            pub const fn repair(self) -> &'static str {
                match self { $(Self::$variant => $repair,)* }
            }
        }
    };
}

kinds! {
    BitFlipped "bit-flipped" Lossless
        "One bit of a structure is not what it was when it was written: its checksum says which."
        "The bit is put back, and all else looked at as it is then.";
    SbUnreadable "superblock-unreadable" Fatal
        "The device is too small for a superblock, or cannot be read there."
        "None; nothing says how the device is laid out. `bcache salvage` may find dirty data.";
    SbWiped "superblock-wiped" Lossless
        "The magic number of the superblock is gone, as `wipefs` leaves it; all else of it is there, checksum and all."
        "The magic number is put back; with `-y` only when nothing says that the device is still in use, or something stands before the superblock.";
    SbMagic "superblock-magic" Fatal
        "There is no bcache superblock on the device."
        "None; check that the right device was named.";
    SbLost "superblock-lost" Loss
        "The superblock is gone. What it said is put together from what is left of the set; all else was looked at as it is with that."
        "It is written anew. What nothing else says (the label of a cache, its policy, where the data of a backing device begins) is as where nobody chose otherwise.";
    SbChecksum "superblock-checksum" Lossless
        "The superblock was changed by something that did not know its checksum. What it says is what the rest of the set says."
        "The checksum is put right.";
    SbDoubtful "superblock-doubtful" Fatal
        "The superblock was changed by something that did not know its checksum, and nothing else confirms what it says now."
        "None; a backup of it can be put back with `bcache restore`, and `bcache salvage` may find dirty data.";
    SbField "superblock-field" Fatal
        "A field of the superblock holds what it cannot hold: Linux refuses the device."
        "None; nothing says what the field was.";
    SbVersion "superblock-version" Fatal
        "The superblock has a version that nobody knows."
        "None.";
    SbFeatures "superblock-features" Fatal
        "The superblock asks for features that nobody knows; the rest may mean something else with them."
        "None; use a newer program.";
    SbTooBig "superblock-too-big" Fatal
        "The superblock speaks of more than the device has: it was cut off, or is a part of another. It is checked as far as it goes."
        "None; find the whole device. `bcache salvage` takes what there is.";
    SbSync "superblock-sync" Lossless
        "The SYNC flag is not set although there is a set on the cache: Linux would start it empty, dirty data or not."
        "The flag is set again.";
    TwoCaches "two-caches" Fatal
        "Two caches were named: no set works with more than one."
        "None; name the devices of one set.";
    JournalUnreadable "journal-unreadable" Loss
        "The device cannot be read in a journal bucket; entries there are lost."
        "What can be read is kept, and a new entry makes the old ones unnecessary.";
    JournalEmpty "journal-empty" Loss
        "No journal entry is valid: nothing says where the btree, the uuid table and the prio sets are, and the newest writes are lost, wherever they went."
        "The whole cache is searched for nodes, uuid tables and prio sets. What the nodes in use say is dirty is kept, and new metadata written for it; clean data is dropped.";
    JournalMissing "journal-missing" Loss
        "Entries that must be replayed are not there: the last writes before the stop may be lost."
        "The others are replayed, and a new entry makes the old ones unnecessary.";
    JournalHole "journal-hole" Loss
        "A damaged entry hides valid ones behind it: Linux would silently go back to the time before it."
        "The entries on both sides are replayed; only the damaged one is lost.";
    JournalTailTorn "journal-tail-torn" Harmless
        "The newest entry was cut off by a crash. It was never acknowledged: nothing is lost."
        "The torn entry is cleared.";
    JournalTailKept "journal-tail-in-leaves" Lossless
        "The newest entry is not whole, and leaves have all of its keys, so that nothing is lost: Linux writes full leaves before the entry, which a crash then tore; or it was damaged later."
        "The metadata is written anew with what the leaves have.";
    JournalKept "journal-kept" Harmless
        "The set's engine died, and memory has keys of acknowledged writes that no journal entry has yet: whoever starts the set next takes them over. They are in what was checked."
        "They become part of the set.";
    JournalKeptDamaged "journal-kept-damaged" Loss
        "Of the keys that memory has, some are damaged: the writes that they were of are lost."
        "The others become part of the set.";
    JournalHidden "journal-newest-hidden" Lossless
        "Linux' search would not find the newest entry, because a bucket in between is empty or damaged."
        "Journal buckets that are not needed are cleared, so that the newest is found.";
    JournalKey "journal-key" Loss
        "An entry that must be replayed has a key that cannot be."
        "The key is left out; the extent it stood for is lost.";
    JournalOrder "journal-order" Loss
        "An entry asks for entries newer than itself to be replayed."
        "What there is is replayed, and a new entry makes the old ones unnecessary.";
    PrioLoop "prio-loop" Lossless
        "The chain of prio sets comes back to itself."
        "Priorities are forgotten, generations taken from the btree, and new prio sets written. Clean data of which only the lost sets could say that it is valid is dropped from the cache; the backing device has it.";
    PrioBucket "prio-bucket" Lossless
        "The chain of prio sets goes to a bucket that cannot hold one."
        "Priorities are forgotten, generations taken from the btree, and new prio sets written. Clean data of which only the lost sets could say that it is valid is dropped from the cache; the backing device has it.";
    PrioChecksum "prio-checksum" Lossless
        "A prio set was changed by something that did not know its checksum."
        "Priorities are forgotten, generations taken from the btree, and new prio sets written. Clean data of which only the lost sets could say that it is valid is dropped from the cache; the backing device has it.";
    PrioMagic "prio-magic" Lossless
        "There is no prio set where one should be."
        "Priorities are forgotten, generations taken from the btree, and new prio sets written. Clean data of which only the lost sets could say that it is valid is dropped from the cache; the backing device has it.";
    PrioUnreadable "prio-unreadable" Lossless
        "The device cannot be read in a prio bucket."
        "Priorities are forgotten, generations taken from the btree, and new prio sets written. Clean data of which only the lost sets could say that it is valid is dropped from the cache; the backing device has it.";
    UuidPointer "uuid-pointer" Lossless
        "The newest journal entry does not point at a uuid table."
        "A new table is written; backing devices that were named are linked to their keys again. Where an older table that was found is taken, that is a guess, and asks for `-y`.";
    UuidUnreadable "uuid-unreadable" Lossless
        "The device cannot be read in the uuid table."
        "A new table is written; backing devices that were named are linked to their keys again. Where an older table that was found is taken, that is a guess, and asks for `-y`.";
    UuidLost "uuid-lost" Lossless
        "A backing device of this set is not in the uuid table: Linux refuses it when it is dirty, and would give it a new slot when it is not."
        "It is linked to the slot whose keys are its, when that is beyond doubt. A slot that stays without one is kept for its device under a UUID of its own, so that no other device gets its keys: name that device later.";
    UuidDuplicate "uuid-duplicate" Lossless
        "Two slots have one UUID; only the first is ever used."
        "A later slot without keys is marked as detached, or the first when the keys are in a later one: that changes what is read, and asks for `-y`.";
    UuidInvalidated "uuid-invalidated" Lossless
        "A slot is marked as gone, but its UUID was not overwritten as detaching does."
        "The mark is taken away.";
    UuidVolumeSize "uuid-volume-size" Lossless
        "A flash-only volume ends before its data does."
        "The volume is made as large as its data.";
    RootPointer "root-pointer" Loss
        "The newest journal entry does not point at a root that can be followed."
        "The whole cache is searched for nodes. What those in use say is dirty is kept, and what the journal holds; clean data is dropped.";
    RootLevel "root-level" Loss
        "The newest journal entry names more levels than a btree has."
        "The whole cache is searched for nodes. What those in use say is dirty is kept, and what the journal holds; clean data is dropped.";
    NodeUnreadable "node-unreadable" Loss
        "The device cannot be read in a btree node."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    NodePointer "node-pointer" Loss
        "A key of an interior node cannot be followed."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    NodeEmpty "node-empty" Loss
        "There is no btree node where one should be."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    NodeTwice "node-twice" Loss
        "A node is reached twice: the tree goes in a circle, or two parents share a child."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    NodeMisplaced "node-misplaced" Loss
        "Most keys of a node are outside the range its parent gives it: the parent points at another's child."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    NodeLevel "node-level" Loss
        "There is an interior node where a leaf should be: the level is wrong."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    NodeNoChild "node-no-child" Loss
        "An interior node has no live child: Linux crashes on it when it is the root."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    NodeEnd "node-end" Loss
        "The children of an interior node end before it does: the last one is lost."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    NodeOrder "node-order" Loss
        "A child ends where the one before it does."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    NodesDisagree "nodes-disagree" Loss
        "Leaves that nothing leads to any more, and that may all be in use, say different things of the same place: which is newer nothing tells."
        "What is likelier is kept: leaves that have what the journal has before others, and newer bsets of a leaf before whole older leaves.";
    ChildLost "child-lost" Lossless
        "A child looks stale though it was never freed: its bucket's generation is ahead. Linux would silently drop its whole range."
        "The generation is taken from the btree again.";
    BsetVersion "bset-version" Loss
        "A bset has a version that nobody knows."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    BsetSize "bset-size" Loss
        "A bset says that it is larger than what is left of its node."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    BsetMagic "bset-magic" Loss
        "A bset does not have this set's magic."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    BsetChecksum "bset-checksum" Loss
        "A bset was changed by something that did not know its checksum."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    BsetEmpty "bset-empty" Loss
        "A bset that is not the first of its node has no keys."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    BsetLost "bset-lost" Loss
        "A bset in the middle of a node is gone: those behind it are still there."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    BsetKeys "bset-keys" Loss
        "The keys of a bset do not fill it: one claims more pointers than there are bytes."
        "What the node's other bsets, the journal, and nodes found by searching the whole cache have dirty in its range is kept; clean data in it is dropped from the cache.";
    KeyOrder "key-order" Loss
        "Keys of a bset are out of order, as nobody writes them: some may not have the place that they were written with. Linux would serve wrong content and say nothing."
        "They are sorted, and told by the sectors that they may have belonged to.";
    KeyRange "key-range" Loss
        "A key is outside the range of its node."
        "The key is left out.";
    KeySize "key-size" Loss
        "An extent is longer than its end is far from the start of the device."
        "The key is left out.";
    KeyPointer "key-pointer" Loss
        "An extent's pointer leaves its bucket or the device."
        "The key is left out.";
    ExtentTooStale "extent-too-stale" Lossless
        "A pointer is more than 96 generations behind its bucket: Linux stops the set when it comes across it."
        "The key is left out; when it is dirty its data is lost.";
    ExtentDirtyStale "extent-dirty-stale" Loss
        "Dirty data looks stale though nobody reused its bucket: its generation is ahead. Linux would silently serve old content."
        "The generation is taken from the key again. That is right unless the device has lost writes that it had said are durable.";
    ExtentInode "extent-inode" Loss
        "An extent belongs to a slot beyond the end of the uuid table; a dirty one crashes Linux."
        "The key is left out.";
    ExtentMetadata "extent-metadata" Loss
        "An extent's data lies in a bucket of the journal, the prio sets, the uuid table or the btree."
        "The key is left out; when it is dirty its data is lost.";
    ExtentBeyond "extent-beyond" Loss
        "A piece of dirty data lies behind the end of the backing device or before its start."
        "The key is left out.";
    ExtentShared "extent-shared" Lossless
        "Two extents share sectors of the cache."
        "Of a clean and a dirty one the clean one is left out. Of two dirty ones one is kept; which has the right data nobody can tell.";
    BucketTwice "bucket-twice" Lossless
        "A bucket is used for two kinds of metadata."
        "All metadata is written anew elsewhere.";
    BackingState "backing-state" Loss
        "A backing device says that it is not attached, though the cache has dirty data for it: Linux would forget that data."
        "Its state is set to dirty.";
    BackingSetUuid "backing-set-uuid" Lossless
        "A backing device that is in the cache's uuid table has no UUID of a set, or one that differs from the cache's in a few bits."
        "The set's UUID is put right.";
    BackingTwice "backing-twice" Fatal
        "Two backing devices have one UUID: one is a copy of the other."
        "None; name only the one that counts.";
    BackingOtherSet "backing-other-set" Fatal
        "A backing device is attached to another set than the cache's: it was detached and attached anew, or it is the wrong device. This cache has nothing of it."
        "None; name it with the cache of its own set, and this cache without it.";
    BackingTooShort "backing-too-short" Fatal
        "Several pieces of dirty data lie behind the end of the backing device: it is a copy that was cut off, or was made smaller."
        "None; name the whole device, or make it as large as it was.";
    DataUnreadable "data-unreadable" Loss
        "The data of an extent cannot be read from the cache."
        "The key is left out; when it is dirty its data is lost.";
    DataDiffers "data-differs" Loss
        "Clean data in the cache differs from the backing device: one of the two rotted."
        "The cache's copy is dropped, and the backing device counts.";
}

impl Kind {
    /// Nothing is wrong with what is there, but these are not the devices of one set, or not all of one is there: whoever
    /// named them has to choose others.
    #[must_use]
    pub const fn is_choice(self) -> bool {
        matches!(
            self,
            Self::TwoCaches
                | Self::BackingTwice
                | Self::BackingOtherSet
                | Self::BackingTooShort
                | Self::SbTooBig
        )
    }
    /// The kind with this id.
    #[must_use]
    pub fn from_id(id: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.id() == id)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_are_unique_and_found() {
        let ids: HashSet<_> = Kind::ALL.iter().map(|kind| kind.id()).collect();
        assert_eq!(ids.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert_eq!(Kind::from_id(kind.id()), Some(*kind));
        }
        assert_eq!(Kind::from_id("nonsense"), None);
    }
}
