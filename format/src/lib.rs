//! The on-disk format of bcache.
