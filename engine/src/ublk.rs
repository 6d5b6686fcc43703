//! Linux's ublk driver: block devices whose requests a process answers.
//!
//! Facts are from the kernel's `include/uapi/linux/ublk_cmd.h` and `Documentation/block/ublk.rst`. Data is copied by
//! reading and writing the queue's file ([`feature::USER_COPY`]), so no command here names memory for data. Requests
//! that a process had not answered when it died are given to its successor ([`feature::USER_RECOVERY_REISSUE`]).

use bcache_format::SECTOR_SIZE;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use crate::dev::{Buf, Io};
use crate::env::{Env, Op};
use crate::raw;

/// Abilities of the driver, and what a device is to use of them.
pub mod feature {
    /// A device outlives its server and waits for another one.
    pub const USER_RECOVERY: u64 = 1 << 3;
    /// The next server is given what the last one had not answered.
    pub const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// Commands are numbered as `ioctl` requests are.
    pub const IOCTL_ENCODE: u64 = 1 << 6;
    /// Data is copied by reading and writing the queue's file.
    pub const USER_COPY: u64 = 1 << 7;
    /// What this project cannot do without.
    pub const NEEDED: u64 = USER_RECOVERY | USER_RECOVERY_REISSUE | USER_COPY;
}

/// What a device is like, for `UBLK_CMD_SET_PARAMS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Smallest addressable unit in bytes, a power of two from 512 to the page size.
    pub logical_block: u32,
    /// Preferred unit in bytes, a power of two not smaller.
    pub physical_block: u32,
    /// Size of the best requests in bytes, a power of two not smaller.
    pub optimal: u32,
    /// Largest request in bytes.
    pub max_bytes: u32,
    /// Largest range zeroed at once in bytes.
    pub max_zero_bytes: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether seeks cost time.
    pub rotational: bool,
}

/// What a device was made for, in a number that its maker chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u64);

/// UblkState of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UblkState {
    /// No block device, yet or any more.
    Dead,
    /// Served.
    Live,
    /// Its server died; requests wait for another one.
    Quiesced,
    /// A number that this program does not know.
    Other(u16),
}

/// What the driver knows of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Number: `/dev/ublkcN`, `/dev/ublkbN`.
    pub id: u32,
    /// Tags of its queue: requests under way at most.
    pub depth: u16,
    /// Its state.
    pub state: UblkState,
    /// Features in use.
    pub flags: u64,
    /// The server's own number, which the driver keeps and does not look at.
    pub mark: Mark,
    /// Process that serves it, or served it last.
    pub pid: i32,
}

/// Bytes of `struct ublksrv_ctrl_dev_info`.
const INFO: usize = 64;
/// Bytes of `struct ublk_params`, with the fields that are set here: the header, basic and discard parts.
const PARAMS: usize = 8 + 32 + 20;

/// `_IOWR('u', nr, struct ublksrv_ctrl_cmd)`; the structure has 32 bytes.
const fn iowr(nr: u32) -> u32 {
    (3 << 30) | (32 << 16) | ((b'u' as u32) << 8) | nr
}
/// `_IOR('u', nr, struct ublksrv_ctrl_cmd)`.
const fn ior(nr: u32) -> u32 {
    (2 << 30) | (32 << 16) | ((b'u' as u32) << 8) | nr
}

const GET_DEV_INFO: u32 = ior(0x02);
const ADD_DEV: u32 = iowr(0x04);
const DEL_DEV: u32 = iowr(0x05);
const START_DEV: u32 = iowr(0x06);
const STOP_DEV: u32 = iowr(0x07);
const SET_PARAMS: u32 = iowr(0x08);
const START_USER_RECOVERY: u32 = iowr(0x10);
const END_USER_RECOVERY: u32 = iowr(0x11);
const GET_FEATURES: u32 = ior(0x13);

/// `/dev/ublk-control`. Its calls block, some until the device's queue is served by another thread.
#[derive(Debug)]
pub struct Control(File);

