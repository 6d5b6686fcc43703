//! The protocol's bytes as values. All numbers on the wire are big-endian.

use thiserror::Error;

/// First 8 bytes a server sends: "NBDMAGIC".
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Announces and begins options: "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Begins the answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Begins a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag of both sides: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag of both sides: no 124 zeroes after the answer to `NBD_OPT_EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Length of an option's header in bytes.
pub const OPTION_HEADER: usize = 16;
/// Length of a request's header in bytes.
pub const REQUEST_HEADER: usize = 28;
/// Length of a simple reply's header in bytes.
pub const SIMPLE_HEADER: usize = 16;
/// Length of a structured chunk's header in bytes.
pub const CHUNK_HEADER: usize = 20;

/// Longest export name the protocol allows, in bytes.
pub const MAX_NAME: usize = 4096;
/// Most bytes of data taken with one option; no sensible one comes near.
pub const MAX_OPTION: u32 = 16 << 10;
/// Most bytes of one read or write: what clients may use without asking.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// The smallest unit of offsets and lengths, in bytes.
pub const MIN_BLOCK: u32 = 512;

/// Transmission flags, told with an export's size.
pub mod transmission {
    /// The flags are valid.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// Flushes are understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Trims are understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// Writes of zeroes are understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag is understood.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers the writes completed on all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Flags of a request.
pub mod command_flag {
    /// Durable on completion.
    pub const FUA: u16 = 1;
    /// Zeroes keep their space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One chunk only.
    pub const DF: u16 = 1 << 2;
}

/// Error numbers of the protocol: Linux's, but only these.
pub mod error {
    /// Not permitted: the export is read-only.
    pub const EPERM: u32 = 1;
    /// Input or output error.
    pub const EIO: u32 = 5;
    /// Out of memory.
    pub const ENOMEM: u32 = 12;
    /// Invalid request.
    pub const EINVAL: u32 = 22;
    /// Beyond the end, or no space left.
    pub const ENOSPC: u32 = 28;
    /// Not supported.
    pub const ENOTSUP: u32 = 95;
    /// The server is going down.
    pub const ESHUTDOWN: u32 = 108;

    /// The protocol's number for an operating system's.
    pub fn from_errno(errno: i32) -> u32 {
        match errno {
            // EPERM, EACCES, EROFS
            1 | 13 | 30 => EPERM,
            12 => ENOMEM,
            22 => EINVAL,
            // EFBIG, ENOSPC, EDQUOT
            27 | 28 | 122 => ENOSPC,
            95 => ENOTSUP,
            108 => ESHUTDOWN,
            _ => EIO,
        }
    }
}

/// What makes a stream unusable: there is no telling where the next message begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProtoError {
    /// The client's handshake flags have unknown bits or lack fixed newstyle.
    #[error("unknown handshake flags {0:#x}")]
    ClientFlags(u32),
    /// An option does not begin with its magic number.
    #[error("an option begins with {0:#x}")]
    OptionMagic(u64),
    /// An option has more data than any needs.
    #[error("option {option} has {len} bytes of data, more than {MAX_OPTION}")]
    OptionLength {
        /// The option's number.
        option: u32,
        /// Its data's length in bytes.
        len: u32,
    },
    /// A client that goes on haggling.
    #[error("more than {0} options")]
    OptionCount(u32),
    /// A request does not begin with its magic number.
    #[error("a request begins with {0:#x}")]
    RequestMagic(u32),
    /// A write has more data than the server takes.
    #[error("a write of {0} bytes, more than {MAX_PAYLOAD}")]
    PayloadLength(u32),
}

/// Reads numbers from the front of a slice.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

/// The server's greeting.
pub fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&NBD_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    bytes
}

/// The client's answer to the greeting: whether it wants the zeroes left out.
pub fn client_flags(bytes: [u8; 4]) -> Result<bool, ProtoError> {
    let flags = u32::from_be_bytes(bytes);
    let known = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
    if flags & !known != 0 || flags & u32::from(FLAG_FIXED_NEWSTYLE) == 0 {
        return Err(ProtoError::ClientFlags(flags));
    }
    Ok(flags & u32::from(FLAG_NO_ZEROES) != 0)
}

/// The header of an option: its number and the length of its data in bytes, at most [`MAX_OPTION`].
pub fn option_header(bytes: [u8; OPTION_HEADER]) -> Result<(u32, u32), ProtoError> {
    let mut reader = Reader(&bytes);
    let magic = reader.u64().unwrap_or(0);
    let option = reader.u32().unwrap_or(0);
    let len = reader.u32().unwrap_or(0);
    if magic != OPTION_MAGIC {
        return Err(ProtoError::OptionMagic(magic));
    }
    if len > MAX_OPTION {
        return Err(ProtoError::OptionLength { option, len });
    }
    Ok((option, len))
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export's name.
    pub name: &'a [u8],
    /// The kinds of information asked for.
    pub kinds: Vec<u16>,
}

