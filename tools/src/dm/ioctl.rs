//! Requests to `/dev/mapper/control`, as bytes.

use std::fs::{File, OpenOptions};
use std::io;

use crate::raw;

/// Bytes of `struct dm_ioctl`.
const HEADER: usize = 312;
/// Bytes of `struct dm_target_spec`.
const SPEC: usize = 40;
/// Where the name is, and its longest with the zero that ends it.
const NAME: (usize, usize) = (48, 128);
/// The same of the UUID.
const UUID: (usize, usize) = (176, 129);
/// First length of an answer's buffer, and the last.
const ANSWER: (usize, usize) = (16 << 10, 4 << 20);

const CONTROL: &str = "/dev/mapper/control";

mod flag {
    pub(super) const SUSPEND: u32 = 1 << 1;
    pub(super) const STATUS_TABLE: u32 = 1 << 4;
    pub(super) const BUFFER_FULL: u32 = 1 << 8;
    pub(super) const SKIP_LOCKFS: u32 = 1 << 10;
    pub(super) const UEVENT_GENERATED: u32 = 1 << 13;
}

/// A request's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Command {
    Version = 0,
    List = 2,
    Create = 3,
    Remove = 4,
    Rename = 5,
    /// Suspends or, without the flag, resumes.
    Suspend = 6,
    Status = 7,
    Load = 9,
    Clear = 10,
    TableStatus = 12,
}

/// A piece of a device's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// First sector of the device.
    pub start: u64,
    /// Sectors.
    pub sectors: u64,
    /// The target's kind, `linear` here.
    pub kind: String,
    /// What it is made of, in the target's own words.
    pub params: String,
}

impl Target {
    /// `sectors` of the device `major:minor`, from `offset` on.
    #[must_use]
    pub fn linear(sectors: u64, (major, minor): (u64, u64), offset: u64) -> Target {
        let params = format!("{major}:{minor} {offset}");
        Target { start: 0, sectors, kind: "linear".to_owned(), params }
    }

    /// The device below a linear target, and the offset in it.
    #[must_use]
    pub fn below(&self) -> Option<((u64, u64), u64)> {
        let (device, offset) = self.params.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        (self.kind == "linear").then_some(())?;
        Some(((major.parse().ok()?, minor.parse().ok()?), offset.parse().ok()?))
    }
}

/// What the kernel says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Name below `/dev/mapper`.
    pub name: String,
    /// UUID; empty in a list.
    pub uuid: String,
    /// The number of `/dev/dm-N`.
    pub minor: u64,
    /// Who has it open.
    pub open_count: u32,
    /// Whether requests are held back.
    pub suspended: bool,
}

/// A request being made.
pub(super) struct Call {
    command: Command,
    name: String,
    uuid: String,
    flags: u32,
    event: u32,
    targets: Vec<Target>,
    text: String,
}

/// An answer.
pub(super) struct Answer {
    bytes: Vec<u8>,
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk().copied()).map_or(0, u32::from_ne_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk().copied()).map_or(0, u64::from_ne_bytes)
}

/// Text up to its zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

impl Call {
    pub(super) fn new(command: Command) -> Call {
        let (name, uuid) = (String::new(), String::new());
        Call { command, name, uuid, flags: 0, event: 0, targets: Vec::new(), text: String::new() }
    }
    pub(super) fn name(mut self, name: &str) -> Call {
        name.clone_into(&mut self.name);
        self
    }
    pub(super) fn uuid(mut self, uuid: &str) -> Call {
        uuid.clone_into(&mut self.uuid);
        self
    }
    pub(super) fn targets(mut self, targets: &[Target]) -> Call {
        self.targets = targets.to_vec();
        self
    }
    /// A text behind the header, with the zero that ends it: the new name.
    pub(super) fn text(mut self, text: &str) -> Call {
        text.clone_into(&mut self.text);
        self
    }
    /// For udev: see [`super::cookie`].
    pub(super) fn cookie(mut self, cookie: u32) -> Call {
        self.event = cookie;
        self
    }
    /// Suspends instead of resuming.
    pub(super) fn suspend(mut self) -> Call {
        self.flags |= flag::SUSPEND;
        self
    }
    /// Leaves a file system on the device as it is: what is below has the same data before and after.
    pub(super) fn without_freezing(mut self) -> Call {
        self.flags |= flag::SKIP_LOCKFS;
        self
    }
    /// Asks for tables instead of status.
    pub(super) fn table_lines(mut self) -> Call {
        self.flags |= flag::STATUS_TABLE;
        self
    }

    fn bytes(&self, room: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; HEADER];
        for (text, (at, len)) in [(&self.name, NAME), (&self.uuid, UUID)] {
            if text.len() >= len || text.as_bytes().contains(&0) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} is no name")));
            }
            bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
        }
        for target in &self.targets {
            let len = (SPEC + target.params.len() + 1).next_multiple_of(8);
            let mut spec = vec![0; len];
            spec[0..8].copy_from_slice(&target.start.to_ne_bytes());
            spec[8..16].copy_from_slice(&target.sectors.to_ne_bytes());
            spec[20..24].copy_from_slice(&(len as u32).to_ne_bytes());
            let kind = target.kind.as_bytes();
            spec[24..24 + kind.len().min(15)].copy_from_slice(&kind[..kind.len().min(15)]);
            spec[SPEC..SPEC + target.params.len()].copy_from_slice(target.params.as_bytes());
            bytes.extend(spec);
        }
        if self.text.len() >= NAME.1 || self.text.as_bytes().contains(&0) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{:?} is no name", self.text)));
        }
        bytes.extend(self.text.as_bytes());
        bytes.resize((bytes.len() + 1).max(room), 0);
        // Version 4.0.0 is what every kernel of interest speaks.
        bytes[0..4].copy_from_slice(&4u32.to_ne_bytes());
        let len = bytes.len() as u32;
        bytes[12..16].copy_from_slice(&len.to_ne_bytes());
        bytes[16..20].copy_from_slice(&(HEADER as u32).to_ne_bytes());
        bytes[20..24].copy_from_slice(&(self.targets.len() as u32).to_ne_bytes());
        bytes[28..32].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[32..36].copy_from_slice(&self.event.to_ne_bytes());
        Ok(bytes)
    }

    /// Asks, with a larger buffer when the answer did not fit.
    pub(super) fn send(self) -> io::Result<Answer> {
        let control = open()?;
        let mut room = ANSWER.0;
        loop {
            let mut bytes = self.bytes(room)?;
            raw::dm_ioctl(&control, self.command as u8, &mut bytes)?;
            if number(&bytes, 28) & flag::BUFFER_FULL == 0 {
                return Ok(Answer { bytes });
            }
            if room >= ANSWER.1 {
                return Err(io::Error::other("an answer of device-mapper has no end"));
            }
            room *= 4;
        }
    }
}

fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(CONTROL)
}

impl Answer {
    /// Whether the kernel told udev, with the cookie.
    pub(super) fn uevent(&self) -> bool {
        number(&self.bytes, 28) & flag::UEVENT_GENERATED != 0
    }

    pub(super) fn device(&self) -> Device {
        let bytes = &self.bytes;
        let part = |(at, len): (usize, usize)| text(bytes.get(at..at + len).unwrap_or_default());
        Device {
            name: part(NAME),
            uuid: part(UUID),
            minor: nix::sys::stat::minor(long(bytes, 40)),
            open_count: number(bytes, 24),
            suspended: number(bytes, 28) & flag::SUSPEND != 0,
        }
    }

    /// What the kernel wrote after the header.
    fn data(&self) -> &[u8] {
        let start = number(&self.bytes, 16) as usize;
        self.bytes.get(start..).unwrap_or_default()
    }

    pub(super) fn targets(&self) -> Vec<Target> {
        let (data, count) = (self.data(), number(&self.bytes, 20));
        let (mut at, mut targets) = (0, Vec::new());
        for _ in 0..count {
            let Some(spec) = data.get(at..).filter(|spec| spec.len() > SPEC) else { break };
            targets.push(Target {
                start: long(spec, 0),
                sectors: long(spec, 8),
                kind: text(spec.get(24..SPEC).unwrap_or_default()),
                params: text(spec.get(SPEC..).unwrap_or_default()),
            });
            // In answers the next target's place counts from the data's start.
            match number(spec, 20) as usize {
                next if next > at => at = next,
                _ => break,
            }
        }
        targets
    }
}

/// All devices, without their UUIDs.
pub(super) fn list() -> io::Result<Vec<Device>> {
    let answer = Call::new(Command::List).send()?;
    Ok(parse_list(answer.data()))
}

/// `struct dm_name_list`: device number, distance to the next, name.
fn parse_list(data: &[u8]) -> Vec<Device> {
    let (mut rest, mut devices) = (data, Vec::new());
    while rest.len() > 12 {
        let (dev, next) = (long(rest, 0), number(rest, 8) as usize);
        let name = text(rest.get(12..).unwrap_or_default());
        // No devices at all: one entry of zeroes.
        if dev == 0 && name.is_empty() {
            break;
        }
        let minor = nix::sys::stat::minor(dev);
        devices.push(Device { name, uuid: String::new(), minor, open_count: 0, suspended: false });
        match next {
            0 => break,
            next => rest = rest.get(next..).unwrap_or_default(),
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_written_as_the_kernel_reads_it() {
        let target = Target::linear(2048, (253, 7), 16);
        let call = Call::new(Command::Load).name("x").targets(std::slice::from_ref(&target));
        let bytes = call.bytes(0).unwrap();
        assert_eq!(bytes.len(), HEADER + 56 + 1);
        assert_eq!((number(&bytes, 12), number(&bytes, 16), number(&bytes, 20)), (369, 312, 1));
        assert_eq!(text(&bytes[HEADER + 24..HEADER + 40]), "linear");
        assert_eq!(text(&bytes[HEADER + SPEC..]), "253:7 16");
        assert_eq!(target.below(), Some(((253, 7), 16)));
    }

    #[test]
    fn a_new_name_stands_behind_the_header() {
        let bytes = Call::new(Command::Rename).name("old").text("new").bytes(0).unwrap();
        assert_eq!(&bytes[HEADER..], b"new\0");
        assert_eq!(text(&bytes[NAME.0..]), "old");
        assert!(Call::new(Command::Rename).name("old").text(&"n".repeat(128)).bytes(0).is_err());
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        assert!(Call::new(Command::Create).name(&"n".repeat(128)).bytes(0).is_err());
        assert!(Call::new(Command::Create).name("a\0b").bytes(0).is_err());
    }

    #[test]
    fn lists_end_wherever_they_are_cut() {
        let mut data = vec![0; 64];
        data[0..8].copy_from_slice(&nix::sys::stat::makedev(253, 3).to_ne_bytes());
        data[8..12].copy_from_slice(&24u32.to_ne_bytes());
        data[12..14].copy_from_slice(b"ab");
        data[24..32].copy_from_slice(&nix::sys::stat::makedev(253, 4).to_ne_bytes());
        data[36..38].copy_from_slice(b"cd");
        let names = |data: &[u8]| parse_list(data).into_iter().map(|d| (d.name, d.minor)).collect::<Vec<_>>();
        assert_eq!(names(&data), [("ab".to_owned(), 3), ("cd".to_owned(), 4)]);
        for len in 0..data.len() {
            assert!(names(&data[..len]).len() <= 2);
        }
    }
}
