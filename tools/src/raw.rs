//! The tools' one module with unsafe code: system calls that have no safe wrapper in a library.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A request to device-mapper. `buf` begins with `struct dm_ioctl`, whose length field must not exceed its own length;
/// the kernel answers in place.
///
/// # Errors
/// As `ioctl(2)`; `EINVAL` when the buffer says it is longer than it is.
pub(crate) fn dm_ioctl(control: &File, nr: u8, buf: &mut [u8]) -> io::Result<()> {
    /// `_IOWR(0xfd, nr, struct dm_ioctl)`; the structure has 312 bytes.
    const REQUEST: libc::Ioctl = (3 << 30) | (312 << 16) | (0xfd << 8);
    let said = buf.get(12..16).and_then(|bytes| bytes.first_chunk().copied()).map(u32::from_ne_bytes);
    if said.is_none_or(|said| said as usize > buf.len() || buf.len() < 312) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the kernel reads and writes no more bytes than the length field says, which was checked to be within the
    // buffer, and at most the 312 bytes of the header otherwise; it keeps nothing. On any other file: ENOTTY.
    let result =
        unsafe { libc::ioctl(control.as_raw_fd(), REQUEST | libc::Ioctl::from(nr), buf.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Keeps the pages of a file in memory where they are: they are not swapped out. For files in memory, of processes that lock
/// theirs.
#[derive(Debug)]
pub(crate) struct Pinned {
    at: *mut libc::c_void,
    len: usize,
}

impl Pinned {
    /// The first `len` bytes of `file`.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub(crate) fn new(file: &File, len: usize) -> io::Result<Pinned> {
        let (access, flags) = (libc::PROT_READ, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping at a place that the kernel chooses; nothing is ever read through it.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Pinned { at, len }) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, whole, and nobody has a pointer into it.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

/// A System V semaphore, for udev cookies.
#[derive(Debug)]
pub(crate) struct Semaphore(libc::c_int);

impl Semaphore {
    /// Makes the semaphore `key`, with a count of one. `AlreadyExists` if there is one.
    ///
    /// # Errors
    /// As `semget(2)`.
    pub(crate) fn create(key: u32) -> io::Result<Semaphore> {
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | 0o600;
        // SAFETY: no memory is involved.
        let id = unsafe { libc::semget(key as libc::key_t, 1, flags) };
        if id < 0 {
            return Err(io::Error::last_os_error());
        }
        let semaphore = Semaphore(id);
        semaphore.add(1).inspect_err(|_| semaphore.remove())?;
        Ok(semaphore)
    }

    /// Changes the count. Adding never waits; zero waits for zero.
    fn operate(&self, change: i16, flags: libc::c_short, limit: Option<Duration>) -> io::Result<()> {
        let mut operation = libc::sembuf { sem_num: 0, sem_op: change, sem_flg: flags };
        let limit = limit.map(|limit| libc::timespec {
            tv_sec: limit.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(limit.subsec_nanos()),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: one operation and at most one time, both of which live until the call returns.
        let result =
            unsafe { libc::syscall(libc::SYS_semtimedop, self.0, &raw mut operation, 1usize, limit) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Adds to the count.
    ///
    /// # Errors
    /// As `semop(2)`.
    pub(crate) fn add(&self, count: i16) -> io::Result<()> {
        self.operate(count, 0, None)
    }

    /// Takes one from the count, which must not be zero.
    ///
    /// # Errors
    /// As `semop(2)`.
    pub(crate) fn take(&self) -> io::Result<()> {
        self.operate(-1, libc::IPC_NOWAIT as libc::c_short, None)
    }

    /// Waits until the count is zero, at most for `limit` (`WouldBlock` then).
    ///
    /// # Errors
    /// As `semtimedop(2)`.
    pub(crate) fn wait_zero(&self, limit: Duration) -> io::Result<()> {
        loop {
            match self.operate(0, 0, Some(limit)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Removes it.
    pub(crate) fn remove(&self) {
        // SAFETY: no memory is involved in this command.
        unsafe { libc::semctl(self.0, 0, libc::IPC_RMID) };
    }
}

/// Whether standard output was open when this process began.
static STDOUT: AtomicBool = AtomicBool::new(true);

extern "C" fn look_at_stdout() {
    // SAFETY: no memory is involved.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    STDOUT.store(flags >= 0, Ordering::Relaxed);
}

// SAFETY: the loader calls what is in this section before `main`; the function needs nothing that is set up later. Later
// would be too late: the standard library opens /dev/null where a standard descriptor is closed.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK_AT_STDOUT: extern "C" fn() = look_at_stdout;

/// Whether standard output was open when this process began. What is written to a closed one goes nowhere, without an error.
#[must_use]
pub(crate) fn stdout_was_open() -> bool {
    STDOUT.load(Ordering::Relaxed)
}

/// Closes all descriptors but the first three, whoever left them to us.
///
/// # Errors
/// As `close_range(2)`.
pub(crate) fn close_inherited() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: called before this process has opened anything, so that no descriptor it knows of is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0u32) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `PR_SET_IO_FLUSHER`: allocations of this thread, and of those that it starts, do not wait for block I/O.
///
/// # Errors
/// As `prctl(2)`.
pub(crate) fn set_io_flusher() -> io::Result<()> {
    /// From the kernel's `include/uapi/linux/prctl.h`.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    let (yes, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: no memory is involved.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, yes, none, none, none) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor that this process was started with, by its number, as a file: another descriptor of the same, so that
/// dropping it closes nothing that belongs to others.
///
/// # Errors
/// There is none of this number.
pub(crate) fn descriptor(number: u16) -> io::Result<File> {
    let lowest: libc::c_int = 3;
    // SAFETY: no memory is involved; a number that is not open is an error.
    let copy = unsafe { libc::fcntl(number.into(), libc::F_DUPFD_CLOEXEC, lowest) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was made just now, and nobody else knows of it.
    Ok(unsafe { File::from_raw_fd(copy) })
}
