//! Power cuts by the thousand: a subject under load on simulated disks, cut anywhere, recovered, and judged.
//!
//! A run follows from its seed. It formats the subject's disks, then goes through some epochs. In each the subject
//! starts on what the last cut left (a cut during recovery included), is read and written by several tasks at once,
//! and loses its power at a seeded I/O; every disk then chooses for itself which writes survive. The last epoch is
//! not cut: everything is read back, the subject checks its own invariants, and stops.
//!
//! [`Model`] knows every acknowledged write and judges every sector read.

mod cached;
mod load;
mod model;
mod passthrough;
mod run;

pub use cached::Cached;
pub use load::Load;
pub use model::{Model, Violation, stamp};
pub use passthrough::{Passthrough, PassthroughBug};
pub use run::{Campaign, Failure, Options, Running, Subject, Summary};
