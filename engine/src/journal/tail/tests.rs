use super::*;
use bcache_format::Ptr;
use proptest::prelude::*;

/// Memory of a test.
#[derive(Default)]
struct Memory(RefCell<Vec<u8>>);

impl TailStore for Memory {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(Some(self.0.borrow().clone()))
    }
    fn create(&self, bytes: &[u8]) -> io::Result<()> {
        *self.0.borrow_mut() = bytes.to_vec();
        Ok(())
    }
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.borrow_mut()[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn remove(&self) -> io::Result<()> {
        self.0.borrow_mut().clear();
        Ok(())
    }
    fn set_aside(&self) -> io::Result<()> {
        self.remove()
    }
}

const BOOT: Uuid = Uuid::from_u128(1);
const SET: Uuid = Uuid::from_u128(2);

fn key(number: u64) -> Bkey {
    Bkey::extent(1, number + 8, 8, Ptr::new(0, 1024 + number, 3), true)
}

fn id(seq: u64) -> EntryId {
    EntryId { seq, csum: seq * 77 }
}

/// A tail behind entry 10, with `keys` keys of which each entry has three.
fn tail_of(slots: u64, keys: u64) -> (Rc<Memory>, Tail) {
    let memory = Rc::new(Memory::default());
    let place = TailPlace { store: Rc::clone(&memory) as _, boot: BOOT, slots };
    let tail = Tail::create(place, SET, id(10)).expect("it is made");
    (0..keys).for_each(|i| tail.add(11 + i / 3, &key(i)));
    (memory, tail)
}

fn left_in(memory: &Memory) -> Result<Left, TailFault> {
    Left::parse(&memory.0.borrow(), BOOT, SET)
}

fn numbers(behind: &Behind) -> Vec<u64> {
    behind.keys.iter().map(Bkey::start).collect()
}

