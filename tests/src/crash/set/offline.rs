//! What others than the engine read of a set that was cut or stopped: `bcache export` and `map`, which take the journal's
//! keys as Linux does, and whoever reads a backing device after `bcache flush`.
//!
//! Nobody may show what no reader may see. That all show the same is not asked of sectors that nobody was told to be
//! durable: a clean key that only the journal has is a copy for Linux and for the offline tools, and a reason to read from
//! below for the engine, because the device below may have lost what the copy has.

use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex};

use bcache_engine::fsck::flush::{Flush, FlushError};
use bcache_engine::fsck::repair::WriteAt;
use bcache_engine::fsck::salvage::{Belief, Salvage, data_byte};
use bcache_engine::fsck::view::{Backing, Content, Device, SetView};
use bcache_engine::fsck::{Checked, Options, check, repair};
use bcache_engine::sim::Image;
use bcache_format::superblock::{BackingState, Superblock};

use super::super::load::trace;
use super::super::model::Model;
use super::super::run::Subject;
use super::{Bytes, CachedSet, DATA_OFFSET, VOLUME_UUID};

/// Disks that nobody uses.
#[derive(Clone, Copy)]
pub(super) struct AtRest<'a> {
    pub shape: &'a CachedSet,
    pub disks: &'a [Image],
    /// What the superblocks of the backing devices say; nothing where one cannot be read.
    pub states: &'a [Option<BackingState>],
    pub checked: &'a Checked,
    /// What the check was told.
    pub options: Options<'a>,
}

/// A disk that is written.
struct Written(Mutex<Image>);

