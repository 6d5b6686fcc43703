//! Files that programs write, by one rule.
//!
//! What is written is whole or not there: it goes to a file without a name, or beside the one that was named where the
//! file system knows no such files, and takes its name at the end. A link is followed, and stays one. A file that was
//! there keeps its mode and owner, and is replaced, unless it has a bcache device. A block device is never replaced, and
//! none of the devices that are read is written. `-` is standard output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bcache_engine::fsck::image::{MARK, MARK_AT};
use bcache_format::superblock::{RawSuperblock, SB_BYTES, SB_OFFSET};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;

use super::Out;

/// What an output is.
pub(super) enum Output<'o, 'a> {
    /// A file that is made whole.
    File(Partial),
    /// A pipe, a terminal or the like: it takes bytes from front to back.
    Stream(File),
    /// Standard output.
    Standard(&'o mut Out<'a>),
}

/// A file that takes its name when it is whole.
pub(super) struct Partial {
    file: File,
    /// Its name until then, if it has one.
    partial: Option<PathBuf>,
    target: PathBuf,
}

/// Who may read what is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    /// Whoever the umask lets.
    All,
    /// Its owner.
    Owner,
}

impl<'o, 'a> Output<'o, 'a> {
    /// Opens what `path` names; `reads` are the files and devices that are read.
    pub(super) fn create(
        path: &Path,
        reads: &[PathBuf],
        readers: Readers,
        out: &'o mut Out<'a>,
    ) -> Result<Self> {
        if path == Path::new("-") {
            if out.get_ref().is_terminal() {
                bail!("standard output is a terminal; name a file");
            }
            if out.get_ref().is_closed() {
                bail!("standard output is closed");
            }
            out.get_mut().takes_data(true);
            return Ok(Self::Standard(out));
        }
        let name = || path.display().to_string();
        let old = match fs::metadata(path) {
            Ok(meta) => Some(meta),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(name),
        };
        if let Some(meta) = &old {
            may_be_written(path, meta, reads)?;
            if !meta.is_file() {
                let file = OpenOptions::new().write(true).open(path).with_context(name)?;
                return Ok(Self::Stream(file));
            }
        }
        let target = resolve(path).with_context(name)?;
        let made = Partial::new(target, readers).with_context(name)?;
        if let Some(meta) = old {
            made.file.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777)).with_context(name)?;
            // Whoever may not give files away keeps what is its own.
            let _ = std::os::unix::fs::fchown(&made.file, Some(meta.uid()), Some(meta.gid()));
        }
        Ok(Self::File(made))
    }

    /// Writes all of `bytes`, as all of the output.
    pub(super) fn write_whole(self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(partial) => {
                partial.file.write_all_at(bytes, 0)?;
                partial.finish()
            }
            Self::Stream(mut file) => file.write_all(bytes),
            Self::Standard(out) => {
                out.write_all(bytes)?;
                finish_standard(out)
            }
        }
    }
}

/// Sees to it that all that was written to standard output has arrived.
pub(super) fn finish_standard(out: &mut Out<'_>) -> io::Result<()> {
    out.flush()?;
    if out.get_ref().is_gone() {
        Err(io::Error::other("its reader went away before the end"))
    } else {
        Ok(())
    }
}

/// Refuses what must not be overwritten.
fn may_be_written(path: &Path, meta: &fs::Metadata, reads: &[PathBuf]) -> Result<()> {
    let name = path.display();
    if meta.file_type().is_block_device() {
        bail!("{name}: is a block device; use `-o -`, or write a file and copy that to the device");
    }
    for device in reads {
        let other = fs::metadata(device).with_context(|| device.display().to_string())?;
        if (other.dev(), other.ino()) == (meta.dev(), meta.ino()) {
            bail!("{name}: is one of the devices to read");
        }
    }
    if let Some(device) = crate::in_use::loop_of(meta) {
        bail!("{name}: in use, {} shows it", device.display());
    }
    if meta.is_file() && has_bcache(path) {
        bail!("{name}: has a bcache device; remove it first if it is of no use any more");
    }
    Ok(())
}

/// Whether a file is a cache or a backing device. One that was made of a metadata image is none.
fn has_bcache(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let (mut block, mut mark) = (vec![0; SB_BYTES], [0; MARK.len()]);
    let read =
        file.read_exact_at(&mut block, SB_OFFSET).and_then(|()| file.read_exact_at(&mut mark, MARK_AT));
    read.is_ok() && mark != MARK && RawSuperblock::read(&block).is_some_and(|raw| raw.has_magic())
}

impl Partial {
    fn new(target: PathBuf, readers: Readers) -> io::Result<Self> {
        let mode = if readers == Readers::Owner { 0o600 } else { 0o666 };
        let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(mode);
        // Nothing stays of such a file, whatever ends the program. To be linked later it must not be O_EXCL.
        let unnamed = options.clone().custom_flags(OFlag::O_TMPFILE.bits()).open(dir);
        if let Ok(file) = unnamed
            && Path::new("/proc/self/fd").is_dir()
        {
            return Ok(Self { file, partial: None, target });
        }
        let partial = beside(&target);
        let file = options.create_new(true).open(&partial)?;
        Ok(Self { file, partial: Some(partial), target })
    }
    /// The file.
    #[must_use]
    pub(super) const fn file(&self) -> &File {
        &self.file
    }
    /// Gives the file its name, durably.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if self.partial.is_none() {
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let named = beside(&self.target);
            linkat(AT_FDCWD, own.as_str(), AT_FDCWD, &named, AtFlags::AT_SYMLINK_FOLLOW)?;
            self.partial = Some(named);
        }
        if let Some(partial) = &self.partial {
            fs::rename(partial, &self.target)?;
            self.partial = None;
        }
        let dir = self.target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Not every file system can do that of a directory.
        let _ = File::open(dir).and_then(|dir| dir.sync_all());
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            let _ = fs::remove_file(partial);
        }
    }
}

fn beside(target: &Path) -> PathBuf {
    let mut partial = target.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    PathBuf::from(partial)
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
