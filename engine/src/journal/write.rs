//! Writing entries.

use super::{Entry, EntryId, Journal, Ring};
use crate::dev::Buf;
use crate::error::{Error, Result};
use crate::set::CacheSet;
use bcache_format::Seq;
use bcache_format::jset::JsetHeader;
use std::rc::Rc;
use std::time::Duration;

impl CacheSet {
    /// Waits until entry `seq` and all before it are durable; asks for them to be written at once.
    pub(crate) async fn commit(&self, seq: Seq) -> Result<()> {
        let journal = &self.journal;
        if journal.durable.get() < seq {
            journal.requested.set(journal.requested.get().max(seq));
            journal.writer.wake_all();
            let ended = || self.is_failed() || journal.ended.get();
            journal.written.wait_until(|| journal.durable.get() >= seq || ended()).await;
        }
        if journal.durable.get() >= seq { Ok(()) } else { self.check().and(Err(Error::Stopping)) }
    }

    /// Makes the places of root, uuid table and prio sets durable: all keys added so far, too.
    pub(crate) async fn commit_roots(&self) -> Result<()> {
        self.commit(self.journal.open_seq()).await
    }

    /// Makes all keys added so far durable; writes nothing when they are.
    pub(crate) async fn commit_keys(&self) -> Result<()> {
        let journal = &self.journal;
        let open = journal.open_seq();
        let newest = if journal.open.borrow().keys.is_empty() { Seq(open.0 - 1) } else { open };
        self.commit(newest).await
    }

    /// Waits while the journal has more to write than it should.
    pub(crate) async fn journal_admission(&self) -> Result<()> {
        let journal = &self.journal;
        if journal.congested() {
            let ended = || self.is_failed() || journal.ended.get();
            journal.written.wait_until(|| !journal.congested() || ended()).await;
        }
        self.check()
    }

    /// Sees to it that keys just added are written within `journal_delay_ms`.
    pub(crate) fn journal_soon(self: &Rc<Self>) {
        if self.journal.timer_armed.replace(true) {
            return;
        }
        let set = Rc::clone(self);
        self.env
            .spawn(async move {
                set.env.sleep(Duration::from_millis(set.settings.journal_delay_ms.get())).await;
                set.journal.timer_armed.set(false);
                let journal = &set.journal;
                if !journal.open.borrow().keys.is_empty() {
                    journal.requested.set(journal.requested.get().max(journal.open_seq()));
                    journal.writer.wake_all();
                }
            })
            .detach();
    }

    /// Runs until the set stops: writes entries, one at a time, in order.
    pub(crate) async fn journal_task(self: Rc<Self>) {
        let journal = &self.journal;
        loop {
            journal.writer.wait_until(|| journal.closing.get() || journal.has_work()).await;
            if self.is_failed() || (journal.closing.get() && !journal.has_work()) {
                break;
            }
            if let Err(error) = self.write_next().await {
                self.fail(error);
                break;
            }
        }
        // Who asks from here on must not wait for what nobody writes.
        journal.ended.set(true);
        journal.written.wake_all();
    }

    async fn write_next(&self) -> Result<()> {
        let journal = &self.journal;
        // Keys may be added while room is made.
        while !journal.next_fits() {
            self.journal_space(journal.next_bytes()).await?;
        }
        let Some(Entry { seq, pin, keys, .. }) = journal.take_next() else { return Ok(()) };
        let last_seq = journal.last_seq();
        let this_dev = self.cache.this_dev();
        let roots = self.roots();
        let jset = roots.jset(seq, last_seq, this_dev, keys);
        let image = jset.write(self.cache.magic, journal.block_bytes).map_err(|e| self.format_error(e))?;
        let at = journal.ring.borrow_mut().place(seq, image.len() as u64, journal.bucket_bytes);
        let skip_flush = seeded_bug!(JournalWithoutFlush);
        if !skip_flush {
            self.metadata(self.cache.ensure_flushed(self.cache.epoch()).await)?;
        }
        self.check()?;
        if let (Some(tail), Some(header)) = (journal.tail.get(), JsetHeader::read(&image)) {
            tail.note(EntryId::of(&header)).map_err(|error| {
                let what = format!(
                    "the journal's tail in memory cannot be written ({error}), and must be before the journal"
                );
                self.cache.untrusted(what)
            })?;
        }
        self.metadata(self.cache.write_fua(at, Buf::copied(&image).freeze()).await)?;
        journal.durable.set(seq);
        journal.durable_last.set(last_seq);
        if let Some(tail) = journal.tail.get() {
            tail.durable(seq.0);
        }
        journal.note_roots(&roots.btree_root, &roots.uuid_bucket);
        drop(pin);
        self.stats.journal_writes.add(1);
        self.stats.other_metadata_sectors_written.add(image.len() as u64 / bcache_format::SECTOR_SIZE);
        journal.written.wake_all();
        journal.reclaimer.wake_all();
        Ok(())
    }
}

impl Journal {
    fn has_work(&self) -> bool {
        !self.closed.borrow().is_empty() || self.requested.get() >= self.open_seq()
    }
    fn next_bytes(&self) -> u64 {
        let closed = self.closed.borrow();
        let words = closed.front().map_or_else(|| self.open.borrow().words, |entry| entry.words);
        bcache_format::jset::Jset::padded_bytes(words, self.block_bytes)
    }
    fn next_fits(&self) -> bool {
        self.ring.borrow().used + self.next_bytes() <= self.bucket_bytes
    }
    fn take_next(&self) -> Option<Entry> {
        if self.closed.borrow().is_empty() {
            self.close_open();
        }
        self.closed.borrow_mut().pop_front()
    }
}

impl Ring {
    /// Byte on the device where `bytes` of entry `seq` go. There is room: [`CacheSet::journal_space`] saw to it.
    fn place(&mut self, seq: Seq, bytes: u64, bucket_bytes: u64) -> u64 {
        debug_assert!(self.used + bytes <= bucket_bytes);
        let at = self.buckets[self.current].nr.0 * bucket_bytes + self.used;
        self.used += bytes;
        self.buckets[self.current].newest = seq;
        at
    }
}
