//! The one module with unsafe code: handing memory to the kernel, one ioctl, and the ublk driver.
//!
//! The rule behind all of it: memory named in an operation belongs to that operation, lies on the heap, and is
//! kept in the ring's table until the kernel has answered. Nothing outside this module sees a pointer.
#![allow(unsafe_code)]

mod ioctl;
mod ring;
mod ublk;

pub(crate) use ioctl::discard;
pub(crate) use ring::Ring;
pub(crate) use ublk::{Control, Descriptors, control};
