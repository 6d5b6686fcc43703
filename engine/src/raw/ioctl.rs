//! Requests to block devices that have no system call of their own.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `BLKDISCARD`: tells a block device that `len` bytes from `at` on are not needed. Blocks.
pub(crate) fn discard(device: &File, at: u64, len: u64) -> io::Result<()> {
    /// `_IO(0x12, 119)`.
    const BLKDISCARD: libc::Ioctl = 0x1277;
    let range = [at, len];
    // SAFETY: the kernel reads two 64-bit numbers through the pointer during the call and keeps nothing. On any
    // other kind of file the request fails with ENOTTY.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
