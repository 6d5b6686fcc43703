//! The power supply of simulated disks: where runs are cut.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Counts the I/O events of all disks connected to it, and fails at a chosen one.
///
/// An event is the start or the end of any operation of any connected disk. Once the supply is off, operations
/// in flight never complete, new ones never begin, and [`Runtime::run`](super::Runtime::run) ends.
#[derive(Clone, Default)]
pub struct Power(Rc<PowerState>);

#[derive(Default)]
struct PowerState {
    events: Cell<u64>,
    cut_at: Cell<Option<u64>>,
    off: Cell<bool>,
    looks: RefCell<BTreeSet<u64>>,
    look: RefCell<Option<Box<dyn FnMut()>>>,
}

impl Power {
    /// A supply that stays on until told otherwise.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the supply fail at event number `event` (counted from 0 when the supply was made), before its effect.
    pub fn cut_at(&self, event: u64) {
        self.0.cut_at.set(Some(event));
    }

    /// Calls `look` at the events with these numbers, before their effect, and lets the run go on: whoever takes what a
    /// cut would leave there has many cuts for one run. `look` may ask disks for anything, but begin nothing.
    pub fn look_at(&self, events: impl IntoIterator<Item = u64>, look: impl FnMut() + 'static) {
        *self.0.looks.borrow_mut() = events.into_iter().collect();
        *self.0.look.borrow_mut() = Some(Box::new(look));
    }

    /// Ends all looking, and drops what looked.
    pub fn look_away(&self) {
        self.0.looks.borrow_mut().clear();
        self.0.look.borrow_mut().take();
    }

    /// Switches the supply off now.
    pub fn cut(&self) {
        self.0.off.set(true);
    }

    /// Whether the supply is off.
    pub fn is_off(&self) -> bool {
        self.0.off.get()
    }

    /// Events so far: a run that counted this many can be cut at any number below.
    pub fn events(&self) -> u64 {
        self.0.events.get()
    }

    /// Counts an event; false if there is no power for it.
    pub(super) fn event(&self) -> bool {
        let event = self.0.events.get();
        if self.0.cut_at.get().is_some_and(|at| event >= at) {
            self.0.off.set(true);
        }
        if self.0.off.get() {
            return false;
        }
        if self.0.looks.borrow_mut().remove(&event)
            && let Some(look) = &mut *self.0.look.borrow_mut()
        {
            look();
        }
        self.0.events.set(event + 1);
        true
    }
}

/// What becomes of writes that were not yet durable when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Each sector chooses, with a bias towards old or new that is itself chosen for the whole disk.
    Seeded,
    /// Completed writes survive, those in flight are lost.
    Completed,
    /// Everything survives, writes in flight included.
    All,
    /// Nothing survives that was not flushed.
    None,
}
