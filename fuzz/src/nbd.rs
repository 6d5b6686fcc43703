//! A whole NBD session as a client sends it, without sockets: the greeting's flags, options, then requests.

use std::rc::Rc;

use bcache_engine::volume::Volume;
use bcache_tools::frontend::nbd::ExportTable;
use bcache_tools::frontend::nbd::handshake::{Handshake, Next};
use bcache_tools::frontend::nbd::proto::{self, Command, MAX_PAYLOAD, Request};
use bcache_tools::frontend::ram::RamVolume;

const SIZE: u64 = 1 << 20;

/// A client's half of a connection.
pub fn session(data: &[u8]) {
    let mut rest = data;
    let Some(flags) = take::<4>(&mut rest) else { return };
    let Ok(no_zeroes) = proto::client_flags(flags) else { return };
    let exports = ExportTable::new(vec![Rc::new(RamVolume::new("ram", SIZE))]);
    let mut state = Handshake { no_zeroes, structured: false };
    let volume = loop {
        let Some(header) = take(&mut rest) else { return };
        let Ok((option, len)) = proto::option_header(header) else { return };
        let Some((data, after)) = rest.split_at_checked(len as usize) else { return };
        rest = after;
        let answer = state.answer(&exports, option, data);
        assert!(answer.bytes.len() < 1 << 16, "an answer of {} bytes", answer.bytes.len());
        match answer.next {
            Next::Continue => {}
            Next::Transmit(volume) => break volume,
            Next::Close => return,
        }
    };
    requests(rest, &*volume);
}

fn requests(mut rest: &[u8], volume: &dyn Volume) {
    while let Some(header) = take(&mut rest) {
        let Ok(request) = Request::parse(header) else { return };
        if request.check(volume.size_bytes(), false).is_ok() {
            let bounded = !matches!(request.command, Command::Flush | Command::Disconnect);
            let end = request.offset.checked_add(u64::from(request.len));
            assert!(!bounded || end.is_some_and(|end| end <= SIZE), "{request:?} was let through");
        }
        assert!(request.payload() <= MAX_PAYLOAD as usize);
        rest = rest.get(request.payload()..).unwrap_or_default();
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*head)
}