#[test]
fn what_the_journal_does_not_have_is_behind_it() {
    let (memory, tail) = tail_of(16, 7);
    let left = left_in(&memory).expect("a tail");
    assert_eq!(numbers(&left.behind(id(10)).expect("it continues")), [0, 1, 2, 3, 4, 5, 6]);
    // The next entry is being written: it is on the disk, or not.
    tail.note(id(11)).expect("it is noted");
    let left = left_in(&memory).expect("a tail");
    assert_eq!(numbers(&left.behind(id(10)).expect("it continues")), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(numbers(&left.behind(id(11)).expect("it continues")), [3, 4, 5, 6]);
    let other = left.behind(EntryId { seq: 11, csum: 0 });
    assert_eq!(other.expect_err("another entry"), TailFault::NotContinued { seq: 11, keys: 7 });
    assert!(left.behind(id(12)).is_err() && left.behind(id(9)).is_err());
    assert_eq!((left.count_behind(10), left.count_behind(12), left.count_behind(13)), (7, 1, 0));
}

#[test]
fn slots_are_used_again_once_the_journal_has_their_keys_and_no_sooner() {
    let (memory, tail) = tail_of(8, 8);
    assert!(tail.holds_all() && tail.is_crowded());
    tail.add(13, &key(8));
    assert!(!tail.holds_all(), "there is no room");
    tail.note(id(11)).expect("it is noted");
    tail.durable(11);
    // There is room again, but what is missing would be missed between the others.
    tail.add(13, &key(9));
    assert!(!tail.holds_all());
    tail.durable(13);
    assert!(tail.holds_all());
    (20..25).for_each(|i| tail.add(14, &key(i)));
    tail.note(id(13)).expect("it is noted");
    let left = left_in(&memory).expect("a tail");
    assert_eq!(numbers(&left.behind(id(13)).expect("it continues")), [20, 21, 22, 23, 24]);
}

#[test]
fn what_is_carried_counts_until_it_is_adopted_and_never_again() {
    let (memory, tail) = tail_of(16, 7);
    // Another program would make one of another size.
    tail.note(id(11)).expect("it is noted");
    let behind = left_in(&memory).and_then(|left| left.behind(id(11))).expect("keys");
    let place = TailPlace { store: Rc::clone(&memory) as _, boot: BOOT, slots: 64 };
    let next = Tail::carry(place, SET, id(11), &behind).expect("it is carried");
    // Some of them are in an entry of the new process, which ends, too.
    next.add(12, &key(3));
    assert!(!next.holds_all());
    next.note(id(12)).expect("it is noted");
    let again = left_in(&memory).and_then(|left| left.behind(id(12))).expect("keys");
    assert_eq!(numbers(&again), numbers(&behind));
    next.durable(12);
    next.adopted();
    assert!(next.holds_all());
    let left = left_in(&memory).expect("a tail");
    assert_eq!(numbers(&left.behind(id(12)).expect("it continues")), [0; 0]);
    next.add(13, &key(50));
    let left = left_in(&memory).expect("a tail");
    assert_eq!(numbers(&left.behind(id(12)).expect("it continues")), [50]);
}

#[test]
fn damaged_keys_are_counted_and_others_are_not_missed_for_them() {
    let (memory, _) = tail_of(16, 7);
    for (slot, keys, damaged) in [(3, 6, 1), (0, 6, 1), (6, 6, 0)] {
        let mut bytes = memory.0.borrow().clone();
        bytes[(SLOTS_AT + slot * SLOT) as usize + 30] ^= 1;
        let left = Left::parse(&bytes, BOOT, SET).expect("a tail");
        let behind = left.behind(id(10)).expect("it continues");
        assert_eq!((behind.keys.len(), behind.damaged), (keys, damaged), "slot {slot}");
    }
}

#[test]
fn what_is_no_tail_of_this_set_and_boot_is_told_apart() {
    let (memory, _) = tail_of(16, 7);
    let whole = memory.0.borrow().clone();
    let fault = |bytes: &[u8]| Left::parse(bytes, BOOT, SET).err().expect("a fault");
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    assert_eq!(fault(&[]), TailFault::NotOne);
    assert_eq!(fault(&changed(0)), TailFault::NotOne);
    assert_eq!(fault(&whole[..15]), TailFault::Header);
    assert_eq!(fault(&changed(15)), TailFault::Version(0));
    assert_eq!(fault(&changed(48)), TailFault::Header);
    let (found, expected) = (whole.len() as u64 - 1, whole.len() as u64);
    assert_eq!(fault(&whole[..found as usize]), TailFault::Short { found, expected });
    let other = Uuid::from_u128(9);
    assert_eq!(Left::parse(&whole, other, SET).err(), Some(TailFault::OtherBoot));
    assert_eq!(Left::parse(&whole, BOOT, other).err(), Some(TailFault::OtherSet(SET)));
}

#[test]
fn numbers_that_nobody_writes_are_no_harm() {
    let (memory, _) = tail_of(16, 7);
    let mut bytes = memory.0.borrow().clone();
    let place = TailPlace { store: Rc::clone(&memory) as _, boot: BOOT, slots: 16 };
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, &header(&place, SET, u64::MAX, 16, false));
    assert_eq!(Left::parse(&bytes, BOOT, SET).err(), Some(TailFault::Header));
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, &header(&place, SET, 0, 0, false));
    put((SLOTS_AT + 15 * SLOT) as usize, &record(u64::MAX, u64::MAX, &key(1)).expect("a record"));
    let behind = Left::parse(&bytes, BOOT, SET).and_then(|left| left.behind(id(10))).expect("keys");
    assert_eq!((behind.keys.len(), behind.damaged), (7, 0));
}

#[test]
fn a_failed_flush_makes_what_is_left_doubtful() {
    let (memory, tail) = tail_of(16, 7);
    tail.leave(true);
    tail.add(14, &key(20));
    let left = left_in(&memory).expect("a tail");
    assert_eq!(left.behind(id(10)).err(), Some(TailFault::Doubtful { keys: 7 }));
    let (memory, tail) = tail_of(16, 7);
    tail.note(id(13)).expect("it is noted");
    tail.leave(true);
    // The journal has them all: nothing is in doubt.
    assert!(left_in(&memory).and_then(|left| left.behind(id(13))).is_ok_and(|behind| behind.keys.is_empty()));
}

#[test]
fn a_journal_that_ends_before_a_durable_entry_is_not_continued() {
    let (memory, tail) = tail_of(16, 7);
    tail.note(id(11)).expect("it is noted");
    tail.durable(11);
    let left = left_in(&memory).expect("a tail");
    assert!(left.behind(id(10)).is_err());
    assert_eq!(numbers(&left.behind(id(11)).expect("it continues")), [3, 4, 5, 6]);
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(
        damage in prop::collection::vec((0usize..6000, any::<u8>()), 0..40),
        len in 0usize..6000,
        keys in 0u64..40,
    ) {
        let (memory, _) = tail_of(16, keys);
        let mut bytes = memory.0.borrow().clone();
        for (at, byte) in damage {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes.truncate(len);
        if let Ok(left) = Left::parse(&bytes, BOOT, SET) {
            let _ = left.behind(id(10));
            let _ = left.count_behind(0);
        }
    }
}
