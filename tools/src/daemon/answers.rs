//! What the process answers on its control socket.

use std::rc::Rc;

use anyhow::{Context, Result, bail};
use bcache_engine::set::{Absent, Attribute, CacheSet, Device};
use bcache_engine::settings::{Clamped, Shown, Value as SettingValue};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::export::{Export, Kept};
use super::host::{Host, Standing};
use crate::config::{self, Config, Kind};
use crate::control::{Reply, Request, server};
use crate::serve::{told, too_short};
use crate::{dm, expose};

impl server::Service for Host {
    async fn answer(self: Rc<Self>, request: Request) -> Reply {
        match self.carry_out(request).await {
            Ok(value) => Reply::Ok(value),
            Err(error) => Reply::Error(format!("{error:#}")),
        }
    }
}

impl Host {
    async fn carry_out(self: &Rc<Self>, request: Request) -> Result<Value> {
        match request {
            Request::Register { .. } if self.stays_down.get() => bail!("the set is being stopped"),
            Request::Register { device } => self.register(&device),
            Request::Status => return Ok(self.status()),
            Request::Set { device, assignment } => {
                let clamped = self.assign(device.as_deref(), &assignment).await?;
                return Ok(clamped.map_or(Value::Null, |clamped| json!(clamped.to_string())));
            }
            Request::Configure { config } => self.configure(config).await,
            Request::Attach { device } => self.attach_on_request(&device).await?,
            Request::Detach { device } => return Ok(json!(self.detach(&device).await?)),
            Request::Unregister { lose_dirty_data } => self.unregister(lose_dirty_data).await?,
            Request::Forget { device, lose_dirty_data } => self.forget(device, lose_dirty_data).await?,
            Request::VolumeCreate { bytes, label } => {
                return self.create_volume(bytes, &label).await;
            }
            Request::Resize { device } => return Ok(json!(self.grow(self.find(&device)?.uuid).await?)),
            Request::VolumeRemove { device } => self.remove_volume(&device).await?,
            Request::Stop => self.stop().await?,
            Request::HandOver => self.hand_over(false).await?,
            Request::Restart => self.hand_over(true).await?,
        }
        Ok(Value::Null)
    }

    /// Changes a setting of one device, of all, or of the set, or does what its name says. Answers what it is instead of a
    /// value that is out of bounds.
    async fn assign(self: &Rc<Self>, device: Option<&str>, assignment: &str) -> Result<Option<Clamped>> {
        if let (Some(device), Some(size)) = (device, assignment.strip_prefix("size=")) {
            let bytes = <u64 as SettingValue>::parse(size);
            let bytes = bytes.with_context(|| format!("size: wants {}", <u64 as SettingValue>::WANTED))?;
            self.resize_volume(device, bytes).await?;
            return Ok(None);
        }
        let set = self.running()?;
        let (name, value) = assignment.split_once('=').context("must be NAME=VALUE")?;
        let of_set = set.settings.list().iter().any(|shown| shown.name == name);
        if device.is_none() && (of_set || CacheSet::actions().contains(&name)) {
            return set.set_attribute(name, value).await.map_err(told);
        }
        let devices: Vec<Rc<Device>> = match device {
            Some(wanted) => vec![self.find(wanted)?],
            None => set.devices(),
        };
        if name == "label" && devices.len() > 1 && !value.is_empty() {
            bail!("a label is one device's: say which");
        }
        let mut clamped = None;
        for device in devices {
            clamped = set.set_device_attribute(&device, name, value).await.map_err(told)?;
            if name == "label" {
                self.rename(&device).await?;
            }
        }
        Ok(clamped)
    }

    /// Applies what the configuration file says now. What it says no more stays as it is until the next start.
    async fn configure(&self, config: Config) {
        *self.config.borrow_mut() = config;
        let Some(set) = self.set.borrow().clone() else { return };
        self.configure_set(&set).await;
        for device in set.devices() {
            self.configure_device(&set, &device).await;
        }
    }

