//! What a process that must not wait says: lines go into a queue, and a thread of its own writes them. Where nobody reads
//! what it writes, lines are dropped and counted; the process goes on.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines in the queue at most.
const LINES: usize = 1024;
/// How long the end of the process waits for what is still in it.
const PATIENCE: Duration = Duration::from_secs(1);

enum Item {
    Line(Vec<u8>),
    /// All before it have been written once this is dropped.
    End {
        _written: SyncSender<()>,
    },
}

/// Where lines go.
#[derive(Clone)]
pub struct Log {
    queue: SyncSender<Item>,
    /// Taken by the thread that writes.
    items: Arc<Mutex<Option<Receiver<Item>>>>,
    dropped: Arc<AtomicU64>,
}

static LOG: OnceLock<Log> = OnceLock::new();

impl Log {
    /// A queue that nobody empties yet.
    fn new(lines: usize) -> Log {
        let (queue, items) = sync_channel(lines);
        Log { queue, items: Arc::new(Mutex::new(Some(items))), dropped: Arc::default() }
    }

    /// Starts the thread that writes to `to`.
    fn write_to(&self, mut to: impl Write + Send + 'static) -> io::Result<()> {
        let items = self.items.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(items), dropped) = (items, Arc::clone(&self.dropped)) else { return Ok(()) };
        let work = move || {
            for item in items {
                // There is nobody to tell that it cannot be written.
                if let Item::Line(line) = item {
                    let _ = to.write_all(&line);
                }
                let dropped = dropped.swap(0, Ordering::Relaxed);
                if dropped > 0 {
                    let _ =
                        writeln!(to, " WARN {dropped} lines were dropped, because nobody read them in time");
                }
                let _ = to.flush();
            }
        };
        std::thread::Builder::new().name("bcache-log".into()).spawn(work).map(drop)
    }

    fn finish(&self, patience: Duration) {
        let (written, wait) = sync_channel(0);
        if self.queue.try_send(Item::End { _written: written }).is_ok() {
            // It ends by being dropped.
            let _: Result<(), RecvTimeoutError> = wait.recv_timeout(patience);
        }
    }
}

/// A line being put together.
pub struct Line<'a> {
    log: &'a Log,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = Item::Line(std::mem::take(&mut self.bytes));
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.log.queue.try_send(line) {
            self.log.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;
    fn make_writer(&'a self) -> Line<'a> {
        Line { log: self, bytes: Vec::new() }
    }
}

/// The process's log. Nothing is written before [`start`].
pub fn queue() -> Log {
    LOG.get_or_init(|| Log::new(LINES)).clone()
}

/// Begins to write to standard error, by a thread that has no more rights than this one has now.
///
/// # Errors
/// No thread can be had.
pub fn start() -> io::Result<()> {
    queue().write_to(io::stderr())
}

/// Waits for what has been said to be written, but not for long.
pub fn finish() {
    if let Some(log) = LOG.get() {
        // One that ends early has not started it.
        let _ = start();
        log.finish(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Condvar;

    /// Takes nothing until it is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<(Mutex<Written>, Condvar)>);
    /// Whether it is open, and what was written.
    type Written = (bool, Vec<u8>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (state, opened) = &*self.0;
            let mut state = state.lock().expect("nobody panics");
            while !state.0 {
                state = opened.wait(state).expect("nobody panics");
            }
            state.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whoever_says_something_does_not_wait_for_whoever_reads_it() {
        let (log, gate) = (Log::new(4), Gate::default());
        log.write_to(gate.clone()).expect("a thread");
        for number in 0..100 {
            writeln!(log.make_writer(), "line {number}").expect("it goes into memory");
        }
        log.finish(Duration::from_millis(1));
        let (state, opened) = &*gate.0;
        state.lock().expect("nobody panics").0 = true;
        opened.notify_all();
        // Room in the queue comes as it is written.
        let text =
            || String::from_utf8(gate.0.0.lock().expect("nobody panics").1.clone()).expect("lines are text");
        let told = || {
            let text = text();
            let written = text.lines().filter(|line| line.starts_with("line")).count();
            let dropped: usize = text
                .lines()
                .filter_map(|line| line.split_whitespace().nth(1).filter(|_| line.contains("were dropped")))
                .map(|count| count.parse::<usize>().expect("a count"))
                .sum();
            written + dropped
        };
        while told() < 100 {
            std::thread::yield_now();
        }
        assert!(text().starts_with("line 0\n") && text().contains("were dropped"), "{}", text());
        assert_eq!(told(), 100, "{}", text());
    }
}
