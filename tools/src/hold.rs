//! Holding requests of a device back while its table changes: who does it, and that it ends.
//!
//! A process may die between the two halves. Its mark in `/run/bcache` says then that the requests are held back by us,
//! and whoever comes next lets them go. A device that somebody else suspended (`dmsetup suspend`) has no mark, and stays
//! as it is: letting it go could thaw a file system whose thawing waits for us.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use uuid::Uuid;

use crate::control::paths;
use crate::dm::{self, Device, Target};

/// How often is tried to let requests go, before that is left to a thread of its own.
const TRIES: u32 = 20;
/// Between two tries.
const STEP: Duration = Duration::from_millis(100);
/// The same for that thread, which ends with the device.
const LATER: Duration = Duration::from_secs(1);
/// How long somebody else's change is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks for its end.
const PAUSE: Duration = Duration::from_millis(10);

/// The right to change a device's table. Another process has it as long as it lives, and another thread of this one until
/// requests go on: neither's loaded table is dropped by the way, nor are requests let go that it holds back.
fn turn(uuid: Uuid, patience: Duration) -> io::Result<Arc<Flock<File>>> {
    let start = Instant::now();
    loop {
        if let Some(lock) = paths::lock_change(uuid)? {
            return Ok(Arc::new(lock));
        }
        if start.elapsed() >= patience {
            let why = "its table is being changed by somebody else, who does not come to an end";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        std::thread::sleep(PAUSE);
    }
}

fn refuse_if_suspended(name: &str) -> io::Result<()> {
    let suspended = dm::describe(name)?.is_some_and(|device| device.suspended);
    if suspended {
        let why = "suspended by somebody else; dmsetup resume lets it go on";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
    }
    Ok(())
}

/// A device with a table that was loaded and is not in force. Its requests are held back once [`hold`](Self::hold) has
/// been called. Dropped, it goes on with the table that it had.
#[derive(Debug)]
pub struct Changing {
    name: String,
    uuid: Uuid,
    before: Vec<Target>,
    after: Vec<Target>,
    held: bool,
    over: bool,
    turn: Arc<Flock<File>>,
}

impl Changing {
    /// Loads a table, whose devices the kernel claims by that, and asks `check`, by which nobody else can claim them.
    ///
    /// # Errors
    /// Somebody else has suspended the device or changes it, the kernel refuses the table, or what the check says: nothing
    /// has changed.
    pub fn load(
        name: &str,
        uuid: Uuid,
        after: &[Target],
        check: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Changing> {
        let turn = turn(uuid, PATIENCE)?;
        refuse_if_suspended(name)?;
        let before = dm::table(name)?;
        dm::load(name, after)?;
        let (name, after) = (name.to_owned(), after.to_vec());
        let loaded = Changing { name, uuid, before, after, held: false, over: false, turn };
        match check() {
            Ok(()) => Ok(loaded),
            Err(error) => {
                loaded.keep();
                Err(error)
            }
        }
    }

    /// Holds requests back, once those under way have ended.
    ///
    /// # Errors
    /// Somebody else does so already, the mark cannot be made, or the kernel refuses: it goes on as it was.
    pub fn hold(mut self) -> io::Result<Changing> {
        match self.mark().and_then(|()| dm::suspend(&self.name)) {
            Ok(()) => Ok(self),
            Err(error) => {
                self.keep();
                Err(error)
            }
        }
    }

    /// Says that requests are about to be held back by us.
    fn mark(&mut self) -> io::Result<()> {
        refuse_if_suspended(&self.name)?;
        paths::mark_held(self.uuid)?;
        // If the kernel refuses, it may have begun all the same.
        self.held = true;
        Ok(())
    }

    /// Lets requests go on with the new table.
    ///
    /// # Errors
    /// The kernel refuses it, or another one is in force; requests go on with that.
    pub fn change(mut self) -> io::Result<()> {
        self.over = true;
        let resumed = resume(&self.name, self.uuid);
        if resumed.is_err() {
            // A table that is refused is dropped by the kernel, but what it was to take the place of stays suspended.
            self.go_on();
        }
        // What is in force decides. It may have been put in force before a refusal; and where somebody dropped what was
        // loaded, the old one goes on without one.
        let refused = |error| resumed.err().unwrap_or(error);
        match dm::table(&self.name) {
            Ok(table) if table == self.after => Ok(()),
            Ok(_) => Err(refused(io::Error::other("somebody else dropped or replaced the new table"))),
            Err(error) => Err(refused(error)),
        }
    }

    /// Holds requests back and lets them go on with the new table, in one call of the kernel's: whoever kills this process
    /// finds it done or not begun.
    fn change_at_once(mut self) -> io::Result<()> {
        match self.mark() {
            Ok(()) => self.change(),
            Err(error) => {
                self.keep();
                Err(error)
            }
        }
    }

    /// Lets requests go on with the old table.
    pub fn keep(mut self) {
        self.over = true;
        self.go_on();
    }

    /// Sees to it that requests go on, whatever the kernel refuses meanwhile, and with nothing but what is in force.
    fn go_on(&self) {
        for _ in 0..TRIES {
            match self.try_to_go_on() {
                Ok(()) => return,
                Err(error) => tracing::error!(name = self.name, %error, "not let go on yet"),
            }
            std::thread::sleep(STEP);
        }
        let later = self.again();
        let spawned = std::thread::Builder::new().name("resume".to_owned()).spawn(move || {
            while later.try_to_go_on().is_err() {
                std::thread::sleep(LATER);
            }
        });
        if let Err(error) = spawned {
            tracing::error!(name = self.name, %error, "stays suspended until the next engine, or dmsetup resume");
        }
    }

    fn try_to_go_on(&self) -> io::Result<()> {
        let Some(device) = dm::describe(&self.name)? else { return Ok(()) };
        // A resume would put in force what is loaded: that must not be the new table.
        if let Err(error) = dm::clear(&self.name) {
            dm::load(&self.name, &self.before).map_err(|_| error)?;
        }
        if self.held && device.suspended {
            return resume(&self.name, self.uuid);
        }
        let _ = paths::clear_held(self.uuid);
        Ok(())
    }

    /// The same, for another thread that ends it.
    fn again(&self) -> Changing {
        let (name, before, after) = (self.name.clone(), self.before.clone(), self.after.clone());
        let turn = Arc::clone(&self.turn);
        Changing { name, uuid: self.uuid, before, after, held: self.held, over: true, turn }
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let left = self.again();
        // Calls to device-mapper may wait, and whoever drops this must not.
        let spawned = std::thread::Builder::new().name("resume".to_owned()).spawn(move || left.go_on());
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to let requests go on with");
            self.go_on();
        }
    }
}

/// Lets requests go, with the table that was loaded last.
fn resume(name: &str, uuid: Uuid) -> io::Result<()> {
    dm::resume(name)?;
    // Nobody is to be let go for nothing later; if this fails, that is all that happens.
    let _ = paths::clear_held(uuid);
    Ok(())
}

/// Takes back what a process that died had begun and not ended: a table that was loaded and is not in force, which keeps
/// its devices claimed, and requests that are held back. Whether they still are, by somebody else.
///
/// # Errors
/// The kernel refuses, or somebody who lives changes it.
pub fn settle(device: &Device, uuid: Uuid) -> io::Result<bool> {
    settle_within(device, uuid, PATIENCE)
}

fn settle_within(device: &Device, uuid: Uuid, patience: Duration) -> io::Result<bool> {
    let _turn = turn(uuid, patience)?;
    // It may have changed while somebody else was waited for.
    let Some(device) = dm::describe(&device.name)? else { return Ok(false) };
    dm::clear(&device.name)?;
    if !device.suspended || dm::table(&device.name)?.is_empty() {
        let _ = paths::clear_held(uuid);
        return Ok(false);
    }
    if !paths::is_held(uuid) {
        return Ok(true);
    }
    resume(&device.name, uuid).or_else(|_| resume(&device.name, uuid))?;
    Ok(false)
}

/// Lets all devices go whose requests a process held back that died, whatever set they were of.
pub fn settle_all() {
    for uuid in paths::all_held() {
        let settled = match dm::find(&dm::uuid_of(uuid)) {
            Ok(Some(device)) => settle_within(&device, uuid, Duration::ZERO).map(drop),
            Ok(None) => paths::clear_held(uuid),
            Err(error) => Err(error),
        };
        match settled {
            // Whoever holds it back lives.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => tracing::warn!(device = %uuid, %error, "held back, and not let go on"),
            Ok(()) => {}
        }
    }
}

/// Gives a device another table, if `check` agrees, which is asked when the kernel has claimed what the new one is made
/// of: requests are held back while it changes, and the file system on it is not disturbed.
///
/// # Errors
/// The kernel refuses, somebody else has suspended the device, or what the check says; the old table stays.
pub fn swap(
    name: &str,
    uuid: Uuid,
    targets: &[Target],
    check: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    Changing::load(name, uuid, targets, check)?.change_at_once()
}
