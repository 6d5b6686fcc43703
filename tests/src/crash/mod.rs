//! Power cuts by the thousand: a subject under load on simulated disks, cut anywhere, recovered, and judged.
//!
//! A run follows from its seed. It formats the subject's disks, then goes through some epochs. In each the subject
//! starts on what the last cut left, is read and written by several clients at once while its own disturbances go on,
//! and loses its power at a seeded I/O; every disk then chooses for itself which writes survive. On the way to that I/O
//! it is looked at in some more places: what a cut there would have left is recovered and judged, too, some of it cut
//! again in the middle of the recovery. Where clients outlive the process some ends are of the process alone: memory that
//! outlives it is there, what was completed is in the disks' caches, and what was under way is done, done in part, or not. The last epoch is not cut: the subject stops, and must be whole.
//!
//! [`Model`] knows every acknowledged write and judges every sector read. The subject judges what only it knows.
//!
//! The engine's own unit tests include this module, too: there its mistakes can be switched on (`sim_bugs`), to see
//! that each is found.

mod kept;
mod load;
mod model;
mod passthrough;
mod rig;
mod run;
mod set;

pub use kept::Kept;
pub use load::Load;
pub use model::{Model, Violation, stamp};
pub use passthrough::{Passthrough, PassthroughBug};
pub use rig::{Rig, Shape, Started, USUAL};
pub use run::{Campaign, Failure, Options, Running, Subject, Summary};
pub use set::{CachedSet, DATA_OFFSET, Focus};
