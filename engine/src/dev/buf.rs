//! Page-aligned buffers that travel between the engine and its devices.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::rc::Rc;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Alignment of every [`Buf`] in memory, in bytes: enough for direct I/O on any device.
pub const PAGE: usize = 4096;

/// Size classes of recycled allocations are powers of two of pages, up to this many classes (1 MiB).
const CLASSES: usize = 9;

/// Most bytes one thread keeps for reuse.
const POOL_BYTES: usize = 32 << 20;

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

#[derive(Default)]
struct Pool {
    free: [Vec<Vec<Page>>; CLASSES],
    bytes: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// The class that holds `pages` pages, if any does.
fn class_of(pages: usize) -> Option<usize> {
    let class = pages.next_power_of_two().trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

fn take_recycled(class: usize) -> Option<Vec<Page>> {
    POOL.try_with(|pool| {
        let mut pool = pool.try_borrow_mut().ok()?;
        let pages = pool.free.get_mut(class)?.pop()?;
        pool.bytes -= pages.len() * PAGE;
        Some(pages)
    })
    .ok()
    .flatten()
}

fn give_back(pages: Vec<Page>) {
    let Some(class) = class_of(pages.len()) else { return };
    // At thread exit the pool may be gone already: then the pages are simply freed.
    let _ = POOL.try_with(|pool| {
        let Ok(mut pool) = pool.try_borrow_mut() else { return };
        let bytes = pages.len() * PAGE;
        if pool.bytes + bytes <= POOL_BYTES
            && let Some(list) = pool.free.get_mut(class)
        {
            list.push(pages);
            pool.bytes += bytes;
        }
    });
}

/// An owned buffer, aligned to 4096 bytes, of any length.
///
/// Up to 1 MiB, dropped buffers are kept by the thread for reuse, within a bound.
pub struct Buf {
    pages: Vec<Page>,
    len: usize,
}

impl Buf {
    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Buf {
        let (mut buf, dirty) = Buf::allocate(len);
        if dirty {
            buf.fill(0);
        }
        buf
    }

    /// A buffer of `len` bytes whose content is unspecified: whatever a buffer dropped earlier held, or zeroes.
    /// For reads, which fill the whole buffer.
    pub fn recycled(len: usize) -> Buf {
        Buf::allocate(len).0
    }

    /// A copy of `bytes`.
    pub fn copied(bytes: &[u8]) -> Buf {
        let mut buf = Buf::recycled(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// A buffer, and whether it may hold anything but zeroes.
    fn allocate(len: usize) -> (Buf, bool) {
        let pages = len.div_ceil(PAGE);
        if pages == 0 {
            return (Buf { pages: Vec::new(), len: 0 }, false);
        }
        let class = class_of(pages);
        if let Some(pages) = class.and_then(take_recycled) {
            return (Buf { pages, len }, true);
        }
        let rounded = if class.is_some() { pages.next_power_of_two() } else { pages };
        // The one failure is want of memory, which ends the process elsewhere, too.
        let Ok(pages) = Page::new_vec_zeroed(rounded) else {
            panic!("out of memory: a buffer of {len} bytes");
        };
        (Buf { pages, len }, false)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Shortens the buffer to `len` bytes; longer ones stay as they are.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes the buffer immutable and cheap to share.
    pub fn freeze(self) -> Shared {
        Shared::from(self)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        if !pages.is_empty() {
            give_back(pages);
        }
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.len]
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[..self.len]
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

/// An immutable range of a shared buffer; cloning and slicing copy no bytes.
#[derive(Clone)]
pub struct Shared {
    buf: Rc<Buf>,
    start: usize,
    len: usize,
}

impl Shared {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part `range` (bytes, relative to this view).
    ///
    /// # Panics
    ///
    /// If the range does not lie within this view.
    pub fn slice(&self, range: Range<usize>) -> Shared {
        assert!(range.start <= range.end && range.end <= self.len, "slice {range:?} of {} bytes", self.len);
        Shared { buf: Rc::clone(&self.buf), start: self.start + range.start, len: range.len() }
    }

    /// The buffer itself if this is the only view of it and covers it whole, else the view again.
    pub fn try_into_buf(self) -> Result<Buf, Shared> {
        let Shared { buf, start, len } = self;
        if start != 0 || len != buf.len() {
            return Err(Shared { buf, start, len });
        }
        Rc::try_unwrap(buf).map_err(|buf| Shared { buf, start, len })
    }
}

impl From<Buf> for Shared {
    fn from(buf: Buf) -> Shared {
        let len = buf.len();
        Shared { buf: Rc::new(buf), start: 0, len }
    }
}

impl Deref for Shared {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buf[self.start..self.start + self.len]
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shared({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_sized() {
        for len in [0, 1, 512, 4096, 4097, 65536, 3 << 20] {
            let buf = Buf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert!(len == 0 || (buf.as_ptr() as usize).is_multiple_of(PAGE));
            assert!(buf.iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn a_recycled_buffer_is_zeroed_on_request() {
        let mut buf = Buf::zeroed(8192);
        buf.fill(7);
        let address = buf.as_ptr();
        drop(buf);
        let buf = Buf::zeroed(5000);
        assert_eq!(buf.as_ptr(), address, "the freed allocation is used again");
        assert!(buf.iter().all(|b| *b == 0));
    }

    #[test]
    fn the_pool_is_bounded() {
        let bufs: Vec<Buf> = (0..2 * POOL_BYTES / (1 << 20)).map(|_| Buf::zeroed(1 << 20)).collect();
        drop(bufs);
        assert!(POOL.with_borrow(|pool| pool.bytes) <= POOL_BYTES);
    }

    #[test]
    fn shared_views_slice_and_return_the_buffer() {
        let shared = Buf::copied(b"0123456789").freeze();
        let part = shared.slice(2..6).slice(1..3);
        assert_eq!(&part[..], b"34");
        let shared = shared.try_into_buf().expect_err("a view of it is left");
        assert!(part.try_into_buf().is_err(), "a part is not the buffer");
        assert_eq!(&shared.try_into_buf().expect("the only view")[..], b"0123456789");
    }
}
