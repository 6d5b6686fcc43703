//! What both runtimes share: the run queue, the timers and the set of live tasks.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use async_task::Runnable;
use slab::Slab;

use super::reactor::{Job, Reactor};
use super::{Env, Task};

/// What differs between the real world and the simulated one.
pub(crate) trait Host {
    /// Monotonic nanoseconds.
    fn now(&self) -> u64;
    /// Seconds since 1970.
    fn wall_secs(&self) -> u32;
    /// 64 random bits.
    fn random(&self) -> u64;
    /// Runs `job` off this thread, or at some later moment on it.
    fn offload(&self, env: &Env, job: Job);
    /// Where real I/O is done; the simulated world has none.
    fn reactor(&self) -> Option<&Reactor> {
        None
    }
}

/// The part of a runtime that wakers on any thread may touch.
pub(crate) struct Gate {
    inbox: Mutex<Vec<Runnable>>,
    /// Set when the inbox has something, so that the loop need not take the lock to know.
    filled: AtomicBool,
    closed: AtomicBool,
    /// Makes the runtime's thread return from waiting. Called from any thread.
    unpark: Box<dyn Fn() + Send + Sync>,
}

impl Gate {
    fn schedule(self: &Arc<Self>, runnable: Runnable) {
        let foreign = CURRENT.try_with(|current| match current.borrow().as_ref() {
            Some(core) if Arc::ptr_eq(&core.gate, self) => {
                core.ready.borrow_mut().push_back(runnable);
                None
            }
            _ => Some(runnable),
        });
        if let Ok(Some(runnable)) = foreign
            && !self.closed.load(Ordering::Acquire)
        {
            self.inbox.lock().unwrap_or_else(PoisonError::into_inner).push(runnable);
            self.notify();
        }
    }

    fn notify(&self) {
        if !self.filled.swap(true, Ordering::AcqRel) {
            (self.unpark)();
        }
    }
}

thread_local! {
    /// The runtime whose loop runs on this thread: its wake-ups take the short way.
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// Run queue, timers and live tasks of one runtime.
pub(crate) struct Core {
    gate: Arc<Gate>,
    ready: RefCell<VecDeque<Runnable>>,
    /// Tasks that gave way: they go on when everything else had its turn, I/O included.
    yielded: RefCell<Vec<Waker>>,
    /// How often a task ran so far, or the future that the loop itself polls.
    ran: Cell<u64>,
    /// A waker of every task not yet finished, so that closing can reach those that wait.
    live: RefCell<Slab<Option<Waker>>>,
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
    next_timer: Cell<u64>,
    pub(crate) host: Box<dyn Host>,
}

/// Makes a core the thread's current one until dropped.
pub(crate) struct Entered(Option<Rc<Core>>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|current| *current.borrow_mut() = self.0.take());
    }
}

impl Core {
    /// A core whose loop is brought back from waiting by `unpark`.
    pub(crate) fn new(host: Box<dyn Host>, unpark: Box<dyn Fn() + Send + Sync>) -> Rc<Core> {
        Rc::new(Core {
            gate: Arc::new(Gate {
                inbox: Mutex::default(),
                filled: AtomicBool::new(false),
                closed: AtomicBool::new(false),
                unpark,
            }),
            ready: RefCell::default(),
            yielded: RefCell::default(),
            ran: Cell::new(0),
            live: RefCell::default(),
            timers: RefCell::default(),
            next_timer: Cell::new(0),
            host,
        })
    }

    /// Makes this core current. The guard gives the place back to the one before.
    pub(crate) fn enter(self: &Rc<Self>) -> Entered {
        Entered(CURRENT.with(|current| current.borrow_mut().replace(Rc::clone(self))))
    }

    pub(crate) fn spawn<F>(self: &Rc<Self>, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let key = self.live.borrow_mut().insert(None);
        let registration = Registration { core: Rc::downgrade(self), key };
        let gate = Arc::clone(&self.gate);
        let (runnable, task) = async_task::spawn_local(
            async move {
                let _registration = registration;
                future.await
            },
            move |runnable| gate.schedule(runnable),
        );
        if let Some(slot) = self.live.borrow_mut().get_mut(key) {
            *slot = Some(runnable.waker());
        }
        runnable.schedule();
        Task::new(task)
    }

    /// Moves what other threads woke to the run queue.
    pub(crate) fn drain_inbox(&self) {
        if self.gate.filled.load(Ordering::Acquire) {
            self.gate.filled.store(false, Ordering::Release);
            let woken = std::mem::take(&mut *self.gate.inbox.lock().unwrap_or_else(PoisonError::into_inner));
            self.ready.borrow_mut().extend(woken);
        }
    }

    /// Whether other threads woke something since the inbox was drained.
    pub(crate) fn has_inbox(&self) -> bool {
        self.gate.filled.load(Ordering::Acquire)
    }

    /// Whether somebody gave way.
    pub(crate) fn has_yielded(&self) -> bool {
        !self.yielded.borrow().is_empty()
    }

    /// Number of tasks that could run now.
    pub(crate) fn ready_len(&self) -> usize {
        self.ready.borrow().len()
    }

