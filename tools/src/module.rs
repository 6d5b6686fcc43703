//! Kernel modules.

use std::path::Path;
use std::process::Command;

/// Loads a module unless `file`, which comes with it, is there already. What cannot be loaded is missed by whoever needs
/// it, who says so.
pub fn load(module: &str, file: &str) {
    if Path::new(file).exists() {
        return;
    }
    // udev gives programs no PATH.
    let program = ["/usr/sbin/modprobe", "/sbin/modprobe"].into_iter().find(|path| Path::new(path).exists());
    let done = Command::new(program.unwrap_or("modprobe")).arg("-q").arg(module).status();
    if !done.as_ref().is_ok_and(std::process::ExitStatus::success) {
        tracing::info!(module, ?done, "the module was not loaded");
    }
}
