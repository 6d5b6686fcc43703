//! Sequential streams of requests.

use bcache_format::{Sector, Sectors};
use std::cell::{Cell, RefCell};

/// Streams that are remembered (`RECENT_IO`).
const STREAMS: usize = 128;
/// How long, in nanoseconds.
const STREAM_LIFE: u64 = 5_000_000_000;

#[derive(Clone, Copy, Default)]
struct Stream {
    last: Sector,
    until: u64,
    bytes: u64,
}

/// Recent sequential streams of a device.
#[derive(Default)]
pub struct Streams {
    recent: RefCell<Vec<Stream>>,
    /// Bytes of the stream that the last request belongs to, and the weighted mean over past streams.
    current: Cell<u64>,
    average: Cell<u64>,
}

impl Streams {
    /// Counts a request and answers the bytes of the stream it belongs to.
    pub fn count(&self, start: Sector, sectors: Sectors, now: u64) -> u64 {
        let mut recent = self.recent.borrow_mut();
        let known = recent.iter().position(|stream| stream.last == start && now < stream.until);
        let mut stream = match known {
            Some(index) => recent.remove(index),
            None => {
                // A weighted mean of the streams so far, with weight 8.
                self.average.set((self.average.get() * 7 + self.current.get()) / 8);
                if recent.len() >= STREAMS {
                    recent.remove(0);
                }
                Stream::default()
            }
        };
        stream.bytes = stream.bytes.saturating_add(sectors.bytes());
        stream.last = start + sectors;
        stream.until = now + STREAM_LIFE;
        self.current.set(stream.bytes);
        recent.push(stream);
        stream.bytes.max(self.average.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_recognised_where_it_goes_on() {
        let streams = Streams::default();
        for i in 0..8u64 {
            assert_eq!(streams.count(Sector(i * 8), Sectors(8), 0), (i + 1) * 4096);
        }
        // Another place: a new stream, but the mean of the old ones counts.
        assert_eq!(streams.count(Sector(10_000), Sectors(8), 0), 4096);
        assert_eq!(streams.count(Sector(64), Sectors(8), 0), 9 * 4096);
        assert_eq!(
            streams.count(Sector(72), Sectors(8), STREAM_LIFE + 1),
            8192,
            "forgotten after five seconds; the mean is not"
        );
    }
}