impl<'a> InfoRequest<'a> {
    /// Parses an option's data; none if lengths and data do not agree.
    pub fn parse(data: &'a [u8]) -> Option<InfoRequest<'a>> {
        let mut reader = Reader(data);
        let len = usize::try_from(reader.u32()?).ok()?;
        let name = reader.bytes(len).filter(|name| name.len() <= MAX_NAME)?;
        let count = reader.u16()?;
        let kinds: Vec<u16> = (0..count).map(|_| reader.u16()).collect::<Option<_>>()?;
        reader.0.is_empty().then_some(InfoRequest { name, kinds })
    }
}

/// An answer to an option.
pub fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read,
    /// Write; data follow the header.
    Write,
    /// End of the connection; has no reply.
    Disconnect,
    /// Flush.
    Flush,
    /// Discard.
    Trim,
    /// Write of zeroes.
    WriteZeroes,
    /// Something this server did not offer.
    Other(u16),
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Bits of [`command_flag`].
    pub flags: u16,
    /// The client's name for the request, given back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u32,
}

impl Request {
    /// Parses a header.
    pub fn parse(bytes: [u8; REQUEST_HEADER]) -> Result<Request, ProtoError> {
        let mut reader = Reader(&bytes);
        let magic = reader.u32().unwrap_or(0);
        if magic != REQUEST_MAGIC {
            return Err(ProtoError::RequestMagic(magic));
        }
        let flags = reader.u16().unwrap_or(0);
        let command = match reader.u16().unwrap_or(u16::MAX) {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            6 => Command::WriteZeroes,
            other => Command::Other(other),
        };
        let cookie = reader.u64().unwrap_or(0);
        let offset = reader.u64().unwrap_or(0);
        let len = reader.u32().unwrap_or(0);
        if command == Command::Write && len > MAX_PAYLOAD {
            return Err(ProtoError::PayloadLength(len));
        }
        Ok(Request { command, flags, cookie, offset, len })
    }

    /// Bytes of data that follow the header.
    pub fn payload(&self) -> usize {
        if self.command == Command::Write { self.len as usize } else { 0 }
    }

    /// Whether it asks for durability on completion.
    pub fn fua(&self) -> bool {
        self.flags & command_flag::FUA != 0
    }

    /// Checks the request against an export of `size` bytes; the protocol's error number if it is refused.
    pub fn check(&self, size: u64, read_only: bool) -> Result<(), u32> {
        let allowed = match self.command {
            Command::Read => command_flag::FUA | command_flag::DF,
            Command::Write | Command::Trim => command_flag::FUA,
            Command::WriteZeroes => command_flag::FUA | command_flag::NO_HOLE,
            Command::Flush | Command::Disconnect => return Ok(()),
            Command::Other(_) => return Err(error::EINVAL),
        };
        if self.flags & !allowed != 0 {
            return Err(error::EINVAL);
        }
        let changes = self.command != Command::Read;
        if changes && read_only {
            return Err(error::EPERM);
        }
        let block = u64::from(MIN_BLOCK);
        if !self.offset.is_multiple_of(block) || !u64::from(self.len).is_multiple_of(block) {
            return Err(error::EINVAL);
        }
        if self.command == Command::Read && self.len > MAX_PAYLOAD {
            return Err(error::EINVAL);
        }
        let end = self.offset.checked_add(u64::from(self.len));
        if end.is_none_or(|end| end > size) {
            let zeroing = matches!(self.command, Command::Write | Command::WriteZeroes);
            return Err(if zeroing { error::ENOSPC } else { error::EINVAL });
        }
        Ok(())
    }
}

