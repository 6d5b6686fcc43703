//! Settings, by the kernel's sysfs names and with its defaults. This table is the one place that states them: command
//! lines, the control socket and the manual are made from it.

use bcache_format::superblock::{CacheMode, Replacement};
use std::cell::Cell;

/// A setting.
pub type Setting<T> = Cell<T>;

/// What a setting can be: text to value and back.
pub trait Value: Copy + PartialEq {
    /// What texts it takes, for messages.
    const WANTED: &'static str;
    /// The value that a text means.
    fn parse(text: &str) -> Option<Self>;
    /// The value as text.
    fn show(self) -> String;
    /// The value, or the bound that it is beyond.
    #[must_use]
    fn within(self, _bounds: (u64, u64)) -> Self {
        self
    }
}

impl Value for u64 {
    const WANTED: &'static str = "a number, which may end in k, M or G";
    /// Digits, and one letter for a power of 1024 at most: what sysfs refuses ("1 2", "1e3", "0.5") is refused here.
    fn parse(text: &str) -> Option<Self> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "" => 0,
            "k" | "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            "P" => 50,
            _ => return None,
        };
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number: Self = digits.parse().ok().filter(|_| plain)?;
        number.checked_mul(1 << unit)
    }
    fn show(self) -> String {
        self.to_string()
    }
    fn within(self, (least, most): (u64, u64)) -> Self {
        self.max(least).min(most)
    }
}

impl Value for usize {
    const WANTED: &'static str = u64::WANTED;
    fn parse(text: &str) -> Option<Self> {
        u64::parse(text)?.try_into().ok()
    }
    fn show(self) -> String {
        self.to_string()
    }
    fn within(self, (least, most): (u64, u64)) -> Self {
        let bound = |value: u64| Self::try_from(value).unwrap_or(Self::MAX);
        self.max(bound(least)).min(bound(most))
    }
}

impl Value for bool {
    const WANTED: &'static str = "0 or 1";
    fn parse(text: &str) -> Option<Self> {
        match text {
            "1" | "on" | "yes" | "true" => Some(true),
            "0" | "off" | "no" | "false" => Some(false),
            _ => None,
        }
    }
    fn show(self) -> String {
        u8::from(self).to_string()
    }
}

impl Value for CacheMode {
    const WANTED: &'static str = "one of writethrough, writeback, writearound, none";
    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == text)
    }
    fn show(self) -> String {
        self.name().to_owned()
    }
}

impl Value for Replacement {
    const WANTED: &'static str = "one of lru, fifo, random";
    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == text)
    }
    fn show(self) -> String {
        self.name().to_owned()
    }
}

/// A setting as tables show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
}

/// A value that was beyond its setting's bounds, and what the setting is instead, as in Linux.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {asked} is out of bounds, it is {now} now")]
pub struct Clamped {
    /// The setting.
    pub name: &'static str,
    /// What it was to be.
    pub asked: String,
    /// What it is.
    pub now: String,
}

/// Why a setting was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSetting {
    /// No setting has this name.
    #[error("there is no setting {0:?}")]
    Unknown(String),
    /// The setting does not take this value.
    #[error("{name}: {value:?} is not {wanted}")]
    Value {
        /// The setting.
        name: &'static str,
        /// What it was to be.
        value: String,
        /// What it takes.
        wanted: &'static str,
    },
}

macro_rules! settings {
    ($(#[$outer:meta])* $name:ident {
        $($(#[doc = $doc:literal])+ $field:ident: $kind:ty = $default:expr $(, $least:literal to $most:expr)?;)+
    }) => {
        $(#[$outer])*
        #[derive(Debug)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: Setting<$kind>,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: Cell::new($default),)+ }
            }
        }

        impl $name {
            /// Names, what they mean, in order.
            pub const HELP: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), concat!($($doc),+)),)+];
            /// Names and bounds of those that have some, in order.
            pub const BOUNDS: &'static [(&'static str, u64, u64)] =
                &[$($((stringify!($field), $least, $most),)?)+];
            /// All with their values, in order.
            pub fn list(&self) -> Vec<Shown> {
                vec![$(Shown { name: stringify!($field), value: self.$field.get().show() },)+]
            }
            /// Changes the one called `name`; nothing is changed on an error. A number beyond the setting's bounds becomes
            /// the bound, which is told.
            ///
            /// # Errors
            /// There is none of this name, or it does not take this value.
            pub fn assign(&self, name: &str, value: &str) -> Result<Option<Clamped>, BadSetting> {
                match name {
                    $(stringify!($field) => {
                        let bad = || BadSetting::Value {
                            name: stringify!($field),
                            value: value.to_owned(),
                            wanted: <$kind as Value>::WANTED,
                        };
                        let asked = <$kind as Value>::parse(value).ok_or_else(bad)?;
                        let now = asked.within(self.bounds(stringify!($field)));
                        self.$field.set(now);
                        let clamped = now != asked;
                        Ok(clamped.then(|| Clamped {
                            name: stringify!($field),
                            asked: asked.show(),
                            now: now.show(),
                        }))
                    })+
                    _ => Err(BadSetting::Unknown(name.to_owned())),
                }
            }
        }
    };
}

