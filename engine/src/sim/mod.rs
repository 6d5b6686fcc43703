//! A world that follows from a seed: scheduler, clock and disks for tests.
//!
//! One seed is one run. Everything that is left to chance (which ready task runs next, how long an operation
//! takes, what of the volatile writes survives a power cut) is drawn from one generator, and
//! [`Runtime::trace_hash`] tells whether two runs took the same course.
//!
//! # Fault model
//!
//! What a [`Disk`] may do to its user, each rule with a test of its own in `sim/tests.rs`:
//!
//! * **Volatile cache.** A completed write is seen by reads at once and survives a power cut only if a flush
//!   that began after its completion has completed, or if it was made with FUA.
//! * **Reordering.** Operations in flight take their own time and complete in any order.
//! * **Torn writes.** At a power cut every 512-byte sector not yet durable decides for itself: it keeps its last
//!   durable bytes or takes those of any write since, writes in flight included. Of a disk with 4 KiB blocks every
//!   block does.
//! * **Cut at any I/O.** A [`Power`] supply counts starts and ends of operations of all its disks and goes off at
//!   a chosen count. From then on nothing completes and nothing new begins.
//! * **Independent fates.** What survives is chosen for each disk alone ([`Survival`]).
//! * **Errors.** [`Fault`]s make chosen ranges fail, for ever or a number of times. A failed write leaves each of
//!   its sectors old or new; a failed flush makes nothing durable.
//! * **Delays.** Latency is drawn from a range for each kind of operation; a fault may add more.
//! * **Lies.** The medium of a chosen range loses writes, puts them elsewhere, gives back the bytes of another place, or
//!   has a bit flipped, and says that all is well ([`Lie`]).
//! * **Discards** leave a range undefined: zeroes, the old bytes or garbage, as the disk was made.

//! # What must hold when a medium lies
//!
//! Metadata has checksums that are seeded with its place or its number, data has none. So, with runs in
//! `rules/scenes_media.rs`:
//!
//! * Nothing that fails a check is used: a flipped bit in metadata, or metadata of another place, is said with its place,
//!   ends all writing, and what cannot be known any more is EIO.
//! * Whatever the medium did, nothing panics, and everything that is begun comes to an end.
//! * What a volume answers is an error, or for each sector a version that this sector had: never what belongs to another
//!   sector, unless it was data itself that was put there.
//! * A write that is lost cannot be told from one that was never made where nothing else speaks of it: of the last bset of
//!   a node the keys are gone without a trace, once the journal that had them is. This format can do no better.

mod disk;
mod fault;
mod image;
mod power;

mod runtime;
mod store;
#[cfg(test)]
mod tests;

pub use crate::env::Rng;
pub use disk::{AfterDiscard, Config, Disk, Medium, Stats};
pub use fault::{Fault, FaultOn, Lie};
pub use image::Image;
pub use power::{Power, Survival};
pub use runtime::{Outcome, Runtime};
