//! How the process ends: with its devices, or leaving them to a successor.

use std::io;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use uuid::Uuid;

use super::engine::Engine;
use crate::control::paths;
use crate::dm;
use crate::serve::told;

/// How often is looked whether somebody uses a device, when the process is told to end.
const LOOKS: u32 = 10;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

impl Engine {
    /// Stops everything. Refused, with nothing changed, while somebody has a device open.
    pub(super) async fn stop(&self) -> Result<()> {
        let _one = self.changing.lock().await;
        if self.ending.get() {
            return Ok(());
        }
        if let Some(name) = self.in_use().await?.first() {
            bail!("/dev/mapper/{name} is in use; unmount it first");
        }
        loop {
            let Some(next) = self.exposed.borrow_mut().pop() else { break };
            if let Err((back, error)) = next.remove(&self.env).await {
                let name = back.name.clone();
                self.exposed.borrow_mut().push(*back);
                return Err(error).context(format!("/dev/mapper/{name}"));
            }
        }
        // Before anything is closed, and before nobody listens any more: to udev, devices that are closed look changed.
        self.stays_down.set(true);
        if let Err(error) = paths::mark_stopped(self.options.set) {
            tracing::warn!(%error, "udev may start the set again");
        }
        self.notify.stopping();
        self.finish().await
    }

    /// Names of devices that somebody has open.
    async fn in_use(&self) -> Result<Vec<String>> {
        let uuids: Vec<Uuid> = self.exposed.borrow().iter().map(|one| one.device.uuid).collect();
        let found = self.env.offload(move || {
            uuids.into_iter().map(|uuid| dm::find(&dm::uuid_of(uuid))).collect::<io::Result<Vec<_>>>()
        });
        let devices = found.await.context("device-mapper")?;
        let open = devices.into_iter().flatten().filter(|device| device.open_count > 0);
        Ok(open.map(|device| device.name).collect())
    }

    /// Ends the process in order and leaves all devices to a successor: requests wait for it.
    pub(super) async fn hand_over(&self) -> Result<()> {
        let _one = self.changing.lock().await;
        if self.ending.get() {
            return Ok(());
        }
        self.notify.status("handing over");
        let exposed = std::mem::take(&mut *self.exposed.borrow_mut());
        for one in &exposed {
            one.front.freeze().await;
        }
        self.finish().await
    }

    async fn finish(&self) -> Result<()> {
        self.ending.set(true);
        let set = self.set.borrow_mut().take();
        let stopped = match set {
            Some(set) => set.stop().await.map_err(told),
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
    pub async fn end_for_now(&self) {
        // Whoever probes devices has them open for a moment.
        for _ in 0..LOOKS {
            if self.in_use().await.is_ok_and(|names| names.is_empty()) {
                match self.stop().await {
                    Ok(()) => return,
                    Err(error) => tracing::error!("{error:#}"),
                }
            }
            if self.ending.get() {
                return;
            }
            self.env.sleep(PAUSE).await;
        }
        if let Err(error) = self.hand_over().await {
            tracing::error!("{error:#}");
        }
    }

    /// Detaches all backing devices, which go on without cache, then stops. Volumes may not be in use.
    ///
    /// # Errors
    /// A device cannot be detached; it and those after it stay.
    pub(super) async fn unregister(&self) -> Result<()> {
        loop {
            let next = {
                let exposed = self.exposed.borrow();
                exposed.iter().find(|one| one.device.backing().is_some()).map(|one| one.device.uuid)
            };
            let Some(uuid) = next else { break };
            let path = self.detach(&uuid.to_string()).await?;
            tracing::info!(device = %path.display(), "detached");
        }
        self.stop().await
    }
}