    /// Applies settings of the set. One that is refused is told, and costs nothing else.
    pub(super) async fn configure_set(&self, set: &Rc<CacheSet>) {
        let wanted = owned(self.config.borrow().of_set(self.options.set));
        for (name, value) in wanted {
            // What is kept in a superblock is not written again.
            if Kind::Set.shown(&name, &value) == current(set.settings.list(), &name) {
                continue;
            }
            if let Err(error) = set.set_attribute(&name, &value).await {
                tracing::error!("{}: {name}: {error}", config::PATH);
            }
        }
    }

    /// The same for a device.
    pub(super) async fn configure_device(&self, set: &Rc<CacheSet>, device: &Rc<Device>) {
        let label = device.label.get().to_text();
        let wanted = owned(self.config.borrow().of_device(device.uuid, &label));
        for (name, value) in wanted {
            if Kind::Device.shown(&name, &value) == current(device.settings.list(), &name) {
                continue;
            }
            if let Err(error) = set.set_device_attribute(device, &name, &value).await {
                tracing::error!(device = %device.uuid, "{}: {name}: {error}", config::PATH);
            }
        }
    }

    /// Gives a device the name that its label makes, unless somebody uses it under the one that it has, or the name is
    /// another's: then it has it from the next start on, if it is free.
    async fn rename(&self, device: &Rc<Device>) -> Result<()> {
        let _one = self.changing.one().await;
        let _turn = self.turns.lock(device.uuid).await;
        let label = device.label.get().to_text();
        let now = self
            .exports
            .borrow()
            .iter()
            .find(|one| Rc::ptr_eq(&one.device, device))
            .map(|one| one.name.clone());
        let (Some(now), Some(wanted)) = (now, dm::name_from_label(&label).map(str::to_owned)) else {
            return Ok(());
        };
        let (old, new) = (now.clone(), wanted.clone());
        let renamed = self.env.offload(move || expose::rename(&old, &new)).await;
        if renamed.with_context(|| format!("/dev/mapper/{now}"))? {
            if let Some(one) =
                self.exports.borrow_mut().iter_mut().find(|one| Rc::ptr_eq(&one.device, device))
            {
                one.name = wanted;
            }
            self.tell();
        }
        Ok(())
    }

    fn status(&self) -> Value {
        let set = self.set.borrow();
        let mut status = json!({
            "set": self.options.set,
            "engine": "user",
            "pid": std::process::id(),
            "state": if set.is_some() { "running" } else { "waiting" },
            "parts": self.parts_told(),
            "devices": self.exports.borrow().iter().map(|one| self.device_told(one)).collect::<Value>(),
            "kept": self.kept.borrow().iter().map(|(uuid, kept)| self.kept_told(*uuid, kept)).collect::<Value>(),
        });
        let faults: Vec<String> = self.config.borrow().faults.iter().map(ToString::to_string).collect();
        if !faults.is_empty() {
            status["config_faults"] = json!(faults);
        }
        if let Some(set) = set.as_ref() {
            let absent = set.absent().into_iter().map(|Absent { uuid, label, dirty_sectors }| {
                json!({"uuid": uuid, "label": label.to_text(), "dirty_bytes": dirty_sectors * 512})
            });
            status["absent"] = absent.collect();
            if set.io_errors.is_retired() {
                let (errors, device) = (set.io_errors.get(), set.cache.dev.name());
                status["retired"] = json!(format!(
                    "{device} had {errors} errors: nothing new is cached; set clear_stats=1 lets it be used again"
                ));
            }
            let geometry = &set.cache.geometry;
            status["failure"] = json!(set.failure().as_deref());
            status["cache"] = json!({
                "device": set.cache.dev.name(),
                "bucket_bytes": geometry.bucket_bytes(),
                "buckets": geometry.nbuckets,
                "free_buckets": set.alloc.free_count(),
                "in_use_percent": set.alloc.in_use_percent(),
                "btree_nodes_in_memory": set.tree.len(),
                "btree_bytes_in_memory": set.tree.bytes(),
                "journal_sequence": set.journal.open_seq(),
            });
            status["settings"] = map(shown(set.settings.list()));
            status["attributes"] = map(attributes(set.attributes()));
            status["stats"] = map(counters(set.stats.list()));
        }
        status
    }

