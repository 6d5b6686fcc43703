//! Where the bytes come from.

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Something that can be read at any place: a device, a file, bytes in memory, a metadata image.
pub trait ReadAt: Send + Sync {
    /// What a person calls it; starts every message about it.
    fn name(&self) -> &str;
    /// Bytes it has.
    fn size(&self) -> u64;
    /// Fills `buf` from `byte` on.
    ///
    /// # Errors
    /// What the device says, or that it ends before `buf` is full.
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()>;
    /// The same in search of something: what is there may be anybody's data.
    ///
    /// # Errors
    /// As of [`read_at`](Self::read_at).
    fn peek_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_at(byte, buf)
    }
    /// Says that `len` bytes from `byte` on will be read soon, so that the device can begin.
    fn will_read(&self, _byte: u64, _len: u64) {}
    /// Whether it has a device's metadata and nothing of its data: a metadata image, or what was made of one.
    fn is_metadata_only(&self) -> bool {
        false
    }
    /// The first byte from `byte` on that may be something else than zero; the size when there is none.
    fn next_data(&self, byte: u64) -> u64 {
        byte
    }
}

/// A device, shared by all who read it.
pub type Device = Arc<dyn ReadAt>;

/// Bytes that devices are told of before they are read: many reads are under way while data goes through one by one.
pub const AHEAD: u64 = 32 << 20;

/// Hands out what is to be read, in order. `tell` is told of each long before: it announces the reads to devices, and
/// says how many bytes they are.
pub fn announced<T>(
    mut pieces: impl Iterator<Item = T>,
    mut tell: impl FnMut(&T) -> u64,
) -> impl Iterator<Item = T> {
    let (mut waiting, mut ahead) = (VecDeque::new(), 0);
    std::iter::from_fn(move || {
        while ahead < AHEAD
            && let Some(piece) = pieces.next()
        {
            let bytes = tell(&piece);
            ahead += bytes;
            waiting.push_back((piece, bytes));
        }
        let (piece, bytes) = waiting.pop_front()?;
        ahead -= bytes;
        Some(piece)
    })
}

/// A file or block device, opened for reading only.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    name: String,
    size: u64,
}

impl FileDevice {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// It cannot be opened, or is nothing that has a size.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::new(File::open(path)?, path.display().to_string())
    }
    /// Wraps an open file.
    ///
    /// # Errors
    /// It cannot be asked for its size.
    pub fn new(mut file: File, name: String) -> io::Result<Self> {
        // Asking where the end is works for block devices too, whose metadata says 0 bytes.
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, name, size })
    }
}

impl ReadAt for FileDevice {
    fn name(&self) -> &str {
        &self.name
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, byte)
    }
    fn will_read(&self, byte: u64, len: u64) {
        if let (Ok(byte), Ok(len)) = (byte.try_into(), len.try_into()) {
            // Only advice: whether it can be read at all shows when it is.
            let _ = posix_fadvise(&self.file, byte, len, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        }
    }
}

/// Bytes in memory.
#[derive(Clone, Debug)]
pub struct MemDevice {
    name: String,
    bytes: Vec<u8>,
}

impl MemDevice {
    /// A device of these bytes.
    #[must_use]
    pub fn new(name: &str, bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), bytes }
    }
}

impl ReadAt for MemDevice {
    fn name(&self) -> &str {
        &self.name
    }
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_at(&self, byte: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(byte).unwrap_or(usize::MAX);
        let from = self.bytes.get(start..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn reads_are_announced_before_they_are_made_and_not_all_at_once() {
        let told = Cell::new(0);
        let tell = |_: &u64| {
            told.set(told.get() + 1);
            AHEAD / 4
        };
        for (done, piece) in announced(0..10u64, tell).enumerate() {
            assert_eq!((piece, told.get()), (done as u64, (done as u64 + 4).min(10)));
        }
    }
}
