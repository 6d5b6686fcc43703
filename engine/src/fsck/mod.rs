//! Checking and reading cache sets offline: nothing here needs a running engine, and nothing writes unless it says so.

pub mod backup;
pub mod bits;
pub mod check;
mod checked;
pub mod evidence;
pub mod finding;
pub mod flush;
pub mod image;
pub mod kind;
mod lost;
pub mod made;
mod mark;
pub mod ranges;
pub mod repair;
pub mod salvage;
pub mod usage;
pub mod view;

pub use check::{Checked, Options, check};
pub use finding::Finding;
pub use kind::{Kind, Severity};
