//! What the ublk driver takes besides commands on the runtime's own ring: control commands, which are twice as long as
//! other operations, and the shared memory that describes requests.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use io_uring::squeue::Entry128;
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A control command with the memory it is about.
pub(crate) struct Control {
    /// `UBLK_U_CMD_*`.
    pub(crate) code: u32,
    /// The device; `u32::MAX` where the driver chooses.
    pub(crate) device: u32,
    /// The command's own number.
    pub(crate) data: u64,
    /// What the driver reads or writes; empty if the command has none.
    pub(crate) buf: Vec<u8>,
}

/// Carries a control command out on a ring of its own, and gives its memory back. Blocks, for some commands until
/// queues are served: called on a helper thread.
pub(crate) fn control(file: &File, mut control: Control) -> io::Result<Vec<u8>> {
    let mut ring: IoUring<Entry128, cqueue::Entry> = IoUring::builder().dontfork().build(2)?;
    let len = u16::try_from(control.buf.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let address = if len == 0 { 0 } else { control.buf.as_mut_ptr() as u64 };
    // `struct ublksrv_ctrl_cmd`: device, queue (none), length, address, number, and nothing else.
    let mut command = [0; 80];
    command[0..4].copy_from_slice(&control.device.to_ne_bytes());
    command[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
    command[6..8].copy_from_slice(&len.to_ne_bytes());
    command[8..16].copy_from_slice(&address.to_ne_bytes());
    command[16..24].copy_from_slice(&control.data.to_ne_bytes());
    let entry = opcode::UringCmd80::new(Fd(file.as_raw_fd()), control.code).cmd(command).build();
    // SAFETY: the memory named in the command is on the heap and owned by this function until the command has been
    // answered; where the answer cannot be waited for, ring and memory are leaked.
    if unsafe { ring.submission().push(&entry) }.is_err() {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                std::mem::forget((ring, control));
                return Err(error);
            }
        }
        if let Some(answer) = ring.completion().next() {
            return match answer.result() {
                result if result < 0 => Err(io::Error::from_raw_os_error(-result)),
                _ => Ok(control.buf),
            };
        }
    }
}

/// Bytes of `struct ublksrv_io_desc`.
pub(crate) const DESCRIPTOR: usize = 24;

/// The memory in which the driver describes the requests of a queue, one descriptor a tag.
pub(crate) struct Descriptors {
    start: NonNull<u8>,
    len: NonZeroUsize,
    depth: u16,
}

impl Descriptors {
    /// Maps those of queue 0, which has `depth` tags.
    pub(crate) fn map(file: &File, depth: u16) -> io::Result<Descriptors> {
        let bytes = (usize::from(depth) * DESCRIPTOR).next_multiple_of(page_size());
        let len = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
        let start = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file.as_fd(), 0) }?;
        Ok(Descriptors { start: start.cast(), len, depth })
    }

    /// The descriptor of `tag`, as it is now. The driver changes it only while it owns the tag.
    pub(crate) fn get(&self, tag: u16) -> [u8; DESCRIPTOR] {
        assert!(tag < self.depth, "tag {tag} of {}", self.depth);
        // SAFETY: inside the mapping, by the assertion; the mapping is aligned to a page and a descriptor is an array
        // of bytes. Volatile, because the driver writes there between two calls.
        unsafe { self.start.add(usize::from(tag) * DESCRIPTOR).cast().read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped; nobody has references into it, since `get` copies.
        let _ = unsafe { munmap(self.start.cast(), self.len.get()) };
    }
}

fn page_size() -> usize {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| usize::try_from(size).ok()).unwrap_or(4096)
}
