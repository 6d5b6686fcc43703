//! Files with holes: one golden cache is 40 GB long and holds 100 MB, so nothing here reads or writes a hole.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

/// The byte ranges of a file that hold data, in order; everything between them reads as zeros.
pub fn extents(file: &File) -> io::Result<Vec<Range<u64>>> {
    let len = file.metadata()?.len();
    let mut extents = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match lseek(file, at as i64, Whence::SeekData) {
            Ok(start) => start as u64,
            Err(Errno::ENXIO) => break, // nothing but a hole from here on
            Err(error) => return Err(error.into()),
        };
        let end = lseek(file, start as i64, Whence::SeekHole)? as u64;
        extents.push(start..end);
        at = end;
    }
    Ok(extents)
}

/// Copies a file with its holes and its length. The copy is writable whatever the original's mode is.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let copy = File::create(to)?;
    copy.set_len(source.metadata()?.len())?;
    let mut buffer = vec![0; 1 << 20];
    for extent in extents(&source)? {
        let mut at = extent.start;
        while at < extent.end {
            let want = buffer.len().min((extent.end - at) as usize);
            source.read_exact_at(&mut buffer[..want], at)?;
            copy.write_all_at(&buffer[..want], at)?;
            at += want as u64;
        }
    }
    Ok(())
}

/// Makes an empty file of `len` bytes, all of it a hole.
pub fn create(path: &Path, len: u64) -> io::Result<()> {
    File::create(path)?.set_len(len)
}

/// The SHA-256 of all of a stream, in hex, and its length in bytes.
pub fn sha256(mut stream: impl Read) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                len += n as u64;
            }
        }
    }
    Ok((hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), len))
}

/// A digest of a file's length, its extents and their bytes: tells whether anything wrote to it, without reading
/// its holes.
pub fn fingerprint(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let mut hash = Sha256::new();
    hash.update(file.metadata()?.len().to_le_bytes());
    let mut buffer = vec![0; 1 << 20];
    for extent in extents(&file)? {
        let mut at = extent.start;
        while at < extent.end {
            let want = buffer.len().min((extent.end - at) as usize);
            file.read_exact_at(&mut buffer[..want], at)?;
            // Zeros that are stored and zeros that are not are the same content.
            if buffer[..want].iter().any(|&byte| byte != 0) {
                hash.update(at.to_le_bytes());
                hash.update(&buffer[..want]);
            }
            at += want as u64;
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_keeps_holes_and_bytes() {
        let dir = crate::paths::scratch().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        create(&from, 20 << 30).unwrap();
        let file = File::options().write(true).open(&from).unwrap();
        file.write_all_at(b"head", 4096).unwrap();
        file.write_all_at(b"tail", (20 << 30) - 4).unwrap();
        copy(&from, &to).unwrap();
        let copied = File::open(&to).unwrap();
        assert_eq!(copied.metadata().unwrap().len(), 20 << 30);
        assert!(copied.metadata().unwrap().blocks() * 512 < 1 << 20, "the copy is not sparse");
        let mut bytes = [0; 4];
        copied.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"head");
        copied.read_exact_at(&mut bytes, (20 << 30) - 4).unwrap();
        assert_eq!(&bytes, b"tail");
        assert_eq!(fingerprint(&from).unwrap(), fingerprint(&to).unwrap());
        file.write_all_at(b"x", 1 << 30).unwrap();
        assert_ne!(fingerprint(&from).unwrap(), fingerprint(&to).unwrap());
    }
}