impl Control {
    /// Opens it. Fails with `NotFound` where the driver is not loaded.
    pub fn open() -> io::Result<Control> {
        Ok(Control(OpenOptions::new().read(true).write(true).open("/dev/ublk-control")?))
    }

    fn call(&self, code: u32, device: u32, data: u64, buf: Vec<u8>) -> io::Result<Vec<u8>> {
        raw::control(&self.0, raw::Control { code, device, data, buf })
    }

    /// The driver's abilities: [`feature`].
    pub fn features(&self) -> io::Result<u64> {
        let answer = self.call(GET_FEATURES, u32::MAX, 0, vec![0; 8])?;
        Ok(u64::from_ne_bytes(field(&answer, 0)))
    }

    /// Adds a device with one queue of `depth` tags; it needs [`set_params`](Self::set_params), its queue served and
    /// [`start`](Self::start). `mark` is found again in [`Info`].
    pub fn add(&self, depth: u16, max_bytes: u32, mark: Mark) -> io::Result<Info> {
        let mut info = vec![0; INFO];
        info[0..2].copy_from_slice(&1u16.to_ne_bytes());
        info[2..4].copy_from_slice(&depth.to_ne_bytes());
        info[8..12].copy_from_slice(&max_bytes.to_ne_bytes());
        info[12..16].copy_from_slice(&u32::MAX.to_ne_bytes());
        info[24..32].copy_from_slice(&(feature::NEEDED | feature::IOCTL_ENCODE).to_ne_bytes());
        info[32..40].copy_from_slice(&mark.0.to_ne_bytes());
        Ok(parse_info(&self.call(ADD_DEV, u32::MAX, 0, info)?))
    }

    /// What the driver knows of device `id`; `ENODEV` if there is none.
    pub fn info(&self, id: u32) -> io::Result<Info> {
        Ok(parse_info(&self.call(GET_DEV_INFO, id, 0, vec![0; INFO])?))
    }

    /// Says what the device is like, before it is started.
    pub fn set_params(&self, id: u32, params: &Params) -> io::Result<()> {
        self.call(SET_PARAMS, id, 0, params.to_bytes()).map(drop)
    }

    /// Makes the block device, once every tag of the queue waits for a request.
    pub fn start(&self, id: u32) -> io::Result<()> {
        self.call(START_DEV, id, std::process::id().into(), Vec::new()).map(drop)
    }

    /// Removes the block device. Requests under way are waited for while there is a server.
    pub fn stop(&self, id: u32) -> io::Result<()> {
        self.call(STOP_DEV, id, 0, Vec::new()).map(drop)
    }

    /// Removes the device, which is stopped if it is not yet. Waits until its queue's file is closed.
    pub fn delete(&self, id: u32) -> io::Result<()> {
        self.call(DEL_DEV, id, 0, Vec::new()).map(drop)
    }

    /// Begins to take a device over whose server died. `EBUSY` while the dead server is not gone in full.
    pub fn start_recovery(&self, id: u32) -> io::Result<()> {
        self.call(START_USER_RECOVERY, id, 0, Vec::new()).map(drop)
    }

    /// Lets requests flow again, once every tag of the queue waits for one.
    pub fn end_recovery(&self, id: u32) -> io::Result<()> {
        self.call(END_USER_RECOVERY, id, std::process::id().into(), Vec::new()).map(drop)
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk().copied()).unwrap_or([0; N])
}

fn parse_info(bytes: &[u8]) -> Info {
    let short = |at| u16::from_ne_bytes(field(bytes, at));
    Info {
        id: u32::from_ne_bytes(field(bytes, 12)),
        depth: short(2),
        state: match short(4) {
            0 => UblkState::Dead,
            1 => UblkState::Live,
            2 => UblkState::Quiesced,
            other => UblkState::Other(other),
        },
        flags: u64::from_ne_bytes(field(bytes, 24)),
        mark: Mark(u64::from_ne_bytes(field(bytes, 32))),
        pid: i32::from_ne_bytes(field(bytes, 16)),
    }
}

