//! Ways for clients to reach the engine's volumes.

pub mod nbd;
pub mod nbd_device;
pub mod ram;
pub mod ublk;
