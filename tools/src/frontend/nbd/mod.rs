//! An NBD server: fixed newstyle handshake, simple and structured replies.
//!
//! Facts are from the NBD project's `doc/proto.md`. [`proto`] turns bytes into values and back and does nothing
//! else; [`handshake`] answers options, again without I/O; the rest moves bytes. Clients are not trusted: every
//! length is bounded before anything is allocated, and each client has its own budget of memory ([`Limits`]).

pub mod handshake;
pub mod proto;

mod connection;
mod exports;
mod output;
mod server;
mod state;
#[cfg(test)]
mod tests;

pub use exports::{ExportInfo, ExportTable, Exports};
pub use handshake::flags_of;
pub use server::Server;
pub use state::{Limits, Stats};
