//! Logs of device-mapper's `log-writes` target: every write to a device in the order in which it became durable, with
//! marks in between, so that the device can be made as a power cut at a mark would have left it.
//!
//! Source of the format: `Documentation/admin-guide/device-mapper/log-writes.rst` of Linux. Sectors are counted in the
//! unit that the log's superblock tells; all fields are little-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
/// Bytes of an entry before the text of a mark.
const HEADER: usize = 32;

/// A log that is being replayed.
pub struct Log {
    file: File,
    /// Bytes of a sector.
    sector: u64,
    /// Entries that are still to come.
    left: u64,
    /// Where the next one begins.
    at: u64,
}

fn word(bytes: &[u8], index: usize) -> u64 {
    let bytes = bytes.get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

impl Log {
    /// Opens the log on a device or in its image.
    pub fn open(path: &Path) -> Result<Log> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let mut head = [0; HEADER];
        file.read_exact_at(&mut head, 0)?;
        ensure!(word(&head, 0) == MAGIC && word(&head, 1) == 1, "{}: not a log of writes", path.display());
        let sector = word(&head, 3) & 0xffff_ffff;
        ensure!(matches!(sector, 512 | 4096), "{}: sectors of {sector} bytes", path.display());
        Ok(Log { file, sector, left: word(&head, 2), at: sector })
    }

    /// Does to `target` what was logged up to the next mark; the mark's text, or nothing at the end of the log.
    pub fn replay(&mut self, target: &File) -> Result<Option<String>> {
        while self.left > 0 {
            let mut entry = [0; 512];
            self.file.read_exact_at(&mut entry, self.at)?;
            let [sector, sectors, flags, len] = [0, 1, 2, 3].map(|index| word(&entry, index));
            self.left -= 1;
            self.at += self.sector;
            if flags & MARK != 0 {
                let text =
                    entry.get(HEADER..HEADER + len as usize).context("a mark longer than its sector")?;
                let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
                return Ok(Some(String::from_utf8_lossy(text).into_owned()));
            }
            // What a discard leaves behind is anything at all, so nothing is done for one.
            if flags & DISCARD == 0 {
                self.copy(target, sector * self.sector, sectors * self.sector)?;
                self.at += sectors * self.sector;
            }
        }
        Ok(None)
    }

    fn copy(&self, target: &File, to: u64, len: u64) -> io::Result<()> {
        let mut data = vec![0; len as usize];
        self.file.read_exact_at(&mut data, self.at)?;
        target.write_all_at(&data, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_replayed_from_mark_to_mark() {
        let dir = crate::paths::scratch().unwrap();
        let (log, device) = (dir.path().join("log"), dir.path().join("device"));
        let mut bytes = Vec::new();
        let mut sector = |words: &[u64], text: &[u8]| {
            let mut sector: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            sector.extend(text);
            sector.resize(512, 0);
            bytes.extend(sector);
        };
        sector(&[MAGIC, 1, 5, 512], b"");
        sector(&[3, 1, 0, 0], b"");
        sector(&[u64::MAX; 64], b"");
        sector(&[0, 0, MARK, 3], b"one");
        // A discard has no data in the log.
        sector(&[0, 8, DISCARD, 0], b"");
        sector(&[4, 1, 2, 0], b"");
        sector(&[7; 64], b"");
        sector(&[0, 0, MARK, 3], b"two");
        std::fs::write(&log, bytes).unwrap();
        crate::sparse::create(&device, 4096).unwrap();
        let target = File::options().write(true).open(&device).unwrap();
        let mut log = Log::open(&log).unwrap();
        let first_of = |at: usize| std::fs::read(&device).unwrap()[at * 512];
        assert_eq!(log.replay(&target).unwrap().as_deref(), Some("one"));
        assert_eq!((first_of(3), first_of(4)), (0xff, 0));
        assert_eq!(log.replay(&target).unwrap().as_deref(), Some("two"));
        assert_eq!((first_of(3), first_of(4)), (0xff, 7));
        assert_eq!(log.replay(&target).unwrap(), None);
    }
}
