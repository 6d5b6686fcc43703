//! How a device says that it has metadata only.

/// Where a device that was made of an image says so, in a sector before the superblock that nobody uses.
pub const MARK_AT: u64 = 512;
/// What it says there.
pub const MARK: &[u8] = b"ubcache metadata only, no data\n";
/// Why such a device is refused wherever its data would count.
pub const MARKED: &str = "a metadata image, or made of one: it has none of the data";