    /// Runs the task that has waited longest; false if there is none.
    pub(crate) fn run_first(&self) -> bool {
        let Some(runnable) = self.ready.borrow_mut().pop_front() else { return false };
        self.run(runnable);
        true
    }

    /// Runs the ready task number `index`, if there are that many.
    pub(crate) fn run_nth(&self, index: usize) {
        let runnable = self.ready.borrow_mut().remove(index);
        if let Some(runnable) = runnable {
            self.run(runnable);
        }
    }

    fn run(&self, runnable: Runnable) {
        self.ran.set(self.ran.get() + 1);
        runnable.run();
    }

    /// How often a task ran so far.
    pub(crate) fn ran(&self) -> u64 {
        self.ran.get()
    }

    /// Wakes `waker` when everything else had its turn.
    pub(crate) fn give_way(&self, waker: Waker) {
        self.yielded.borrow_mut().push(waker);
    }

    /// Everything else had its turn: whoever gave way may run.
    pub(crate) fn resume_yielded(&self) {
        let yielded = std::mem::take(&mut *self.yielded.borrow_mut());
        yielded.into_iter().for_each(Waker::wake);
    }

    /// Number of tasks not yet finished.
    pub(crate) fn live_len(&self) -> usize {
        self.live.borrow().len()
    }

    /// Registers a timer and gives its key.
    pub(crate) fn add_timer(&self, deadline: u64, waker: Waker) -> (u64, u64) {
        let key = (deadline, self.next_timer.get());
        self.next_timer.set(key.1 + 1);
        self.timers.borrow_mut().insert(key, waker);
        key
    }

    /// Replaces the waker of a timer; false if it has fired.
    pub(crate) fn rearm_timer(&self, key: (u64, u64), waker: &Waker) -> bool {
        match self.timers.borrow_mut().get_mut(&key) {
            Some(known) => {
                known.clone_from(waker);
                true
            }
            None => false,
        }
    }

    pub(crate) fn remove_timer(&self, key: (u64, u64)) {
        let removed = self.timers.borrow_mut().remove(&key);
        drop(removed);
    }

    /// When the next timer is due, on the host's clock.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.timers.borrow().keys().next().map(|key| key.0)
    }

    /// Wakes every task whose timer is due at `now`.
    pub(crate) fn fire_timers(&self, now: u64) {
        loop {
            let mut timers = self.timers.borrow_mut();
            let Some(entry) = timers.first_entry().filter(|entry| entry.key().0 <= now) else { return };
            let waker = entry.remove();
            drop(timers);
            waker.wake();
        }
    }

    /// Drops every task, finished or not, and refuses new ones. Called once, by the runtime's own drop: until
    /// then tasks and core keep each other alive.
    pub(crate) fn close(self: &Rc<Self>) {
        let _entered = self.enter();
        self.gate.closed.store(true, Ordering::Release);
        loop {
            let wakers: Vec<Waker> =
                self.live.borrow_mut().iter_mut().filter_map(|(_, w)| w.take()).collect();
            for waker in wakers {
                waker.wake();
            }
            self.gate.filled.store(true, Ordering::Release);
            self.drain_inbox();
            let Some(runnable) = self.ready.borrow_mut().pop_front() else { break };
            // Dropping what would run drops the task's future, which may wake or spawn others: hence the loop.
            drop(runnable);
        }
        self.timers.borrow_mut().clear();
        drop(std::mem::take(&mut *self.yielded.borrow_mut()));
    }
}

/// A task's place in the set of live ones.
struct Registration {
    core: Weak<Core>,
    key: usize,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            let waker = core.live.borrow_mut().try_remove(self.key);
            drop(waker);
        }
    }
}

/// The future that a runtime's `block_on` was given: polled by the loop itself, so it may borrow.
pub(crate) struct MainTask {
    flag: Arc<MainFlag>,
    waker: Waker,
}

struct MainFlag {
    ready: AtomicBool,
    gate: Arc<Gate>,
}

impl Wake for MainFlag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.store(true, Ordering::Release);
        let local = CURRENT.try_with(|current| {
            current.borrow().as_ref().is_some_and(|core| Arc::ptr_eq(&core.gate, &self.gate))
        });
        if !local.unwrap_or(false) {
            self.gate.notify();
        }
    }
}

impl MainTask {
    pub(crate) fn new(core: &Core) -> MainTask {
        let flag = Arc::new(MainFlag { ready: AtomicBool::new(true), gate: Arc::clone(&core.gate) });
        MainTask { waker: Waker::from(Arc::clone(&flag)), flag }
    }

    /// Whether the future was woken since it was polled.
    pub(crate) fn is_ready(&self) -> bool {
        self.flag.ready.load(Ordering::Acquire)
    }

    /// Polls the future.
    pub(crate) fn poll<F: Future>(&self, core: &Core, future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        core.ran.set(core.ran.get() + 1);
        self.flag.ready.store(false, Ordering::Release);
        future.poll(&mut Context::from_waker(&self.waker))
    }
}