impl Params {
    /// `struct ublk_params`, cut off after its discard part.
    fn to_bytes(self) -> Vec<u8> {
        const BASIC_AND_DISCARD: u32 = 3;
        const VOLATILE_CACHE_AND_FUA: u32 = 4 | 8;
        let shift = |block: u32| block.trailing_zeros() as u8;
        let sectors = |bytes: u32| bytes >> 9;
        let attributes = u32::from(self.read_only) | u32::from(self.rotational) << 1 | VOLATILE_CACHE_AND_FUA;
        let mut bytes = Vec::with_capacity(PARAMS);
        bytes.extend((PARAMS as u32).to_ne_bytes());
        bytes.extend(BASIC_AND_DISCARD.to_ne_bytes());
        bytes.extend(attributes.to_ne_bytes());
        // Logical and physical block, optimal and least size of a request.
        let (logical, physical) = (shift(self.logical_block), shift(self.physical_block));
        bytes.extend([logical, physical, shift(self.optimal), physical]);
        bytes.extend(sectors(self.max_bytes).to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes()); // no chunks
        bytes.extend(self.sectors.to_ne_bytes());
        bytes.extend(0u64.to_ne_bytes()); // no boundary in memory
        bytes.extend(0u32.to_ne_bytes()); // discards are aligned
        bytes.extend(self.logical_block.to_ne_bytes());
        bytes.extend(sectors(u32::MAX).to_ne_bytes());
        bytes.extend(sectors(self.max_zero_bytes).to_ne_bytes());
        bytes.extend(1u16.to_ne_bytes()); // ranges a discard
        bytes.extend(0u16.to_ne_bytes());
        bytes
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Data is wanted.
    Read,
    /// Data is given.
    Write,
    /// Everything completed before is to be durable.
    Flush,
    /// A range is not needed.
    Discard,
    /// A range is to read as zeroes.
    WriteZeroes,
    /// Something that this program does not know.
    Other(u8),
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub verb: Verb,
    /// First byte.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// Durable on completion.
    pub fua: bool,
    /// Zeroing may not free space.
    pub no_unmap: bool,
}

impl Request {
    fn parse(bytes: &[u8]) -> Request {
        let op = u32::from_ne_bytes(field(bytes, 0));
        Request {
            verb: match op as u8 {
                0 => Verb::Read,
                1 => Verb::Write,
                2 => Verb::Flush,
                3 => Verb::Discard,
                5 => Verb::WriteZeroes,
                other => Verb::Other(other),
            },
            at: u64::from_ne_bytes(field(bytes, 8)).saturating_mul(SECTOR_SIZE),
            len: u64::from(u32::from_ne_bytes(field(bytes, 4))) * SECTOR_SIZE,
            fua: op & (1 << 13) != 0,
            no_unmap: op & (1 << 15) != 0,
        }
    }
}

/// The queue of a device, served on the runtime's own ring.
pub struct Queue {
    env: Env,
    file: Arc<File>,
    descriptors: raw::Descriptors,
    depth: u16,
}

/// Commands of a queue: `_IOWR('u', nr, struct ublksrv_io_cmd)`; the structure has 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Step {
    /// `UBLK_IO_FETCH_REQ`.
    Fetch = (3 << 30) | (16 << 16) | ((b'u' as u32) << 8) | 0x20,
    /// `UBLK_IO_COMMIT_AND_FETCH_REQ`.
    Commit = (3 << 30) | (16 << 16) | ((b'u' as u32) << 8) | 0x21,
}

impl Queue {
    /// Opens the queue of device `id`. It must be served on the ring: with helper threads for I/O it cannot be.
    pub fn open(env: &Env, id: u32, depth: u16) -> io::Result<Rc<Queue>> {
        let file = OpenOptions::new().read(true).write(true).open(format!("/dev/ublkc{id}"))?;
        let descriptors = raw::Descriptors::map(&file, depth)?;
        Ok(Rc::new(Queue { env: env.clone(), file: Arc::new(file), descriptors, depth }))
    }

