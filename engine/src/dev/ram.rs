//! A device in memory, for benchmarks and trials.

use bcache_format::SECTOR_SIZE;
use std::cell::RefCell;
use std::collections::HashMap;

use super::buf::PAGE;
use super::{BlockDev, Buf, DevOp, Geometry, Io, Shared, check};

/// A device whose content is in memory, where zeros take no room: a set of terabytes that holds only zeros costs what
/// its metadata costs. Everything is done when the call returns.
pub struct Ram {
    name: String,
    bytes: u64,
    /// Pages that are not all zeros, by number.
    pages: RefCell<HashMap<u64, Box<[u8; PAGE]>, foldhash::fast::FixedState>>,
}

/// What a page that is not there holds.
static ZEROS: [u8; PAGE] = [0; PAGE];

impl Ram {
    /// A device of `bytes` (whole sectors of it) that reads as zeros.
    pub fn new(name: &str, bytes: u64) -> Ram {
        Ram { name: name.to_owned(), bytes: bytes / SECTOR_SIZE * SECTOR_SIZE, pages: RefCell::default() }
    }

    fn put(&self, at: u64, data: &[u8]) {
        let mut pages = self.pages.borrow_mut();
        for_pages(at, data.len(), |page, within, range| {
            let (part, whole) = (&data[range], within == 0);
            let zeros = part == &ZEROS[..part.len()];
            match pages.get_mut(&page) {
                Some(_) if zeros && whole && part.len() == PAGE => drop(pages.remove(&page)),
                Some(known) => known[within..within + part.len()].copy_from_slice(part),
                None if zeros => {}
                None => {
                    let mut new = Box::new(ZEROS);
                    new[within..within + part.len()].copy_from_slice(part);
                    pages.insert(page, new);
                }
            }
        });
    }
}

/// Calls `each` for every page that `len` bytes from `at` on touch: its number, where in it, and which of the bytes.
fn for_pages(at: u64, len: usize, mut each: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let here = at + done as u64;
        let within = (here % PAGE as u64) as usize;
        let part = (PAGE - within).min(len - done);
        each(here / PAGE as u64, within, done..done + part);
        done += part;
    }
}

impl BlockDev for Ram {
    fn geometry(&self) -> Geometry {
        Geometry {
            bytes: self.bytes,
            logical_block: SECTOR_SIZE as u32,
            discard: true,
            write_zeroes: true,
            rotational: false,
            read_only: false,
        }
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, at: u64, mut buf: Buf) -> Io<Buf> {
        if let Err(error) = check(self, DevOp::Read, at, buf.len() as u64) {
            return Io::ready(Err(error));
        }
        let pages = self.pages.borrow();
        let len = buf.len();
        for_pages(at, len, |page, within, range| {
            let known = pages.get(&page).map_or(&ZEROS, |page| page);
            let part = range.len();
            buf[range].copy_from_slice(&known[within..within + part]);
        });
        Io::ready(Ok(buf))
    }

    fn write(&self, at: u64, data: Shared, _fua: bool) -> Io<()> {
        let checked = check(self, DevOp::Write, at, data.len() as u64);
        Io::ready(checked.map(|()| self.put(at, &data)))
    }

    fn flush(&self) -> Io<()> {
        Io::ready(Ok(()))
    }

    fn discard(&self, at: u64, len: u64) -> Io<()> {
        self.write_zeroes(at, len)
    }

    fn write_zeroes(&self, at: u64, len: u64) -> Io<()> {
        let checked = check(self, DevOp::WriteZeroes, at, len);
        Io::ready(checked.map(|()| {
            let end = at + len;
            let mut next = at;
            while next < end {
                let part = (end - next).min((1 << 20) - next % PAGE as u64);
                let zeros = Buf::zeroed(part as usize);
                self.put(next, &zeros);
                next += part;
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Poll, Waker};

    fn now<T>(io: Io<T>) -> Result<T, super::super::DevError> {
        let mut io = std::pin::pin!(io);
        match io.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("everything is done at once"),
        }
    }

    #[test]
    fn it_reads_what_was_written_and_zeros_take_no_room() {
        let ram = Ram::new("ram", 1 << 40);
        let at = (1 << 39) + 512;
        now(ram.write(at, Buf::copied(&[7; 8192]).freeze(), false)).unwrap();
        let read = now(ram.read(at - 512, Buf::recycled(9216))).unwrap();
        assert!(read[..512].iter().all(|byte| *byte == 0) && read[512..8704].iter().all(|byte| *byte == 7));
        assert_eq!(ram.pages.borrow().len(), 3);
        now(ram.write_zeroes(1 << 39, 1 << 20)).unwrap();
        assert_eq!(ram.pages.borrow().len(), 0);
        assert!(now(ram.read(ram.geometry().bytes, Buf::recycled(512))).is_err());
    }
}