/// The header of a simple reply; `error` is 0 for success, and then a read's data follow.
pub fn simple_reply(cookie: u64, error: u32) -> [u8; SIMPLE_HEADER] {
    let mut bytes = [0; SIMPLE_HEADER];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The header of a chunk that is the whole of its reply, with `len` bytes to follow.
fn chunk(kind: u16, cookie: u64, len: u32) -> [u8; CHUNK_HEADER] {
    const DONE: u16 = 1;
    let mut bytes = [0; CHUNK_HEADER];
    bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&DONE.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// A structured reply to a read of `len` bytes at `offset`, all but the data.
pub fn data_chunk(cookie: u64, offset: u64, len: u32) -> [u8; CHUNK_HEADER + 8] {
    const OFFSET_DATA: u16 = 1;
    let mut bytes = [0; CHUNK_HEADER + 8];
    bytes[..CHUNK_HEADER].copy_from_slice(&chunk(OFFSET_DATA, cookie, len.saturating_add(8)));
    bytes[CHUNK_HEADER..].copy_from_slice(&offset.to_be_bytes());
    bytes
}

/// A structured reply to a read of no bytes, which may not be a data chunk.
pub fn empty_chunk(cookie: u64) -> [u8; CHUNK_HEADER] {
    chunk(0, cookie, 0)
}

/// A structured reply that tells of an error, without words.
pub fn error_chunk(cookie: u64, error: u32) -> [u8; CHUNK_HEADER + 6] {
    const ERROR: u16 = (1 << 15) + 1;
    let mut bytes = [0; CHUNK_HEADER + 6];
    bytes[..CHUNK_HEADER].copy_from_slice(&chunk(ERROR, cookie, 6));
    bytes[CHUNK_HEADER..CHUNK_HEADER + 4].copy_from_slice(&error.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u16, flags: u16, offset: u64, len: u32) -> [u8; REQUEST_HEADER] {
        let mut bytes = [0; REQUEST_HEADER];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&command.to_be_bytes());
        bytes[8..16].copy_from_slice(&77u64.to_be_bytes());
        bytes[16..24].copy_from_slice(&offset.to_be_bytes());
        bytes[24..].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    #[test]
    fn requests_are_checked_one_rule_at_a_time() {
        const SIZE: u64 = 1 << 20;
        type Row = (u16, u16, u64, u32, bool, Result<(), u32>);
        let rows: [Row; 21] = [
            (0, 0, 0, 4096, false, Ok(())),
            (0, 0, SIZE - 512, 512, true, Ok(())),
            (0, 0, SIZE, 0, false, Ok(())),
            (0, 0, SIZE - 512, 1024, false, Err(error::EINVAL)),
            (0, 0, u64::MAX - 511, 512, false, Err(error::EINVAL)),
            (0, 0, 1, 512, false, Err(error::EINVAL)),
            (0, 0, 0, 511, false, Err(error::EINVAL)),
            (0, 0, 0, MAX_PAYLOAD + 512, false, Err(error::EINVAL)),
            (0, command_flag::DF, 0, 512, false, Ok(())),
            (0, command_flag::NO_HOLE, 0, 512, false, Err(error::EINVAL)),
            (1, command_flag::FUA, 0, 512, false, Ok(())),
            (1, 0, SIZE, 512, false, Err(error::ENOSPC)),
            (1, 0, 0, 512, true, Err(error::EPERM)),
            (3, 0, u64::MAX, 7, true, Ok(())),
            (4, 0, 0, 1 << 20, false, Ok(())),
            (4, 0, SIZE, 512, false, Err(error::EINVAL)),
            (6, command_flag::NO_HOLE, 0, 512, false, Ok(())),
            (6, 0, SIZE, 512, false, Err(error::ENOSPC)),
            (6, 0, 0, 512, true, Err(error::EPERM)),
            (7, 0, 0, 512, false, Err(error::EINVAL)),
            (0, 1 << 9, 0, 512, false, Err(error::EINVAL)),
        ];
        for (command, flags, offset, len, read_only, expect) in rows {
            let request = Request::parse(header(command, flags, offset, len)).unwrap();
            assert_eq!(request.check(SIZE, read_only), expect, "{request:?}");
            assert_eq!(request.cookie, 77);
        }
    }

    #[test]
    fn what_cannot_be_followed_ends_the_stream() {
        let mut bytes = header(0, 0, 0, 0);
        bytes[0] ^= 1;
        assert_eq!(Request::parse(bytes), Err(ProtoError::RequestMagic(REQUEST_MAGIC ^ 1 << 24)));
        let long = header(1, 0, 0, MAX_PAYLOAD + 1);
        assert_eq!(Request::parse(long), Err(ProtoError::PayloadLength(MAX_PAYLOAD + 1)));
        assert_eq!(client_flags([0, 0, 0, 2]), Err(ProtoError::ClientFlags(2)));
        assert_eq!(client_flags([0, 0, 0, 7]), Err(ProtoError::ClientFlags(7)));
        assert_eq!((client_flags([0, 0, 0, 1]), client_flags([0, 0, 0, 3])), (Ok(false), Ok(true)));
        let mut option = [0; OPTION_HEADER];
        assert_eq!(option_header(option), Err(ProtoError::OptionMagic(0)));
        option[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        option[11] = 7;
        option[12..].copy_from_slice(&(MAX_OPTION + 1).to_be_bytes());
        assert_eq!(option_header(option), Err(ProtoError::OptionLength { option: 7, len: MAX_OPTION + 1 }));
    }

    #[test]
    fn info_requests_must_add_up() {
        let good = [0, 0, 0, 2, b'a', b'b', 0, 2, 0, 3, 0, 1];
        let expect = InfoRequest { name: b"ab", kinds: vec![3, 1] };
        assert_eq!(InfoRequest::parse(&good), Some(expect));
        for len in 0..good.len() {
            assert_eq!(InfoRequest::parse(&good[..len]), None, "cut to {len}");
        }
        assert_eq!(InfoRequest::parse(&[&good[..], &[0]].concat()), None, "one byte more");
        assert_eq!(InfoRequest::parse(&[0xff; 64]), None, "a name longer than the data");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(
            request: [u8; REQUEST_HEADER], option: [u8; OPTION_HEADER], data: Vec<u8>, size: u64,
        ) {
            let mut framed = request;
            framed[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            for bytes in [request, framed] {
                if let Ok(request) = Request::parse(bytes)
                    && request.check(size, false).is_ok()
                    && matches!(request.command, Command::Read | Command::Write | Command::Trim)
                {
                    proptest::prop_assert!(request.offset + u64::from(request.len) <= size);
                    proptest::prop_assert!(request.payload() <= MAX_PAYLOAD as usize);
                }
            }
            let _ = option_header(option);
            let _ = InfoRequest::parse(&data);
        }
    }
}
