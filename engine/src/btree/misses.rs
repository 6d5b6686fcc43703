//! Cache misses whose data is on its way.

use bcache_format::{Sectors, Span};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Names a cache miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissId(u64);

#[derive(Clone, Copy, Debug)]
struct Miss {
    id: u64,
    span: Span,
}

/// Cache misses whose data is on its way: placeholders in the key space. Whatever is inserted over one ends it, so that
/// data read from the backing device before a write is never cached after it.
#[derive(Default)]
pub struct Misses {
    list: RefCell<Vec<Miss>>,
    next: Cell<u64>,
    sectors: Cell<Sectors>,
}

/// A cache miss whose data is on its way, until this is dropped.
pub struct MissGuard {
    misses: Rc<Misses>,
    id: MissId,
    sectors: Sectors,
}

impl Misses {
    /// Notes a miss. It must stand in the same breath as the lookup that missed.
    pub fn begin(self: &Rc<Self>, span: Span) -> MissGuard {
        let id = self.next.get();
        self.next.set(id + 1);
        self.list.borrow_mut().push(Miss { id, span });
        let sectors = span.sectors();
        self.sectors.set(self.sectors.get() + sectors);
        MissGuard { misses: Rc::clone(self), id: MissId(id), sectors }
    }
    /// Whether nothing was inserted over it since.
    pub fn holds(&self, miss: MissId) -> bool {
        self.list.borrow().iter().any(|other| other.id == miss.0)
    }
    /// Something was inserted: all misses that overlap it end, but not `own`.
    pub fn invalidate(&self, span: Span, own: Option<MissId>) {
        if seeded_bug!(MissOverwritesWrite) {
            return;
        }
        self.list.borrow_mut().retain(|miss| !miss.span.overlaps(&span) || own == Some(MissId(miss.id)));
    }
    /// Sectors of misses that are not done.
    pub fn sectors(&self) -> Sectors {
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
    use bcache_format::Sector;

    fn span(inode: u32, start: u64, end: u64) -> Span {
        Span::new(inode, Sector(start), Sector(end))
    }

    #[test]
    fn an_insert_ends_the_misses_it_overlaps() {
        let misses = Rc::new(Misses::default());
        let a = misses.begin(span(1, 0, 8));
        let b = misses.begin(span(1, 8, 16));
        misses.invalidate(span(1, 7, 8), None);
        assert!(!a.holds() && b.holds());
        misses.invalidate(span(2, 0, 100), None);
        assert!(b.holds());
        misses.invalidate(span(1, 8, 9), Some(b.id()));
        assert!(b.holds());
        assert_eq!(misses.sectors(), Sectors(16));
        drop((a, b));
        assert_eq!(misses.sectors(), Sectors(0));
    }
}
