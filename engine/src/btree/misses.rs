//! Cache misses whose data is on its way.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Names a cache miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissId(u64);

#[derive(Clone, Copy, Debug)]
struct Miss {
    id: u64,
    inode: u32,
    start: u64,
    end: u64,
}

/// Cache misses whose data is on its way: placeholders in the key space. Whatever is inserted over one ends it, so that
/// data read from the backing device before a write is never cached after it.
#[derive(Default)]
pub struct Misses {
    list: RefCell<Vec<Miss>>,
    next: Cell<u64>,
    sectors: Cell<u64>,
}

/// A cache miss whose data is on its way, until this is dropped.
pub struct MissGuard {
    misses: Rc<Misses>,
    id: MissId,
    sectors: u64,
}

impl Misses {
    /// Notes a miss. It must stand in the same breath as the lookup that missed.
    pub fn begin(self: &Rc<Self>, inode: u32, start: u64, end: u64) -> MissGuard {
        let id = self.next.get();
        self.next.set(id + 1);
        self.list.borrow_mut().push(Miss { id, inode, start, end });
        let sectors = end - start;
        self.sectors.set(self.sectors.get() + sectors);
        MissGuard { misses: Rc::clone(self), id: MissId(id), sectors }
    }
    /// Whether nothing was inserted over it since.
    pub fn holds(&self, miss: MissId) -> bool {
        self.list.borrow().iter().any(|other| other.id == miss.0)
    }
    /// Something was inserted: all misses that overlap it end, but not `own`.
    pub fn invalidate(&self, inode: u32, start: u64, end: u64, own: Option<MissId>) {
        if seeded_bug!(MissOverwritesWrite) {
            return;
        }
        self.list.borrow_mut().retain(|miss| {
            let hit = miss.inode == inode && miss.start < end && start < miss.end;
            !hit || own == Some(MissId(miss.id))
        });
    }
    /// Sectors of misses that are not done.
    pub fn sectors(&self) -> u64 {
        self.sectors.get()
    }
}

impl MissGuard {
    /// Its name.
    pub const fn id(&self) -> MissId {
        self.id
    }
    /// Whether nothing was inserted over it since.
    pub fn holds(&self) -> bool {
        self.misses.holds(self.id)
    }
}

impl Drop for MissGuard {
    fn drop(&mut self) {
        if seeded_bug!(MissLeftBehind) {
            return;
        }
        self.misses.list.borrow_mut().retain(|other| other.id != self.id.0);
        self.misses.sectors.set(self.misses.sectors.get() - self.sectors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insert_ends_the_misses_it_overlaps() {
        let misses = Rc::new(Misses::default());
        let a = misses.begin(1, 0, 8);
        let b = misses.begin(1, 8, 16);
        misses.invalidate(1, 7, 8, None);
        assert!(!a.holds() && b.holds());
        misses.invalidate(2, 0, 100, None);
        assert!(b.holds());
        misses.invalidate(1, 8, 9, Some(b.id()));
        assert!(b.holds());
        assert_eq!(misses.sectors(), 16);
        drop((a, b));
        assert_eq!(misses.sectors(), 0);
    }
}
