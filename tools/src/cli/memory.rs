//! Whether what is about to be done fits into memory: better refused than ended by the kernel in the middle.

use anyhow::{Result, bail};
use bytesize::ByteSize;

/// Refuses what would take `bytes` of memory that are not there. Where nobody can tell how much there is, it is tried.
pub(super) fn suffices(bytes: u64) -> Result<()> {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match available(&info) {
        Some(free) if bytes > free => {
            let [bytes, free] = [bytes, free].map(|bytes| ByteSize::b(bytes).display().iec());
            bail!(
                "nothing is written: it would take about {bytes} of memory, {free} are available; add swap space"
            )
        }
        _ => Ok(()),
    }
}

/// Bytes that can be had, swap space included.
fn available(info: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    };
    Some(field("MemAvailable:")? + field("SwapFree:").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_swap_space_are_counted() {
        let info = "MemTotal: 9000 kB\nMemAvailable:    4000 kB\nSwapTotal: 7 kB\nSwapFree:   96 kB\n";
        assert_eq!(available(info), Some(4096 << 10));
        assert_eq!(available(""), None);
        assert!(suffices(1 << 20).is_ok());
        let refused = suffices(1 << 60).unwrap_err().to_string();
        assert!(refused.contains("1.0 EiB"), "{refused}");
    }
}
