//! `NAME=VALUE` on a command line, by the kernel's sysfs names.

use std::cell::Cell;
use std::str::FromStr;

use anyhow::{Result, anyhow, bail};
use bcache_engine::settings::{DeviceSettings, SetSettings};
use bcache_format::superblock::{CacheMode, Replacement};

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
        let known = assignment.to_set(&SetSettings::default()).map_err(|error| error.to_string())?
            || assignment.to_device(&DeviceSettings::default()).map_err(|error| error.to_string())?;
        if known { Ok(assignment) } else { Err(format!("there is no setting {:?}", assignment.name)) }
    }
}

impl Assignment {
    fn bad(&self, wanted: &str) -> anyhow::Error {
        anyhow!("{}: {:?} is not {wanted}", self.name, self.value)
    }

    fn number<T: FromStr>(&self, cell: &Cell<T>) -> Result<()> {
        cell.set(self.value.parse().map_err(|_| self.bad("a number"))?);
        Ok(())
    }

    fn bytes<T: TryFrom<u64>>(&self, cell: &Cell<T>) -> Result<()> {
        let bytes = parse_size::Config::new().with_binary().parse_size(&self.value);
        let bytes = bytes.ok().and_then(|bytes| T::try_from(bytes).ok());
        cell.set(bytes.ok_or_else(|| self.bad("a size in bytes, such as 4M"))?);
        Ok(())
    }

    fn switch(&self, cell: &Cell<bool>) -> Result<()> {
        cell.set(match self.value.as_str() {
            "1" | "on" | "yes" | "true" => true,
            "0" | "off" | "no" | "false" => false,
            _ => bail!(self.bad("0 or 1")),
        });
        Ok(())
    }

    fn choice<T: Copy>(&self, cell: &Cell<T>, all: &[T], name: impl Fn(T) -> &'static str) -> Result<()> {
        let names = || all.iter().map(|one| name(*one)).collect::<Vec<_>>().join(", ");
        let found = all.iter().find(|one| name(**one) == self.value);
        cell.set(*found.ok_or_else(|| self.bad(&format!("one of {}", names())))?);
        Ok(())
    }

    /// Applies it to a set; false if it is no setting of sets.
    fn to_set(&self, settings: &SetSettings) -> Result<bool> {
        match self.name.as_str() {
            "journal_delay_ms" => self.number(&settings.journal_delay_ms)?,
            "discard" => self.switch(&settings.discard)?,
            "cache_replacement_policy" => {
                self.choice(&settings.replacement, &Replacement::ALL, Replacement::name)?;
            }
            "congested_read_threshold_us" => self.number(&settings.congested_read_threshold_us)?,
            "congested_write_threshold_us" => self.number(&settings.congested_write_threshold_us)?,
            "io_error_limit" => self.number(&settings.io_error_limit)?,
            "copy_gc_enabled" => self.switch(&settings.copy_gc_enabled)?,
            "gc_always_rewrite" => self.switch(&settings.gc_always_rewrite)?,
            "idle_max_writeback_rate" => self.switch(&settings.idle_max_writeback_rate)?,
            "btree_cache_bytes" => self.bytes(&settings.btree_cache_bytes)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Applies it to a device; false if it is no setting of devices.
    fn to_device(&self, settings: &DeviceSettings) -> Result<bool> {
        match self.name.as_str() {
            "cache_mode" => self.choice(&settings.cache_mode, &CacheMode::ALL, CacheMode::name)?,
            "sequential_cutoff" => self.bytes(&settings.sequential_cutoff)?,
            "writeback_running" => self.switch(&settings.writeback_running)?,
            "writeback_percent" => self.number(&settings.writeback_percent)?,
            "writeback_delay" => self.number(&settings.writeback_delay)?,
            "writeback_rate" => self.number(&settings.writeback_rate)?,
            "writeback_rate_minimum" => self.number(&settings.writeback_rate_minimum)?,
            "writeback_rate_update_seconds" => self.number(&settings.writeback_rate_update_seconds)?,
            "writeback_rate_p_term_inverse" => self.number(&settings.writeback_rate_p_term_inverse)?,
            "writeback_rate_i_term_inverse" => self.number(&settings.writeback_rate_i_term_inverse)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Assignment {
    /// The setting's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Settings of a set and their values, by name.
#[must_use]
pub fn list_set(settings: &SetSettings) -> Vec<(&'static str, String)> {
    let switch = |cell: &Cell<bool>| u8::from(cell.get()).to_string();
    vec![
        ("btree_cache_bytes", settings.btree_cache_bytes.get().to_string()),
        ("cache_replacement_policy", settings.replacement.get().name().to_owned()),
        ("congested_read_threshold_us", settings.congested_read_threshold_us.get().to_string()),
        ("congested_write_threshold_us", settings.congested_write_threshold_us.get().to_string()),
        ("copy_gc_enabled", switch(&settings.copy_gc_enabled)),
        ("discard", switch(&settings.discard)),
        ("gc_always_rewrite", switch(&settings.gc_always_rewrite)),
        ("idle_max_writeback_rate", switch(&settings.idle_max_writeback_rate)),
        ("io_error_limit", settings.io_error_limit.get().to_string()),
        ("journal_delay_ms", settings.journal_delay_ms.get().to_string()),
    ]
}

/// Settings of a device and their values, by name.
#[must_use]
pub fn list_device(settings: &DeviceSettings) -> Vec<(&'static str, String)> {
    vec![
        ("cache_mode", settings.cache_mode.get().name().to_owned()),
        ("sequential_cutoff", settings.sequential_cutoff.get().to_string()),
        ("writeback_delay", settings.writeback_delay.get().to_string()),
        ("writeback_percent", settings.writeback_percent.get().to_string()),
        ("writeback_rate", settings.writeback_rate.get().to_string()),
        ("writeback_rate_i_term_inverse", settings.writeback_rate_i_term_inverse.get().to_string()),
        ("writeback_rate_minimum", settings.writeback_rate_minimum.get().to_string()),
        ("writeback_rate_p_term_inverse", settings.writeback_rate_p_term_inverse.get().to_string()),
        ("writeback_rate_update_seconds", settings.writeback_rate_update_seconds.get().to_string()),
        ("writeback_running", u8::from(settings.writeback_running.get()).to_string()),
    ]
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

    #[test]
    fn settings_are_parsed_by_their_kinds() {
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
        assert_eq!(set.replacement.get(), Replacement::Fifo);
        assert_eq!(device.cache_mode.get(), CacheMode::Writeback);
        assert_eq!((device.sequential_cutoff.get(), device.writeback_running.get()), (1 << 20, false));
    }

    #[test]
    fn every_setting_that_can_be_set_is_listed_and_the_other_way_round() {
        let (set, device) = (SetSettings::default(), DeviceSettings::default());
        for (name, value) in list_set(&set) {
            assert!(Assignment { name: name.into(), value }.to_set(&set).unwrap(), "{name}");
        }
        for (name, value) in list_device(&device) {
            assert!(Assignment { name: name.into(), value }.to_device(&device).unwrap(), "{name}");
        }
    }

    #[test]
    fn wrong_ones_are_refused_with_a_reason() {
        for (text, reason) in [
            ("journal_delay_ms", "NAME=VALUE"),
            ("nothing=1", "no setting"),
            ("journal_delay_ms=soon", "not a number"),
            ("cache_mode=fast", "one of writethrough, writeback"),
            ("copy_gc_enabled=maybe", "0 or 1"),
            ("sequential_cutoff=large", "a size"),
        ] {
            let error = text.parse::<Assignment>().expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
