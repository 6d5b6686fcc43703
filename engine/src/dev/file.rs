//! Files and block devices of the operating system.

use bcache_format::SECTOR_SIZE;
use std::cell::Cell;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::{BlockDev, Buf, Completer, DevError, DevOp, Geometry, Io, Shared, check};
use crate::env::{Env, Handle, Op};
use crate::raw;

/// Bytes written at once where zeroes have to be written out.
const ZERO_CHUNK: usize = 1 << 20;

/// How a device is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenMode {
    /// Whether it may be written. Without this the file is opened such that the kernel refuses every change. One program
    /// of this project at a time has a block device so.
    pub write: bool,
    /// Whether nobody else may use it: `O_EXCL` on block devices, which the kernel's own users (mounts,
    /// device-mapper, bcache) take, too; a lock on files, which only programs of this project know.
    pub exclusive: bool,
}

impl OpenMode {
    /// For reading and writing, alone.
    pub const READ_WRITE: OpenMode = OpenMode { write: true, exclusive: true };
    /// For reading, beside anyone else.
    pub const READ_ONLY: OpenMode = OpenMode { write: false, exclusive: false };
}

/// Opens a regular file or a block device.
///
/// Direct I/O is used where the file system can do it in units of 512 bytes; where not, the page cache is, with
/// the same promises. Errors: `EBUSY` if somebody else has the device, `ENOTBLK` if it is something else than a
/// file or a block device, and whatever the system calls say.
pub fn open(env: &Env, path: &Path, mode: OpenMode) -> Result<Rc<dyn BlockDev>, DevError> {
    let name: Arc<str> = path.to_string_lossy().into();
    let failed = |error: io::Error| {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        DevError::new(&name, DevOp::Open, 0, 0, errno)
    };
    env.reactor().map_err(|_| failed(io::Error::from_raw_os_error(libc::ENOSYS)))?;
    let (file, geometry, kind) = examine(path, mode).map_err(failed)?;
    let handle = Arc::new(Handle { file, name });
    Ok(Rc::new(FileDev {
        inner: Rc::new(Inner { env: env.clone(), handle, geometry: Cell::new(geometry), kind }),
    }))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    /// A file in memory: every call answers at once, while a ring would hand it to a worker thread first.
    Memory,
    Block,
}

fn options(mode: OpenMode, flags: i32) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(mode.write).custom_flags(flags);
    options
}

fn examine(path: &Path, mode: OpenMode) -> io::Result<(File, Geometry, Kind)> {
    // Asked before opening: opening a pipe or a tty may wait or have effects.
    let kind = match std::fs::metadata(path)?.file_type() {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_block_device() => Kind::Block,
        _ => return Err(io::Error::from_raw_os_error(libc::ENOTBLK)),
    };
    let exclusive = if kind == Kind::Block && mode.exclusive { libc::O_EXCL } else { 0 };
    let file = open_direct(path, mode, exclusive)?;
    if mode.exclusive || kind == Kind::Block {
        lock(&file, mode.write)?;
    }
    let bytes = (&file).seek(SeekFrom::End(0))?;
    let kind = if kind == Kind::File && fstatfs(&file)?.filesystem_type() == TMPFS_MAGIC {
        Kind::Memory
    } else {
        kind
    };
    let geometry = match kind {
        Kind::File | Kind::Memory => Geometry {
            bytes: bytes - bytes % SECTOR_SIZE,
            logical_block: SECTOR_SIZE as u32,
            discard: true,
            write_zeroes: true,
            rotational: false,
            read_only: !mode.write,
        },
        Kind::Block => block_geometry(&file, bytes, mode)?,
    };
    Ok((file, geometry, kind))
}

/// Takes the lock that keeps other programs of this project away from a file, or from writing to a block device. It belongs
/// to the open file and not to the process, and what a ring has under way keeps the file open: writes of a process that was
/// killed may still be going on after its end, and until the last of them has ended nobody else gets the lock.
///
/// # Errors
/// `EBUSY` if somebody else has it.
pub fn lock(file: &File, write: bool) -> io::Result<()> {
    let busy = || io::Error::from_raw_os_error(libc::EBUSY);
    if !file.metadata()?.file_type().is_block_device() {
        let lock = if write { file.try_lock() } else { file.try_lock_shared() };
        return lock.map_err(|error| match error {
            TryLockError::WouldBlock => busy(),
            TryLockError::Error(error) => error,
        });
    }
    if !write {
        return Ok(());
    }
    // Not that of flock(2), which would keep udev away for as long.
    let all = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&all)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(busy()),
        Err(error) => Err(error.into()),
    }
}

