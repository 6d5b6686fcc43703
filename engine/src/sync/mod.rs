//! Locks and wait queues for the tasks of one thread.
//!
//! None of them touches an atomic or allocates while uncontended, since a cache hit takes several. All are fair:
//! who asked first is served first, so a writer waits only for those who were there before it.

mod fifo;
mod mutex;
mod notify;
mod semaphore;
#[cfg(test)]
mod tests;

pub use mutex::{Mutex, MutexGuard};
pub use notify::{Notify, WaitQueue, Waiting};
pub use semaphore::{OwnedPermit, Permit, Semaphore};
