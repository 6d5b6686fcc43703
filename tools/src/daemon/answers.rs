//! What the process answers on its control socket.

use std::rc::Rc;

use anyhow::{Result, bail};
use bcache_engine::set::Device;
use bcache_format::superblock::CacheMode;
use serde_json::{Map, Value, json};

use super::engine::{Engine, Standing};
use super::exposed::Exposed;
use crate::control::{Reply, Request, server};
use crate::serve::settings::{self, Assignment};
use crate::serve::told;

impl server::Service for Engine {
    async fn answer(self: Rc<Self>, request: Request) -> Reply {
        match self.carry_out(request).await {
            Ok(value) => Reply::Ok(value),
            Err(error) => Reply::Error(format!("{error:#}")),
        }
    }
}

impl Engine {
    async fn carry_out(self: &Rc<Self>, request: Request) -> Result<Value> {
        match request {
            Request::Register { device } => self.register(&device),
            Request::Status => return Ok(self.status()),
            Request::Set { device, assignment } => self.assign(device.as_deref(), &assignment).await?,
            Request::Attach { device } => self.attach_on_request(&device).await?,
            Request::Detach { device } => return Ok(json!(self.detach(&device).await?)),
            Request::Unregister => self.unregister().await?,
            Request::VolumeCreate { bytes, label } => {
                return Ok(json!(self.create_volume(bytes, &label).await?));
            }
            Request::VolumeRemove { device } => self.remove_volume(&device).await?,
            Request::Stop => self.stop().await?,
            Request::HandOver => self.hand_over().await?,
        }
        Ok(Value::Null)
    }

    /// Changes a setting of one device, of all, or of the set.
    async fn assign(&self, device: Option<&str>, assignment: &str) -> Result<()> {
        let set = self.running()?;
        let assignment: Assignment = assignment.parse().map_err(|error: String| anyhow::anyhow!(error))?;
        let of_set = settings::list_set(&set.settings).iter().any(|(name, _)| *name == assignment.name());
        if of_set {
            if device.is_some() {
                bail!("{} is a setting of the set, not of a device", assignment.name());
            }
            settings::apply_to_set(std::slice::from_ref(&assignment), &set.settings)?;
            set.tree.set_limit(set.settings.btree_cache_bytes.get());
            return Ok(());
        }
        let devices: Vec<Rc<Device>> = match device {
            Some(wanted) => vec![self.find(wanted)?],
            None => set.devices(),
        };
        for device in devices {
            let before: CacheMode = device.settings.cache_mode.get();
            settings::apply_to_device(std::slice::from_ref(&assignment), &device.settings)?;
            let mode = device.settings.cache_mode.get();
            if mode != before {
                set.set_cache_mode(&device, mode).await.map_err(told)?;
            }
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
            "devices": self.exposed.borrow().iter().map(|one| self.device_told(one)).collect::<Value>(),
        });
        if let Some(set) = set.as_ref() {
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
            status["settings"] = map(settings::list_set(&set.settings));
            status["stats"] = map(set.stats.list());
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
                Standing::Failed(why) => ("failed", Some(why.as_str())),
            };
            json!({"device": path, "standing": word, "error": why})
        });
        told.collect()
    }

    fn device_told(&self, one: &Exposed) -> Value {
        let device = &one.device;
        let dirty = match (device.inode.get(), self.set.borrow().as_ref()) {
            (Some(inode), Some(set)) => set.dirty_sectors(inode),
            _ => 0,
        };
        json!({
            "name": one.name,
            "path": format!("/dev/mapper/{}", one.name),
            "uuid": device.uuid,
            "label": device.label.to_text(),
            "backing": device.backing().map(|backing| backing.dev.dev.name().to_owned()),
            "bytes": device.bytes(),
            "state": device.backing().map(|backing| backing.sb.borrow().state()),
            "dirty_bytes": dirty * 512,
            "front": format!("/dev/{}", one.front.kernel_name()),
            "front_stats": one.front.stats(),
            "settings": map(settings::list_device(&device.settings)),
            "stats": map(device.stats.list()),
        })
    }
}

fn map<T: Into<Value>>(list: Vec<(&'static str, T)>) -> Value {
    Value::Object(
        list.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect::<Map<_, _>>(),
    )
}
