//! Writing leaves that have waited long.

use crate::set::CacheSet;
use std::rc::Rc;
use std::time::Duration;

/// Leaves are written this long after their first key, if nothing else wrote them before.
const LEAF_DELAY: Duration = Duration::from_secs(30);
/// How often is looked for such leaves.
const FLUSHER_STEP: Duration = Duration::from_secs(5);

impl CacheSet {
    /// Writes leaves whose keys have waited long enough.
    pub(crate) async fn flusher_task(self: Rc<Self>) {
        loop {
            if self.env.timeout(FLUSHER_STEP, self.closed()).await.is_ok() || self.is_closing() {
                return;
            }
            self.tree.recount();
            self.tree.evict();
            let before = self.env.now().saturating_sub(LEAF_DELAY.as_nanos() as u64);
            for node in self.tree.dirty_nodes() {
                let since = node.state().write.since;
                // A failure ends the set, and with it this task.
                if since != 0 && since <= before && self.node_write(&node).await.is_err() && self.is_closing()
                {
                    return;
                }
            }
        }
    }
}
