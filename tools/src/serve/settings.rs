//! `NAME=VALUE` on a command line, by the kernel's sysfs names.

use std::str::FromStr;

use anyhow::Result;
use bcache_engine::settings::{BadSetting, Clamped, DeviceSettings, SetSettings};

/// A setting and the value it is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    name: String,
    value: String,
}

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
        let assignment = Assignment { name: name.trim().to_owned(), value: value.trim().to_owned() };
        // Tried on settings that nobody uses, so that a typing error is told before any device is opened.
        let set = assignment.to_set(&SetSettings::default()).map_err(|error| error.to_string())?;
        let device = assignment.to_device(&DeviceSettings::default()).map_err(|error| error.to_string())?;
        if set || device { Ok(assignment) } else { Err(BadSetting::Unknown(assignment.name).to_string()) }
    }
}

impl Assignment {
    /// Applies it to a set; false if it is no setting of sets.
    fn to_set(&self, settings: &SetSettings) -> Result<bool> {
        known(settings.assign(&self.name, &self.value))
    }

    /// Applies it to a device; false if it is no setting of devices.
    fn to_device(&self, settings: &DeviceSettings) -> Result<bool> {
        known(settings.assign(&self.name, &self.value))
    }
}

fn known(assigned: Result<Option<Clamped>, BadSetting>) -> Result<bool> {
    match assigned {
        Ok(clamped) => {
            if let Some(clamped) = clamped {
                tracing::warn!("{clamped}");
            }
            Ok(true)
        }
        Err(BadSetting::Unknown(_)) => Ok(false),
        Err(bad) => Err(bad.into()),
    }
}

/// Applies those of `assignments` that are settings of a set.
///
/// # Errors
/// A value is not one that its setting takes.
pub fn apply_to_set(assignments: &[Assignment], settings: &SetSettings) -> Result<()> {
    assignments.iter().try_for_each(|assignment| assignment.to_set(settings).map(drop))
}

/// Applies those of `assignments` that are settings of a device.
///
/// # Errors
/// A value is not one that its setting takes.
pub fn apply_to_device(assignments: &[Assignment], settings: &DeviceSettings) -> Result<()> {
    assignments.iter().try_for_each(|assignment| assignment.to_device(settings).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bcache_format::superblock::{CacheMode, Replacement};

    #[test]
    fn each_setting_goes_where_it_belongs() {
        let (set, device) = (SetSettings::default(), DeviceSettings::default());
        let assignments: Vec<Assignment> = [
            "journal_delay_ms=7",
            "copy_gc_enabled=on",
            "cache_replacement_policy=fifo",
            "cache_mode=writeback",
            "sequential_cutoff=1M",
            "writeback_running=0",
        ]
        .map(|text| text.parse().unwrap())
        .into();
        apply_to_set(&assignments, &set).unwrap();
        apply_to_device(&assignments, &device).unwrap();
        assert_eq!((set.journal_delay_ms.get(), set.copy_gc_enabled.get()), (7, true));
        assert_eq!(set.cache_replacement_policy.get(), Replacement::Fifo);
        assert_eq!(device.cache_mode.get(), CacheMode::Writeback);
        assert_eq!((device.sequential_cutoff.get(), device.writeback_running.get()), (1 << 20, false));
    }

    #[test]
    fn wrong_ones_are_refused_with_a_reason() {
        for (text, reason) in [
            ("journal_delay_ms", "NAME=VALUE"),
            ("nothing=1", "no setting"),
            ("journal_delay_ms=soon", "not a number"),
            ("cache_mode=fast", "one of writethrough, writeback"),
        ] {
            let error = text.parse::<Assignment>().expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
