//! How the process ends: with its devices, or leaving them to a successor.

use bcache_format::SECTOR_SIZE;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bcache_engine::set::Absent;
use uuid::Uuid;

use super::host::Host;
use crate::control::paths;
use crate::dm::{self, Target};
use crate::serve::told;

/// How often is looked whether somebody uses a device, when the process is told to end.
const LOOKS: u32 = 10;
/// How long something that a disk may hold up is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a set has to stop: it writes out what it has, and flushes its disks. What hangs then is left as a crash would
/// leave it.
const STOP: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

impl Host {
    /// Stops everything. Refused, with nothing changed, while somebody has a device open.
    pub(super) async fn stop(self: &Rc<Self>) -> Result<()> {
        let all = self.env.timeout(PATIENCE, self.changing.all()).await;
        if self.stays_down.get() {
            bail!("the set is being stopped already");
        }
        let Ok(_all) = all else {
            bail!("a device is being attached or detached, which takes long; bcache status says which");
        };
        if self.leaving.get() {
            bail!("the set is being handed over to another process");
        }
        if self.ending.get() {
            return Ok(());
        }
        // Whoever probes devices has them open for a moment.
        let mut looks = 0;
        while let Some(name) = self.in_use().await?.first() {
            looks += 1;
            if looks == LOOKS {
                bail!("/dev/mapper/{name} is in use; unmount it first");
            }
            self.env.sleep(PAUSE).await;
        }
        self.take_names_away().await?;
        // Before anything is closed, and before nobody listens any more: to udev, devices that are closed look changed.
        self.stays_down.set(true);
        if let Err(error) = paths::mark_stopped(self.options.set) {
            tracing::warn!(%error, "udev may start the set again");
        }
        self.notify.stopping();
        let exports = std::mem::take(&mut *self.exports.borrow_mut());
        let kept = std::mem::take(&mut *self.kept.borrow_mut());
        let fronts = exports.into_iter().map(|one| (one.name, one.front));
        for (name, front) in fronts.chain(kept.into_values().map(|one| (one.name, one.front))) {
            // Somebody may have the block device itself open, and keep it for as long as that takes.
            match self.env.timeout(PATIENCE, front.remove()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(name, %error, "the block device below is left behind"),
                Err(_) => {
                    tracing::warn!(name, "the block device below goes when nobody has it open any more")
                }
            }
        }
        self.finish(STOP).await
    }

    /// Removes the names of all devices, or of none: where one cannot be removed, those that were come back.
    async fn take_names_away(&self) -> Result<()> {
        let devices = self.names();
        let removed = self.env.offload(move || {
            let mut gone = Vec::new();
            for (name, uuid) in devices {
                match take_name_away(&name, uuid) {
                    Ok(Some(table)) => gone.push((name, uuid, table)),
                    Ok(None) => {}
                    Err(error) => {
                        for (name, uuid, table) in gone {
                            if let Err(second) = dm::create(&name, &dm::uuid_of(uuid), &table, || Ok(())) {
                                tracing::error!(name, error = %second, "a name did not come back");
                            }
                        }
                        return Err(io::Error::new(error.kind(), format!("/dev/mapper/{name}: {error}")));
                    }
                }
            }
            Ok(())
        });
        Ok(removed.await?)
    }

    /// Names in service, with the UUIDs of their devices.
    fn names(&self) -> Vec<(String, Uuid)> {
        let (exports, kept) = (self.exports.borrow(), self.kept.borrow());
        let names = exports.iter().map(|one| (one.name.clone(), one.device.uuid));
        names.chain(kept.iter().map(|(uuid, one)| (one.name.clone(), *uuid))).collect()
    }

    /// Names of devices that somebody has open.
    async fn in_use(&self) -> Result<Vec<String>> {
        let names = self.names();
        let found = self.env.offload(move || {
            names.into_iter().map(|(_, uuid)| dm::find(&dm::uuid_of(uuid))).collect::<io::Result<Vec<_>>>()
        });
        let devices: Vec<_> = found.await.context("device-mapper")?.into_iter().flatten().collect();
        if let Some(device) = devices.iter().find(|device| device.suspended) {
            bail!("/dev/mapper/{} is suspended; dmsetup resume lets it go on", device.name);
        }
        let open = self.env.offload(move || {
            let mut open = Vec::new();
            for device in devices {
                if dm::is_in_use(&device)? {
                    open.push(device.name);
                }
            }
            io::Result::Ok(open)
        });
        open.await.context("device-mapper")
    }

