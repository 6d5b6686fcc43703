//! Crashes: a cache set runs in the simulator, the power fails somewhere, and what recovery finds is compared with what
//! was acknowledged.
//!
//! One seed is one *life* of a set: its shape, what its users do, where the power fails and what survives all follow from
//! it. A life has several *phases*, each begun by a recovery and ended by a power cut or a clean stop; a cut may also come
//! during the recovery.

mod life;
mod model;

pub use life::{Life, Report, live};
pub use model::Model;
