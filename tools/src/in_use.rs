//! Who has a device or an image file.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a device that is in use is waited for: the kernel takes a moment to let go of what a process that was killed
/// had under way, and whoever comes after it should not trip over that.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Between two tries.
pub const PAUSE: Duration = Duration::from_millis(50);

/// Tries again for a while as long as somebody has what is asked for.
///
/// # Errors
/// What the last try said.
pub fn patiently<T>(mut take: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let start = Instant::now();
    loop {
        match take() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && start.elapsed() < PATIENCE => {
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// The loop device that shows a file, if there is one: whoever uses that uses the file.
#[must_use]
pub fn loop_of(file: &fs::Metadata) -> Option<PathBuf> {
    if !file.is_file() {
        return None;
    }
    let same = |path: &Path| {
        let text = fs::read_to_string(path.join("loop/backing_file")).ok()?;
        let other = fs::metadata(text.strip_suffix('\n').unwrap_or(&text)).ok()?;
        (other.dev() == file.dev() && other.ino() == file.ino()).then_some(())
    };
    let devices = fs::read_dir("/sys/block").ok()?.flatten();
    let mut loops = devices.filter(|entry| entry.file_name().to_string_lossy().starts_with("loop"));
    let found = loops.find(|entry| same(&entry.path()).is_some())?;
    Some(Path::new("/dev").join(found.file_name()))
}