impl WriteAt for Written {
    fn write_at(&self, byte: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().map_err(|_| io::ErrorKind::Other)?.write(byte, bytes);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

impl AtRest<'_> {
    /// The set, if there is one yet.
    fn view(&self) -> Option<&SetView> {
        let counts = self.checked.superblock().is_some_and(Superblock::sync);
        self.checked.set.as_ref().filter(|_| counts)
    }

    /// The backing device as it is, from its data on.
    fn raw(image: &Image, sectors: u64) -> Vec<u8> {
        let mut bytes = vec![0; sectors as usize * 512];
        image.read(DATA_OFFSET * 512, &mut bytes);
        bytes
    }

    fn backing(&self, index: usize) -> Option<&Backing> {
        let name = format!("backing{index}");
        self.checked.backings.iter().find(|backing| *backing.name == *name)
    }

    /// What `bcache export` would write of volume `index`.
    fn exported(&self, index: usize, sectors: u64) -> Result<Vec<u8>, String> {
        let text = |error: &dyn std::fmt::Display| format!("export of volume {index}: {error}");
        if index == self.states.len() {
            let Some(view) = self.view() else { return Ok(vec![0; sectors as usize * 512]) };
            let number = view.volumes().position(|(_, entry)| entry.uuid == VOLUME_UUID);
            let Some(number) = number else { return Ok(vec![0; sectors as usize * 512]) };
            let content = view.volume(number).map_err(|error| text(&error))?;
            return content_of(&content).map_err(|error| text(&error));
        }
        let attached = matches!(self.states[index], Some(BackingState::Clean | BackingState::Dirty));
        let (Some(view), Some(backing), true) = (self.view(), self.backing(index), attached) else {
            return Ok(Self::raw(&self.disks[index + 1], sectors));
        };
        let content = view.cached_device(backing).map_err(|error| text(&error))?;
        content_of(&content).map_err(|error| text(&error))
    }

    /// What is known of volume `index`, for whoever looks for a mistake.
    fn told(&self, index: usize) -> String {
        let mut text = format!("at rest, volume {index}: {:?}", self.states.get(index));
        let (Some(view), Some(backing)) = (self.view(), self.backing(index)) else { return text };
        let _ = write!(text, ", {:?}", view.attachment(backing));
        if let Ok(content) = view.cached_device(backing) {
            for piece in content.pieces(0, content.bytes).flatten() {
                let _ = write!(text, "\n  {piece:?}");
            }
        }
        text
    }

    /// Judges what is exported.
    pub(super) fn judge(&self, models: &mut [Model]) -> Result<(), String> {
        for (index, model) in models.iter_mut().enumerate() {
            let bytes = self.exported(index, model.sectors())?;
            trace(|| self.told(index));
            model.judge_at_rest(&bytes).map_err(|wrong| format!("exported, volume {index}: {wrong}"))?;
        }
        Ok(())
    }

    /// Judges what is exported of the repaired set, which memory has nothing of any more.
    pub(super) fn judge_repaired(&self, devices: &[Device], models: &mut [Model]) -> Result<(), String> {
        let mut random = 1;
        let plan = repair::plan(devices, self.checked, &mut || {
            random += 1;
            random
        });
        let plan = plan.map_err(|refused| format!("repair: {refused}"))?;
        if !plan.changed.is_empty() {
            return Err("a repair would change what is read".to_owned());
        }
        let after = plan.simulate(devices, usize::MAX).map_err(|error| format!("repair: {error}"))?;
        let checked = check(after, self.options);
        if let Some(finding) = checked.findings.first() {
            return Err(format!("repaired, fsck finds {}: {}", finding.kind, finding.detail));
        }
        let repaired = AtRest { checked: &checked, ..*self };
        repaired.judge(models).map_err(|wrong| format!("repaired: {wrong}"))
    }

    /// Judges what `bcache salvage` would write of each backing device.
    pub(super) fn judge_salvaged(&self, models: &mut [Model]) -> Result<(), String> {
        if self.view().is_none() {
            return Ok(());
        }
        let salvage = Salvage::of(self.checked).map_err(|refused| format!("salvage: {refused}"))?;
        for (index, model) in models.iter_mut().enumerate().take(self.states.len()) {
            let attached = matches!(self.states[index], Some(BackingState::Clean | BackingState::Dirty));
            let (Some(backing), true) = (self.backing(index), attached) else { continue };
            let mut bytes = Self::raw(&self.disks[index + 1], model.sectors());
            let slot = salvage.slot_of(backing).and_then(|slot| salvage.slots.get(&slot));
            for (key, belief) in slot.into_iter().flatten() {
                if *belief != Belief::Sure {
                    return Err(format!("salvage doubts {key}, and nothing is damaged"));
                }
                let at = (key.start() - DATA_OFFSET) as usize * 512;
                let place = bytes.get_mut(at..at + key.size() as usize * 512);
                let place = place.ok_or_else(|| format!("salvage of {key}: behind the end"))?;
                self.disks[0].read(data_byte(key), place);
            }
            let judged = model.judge_at_rest(&bytes);
            judged.map_err(|wrong| format!("salvaged, volume {index}: {wrong}"))?;
        }
        Ok(())
    }

    /// Judges what the backing devices have after an offline flush.
    pub(super) fn judge_flushed(&self, models: &mut [Model]) -> Result<(), String> {
        if self.view().is_none() {
            return Ok(());
        }
        let configs = self.shape.disks();
        let attached = |i: &usize| *i == 0 || !matches!(self.states[i - 1], None | Some(BackingState::None));
        let devices = configs.iter().zip(self.disks).enumerate().filter(|(i, _)| attached(i));
        let device = |(_, (config, image)): (_, (&bcache_engine::sim::Config, &Image))| -> Device {
            Arc::new(Bytes { name: config.name.clone(), size: config.geometry.bytes, image: image.clone() })
        };
        let devices: Vec<Device> = devices.map(device).collect();
        let flush = match Flush::with(&devices, self.options) {
            Ok(flush) => flush,
            // Somebody has to say first that this is to be repaired.
            Err(FlushError::Findings(..)) => return Ok(()),
            Err(error) => return Err(format!("offline flush: {error}")),
        };
        let written: Vec<Written> =
            self.disks[1..].iter().map(|image| Written(Mutex::new(image.clone()))).collect();
        let names: Vec<String> = (0..written.len()).map(|i| format!("backing{i}")).collect();
        let writable: Vec<(&str, &dyn WriteAt)> =
            names.iter().zip(&written).map(|(name, disk)| (name.as_str(), disk as &dyn WriteAt)).collect();
        flush.copy(&writable, &|_| ()).map_err(|error| format!("offline flush: {error}"))?;
        for (index, (model, disk)) in models.iter_mut().zip(written).enumerate() {
            let image = disk.0.into_inner().map_err(|error| error.to_string())?;
            let bytes = Self::raw(&image, model.sectors());
            let judged = model.judge_at_rest(&bytes);
            judged.map_err(|wrong| format!("flushed offline, backing device {index}: {wrong}"))?;
        }
        Ok(())
    }
}

/// All of a device's content.
fn content_of(content: &Content<'_>) -> Result<Vec<u8>, bcache_engine::fsck::view::Fault> {
    let mut bytes = vec![0; content.bytes as usize];
    for piece in content.pieces(0, content.bytes) {
        let piece = piece?;
        let place = piece.byte as usize..((piece.byte + piece.bytes) as usize).min(bytes.len());
        content.read(&piece.source, 0, &mut bytes[place])?;
    }
    Ok(bytes)
}