const U16: u64 = u16::MAX as u64;
const I32: u64 = i32::MAX as u64;
const U32: u64 = u32::MAX as u64;

settings! {
    /// Settings of a cache set.
    SetSettings {
        /// Milliseconds after which keys that nobody waits for are written to the journal.
        journal_delay_ms: u64 = 100, 0 to U16;
        /// Discard buckets before they are reused. Persistent.
        discard: bool = false;
        /// Which buckets are reused first. Persistent.
        cache_replacement_policy: Replacement = Replacement::Lru;
        /// Microseconds of a read of the cache device beyond which it counts as congested; 0: never.
        congested_read_threshold_us: u64 = 2000, 0 to U32;
        /// The same for writes.
        congested_write_threshold_us: u64 = 20000, 0 to U32;
        /// Errors of the cache device, decayed, after which it is not used for anything new and all that is dirty is
        /// written back.
        io_error_limit: u64 = 8, 0 to U32;
        /// Requests to the cache device in which its errors count half; 0: errors are never forgotten.
        io_error_halflife: u64 = 0, 0 to U32;
        /// Whether GC moves data out of little used buckets.
        copy_gc_enabled: bool = false;
        /// GC writes every node anew, needed or not.
        gc_always_rewrite: bool = false;
        /// Write back at full speed while nothing else is asked for.
        idle_max_writeback_rate: bool = true;
        /// When more than this per cent of the cache is in use, writeback mode writes through.
        cutoff_writeback_sync: u64 = 70, 0 to 90;
        /// Bytes of btree nodes kept in memory.
        btree_cache_bytes: usize = 1 << 30;
    }
}

settings! {
    /// Settings of a backing device or volume.
    DeviceSettings {
        /// What happens to writes. Persistent.
        cache_mode: CacheMode = CacheMode::Writethrough;
        /// Bytes of a sequential stream after which it bypasses the cache; 0: never.
        sequential_cutoff: u64 = 4 << 20, 0 to U32;
        /// Whether dirty data is written back in the background.
        writeback_running: bool = true;
        /// Per cent of the cache that may be dirty before writing back goes faster than the least; 0: always at full
        /// speed.
        writeback_percent: u64 = 10, 0 to 40;
        /// Seconds that dirty data stays before it is written back.
        writeback_delay: u64 = 30, 0 to U32;
        /// Sectors a second, at present.
        writeback_rate: u64 = 1024, 1 to I32;
        /// Lowest writeback rate, in sectors a second.
        writeback_rate_minimum: u64 = 8, 1 to U32;
        /// Seconds between changes of the rate.
        writeback_rate_update_seconds: u64 = 5, 1 to 60;
        /// Inverse of the proportional term.
        writeback_rate_p_term_inverse: u64 = 40, 1 to U32;
        /// Inverse of the integral term.
        writeback_rate_i_term_inverse: u64 = 10000, 1 to U32;
        /// Write back faster when little dirty data holds many buckets.
        writeback_consider_fragment: bool = true;
        /// Factor on the writeback rate when more than 50 per cent of the buckets are in use (with `writeback_consider_fragment`).
        writeback_rate_fp_term_low: u64 = 1, 1 to U32;
        /// The same above 57 per cent.
        writeback_rate_fp_term_mid: u64 = 10, 1 to U32;
        /// The same above 64 per cent.
        writeback_rate_fp_term_high: u64 = 1000, 1 to U32;
        /// Errors of the backing device after which it is not used any more until they are cleared; 0: never.
        io_error_limit: u64 = 64, 0 to I32;
        /// Bypass the cache now and then, whatever the other settings say: for tests.
        bypass_torture_test: bool = false;
    }
}

impl SetSettings {
    fn bounds(&self, name: &str) -> (u64, u64) {
        bounds(Self::BOUNDS, name)
    }
}

impl DeviceSettings {
    /// Those of the three factors for fragmentation depend on each other: they keep their order.
    fn bounds(&self, name: &str) -> (u64, u64) {
        let (low, mid) = (self.writeback_rate_fp_term_low.get(), self.writeback_rate_fp_term_mid.get());
        let high = self.writeback_rate_fp_term_high.get();
        match name {
            "writeback_rate_fp_term_low" => (1, mid.saturating_sub(1).max(1)),
            "writeback_rate_fp_term_mid" => (low + 1, high.saturating_sub(1).max(low + 1)),
            "writeback_rate_fp_term_high" => (mid + 1, U32),
            _ => bounds(Self::BOUNDS, name),
        }
    }
}

