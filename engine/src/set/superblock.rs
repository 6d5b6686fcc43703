//! The superblock of a device in use. It has one owner: one write at a time, and in memory is what is on the disk.

use super::states::{Leaving, leaving};
use crate::dev::FlushTracked;
use crate::dev::{Buf, Shared};
use crate::error::{Error, Result};
use crate::sync::{Mutex, MutexGuard};
use bcache_format::superblock::{BackingState, SB_OFFSET, Superblock};
use std::cell::{Cell, Ref, RefCell};

/// A superblock, and the block of the device that it stands in.
pub struct StoredSuperblock {
    sb: RefCell<Superblock>,
    block: RefCell<Vec<u8>>,
    io: Mutex<()>,
    /// The disk is known to say dirty. Never so while a write that says otherwise is under way, or after one failed:
    /// whether it arrived all the same nobody knows.
    says_dirty: Cell<bool>,
    /// A write failed, and none succeeded since: the disk may say what that one was to say.
    unsettled: Cell<bool>,
    /// The device was attached again and has another owner, who read what the last write here left.
    handed_over: Cell<bool>,
}

/// The right to change a superblock, which one caller has at a time.
pub struct SuperblockWriter<'a> {
    stored: &'a StoredSuperblock,
    dev: &'a FlushTracked,
    _one: Option<MutexGuard<'a, ()>>,
}

impl StoredSuperblock {
    /// The superblock that was read in `block`.
    #[must_use]
    pub fn new(sb: Superblock, block: Vec<u8>) -> Self {
        let says_dirty = Cell::new(sb.state() == BackingState::Dirty);
        Self {
            sb: RefCell::new(sb),
            block: RefCell::new(block),
            io: Mutex::new(()),
            says_dirty,
            unsettled: Cell::new(false),
            handed_over: Cell::new(false),
        }
    }
    /// What it says: the latest that is known to be durable.
    pub fn borrow(&self) -> Ref<'_, Superblock> {
        self.sb.borrow()
    }
    /// Whether the disk says dirty for certain.
    pub fn says_dirty(&self) -> bool {
        self.says_dirty.get()
    }
    /// Whether the disk may say dirty.
    pub fn may_say_dirty(&self) -> bool {
        if seeded_bug!(CleanNotRetried) {
            return self.says_dirty();
        }
        self.unsettled.get() || self.sb.borrow().state() == BackingState::Dirty
    }
    /// Waits until nobody else changes the superblock on `dev`, and keeps others from it.
    pub async fn writer<'a>(&'a self, dev: &'a FlushTracked) -> SuperblockWriter<'a> {
        let one = if seeded_bug!(SuperblockUnlocked) { None } else { Some(self.io.lock().await) };
        SuperblockWriter { stored: self, dev, _one: one }
    }
}

impl SuperblockWriter<'_> {
    /// Changes the superblock. It is durable when this returns, and only then it counts.
    ///
    /// # Errors
    /// It cannot be written. What it says in memory is what it said before.
    pub async fn write(&self, change: impl FnOnce(&mut Superblock)) -> Result<()> {
        let stored = self.stored;
        if stored.handed_over.get() {
            return Err(Error::refused(format!("{}: it was attached again meanwhile", self.dev.dev.name())));
        }
        let mut sb = stored.sb.borrow().clone();
        change(&mut sb);
        let dirty = sb.state() == BackingState::Dirty;
        let image = self.image(|block| sb.write_to(block))?;
        if seeded_bug!(SuperblockBeforeDurable) {
            *stored.sb.borrow_mut() = sb.clone();
            stored.says_dirty.set(dirty);
        }
        stored.says_dirty.set(stored.says_dirty.get() && dirty);
        stored.unsettled.set(true);
        self.dev.write_fua(SB_OFFSET, image).await?;
        stored.unsettled.set(false);
        stored.says_dirty.set(dirty);
        *stored.sb.borrow_mut() = sb;
        Ok(())
    }
    /// Writes what `place` puts into the block beside the superblock, which it does not cover yet.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn write_beside(&self, place: impl FnOnce(&mut Superblock)) -> Result<()> {
        let now = self.stored.sb.borrow().clone();
        let mut later = now.clone();
        place(&mut later);
        let image = self.image(|block| {
            later.write_to(block)?;
            now.write_to(block)
        })?;
        Ok(self.dev.write_fua(SB_OFFSET, image).await?)
    }
    /// Nobody writes the superblock from here any more: the device has another owner.
    pub(super) fn hand_over(self) {
        self.stored.handed_over.set(!seeded_bug!(TwoOwners));
    }
    /// Sees to it that nobody takes the disk for dirty from here on: who wants to write dirty data waits for this writer,
    /// and then says dirty again.
    /// Answers what was known before.
    pub(super) fn doubt_dirty(&self) -> bool {
        self.stored.says_dirty.replace(false)
    }
    /// Takes [`doubt_dirty`](Self::doubt_dirty) back: nothing was written.
    pub(super) fn restore_dirty(&self, before: bool) {
        self.stored.says_dirty.set(before);
    }
    fn image(&self, write: impl FnOnce(&mut [u8]) -> Result<(), bcache_format::Error>) -> Result<Shared> {
        let mut block = self.stored.block.borrow_mut();
        write(&mut block).map_err(|error| Error::refused(format!("{}: {error}", self.dev.dev.name())))?;
        Ok(Buf::copied(&block).freeze())
    }
}

/// Why a backing device may not be used without its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its newest data is in the cache, which is missing")]
pub struct NewestInCache;

/// What the superblock of a backing device has to say before the device is used without its cache: a cache that comes back
/// later must forget what it has of the device. Answers whether anything changed. With `lose_dirty` newer data in the
/// cache is given up.
///
/// # Errors
/// The cache has newer data.
pub fn leave_cache(sb: &mut Superblock, lose_dirty: bool) -> Result<bool, NewestInCache> {
    match leaving(sb.state(), lose_dirty) {
        Leaving::AsItIs => Ok(false),
        Leaving::NewestInCache => Err(NewestInCache),
        Leaving::SayStale => {
            sb.set_state(BackingState::Stale);
            Ok(true)
        }
    }
}
