//! What a volume may answer, given everything it has acknowledged.
//!
//! Time is a counter that each event moves on. A write *supersedes* another if it started after the other was
//! acknowledged; of two that overlap in time either may be the last. With the power on, a read may see any value that
//! no write superseded and was acknowledged before the read began. After a power cut, a sector may hold any value that
//! no *durable* write superseded: one acknowledged before a completed flush began, or with FUA.

use std::fmt;

use bcache_engine::dev::Buf;

/// Bytes of a sector, the unit of tearing and of judging.
pub const SECTOR: usize = 512;

const MAGIC: u64 = 0x6d61_7473_6863_6362;

/// What a write leaves in its sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Zeroes,
    /// Anything at all.
    Undefined,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    kind: Kind,
    start: u64,
    /// When it was over: acknowledged, or failed, or cut.
    ack: Option<u64>,
    /// Its client was told that it is done.
    acknowledged: bool,
    failed: bool,
    durable: bool,
    /// Acknowledged by a process that ended: it is there as long as the power is on.
    kept: bool,
    epoch: u32,
}

#[derive(Clone, Debug)]
struct Sector {
    /// Writes that may still be seen here, by number, oldest first. Number 0 is the state before all.
    writes: Vec<u32>,
    /// What a read in this epoch saw of earlier epochs.
    seen: Option<u32>,
}

/// A sector that holds what it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The sector's number.
    pub sector: u64,
    /// What it holds and what it might hold.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sector {}: {}", self.sector, self.what)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Observed {
    Stamp(u32),
    Zeroes,
    Other,
}