    /// Number of tags.
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// Waits for the first request of `tag`. `ENODEV` when the device is stopped.
    pub async fn fetch(&self, tag: u16) -> io::Result<Request> {
        self.step(Step::Fetch, tag, 0).await
    }

    /// Answers the request of `tag` with a count of bytes or a negative error number, and waits for the next one.
    pub async fn commit(&self, tag: u16, result: i32) -> io::Result<Request> {
        self.step(Step::Commit, tag, result).await
    }

    async fn step(&self, step: Step, tag: u16, result: i32) -> io::Result<Request> {
        let (reply, io) = Io::pair();
        // `struct ublksrv_io_cmd` for queue 0, without an address: data is copied through the file.
        let mut bytes = [0; 16];
        bytes[2..4].copy_from_slice(&tag.to_ne_bytes());
        bytes[4..8].copy_from_slice(&result.to_ne_bytes());
        let file = Arc::clone(&self.file);
        self.env.reactor()?.start(Op::Command { file, number: step as u32, bytes, reply });
        match io.await.map_err(io::Error::from)? {
            0 => Ok(Request::parse(&self.descriptors.get(tag))),
            failed => Err(io::Error::from_raw_os_error(failed.abs())),
        }
    }

    /// Where the data of `tag` is in the queue's file.
    fn place(tag: u16) -> u64 {
        /// `UBLKSRV_IO_BUF_OFFSET`.
        const START: u64 = 0x8000_0000;
        /// `UBLK_TAG_OFF`.
        const TAG_SHIFT: u32 = 25;
        START + (u64::from(tag) << TAG_SHIFT)
    }

    /// Copies the data of a write out of the kernel: all of `buf`. Does not wait.
    pub fn take(&self, tag: u16, buf: &mut Buf) -> io::Result<()> {
        self.file.read_exact_at(buf, Queue::place(tag))
    }

    /// Copies data of a read into the kernel, from byte `from` of the request on. Does not wait.
    pub fn give(&self, tag: u16, from: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, Queue::place(tag) + from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_numbered_as_the_driver_numbers_them() {
        assert_eq!(ADD_DEV, 0xc020_7504);
        assert_eq!(GET_FEATURES, 0x8020_7513);
        assert_eq!(Step::Commit as u32, 0xc010_7521);
    }

    #[test]
    fn parameters_have_the_drivers_layout() {
        let params = Params {
            sectors: 0x1234,
            logical_block: 512,
            physical_block: 4096,
            optimal: 1 << 20,
            max_bytes: 1 << 20,
            max_zero_bytes: 64 << 20,
            read_only: true,
            rotational: false,
        };
        let bytes = params.to_bytes();
        assert_eq!(bytes.len(), PARAMS);
        assert_eq!(u32::from_ne_bytes(field(&bytes, 8)), 1 | 4 | 8);
        assert_eq!(field::<4>(&bytes, 12), [9, 12, 20, 12]);
        assert_eq!(u32::from_ne_bytes(field(&bytes, 16)), 2048);
        assert_eq!(u64::from_ne_bytes(field(&bytes, 24)), 0x1234);
        assert_eq!(u32::from_ne_bytes(field(&bytes, 44)), 512);
        assert_eq!(u32::from_ne_bytes(field(&bytes, 52)), 131_072);
        assert_eq!(u16::from_ne_bytes(field(&bytes, 56)), 1);
    }

    #[test]
    fn requests_are_read_from_descriptors() {
        let mut bytes = [0; 24];
        bytes[0..4].copy_from_slice(&(1u32 | 1 << 13).to_ne_bytes());
        bytes[4..8].copy_from_slice(&8u32.to_ne_bytes());
        bytes[8..16].copy_from_slice(&100u64.to_ne_bytes());
        let wanted = Request { verb: Verb::Write, at: 51_200, len: 4096, fua: true, no_unmap: false };
        assert_eq!(Request::parse(&bytes), wanted);
    }
}
