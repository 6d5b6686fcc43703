//! Signals that end a program whose user has had enough: with the exit code that scripts expect, and not in the middle
//! of what must not be left half done.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal};

/// Held by whoever is busy with what must not be interrupted.
static BUSY: Mutex<()> = Mutex::new(());

/// SIGINT and SIGTERM end the process.
pub(super) struct Canceled(());

impl Canceled {
    /// From now on these signals end the process with `code`. Has to come before any thread is started: a thread takes
    /// over what is blocked from the one that starts it.
    pub(super) fn exits(code: u8) -> Self {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        // Where one of these steps fails, signals do what they always do.
        if signals.thread_block().is_ok() {
            let wait = move || {
                if signals.wait().is_ok() {
                    let _idle = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
                    let _ = writeln!(io::stderr(), "\ncanceled");
                    std::process::exit(code.into());
                }
            };
            if std::thread::Builder::new().spawn(wait).is_err() {
                let _ = signals.thread_unblock();
            }
        }
        Self(())
    }
    /// From now on they do nothing.
    pub(super) fn not_any_more(self) {
        std::mem::forget(BUSY.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