    fn parts_told(&self) -> Value {
        let parts = self.parts.borrow();
        let told = parts.iter().map(|(path, standing)| {
            let (word, why) = match standing {
                Standing::New => ("new", None),
                Standing::Waiting => ("waiting", None),
                Standing::Active => ("active", None),
                Standing::Alone => ("alone", None),
                Standing::Failed(why) => ("failed", Some(why.as_str())),
            };
            json!({"device": path, "standing": word, "error": why})
        });
        told.collect()
    }

    /// A device that this process serves and that is of no running set: where its data comes from, or what it waits for.
    fn kept_told(&self, uuid: Uuid, kept: &Kept) -> Value {
        let path = format!("/dev/mapper/{}", kept.name);
        let backing = kept.alone.as_ref().and_then(|alone| alone.volume.device().backing());
        let backing = backing.map(|backing| backing.dev.dev.name().to_owned());
        let told = match &backing {
            Some(backing) if kept.why.is_empty() => format!("answered from {backing} alone by this process"),
            Some(backing) => {
                format!(
                    "answered from {backing} alone by this process until the name can lead there: {}",
                    kept.why
                )
            }
            None => format!(
                "waits for its backing device and its cache to be registered; requests wait for {} s, and fail",
                self.options.patience.as_secs()
            ),
        };
        json!({"path": path, "uuid": uuid, "backing": backing, "standing": told})
    }

    fn device_told(&self, one: &Export) -> Value {
        let device = &one.device;
        let dirty = match (device.inode.get(), self.set.borrow().as_ref()) {
            (Some(inode), Some(set)) => set.dirty_sectors(inode),
            _ => 0,
        };
        json!({
            "name": one.name,
            "path": format!("/dev/mapper/{}", one.name),
            "uuid": device.uuid,
            "label": device.label.get().to_text(),
            "backing": device.backing().map(|backing| backing.dev.dev.name().to_owned()),
            "bytes": device.bytes(),
            "state": device.backing().map(|backing| backing.sb.borrow().state()),
            "error": if device.is_given_up() { Some(given_up(device)) } else { self.too_short(device) },
            "dirty_bytes": dirty * 512,
            "front": format!("/dev/{}", one.front.kernel_name()),
            "front_stats": one.front.stats(),
            "latency": one.switch.latency.json(),
            "settings": map(shown(device.settings.list())),
            "attributes": self.set.borrow().as_ref().map(|set| map(attributes(set.device_attributes(device)))),
            "stats": map(counters(device.stats.list())),
        })
    }
}

impl Host {
    fn too_short(&self, device: &Device) -> Option<String> {
        self.set.borrow().as_ref().and_then(|set| too_short(set, device))
    }
}

/// Why a device fails every request, and the way out.
fn given_up(device: &Device) -> String {
    let backing = device.backing().map(|backing| backing.dev.dev.name().to_owned()).unwrap_or_default();
    let limit = device.settings.io_error_limit.get();
    format!(
        "{backing} had {limit} errors or more: every request fails; bcache set --device {} clear_stats=1 lets it try again",
        device.uuid
    )
}

fn owned(settings: Vec<(&str, &str)>) -> Vec<(String, String)> {
    settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The value of a setting.
fn current(list: Vec<Shown>, name: &str) -> Option<String> {
    list.into_iter().find(|shown| shown.name == name).map(|shown| shown.value)
}

fn shown(list: Vec<Shown>) -> impl Iterator<Item = (String, Value)> {
    list.into_iter().map(|Shown { name, value }| (name.to_owned(), value.into()))
}

fn attributes(list: Vec<Attribute>) -> impl Iterator<Item = (String, Value)> {
    list.into_iter().map(|Attribute { name, value }| (name, value.into()))
}

fn map(list: impl IntoIterator<Item = (String, Value)>) -> Value {
    Value::Object(list.into_iter().collect::<Map<_, _>>())
}

fn counters(list: Vec<(&'static str, u64)>) -> impl Iterator<Item = (String, Value)> {
    list.into_iter().map(|(name, value)| (name.to_owned(), value.into()))
}