    /// Ends the process in order and leaves all devices to a successor: requests wait for it. What does not end within
    /// [`PATIENCE`] hangs with its disk, and is left as a crash would leave it, which a successor knows how to deal with.
    /// With `restart` the process ends so that systemd starts it again.
    ///
    /// # Errors
    /// The set is being stopped. Nothing else keeps the process from ending.
    pub(super) async fn hand_over(self: &Rc<Self>, restart: bool) -> Result<()> {
        let _all = self.env.timeout(PATIENCE, self.changing.all()).await;
        if self.stays_down.get() {
            bail!("the set is being stopped");
        }
        if self.leaving.replace(true) {
            return Ok(());
        }
        self.restarts.set(restart);
        self.notify.status("handing over");
        let exports = std::mem::take(&mut *self.exports.borrow_mut());
        let kept = std::mem::take(&mut *self.kept.borrow_mut());
        let fronts = exports.iter().map(|one| &one.front).chain(kept.values().map(|one| &one.front));
        let freezing = all(fronts.map(|front| Box::pin(front.freeze()) as Pin<Box<dyn Future<Output = ()>>>));
        if self.env.timeout(PATIENCE, freezing).await.is_err() {
            tracing::warn!("requests that hang are left to the successor");
        }
        // What could not be stopped in order is as after a crash, and the successor's.
        let _ = self.finish(PATIENCE).await;
        Ok(())
    }

    async fn finish(&self, patience: Duration) -> Result<()> {
        self.ending.set(true);
        let set = self.set.borrow_mut().take();
        let stopped = match set {
            Some(set) => match self.env.timeout(patience, set.stop()).await {
                Ok(stopped) => stopped.map_err(told),
                Err(_) => {
                    Err(anyhow::anyhow!("a disk hangs; what is under way is left as a crash would leave it"))
                }
            },
            None => Ok(()),
        };
        if let Err(error) = &stopped {
            tracing::error!("the set did not stop cleanly: {error:#}");
        }
        self.over.set(true);
        self.changed.wake_all();
        stopped
    }

    /// What a request to end from outside means: everything stops if nobody uses it, and waits for a successor if
    /// somebody does. The latter is not for long where udev runs: it sees the parts closed, and the next process begins.
    pub(super) async fn end_for_now(self: &Rc<Self>) {
        // Whoever probes devices has them open for a moment.
        for _ in 0..LOOKS {
            if self.in_use().await.is_ok_and(|names| names.is_empty()) {
                match self.stop().await {
                    Ok(()) => return,
                    Err(error) => tracing::error!("{error:#}"),
                }
            }
            if self.ending.get() || self.leaving.get() {
                return;
            }
            self.env.sleep(PAUSE).await;
        }
        if let Err(error) = self.hand_over(false).await {
            tracing::error!("{error:#}");
        }
    }

    /// Detaches all backing devices, which go on without cache, then stops. Volumes may not be in use.
    ///
    /// # Errors
    /// A device cannot be detached: it and those after it stay. Or the newest data of a device that is not there is in the
    /// cache, and `lose_dirty` is not set: nothing has changed.
    pub(super) async fn unregister(self: &Rc<Self>, lose_dirty: bool) -> Result<()> {
        if !lose_dirty {
            let set = self.set.borrow().clone();
            let set = set.context(
                "its cache is not there, so nothing can be written back (bcache stop ends the service)",
            )?;
            let dirty: Vec<String> =
                set.absent().iter().filter(|one| one.dirty_sectors > 0).map(told_absent).collect();
            if !dirty.is_empty() {
                bail!("{}; register it, or add --lose-dirty-data", dirty.join("; "));
            }
        }
        loop {
            let next = {
                let exports = self.exports.borrow();
                exports.iter().find(|one| one.device.backing().is_some()).map(|one| one.device.uuid)
            };
            let Some(uuid) = next else { break };
            let path = self.detach(&uuid.to_string()).await?;
            tracing::info!(device = %path.display(), "detached");
        }
        self.stop().await
    }

    /// Gives up what the cache has of a backing device that is not there.
    ///
    /// # Errors
    /// It is there, or its newest data is in the cache and `lose_dirty` is not set.
    pub(super) async fn forget(self: &Rc<Self>, uuid: Uuid, lose_dirty: bool) -> Result<()> {
        let _one = self.changing.one().await;
        let _turn = self.turns.lock(uuid).await;
        self.running()?.forget_device(uuid, lose_dirty).await.map_err(told)
    }
}

/// Removes a name, and what kpartx made on it; the table that it had.
fn take_name_away(name: &str, uuid: Uuid) -> io::Result<Option<Vec<Target>>> {
    match dm::table(name) {
        // Somebody was here before: a machine that shuts down removes names of its own accord.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
        Ok(table) => {
            dm::remove_partitions(&dm::uuid_of(uuid))?;
            dm::remove(name).map(|()| Some(table))
        }
    }
}

fn told_absent(absent: &Absent) -> String {
    let Absent { uuid, label, dirty_sectors } = absent;
    let bytes = dirty_sectors * SECTOR_SIZE;
    format!(
        "device {uuid} ({:?}) is not there, and {bytes} bytes of it are in the cache alone",
        label.to_text()
    )
}

/// Waits for all of them, which begin at once.
async fn all<'a>(futures: impl Iterator<Item = Pin<Box<dyn Future<Output = ()> + 'a>>>) {
    let mut futures: Vec<_> = futures.collect();
    std::future::poll_fn(|cx| {
        futures.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if futures.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
