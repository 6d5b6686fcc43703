//! What every sector may hold.

use std::collections::HashMap;

/// What was written to a sector: a number for each write, 0 for zeros.
pub type Value = u64;

/// What a discard leaves: anything.
const ANYTHING: Value = Value::MAX - 1;

#[derive(Clone, Debug)]
struct Written {
    value: Value,
    /// Counts acknowledgements; nothing before the write is acknowledged.
    acked: Option<u64>,
}

impl Written {
    const fn may_be(&self, value: Value) -> bool {
        self.value == value || self.value == ANYTHING
    }
}

#[derive(Clone, Debug, Default)]
struct Sector {
    /// Values the sector may hold after a crash, oldest first. Never empty once written.
    writes: Vec<Written>,
    /// Everything begun in this sector, by when: for reads during which writes come and go.
    log: Vec<(u64, Value)>,
    /// A write or discard is under way.
    busy: bool,
}

/// What the sectors of one device may hold, by what was acknowledged and flushed.
#[derive(Clone, Debug, Default)]
pub struct Model {
    sectors: HashMap<u64, Sector>,
    acks: u64,
    begun: u64,
}

impl Model {
    /// Begins a write of `value` to sectors. False when something is under way in any of them: the order would be
    /// anybody's guess.
    pub fn begin_write(&mut self, sectors: std::ops::Range<u64>, value: impl Fn(u64) -> Value) -> bool {
        if sectors.clone().any(|at| self.sectors.get(&at).is_some_and(|sector| sector.busy)) {
            return false;
        }
        self.begun += 1;
        for at in sectors {
            let sector = self.sectors.entry(at).or_default();
            sector.log.push((self.begun, value(at)));
            sector.busy = true;
            if sector.writes.is_empty() {
                sector.writes.push(Written { value: 0, acked: Some(0) });
            }
            sector.writes.push(Written { value: value(at), acked: None });
        }
        true
    }
    /// The write was acknowledged.
    pub fn end_write(&mut self, sectors: std::ops::Range<u64>) {
        self.acks += 1;
        for at in sectors {
            let sector = self.sectors.entry(at).or_default();
            sector.busy = false;
            if let Some(last) = sector.writes.last_mut() {
                last.acked = Some(self.acks);
            }
        }
    }
    /// Begins a discard.
    pub fn begin_discard(&mut self, sectors: std::ops::Range<u64>) -> bool {
        self.begin_write(sectors, |_| ANYTHING)
    }
    /// The mark of a flush that begins now: it speaks for what was acknowledged so far.
    pub const fn flush_mark(&self) -> u64 {
        self.acks
    }
    /// A flush that began at `mark` was acknowledged: what was acknowledged before is durable.
    pub fn end_flush(&mut self, mark: u64) {
        for sector in self.sectors.values_mut() {
            let durable =
                sector.writes.iter().rposition(|written| written.acked.is_some_and(|ack| ack <= mark));
            if let Some(durable) = durable.filter(|at| *at > 0) {
                sector.writes.drain(..durable);
            }
        }
    }
    /// Whether a crash may leave `value` in a sector.
    pub fn may_survive(&self, at: u64, value: Value) -> bool {
        match self.sectors.get(&at) {
            None => value == 0,
            Some(sector) => sector.writes.iter().any(|written| written.may_be(value)),
        }
    }
    /// Whether a read that begins now and ends soon may see `value`: the newest acknowledged, or one under way.
    pub fn may_read(&self, at: u64, value: Value) -> bool {
        let Some(sector) = self.sectors.get(&at) else { return value == 0 };
        let newest = sector.writes.iter().rposition(|written| written.acked.is_some()).unwrap_or(0);
        sector.writes.iter().skip(newest).any(|written| written.may_be(value))
    }
    /// Whether `value` was begun since `before` was so.
    pub fn came_since(&self, before: &Self, at: u64, value: Value) -> bool {
        let log = self.sectors.get(&at).map(|sector| &sector.log[..]).unwrap_or_default();
        log.iter().any(|(begun, other)| *begun > before.begun && (*other == value || *other == ANYTHING))
    }
    /// Whether only one value is possible.
    pub fn is_settled(&self, at: u64) -> bool {
        self.sectors
            .get(&at)
            .is_none_or(|sector| sector.writes.len() == 1 && !sector.writes[0].may_be(ANYTHING))
    }
    /// After a crash and a recovery: this is what the sector holds from now on.
    pub fn settle(&mut self, at: u64, value: Value) {
        let writes = vec![Written { value, acked: Some(0) }];
        self.sectors.insert(at, Sector { writes, log: Vec::new(), busy: false });
    }
    /// What may be in a sector, for messages.
    pub fn describe(&self, at: u64) -> String {
        self.sectors.get(&at).map_or_else(|| "never written".to_owned(), |sector| format!("{sector:?}"))
    }
    /// All sectors that were written.
    pub fn touched(&self) -> Vec<u64> {
        self.sectors.keys().copied().collect()
    }
}