/// Opens with `O_DIRECT`, or without where the file system refuses it or wants larger units than a sector.
fn open_direct(path: &Path, mode: OpenMode, flags: i32) -> io::Result<File> {
    let buffered = || options(mode, flags).open(path);
    let file = match options(mode, flags | libc::O_DIRECT).open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return buffered(),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Ok(file);
    }
    // Nothing tells the unit of direct I/O before Linux 6.1, but a read of one sector does.
    match file.read_at(&mut Buf::recycled(SECTOR_SIZE as usize), 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            drop(file);
            buffered()
        }
        _ => Ok(file),
    }
}

/// What sysfs tells about a block device.
fn block_geometry(file: &File, bytes: u64, mode: OpenMode) -> io::Result<Geometry> {
    let device = file.metadata()?.rdev();
    let dir = format!("/sys/dev/block/{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let number = |name: &str| {
        let text = std::fs::read_to_string(format!("{dir}/{name}"));
        text.ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    // A partition's queue is that of the disk it is on.
    let queue = |name: &str| number(&format!("queue/{name}")).or_else(|| number(&format!("../queue/{name}")));
    let logical_block = queue("logical_block_size")
        .and_then(|size| u32::try_from(size).ok())
        .filter(|size| size.is_power_of_two() && *size >= SECTOR_SIZE as u32)
        .unwrap_or(SECTOR_SIZE as u32);
    if mode.write && number("ro") == Some(1) {
        return Err(io::Error::from_raw_os_error(libc::EROFS));
    }
    Ok(Geometry {
        bytes,
        logical_block,
        discard: queue("discard_max_bytes").unwrap_or(0) > 0,
        write_zeroes: queue("write_zeroes_max_bytes").unwrap_or(0) > 0,
        rotational: queue("rotational").unwrap_or(0) > 0,
        read_only: !mode.write,
    })
}

struct FileDev {
    inner: Rc<Inner>,
}

struct Inner {
    env: Env,
    handle: Arc<Handle>,
    geometry: Cell<Geometry>,
    kind: Kind,
}

impl Inner {
    fn start(&self, op: Op) {
        match self.env.reactor() {
            Ok(reactor) => reactor.start(op),
            Err(_) => unreachable!("open has checked that there is a reactor"),
        }
    }

    fn error(&self, op: DevOp, at: u64, len: u64, errno: i32) -> DevError {
        DevError { device: Arc::clone(&self.handle.name), op, at, len, errno }
    }

    /// The result of a call that was made at once.
    fn told<T>(&self, op: DevOp, at: u64, len: u64, result: io::Result<T>) -> Result<T, DevError> {
        result.map_err(|error| self.error(op, at, len, error.raw_os_error().unwrap_or(libc::EIO)))
    }

    fn read_now(&self, at: u64, mut buf: Buf) -> Io<Buf> {
        let len = buf.len() as u64;
        let read = self.handle.file.read_exact_at(&mut buf, at).map(|()| buf);
        Io::ready(self.told(DevOp::Read, at, len, read))
    }

    fn write(&self, at: u64, data: Shared, fua: bool, reply: Completer<()>) {
        // Devices want direct I/O's memory aligned to their blocks; most views of a page-aligned buffer are.
        let block = self.geometry.get().logical_block as usize;
        let aligned = (data.as_ptr() as usize).is_multiple_of(block);
        let data = if aligned { data } else { Buf::copied(&data).freeze() };
        self.start(Op::Write { file: Arc::clone(&self.handle), at, data, done: 0, fua, reply });
    }

    /// `fallocate`; the error number on failure.
    async fn fallocate(&self, mode: i32, at: u64, len: u64) -> Result<(), i32> {
        let (reply, io) = Io::pair();
        self.start(Op::Fallocate { file: Arc::clone(&self.handle), mode, at, len, reply });
        match io.await {
            Ok(result) if result >= 0 => Ok(()),
            Ok(result) => Err(-result),
            Err(error) => Err(error.errno),
        }
    }

    async fn discard(&self, at: u64, len: u64) -> Result<(), DevError> {
        let result = match self.kind {
            Kind::File | Kind::Memory => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                self.fallocate(mode, at, len).await
            }
            Kind::Block => {
                let handle = Arc::clone(&self.handle);
                let result = self.env.offload(move || raw::discard(&handle.file, at, len)).await;
                result.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
            }
        };
        match result {
            // Advice that nobody takes is no failure.
            Ok(()) | Err(libc::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(self.error(DevOp::Discard, at, len, errno)),
        }
    }

    async fn write_zeroes(&self, at: u64, len: u64) -> Result<(), DevError> {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        // Not every file system can zero a range in place; a hole reads as zeroes as well.
        for mode in [libc::FALLOC_FL_ZERO_RANGE | keep, libc::FALLOC_FL_PUNCH_HOLE | keep] {
            match self.fallocate(mode, at, len).await {
                Ok(()) => return Ok(()),
                Err(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => {}
                Err(errno) => return Err(self.error(DevOp::WriteZeroes, at, len, errno)),
            }
        }
        let zeroes = Buf::zeroed(ZERO_CHUNK.min(usize::try_from(len).unwrap_or(ZERO_CHUNK))).freeze();
        let mut done = 0;
        while done < len {
            let part = (len - done).min(zeroes.len() as u64);
            let (reply, io) = Io::pair();
            self.write(at + done, zeroes.slice(0..part as usize), false, reply);
            io.await.map_err(|error| DevError { op: DevOp::WriteZeroes, ..error })?;
            done += part;
        }
        Ok(())
    }

    /// Runs a sequence of calls as a task, so that it ends even if nobody waits.
    fn run<F>(&self, future: F) -> Io<()>
    where
        F: Future<Output = Result<(), DevError>> + 'static,
    {
        let (completer, io) = Io::pair();
        self.env.spawn(async move { completer.complete(future.await) }).detach();
        io
    }
}

impl BlockDev for FileDev {
    fn geometry(&self) -> Geometry {
        self.inner.geometry.get()
    }

    fn remeasure(&self) -> Result<u64, DevError> {
        let end = (&self.inner.handle.file).seek(SeekFrom::End(0));
        let bytes = self.inner.told(DevOp::Open, 0, 0, end)?;
        let (bytes, geometry) = (bytes - bytes % SECTOR_SIZE, self.inner.geometry.get());
        if bytes > geometry.bytes {
            self.inner.geometry.set(Geometry { bytes, ..geometry });
        }
        Ok(bytes)
    }

    fn name(&self) -> &str {
        &self.inner.handle.name
    }

    fn read(&self, at: u64, buf: Buf) -> Io<Buf> {
        if let Err(error) = check(self, DevOp::Read, at, buf.len() as u64) {
            return Io::ready(Err(error));
        }
        if buf.is_empty() {
            return Io::ready(Ok(buf));
        }
        if self.inner.kind == Kind::Memory {
            return self.inner.read_now(at, buf);
        }
        let (reply, io) = Io::pair();
        self.inner.start(Op::Read { file: Arc::clone(&self.inner.handle), at, buf, done: 0, reply });
        io
    }

    fn write(&self, at: u64, data: Shared, fua: bool) -> Io<()> {
        if let Err(error) = check(self, DevOp::Write, at, data.len() as u64) {
            return Io::ready(Err(error));
        }
        if data.is_empty() {
            return Io::ready(Ok(()));
        }
        if self.inner.kind == Kind::Memory {
            let wrote = self.inner.handle.file.write_all_at(&data, at);
            return Io::ready(self.inner.told(DevOp::Write, at, data.len() as u64, wrote));
        }
        let (reply, io) = Io::pair();
        self.inner.write(at, data, fua, reply);
        io
    }

    fn flush(&self) -> Io<()> {
        if self.inner.geometry.get().read_only || self.inner.kind == Kind::Memory {
            return Io::ready(Ok(()));
        }
        let (reply, io) = Io::pair();
        self.inner.start(Op::Sync { file: Arc::clone(&self.inner.handle), reply });
        io
    }

    fn discard(&self, at: u64, len: u64) -> Io<()> {
        match check(self, DevOp::Discard, at, len) {
            Err(error) => Io::ready(Err(error)),
            Ok(()) if len == 0 || !self.inner.geometry.get().discard => Io::ready(Ok(())),
            Ok(()) => {
                let inner = Rc::clone(&self.inner);
                self.inner.run(async move { inner.discard(at, len).await })
            }
        }
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Io<()> {
        match check(self, DevOp::WriteZeroes, at, len) {
            Err(error) => Io::ready(Err(error)),
            Ok(()) if len == 0 => Io::ready(Ok(())),
            Ok(()) => {
                let inner = Rc::clone(&self.inner);
                self.inner.run(async move { inner.write_zeroes(at, len).await })
            }
        }
    }
}
