//! Answers to options: what is settled before requests begin. No I/O.

use std::rc::Rc;

use bcache_engine::volume::Volume;

use super::proto::{InfoRequest, MAX_NAME, MAX_PAYLOAD, MIN_BLOCK, option_reply, transmission};
use super::{ExportInfo, Exports};

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
const REP_ERR_INVALID: u32 = (1 << 31) + 3;
const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

/// What follows an option.
pub enum Next {
    /// More options.
    Continue,
    /// Requests on this volume.
    Transmit(Rc<dyn Volume>),
    /// Nothing: the connection ends once the answer is sent.
    Close,
}

/// The answer to an option: bytes to send, and what follows.
pub struct Answer {
    /// Bytes to send first; may be empty.
    pub bytes: Vec<u8>,
    /// What follows.
    pub next: Next,
}

/// What has been settled so far.
pub struct Handshake {
    /// Whether the client wants 124 zeroes left out.
    pub no_zeroes: bool,
    /// Whether replies are structured.
    pub structured: bool,
}

impl Handshake {
    /// Answers one option with its data.
    pub fn answer(&mut self, exports: &dyn Exports, option: u32, data: &[u8]) -> Answer {
        let reply = |kind: u32, text: &str| Answer {
            bytes: option_reply(option, kind, text.as_bytes()),
            next: Next::Continue,
        };
        match option {
            OPT_EXPORT_NAME => self.export_name(exports, data),
            OPT_ABORT => Answer { next: Next::Close, ..reply(REP_ACK, "") },
            OPT_LIST | OPT_STRUCTURED_REPLY if !data.is_empty() => {
                reply(REP_ERR_INVALID, "no data belong here")
            }
            OPT_LIST => list(exports),
            OPT_STRUCTURED_REPLY => {
                self.structured = true;
                reply(REP_ACK, "")
            }
            OPT_INFO | OPT_GO => {
                let Some(request) = InfoRequest::parse(data) else {
                    return reply(REP_ERR_INVALID, "lengths do not agree");
                };
                match find(exports, request.name) {
                    Some(volume) => self.info(option, volume, &request.kinds),
                    None => reply(REP_ERR_UNKNOWN, "no such export"),
                }
            }
            _ => reply(REP_ERR_UNSUP, "unknown option"),
        }
    }

    /// The oldest way to choose an export: there is no answer that says no.
    fn export_name(&self, exports: &dyn Exports, name: &[u8]) -> Answer {
        match find(exports, name) {
            None => Answer { bytes: Vec::new(), next: Next::Close },
            Some(volume) => {
                let mut bytes = size_and_flags(&*volume, self.structured);
                if !self.no_zeroes {
                    bytes.resize(bytes.len() + 124, 0);
                }
                Answer { bytes, next: Next::Transmit(volume) }
            }
        }
    }

    fn info(&self, option: u32, volume: Rc<dyn Volume>, kinds: &[u16]) -> Answer {
        let mut bytes = Vec::new();
        let mut tell = |kind: u16, data: &[u8]| {
            let data = [&kind.to_be_bytes(), data].concat();
            bytes.extend_from_slice(&option_reply(option, REP_INFO, &data));
        };
        tell(INFO_EXPORT, &size_and_flags(&*volume, self.structured));
        // Sizes are told to those who do not ask, too: it is allowed, and only good comes of it.
        let preferred = volume.block_size().clamp(4096, 1 << 20);
        let sizes = [MIN_BLOCK, preferred, MAX_PAYLOAD].map(u32::to_be_bytes).concat();
        tell(INFO_BLOCK_SIZE, &sizes);
        let id = volume.id();
        if kinds.contains(&INFO_NAME) {
            tell(INFO_NAME, id.name.as_bytes());
        }
        if kinds.contains(&INFO_DESCRIPTION) {
            tell(INFO_DESCRIPTION, format!("bcache {}", id.uuid).as_bytes());
        }
        bytes.extend_from_slice(&option_reply(option, REP_ACK, &[]));
        let next = if option == OPT_GO { Next::Transmit(volume) } else { Next::Continue };
        Answer { bytes, next }
    }
}

fn find(exports: &dyn Exports, name: &[u8]) -> Option<Rc<dyn Volume>> {
    if name.len() > MAX_NAME {
        return None;
    }
    exports.find(std::str::from_utf8(name).ok()?)
}

fn list(exports: &dyn Exports) -> Answer {
    let mut bytes = Vec::new();
    for ExportInfo { name, description } in exports.list() {
        let len = (name.len() as u32).to_be_bytes();
        let data = [&len, name.as_bytes(), description.as_bytes()].concat();
        bytes.extend_from_slice(&option_reply(OPT_LIST, REP_SERVER, &data));
    }
    bytes.extend_from_slice(&option_reply(OPT_LIST, REP_ACK, &[]));
    Answer { bytes, next: Next::Continue }
}

/// Transmission flags of a volume.
pub fn flags_of(volume: &dyn Volume) -> u16 {
    use transmission::*;
    let flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN;
    flags | if volume.read_only() { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES }
}

fn size_and_flags(volume: &dyn Volume, structured: bool) -> Vec<u8> {
    let mut flags = flags_of(volume);
    if structured {
        flags |= transmission::SEND_DF;
    }
    [&volume.size_bytes().to_be_bytes()[..], &flags.to_be_bytes()].concat()
}