fn bounds(all: &[(&str, u64, u64)], name: &str) -> (u64, u64) {
    all.iter().find(|(known, ..)| *known == name).map_or((0, u64::MAX), |(_, least, most)| (*least, *most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_kernels() {
        let set = SetSettings::default();
        let expected = [
            ("journal_delay_ms", "100"),
            ("discard", "0"),
            ("cache_replacement_policy", "lru"),
            ("congested_read_threshold_us", "2000"),
            ("congested_write_threshold_us", "20000"),
            ("io_error_limit", "8"),
            ("io_error_halflife", "0"),
            ("copy_gc_enabled", "0"),
            ("gc_always_rewrite", "0"),
            ("idle_max_writeback_rate", "1"),
            ("cutoff_writeback_sync", "70"),
        ];
        for (shown, (name, value)) in set.list().iter().zip(expected) {
            assert_eq!((shown.name, shown.value.as_str()), (name, value));
        }
        let device = DeviceSettings::default();
        let expected = [
            ("cache_mode", "writethrough"),
            ("sequential_cutoff", "4194304"),
            ("writeback_running", "1"),
            ("writeback_percent", "10"),
            ("writeback_delay", "30"),
            ("writeback_rate", "1024"),
            ("writeback_rate_minimum", "8"),
            ("writeback_rate_update_seconds", "5"),
            ("writeback_rate_p_term_inverse", "40"),
            ("writeback_rate_i_term_inverse", "10000"),
            ("writeback_consider_fragment", "1"),
            ("writeback_rate_fp_term_low", "1"),
            ("writeback_rate_fp_term_mid", "10"),
            ("writeback_rate_fp_term_high", "1000"),
            ("io_error_limit", "64"),
            ("bypass_torture_test", "0"),
        ];
        assert_eq!(device.list().len(), expected.len());
        for (shown, (name, value)) in device.list().iter().zip(expected) {
            assert_eq!((shown.name, shown.value.as_str()), (name, value));
        }
    }

    #[test]
    fn every_setting_takes_what_it_shows() {
        let (set, device) = (SetSettings::default(), DeviceSettings::default());
        for shown in set.list() {
            set.assign(shown.name, &shown.value).unwrap();
        }
        for shown in device.list() {
            device.assign(shown.name, &shown.value).unwrap();
        }
        assert_eq!(set.list(), SetSettings::default().list());
        assert_eq!(device.list(), DeviceSettings::default().list());
        assert_eq!(SetSettings::HELP.len(), set.list().len());
    }

    #[test]
    fn wrong_ones_are_refused_with_a_reason() {
        let device = DeviceSettings::default();
        for (name, value, reason) in [
            ("nothing", "1", "no setting"),
            ("writeback_delay", "soon", "a number"),
            ("cache_mode", "fast", "one of writethrough, writeback"),
            ("writeback_running", "maybe", "0 or 1"),
            ("sequential_cutoff", "large", "a number, which may end in k"),
        ] {
            let error = device.assign(name, value).unwrap_err().to_string();
            assert!(error.contains(reason), "{name}={value}: {error}");
        }
        for value in [
            "1 2",
            "1_0",
            "1e2",
            "0.4",
            "+1",
            "-1",
            "",
            "k",
            "1kk",
            "1kB",
            "99999999999999999999",
            "99999999P",
        ] {
            assert!(device.assign("writeback_delay", value).is_err(), "{value:?}");
        }
        device.assign("sequential_cutoff", "1M").unwrap();
        assert_eq!(device.sequential_cutoff.get(), 1 << 20);
    }

    #[test]
    fn a_value_beyond_the_bounds_becomes_the_bound_and_that_is_told() {
        let (set, device) = (SetSettings::default(), DeviceSettings::default());
        for (name, asked, now) in [
            ("writeback_percent", "90", 40),
            ("writeback_rate_update_seconds", "32P", 60),
            ("writeback_rate_update_seconds", "0", 1),
            ("writeback_rate_minimum", "8G", u32::MAX.into()),
            ("writeback_rate_p_term_inverse", "0", 1),
            ("writeback_rate_fp_term_low", "5000", 9),
            ("writeback_rate_fp_term_mid", "5000", 999),
            ("writeback_rate_fp_term_high", "1", 1000),
            ("io_error_limit", "4G", i32::MAX as u64),
        ] {
            let clamped =
                device.assign(name, asked).unwrap().unwrap_or_else(|| panic!("{name}={asked} was taken"));
            assert_eq!(clamped.now, now.to_string(), "{name}={asked}");
            let shown = device.list().into_iter().find(|shown| shown.name == name).unwrap();
            assert_eq!(shown.value, clamped.now);
        }
        assert_eq!(set.assign("journal_delay_ms", "70000").unwrap().unwrap().now, "65535");
        assert_eq!(set.assign("journal_delay_ms", "5").unwrap(), None);
    }
}