/// The bytes write number `write` leaves in sector number `sector`.
pub fn stamp(sector: u64, write: u32, bytes: &mut [u8]) {
    let seed = (sector << 32 | u64::from(write)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = match index {
            0 => MAGIC,
            1 => sector,
            2 => u64::from(write),
            _ => seed.wrapping_add(index as u64),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

fn observe(sector: u64, bytes: &[u8]) -> Observed {
    if bytes.iter().all(|byte| *byte == 0) {
        return Observed::Zeroes;
    }
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[16..20]);
    let write = u32::from_le_bytes(word);
    let mut expect = [0; SECTOR];
    stamp(sector, write, &mut expect);
    if bytes == expect { Observed::Stamp(write) } else { Observed::Other }
}

/// Every write to a volume, and what follows from them.
#[derive(Clone, Debug, Default)]
pub struct Model {
    clock: u64,
    epoch: u32,
    writes: Vec<Write>,
    sectors: Vec<Sector>,
    /// Acknowledged since the power is on, and not durable.
    volatile: Vec<u32>,
    strict: bool,
}

impl Model {
    /// A volume of `sectors` sectors of zeroes. A `strict` model also demands that a value seen after a power cut
    /// does not give way to an older one once a flush has completed.
    pub fn new(sectors: u64, strict: bool) -> Model {
        let origin = Write {
            kind: Kind::Zeroes,
            start: 0,
            ack: Some(1),
            acknowledged: true,
            failed: false,
            durable: true,
            kept: false,
            epoch: 0,
        };
        Model {
            clock: 2,
            epoch: 1,
            writes: vec![origin],
            sectors: vec![Sector { writes: vec![0], seen: None }; sectors as usize],
            volatile: Vec::new(),
            strict,
        }
    }

    /// Nothing was ever written.
    pub fn is_untouched(&self) -> bool {
        self.writes.len() == 1
    }

    /// Sectors of the volume.
    pub fn sectors(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// Moves time on; the moment before.
    pub fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn begin(&mut self, kind: Kind, sector: u64, count: u64) -> u32 {
        let start = self.tick();
        let number = self.writes.len() as u32;
        let epoch = self.epoch;
        self.writes.push(Write {
            kind,
            start,
            ack: None,
            acknowledged: false,
            failed: false,
            durable: false,
            kept: false,
            epoch,
        });
        for sector in &mut self.sectors[sector as usize..(sector + count) as usize] {
            sector.writes.push(number);
        }
        number
    }

    /// A write of `count` sectors begins; its number and its bytes.
    pub fn begin_write(&mut self, sector: u64, count: u64) -> (u32, Buf) {
        let number = self.begin(Kind::Data, sector, count);
        let mut bytes = Buf::recycled(count as usize * SECTOR);
        for (index, chunk) in bytes.chunks_exact_mut(SECTOR).enumerate() {
            stamp(sector + index as u64, number, chunk);
        }
        (number, bytes)
    }

    /// A write of zeroes begins.
    pub fn begin_zeroes(&mut self, sector: u64, count: u64) -> u32 {
        self.begin(Kind::Zeroes, sector, count)
    }

    /// A discard begins: the sectors hold anything until they are written again.
    pub fn begin_discard(&mut self, sector: u64, count: u64) -> u32 {
        self.begin(Kind::Undefined, sector, count)
    }

    /// A write, zeroing or discard was acknowledged, as durable if `fua`.
    pub fn end_write(&mut self, number: u32, fua: bool) {
        let now = self.tick();
        let write = &mut self.writes[number as usize];
        write.ack = Some(now);
        write.acknowledged = true;
        write.durable = fua;
        if !fua {
            self.volatile.push(number);
        }
    }

    /// A write, zeroing or discard failed: its sectors hold the old or the new.
    pub fn fail_write(&mut self, number: u32) {
        let now = self.tick();
        let write = &mut self.writes[number as usize];
        write.ack = Some(now);
        write.failed = true;
    }

    /// A flush failed: nobody can promise what was written before it any more.
    pub fn fail_flush(&mut self) {
        self.tick();
        self.volatile.clear();
    }

    /// A flush that began at `start` was acknowledged.
    pub fn end_flush(&mut self, start: u64) {
        self.tick();
        let writes = &mut self.writes;
        self.volatile.retain(|number| {
            let write = &mut writes[*number as usize];
            let covered = write.ack.is_some_and(|ack| ack < start);
            write.durable |= covered;
            !covered
        });
        if self.strict {
            for sector in &mut self.sectors {
                let Some(seen) = sector.seen else { continue };
                let (writes, epoch) = (&self.writes, self.epoch);
                sector.writes.retain(|number| *number == seen || writes[*number as usize].epoch == epoch);
            }
        }
    }

    /// The power went: what was under way is over, and what was volatile may be gone.
    pub fn cut(&mut self) {
        self.end_all();
        self.writes.iter_mut().for_each(|write| write.kept = false);
        self.volatile.clear();
        self.next_epoch();
    }

    /// The subject was killed, and nothing else happened: what was under way is over, and what was acknowledged is there,
    /// as volatile as before.
    pub fn kill(&mut self) {
        self.end_all();
        for write in self.writes.iter_mut().filter(|write| write.epoch == self.epoch) {
            write.kept = write.acknowledged && !write.failed;
        }
        self.next_epoch();
    }

    fn end_all(&mut self) {
        let now = self.tick();
        for write in self.writes.iter_mut().rev().take_while(|write| write.epoch == self.epoch) {
            write.ack.get_or_insert(now);
        }
    }

    /// The subject stopped cleanly: all it acknowledged is durable.
    pub fn stopped(&mut self) {
        let now = self.tick();
        self.end_flush(now);
        self.volatile.clear();
        self.next_epoch();
    }

    fn next_epoch(&mut self) {
        self.epoch += 1;
        self.sectors.iter_mut().for_each(|sector| sector.seen = None);
    }

    /// Judges all of the volume as somebody reads it who is not the subject, between two epochs. What is not durable may
    /// be seen or not: it binds nobody who reads later.
    pub fn judge_at_rest(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let start = self.tick();
        let judged = self.judge(0, bytes, start);
        self.sectors.iter_mut().for_each(|sector| sector.seen = None);
        judged
    }

    /// Judges `bytes`, read from `sector` on by a read that began at `start`.
    pub fn judge(&mut self, sector: u64, bytes: &[u8], start: u64) -> Result<(), Violation> {
        for (index, chunk) in bytes.chunks_exact(SECTOR).enumerate() {
            self.judge_sector(sector + index as u64, chunk, start)?;
        }
        Ok(())
    }

    fn judge_sector(&mut self, number: u64, bytes: &[u8], start: u64) -> Result<(), Violation> {
        self.prune(number);
        let observed = observe(number, bytes);
        let state = &self.sectors[number as usize];
        let horizon = self.horizon(state, start);
        let live = || state.writes.iter().rev().copied().filter(|write| self.visible(state, *write, horizon));
        let matching = live().find(|write| match self.writes[*write as usize].kind {
            Kind::Data => observed == Observed::Stamp(*write),
            Kind::Zeroes => observed == Observed::Zeroes,
            Kind::Undefined => true,
        });
        let Some(matching) = matching else {
            let live: Vec<u32> = live().collect();
            return Err(Violation { sector: number, what: self.story(observed, &live, state) });
        };
        let write = self.writes[matching as usize];
        let untouched = state.writes.iter().all(|w| self.writes[*w as usize].epoch < self.epoch);
        if write.kind != Kind::Undefined && untouched {
            self.sectors[number as usize].seen = Some(matching);
        }
        Ok(())
    }

    /// The start of the last write that a read beginning at `start` must know of: it sees no write acknowledged
    /// before that.
    fn horizon(&self, sector: &Sector, start: u64) -> u64 {
        let writes = sector.writes.iter().map(|write| self.writes[*write as usize]);
        // A read under way when a write is acknowledged may still see what was there before, durable or not.
        let known = writes.filter(|write| {
            if write.epoch == self.epoch {
                !write.failed && write.ack.is_some_and(|ack| ack < start)
            } else {
                write.durable || write.kept
            }
        });
        known.map(|write| write.start).max().unwrap_or(0)
    }

    fn visible(&self, sector: &Sector, number: u32, horizon: u64) -> bool {
        let write = self.writes[number as usize];
        let outdated = write.epoch < self.epoch && sector.seen.is_some_and(|seen| seen != number);
        !outdated && write.ack.is_none_or(|ack| ack > horizon)
    }

    /// Forgets writes that a durable one has superseded: they can never be seen again.
    fn prune(&mut self, number: u64) {
        let writes = &self.writes;
        let sector = &mut self.sectors[number as usize];
        let newest = sector
            .writes
            .iter()
            .map(|w| writes[*w as usize])
            .filter(|w| w.durable && w.epoch < self.epoch)
            .map(|w| w.start)
            .max();
        if let Some(newest) = newest {
            sector.writes.retain(|w| writes[*w as usize].ack.is_none_or(|ack| ack > newest));
        }
    }

    fn story(&self, observed: Observed, live: &[u32], sector: &Sector) -> String {
        let tell = |number: &u32| {
            let Write { kind, start, ack, durable, epoch, .. } = self.writes[*number as usize];
            let state = match (ack, durable) {
                (None, _) => "under way".to_owned(),
                (Some(ack), true) => format!("durable, acknowledged at {ack}"),
                (Some(ack), false) => format!("volatile, ended at {ack}"),
            };
            format!("write {number} ({kind:?}, epoch {epoch}, from {start}, {state})")
        };
        let held = match observed {
            Observed::Stamp(number) if (number as usize) < self.writes.len() => tell(&number),
            Observed::Stamp(number) => format!("write {number}, which was never made"),
            Observed::Zeroes => "zeroes".to_owned(),
            Observed::Other => "bytes that nobody wrote here".to_owned(),
        };
        let allowed: Vec<String> = live.iter().map(tell).collect();
        let seen = sector.seen.map(|seen| format!("; write {seen} was seen before")).unwrap_or_default();
        format!(
            "holds {held}; allowed: {}{seen}; now {}, epoch {}",
            allowed.join(", "),
            self.clock,
            self.epoch
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of sector 0 as write number `write` leaves them.
    fn bytes(write: u32) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR];
        stamp(0, write, &mut bytes);
        bytes
    }

    fn sees(model: &mut Model, write: u32) -> bool {
        let start = model.tick();
        let bytes = if write == 0 { vec![0; SECTOR] } else { bytes(write) };
        model.judge(0, &bytes, start).is_ok()
    }

    fn write(model: &mut Model, fua: bool) -> u32 {
        let number = model.begin_write(0, 1).0;
        model.end_write(number, fua);
        number
    }

    #[test]
    fn an_acknowledged_write_is_seen_at_once() {
        let mut model = Model::new(1, false);
        let one = model.begin_write(0, 1).0;
        assert!(sees(&mut model, 0) && sees(&mut model, one), "under way: old or new");
        model.end_write(one, false);
        assert!(sees(&mut model, one) && !sees(&mut model, 0));
        let two = write(&mut model, false);
        assert!(!sees(&mut model, one) && sees(&mut model, two));
    }

    #[test]
    fn a_read_that_began_before_the_acknowledgement_may_see_either() {
        let mut model = Model::new(1, false);
        let start = model.tick();
        let one = write(&mut model, false);
        assert!(model.judge(0, &[0; SECTOR], start).is_ok() && model.judge(0, &bytes(one), start).is_ok());
    }

    #[test]
    fn of_writes_side_by_side_either_is_last() {
        let mut model = Model::new(1, false);
        let (one, two) = (model.begin_write(0, 1).0, model.begin_write(0, 1).0);
        model.end_write(two, false);
        model.end_write(one, false);
        assert!(sees(&mut model, one) && sees(&mut model, two) && !sees(&mut model, 0));
    }

    #[test]
    fn a_cut_may_lose_what_was_not_flushed_and_nothing_else() {
        let mut model = Model::new(1, false);
        let one = write(&mut model, false);
        let start = model.tick();
        let two = write(&mut model, false);
        model.end_flush(start);
        let three = model.begin_write(0, 1).0;
        model.cut();
        assert!(!sees(&mut model, 0), "the flush covers the first write");
        for allowed in [one, two, three] {
            assert!(sees(&mut model.clone(), allowed));
        }
        assert!(sees(&mut model, two));
        assert!(!sees(&mut model, three) && !sees(&mut model, one), "once seen it stays");
    }

    #[test]
    fn a_failed_write_left_old_or_new() {
        let mut model = Model::new(1, false);
        let one = write(&mut model, true);
        let two = model.begin_write(0, 1).0;
        model.fail_write(two);
        assert!(sees(&mut model, one) && sees(&mut model, two) && !sees(&mut model, 0));
        let three = write(&mut model, false);
        assert!(!sees(&mut model, one) && !sees(&mut model, two) && sees(&mut model, three));
    }

    #[test]
    fn after_a_failed_flush_a_good_one_promises_nothing_for_earlier_writes() {
        let mut model = Model::new(1, false);
        write(&mut model, false);
        model.fail_flush();
        let start = model.tick();
        model.end_flush(start);
        model.cut();
        assert!(sees(&mut model, 0));
    }

    #[test]
    fn fua_is_durable_at_once() {
        let mut model = Model::new(1, false);
        write(&mut model, true);
        model.cut();
        assert!(!sees(&mut model, 0));
    }

    #[test]
    fn a_write_lost_in_one_cut_is_not_made_durable_by_a_later_flush() {
        let mut model = Model::new(1, false);
        let one = write(&mut model, false);
        model.cut();
        assert!(sees(&mut model, 0));
        let start = model.tick();
        model.end_flush(start);
        model.cut();
        assert!(sees(&mut model, 0));
        model.cut();
        assert!(sees(&mut model, one), "unless strict, it may still turn up");
    }

    #[test]
    fn a_strict_model_holds_to_what_was_seen_and_flushed() {
        let mut model = Model::new(1, true);
        let one = write(&mut model, false);
        model.cut();
        assert!(sees(&mut model, one));
        let start = model.tick();
        model.end_flush(start);
        model.cut();
        assert!(!sees(&mut model, 0) && sees(&mut model, one));
    }

    #[test]
    fn discarded_sectors_hold_anything_until_written() {
        let mut model = Model::new(1, false);
        let discard = model.begin_discard(0, 1);
        model.end_write(discard, true);
        assert!(model.judge(0, &[9; SECTOR], u64::MAX).is_ok());
        let one = write(&mut model, true);
        assert!(model.judge(0, &[9; SECTOR], u64::MAX).is_err() && sees(&mut model, one));
        let zeroes = model.begin_zeroes(0, 1);
        model.end_write(zeroes, false);
        assert!(sees(&mut model, 0) && !sees(&mut model, one));
    }

    #[test]
    fn a_value_in_the_wrong_place_or_torn_inside_a_sector_is_no_value() {
        let mut model = Model::new(2, false);
        let (number, data) = model.begin_write(0, 2);
        model.end_write(number, false);
        let start = model.tick();
        assert!(model.judge(1, &data[..SECTOR], start).is_err());
        let mut torn = data[..SECTOR].to_vec();
        torn[SECTOR - 1] ^= 1;
        assert!(model.judge(0, &torn, start).is_err());
        assert!(model.judge(0, &data, start).is_ok());
    }
}
