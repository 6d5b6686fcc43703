//! Memory that outlives the process.

use std::cell::{Cell, RefCell};
use std::io;

use bcache_engine::env::Rng;
use bcache_engine::journal::TailStore;
use uuid::Uuid;

/// Behind it there are keys.
const PAGE: u64 = 4096;

/// What a process leaves to the next in memory. A clone is a copy.
#[derive(Clone, Debug)]
pub struct Kept {
    bytes: RefCell<Option<Vec<u8>>>,
    /// What was set aside last.
    aside: RefCell<Option<Vec<u8>>>,
    boot: Uuid,
    /// Slots of a tail that is made here.
    slots: u64,
    /// Changes that still succeed, if not all do.
    good: Cell<Option<u32>>,
}

impl Kept {
    /// Nothing, since the machine was switched on.
    pub fn empty(rng: &mut Rng) -> Kept {
        let boot = Uuid::from_u64_pair(rng.bits(), rng.bits());
        let slots = [8, 64, 1024][rng.below(3) as usize];
        Kept { bytes: RefCell::default(), aside: RefCell::default(), boot, slots, good: Cell::default() }
    }

    /// What is there when the machine is switched on again: nothing, or a file that somebody put back.
    pub fn after_a_boot(&self, rng: &mut Rng) -> Kept {
        let put_back = rng.chance(1, 4);
        let bytes = self.bytes.borrow().clone().filter(|_| put_back);
        Kept { bytes: RefCell::new(bytes), ..Kept::empty(rng) }
    }

    /// Now and then there is no room, or it ends: what was written once can be written again.
    pub fn draw_faults(&self, rng: &mut Rng) {
        self.good.set(rng.chance(1, 16).then(|| (1 << rng.below(10)) - 1));
    }

    /// Nothing can be written from now on.
    pub fn fail(&self) {
        self.good.set(Some(0));
    }

    /// Puts `bytes` there.
    pub fn put(&self, bytes: Option<Vec<u8>>) {
        *self.bytes.borrow_mut() = bytes;
    }

    /// What was set aside last.
    pub fn aside(&self) -> Option<Vec<u8>> {
        self.aside.borrow().clone()
    }

    /// Everything can be written.
    pub fn heal(&self) {
        self.good.set(None);
    }

    /// Whether changes fail, or will.
    pub fn fails(&self) -> bool {
        self.good.get().is_some()
    }

    /// Nothing is there.
    pub fn is_empty(&self) -> bool {
        self.bytes.borrow().is_none()
    }

    /// What is there.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        self.bytes.borrow().clone()
    }

    /// The boot.
    pub fn boot(&self) -> Uuid {
        self.boot
    }

    /// Slots of a tail that is made here.
    pub fn slots(&self) -> u64 {
        self.slots
    }

    fn change(&self) -> io::Result<()> {
        match self.good.get() {
            Some(0) => Err(io::ErrorKind::StorageFull.into()),
            good => {
                self.good.set(good.map(|good| good - 1));
                Ok(())
            }
        }
    }
}

impl TailStore for Kept {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.bytes())
    }
    fn create(&self, bytes: &[u8]) -> io::Result<()> {
        self.change()?;
        *self.bytes.borrow_mut() = Some(bytes.to_vec());
        Ok(())
    }
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if at >= PAGE {
            self.change()?;
        }
        let mut all = self.bytes.borrow_mut();
        let place = all.as_mut().and_then(|all| all.get_mut(at as usize..at as usize + bytes.len()));
        place.ok_or(io::ErrorKind::NotFound)?.copy_from_slice(bytes);
        Ok(())
    }
    fn remove(&self) -> io::Result<()> {
        *self.bytes.borrow_mut() = None;
        Ok(())
    }
    fn set_aside(&self) -> io::Result<()> {
        self.aside.replace(self.bytes.take());
        Ok(())
    }
}
