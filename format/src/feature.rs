//! The feature words of superblocks of version 5 (`features.h`). Version 6 carries them too; nobody reads those.

/// Feature bits of a superblock, as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Features {
    /// May be ignored in principle; unknown bits are refused by the kernel all the same.
    pub compat: u64,
    /// Must be understood.
    pub incompat: u64,
    /// Must be understood for writing; refused like the others.
    pub ro_compat: u64,
}

/// Obsolete form of large buckets: the high 16 bits of the bucket size stand after the journal buckets, outside
/// what the checksum covers.
pub const INCOMPAT_OBSO_LARGE_BUCKET: u64 = 0x1;
/// `bucket_size` holds the binary logarithm of the bucket's sectors.
pub const INCOMPAT_LOG_LARGE_BUCKET_SIZE: u64 = 0x2;

/// All incompat bits that are known.
pub const INCOMPAT_KNOWN: u64 = INCOMPAT_OBSO_LARGE_BUCKET | INCOMPAT_LOG_LARGE_BUCKET_SIZE;

impl Features {
    /// Bits that are not known, with the word they stand in; none when all are.
    #[must_use]
    pub const fn unknown(&self) -> Option<(&'static str, u64)> {
        if self.compat != 0 {
            Some(("compat", self.compat))
        } else if self.ro_compat != 0 {
            Some(("ro_compat", self.ro_compat))
        } else if self.incompat & !INCOMPAT_KNOWN != 0 {
            Some(("incompat", self.incompat & !INCOMPAT_KNOWN))
        } else {
            None
        }
    }
}
