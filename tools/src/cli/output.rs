//! Files that programs write, by one rule.
//!
//! What is written is whole or not there: it goes to a file beside the one that was named, which takes its place at the
//! end. A link is followed, and stays one. A file that was there keeps its mode and owner. A block device is never
//! replaced, and none of the devices that are read is written. `-` is standard output, where a program can write from
//! front to back.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What an output is.
pub enum Output {
    /// A file that is made whole.
    File(Partial),
    /// A pipe, a terminal or the like: it takes bytes from front to back.
    Stream(File),
}

/// A file that takes its name when it is whole.
pub struct Partial {
    file: File,
    partial: PathBuf,
    target: PathBuf,
}

impl Output {
    /// Opens what `path` names; `reads` are the devices that are read.
    pub fn create(path: &Path, reads: &[PathBuf]) -> Result<Self> {
        let name = || path.display().to_string();
        let target = resolve(path).with_context(name)?;
        let old = match fs::metadata(&target) {
            Ok(meta) => Some(meta),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(name),
        };
        if let Some(meta) = &old {
            if meta.file_type().is_block_device() {
                bail!(
                    "{}: is a block device; use export's `-o -`, or write a file and copy that to the device",
                    name()
                );
            }
            for device in reads {
                let other = fs::metadata(device).with_context(|| device.display().to_string())?;
                if (other.dev(), other.ino()) == (meta.dev(), meta.ino()) {
                    bail!("{}: is one of the devices to read", name());
                }
            }
            if !meta.is_file() {
                let file = OpenOptions::new().write(true).open(&target).with_context(name)?;
                return Ok(Self::Stream(file));
            }
        }
        let mut partial = target.as_os_str().to_owned();
        partial.push(format!(".{}.partial", std::process::id()));
        let partial = PathBuf::from(partial);
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).open(&partial).with_context(name)?;
        let made = Partial { file, partial, target };
        if let Some(meta) = old {
            made.file.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777)).with_context(name)?;
            // Whoever may not give files away keeps what is its own.
            let _ = std::os::unix::fs::fchown(&made.file, Some(meta.uid()), Some(meta.gid()));
        }
        Ok(Self::File(made))
    }
}

impl Partial {
    /// The file.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }
    /// Gives the file its name, durably.
    pub fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.partial, &self.target)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // It is not there any more when it was finished.
        let _ = fs::remove_file(&self.partial);
    }
}

/// What a path leads to in the end, whether that exists or not.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(next) => {
                let next = path.parent().unwrap_or(Path::new("")).join(next);
                path = next;
            }
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many links"))
}
