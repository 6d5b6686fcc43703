//! The set's tasks, and when they end.

use super::CacheSet;
use crate::stats::TICK;
use std::rc::Rc;

/// When a task stops: those of a stage need all later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Works for a device: cache misses on their way, writeback.
    Device = 0,
    /// Finds space: GC, allocation, late leaves.
    Space = 1,
    /// The journal.
    Journal = 2,
}

/// Works for a set until it is dropped: a stop waits for it.
pub(crate) struct AtWork {
    set: Rc<CacheSet>,
    stage: Stage,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let running = &self.set.tasks[self.stage as usize];
        running.set(running.get() - 1);
        if running.get() == 0 {
            self.set.tasks_ended.wake_all();
        }
    }
}

impl CacheSet {
    /// Runs a task of the set until it ends by itself.
    pub(crate) fn task(self: &Rc<Self>, stage: Stage, future: impl Future<Output = ()> + 'static) {
        let at_work = self.at_work(stage);
        self.env
            .spawn(async move {
                let _at_work = at_work;
                future.await;
            })
            .detach();
    }
    /// Something that a stop waits for.
    pub(crate) fn at_work(self: &Rc<Self>, stage: Stage) -> AtWork {
        let running = &self.tasks[stage as usize];
        running.set(running.get() + 1);
        AtWork { set: Rc::clone(self), stage }
    }
    /// Waits until all tasks of a stage have ended.
    pub(super) async fn ended(&self, stage: Stage) {
        self.tasks_ended.wait_until(|| self.tasks[stage as usize].get() == 0).await;
    }
    /// Whether tasks should end.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get() || self.is_failed()
    }
    /// Waits until tasks should end.
    pub(crate) async fn closed(&self) {
        self.closed.wait_until(|| self.is_closing()).await;
    }
    /// Whoever waits for space or time looks whether to end.
    pub(super) fn wake_to_close(&self) {
        self.alloc.close();
        self.gc.wake();
        self.closed.wake_all();
    }
    /// Moves the windows of what was counted lately.
    pub(crate) async fn accounting_task(self: Rc<Self>) {
        while self.env.timeout(TICK, self.closed()).await.is_err() && !self.is_closing() {
            for device in self.devices() {
                device.windows.tick(&device.stats);
            }
        }
    }
}
