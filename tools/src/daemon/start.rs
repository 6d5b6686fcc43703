//! What the process needs of the system before anything else runs.

use std::process::Command;

/// Loads modules, and sees to it that the process is neither killed nor stuck when memory is short: its memory is what
/// others need to write theirs out. What is not allowed is told and done without.
pub fn prepare() {
    for (path, module) in [("/dev/ublk-control", "ublk_drv"), ("/dev/mapper/control", "dm_mod")] {
        if std::fs::metadata(path).is_err() {
            let done = Command::new("modprobe").arg(module).status();
            if !done.as_ref().is_ok_and(std::process::ExitStatus::success) {
                tracing::warn!(module, ?done, "the module was not loaded");
            }
        }
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::info!(%error, "the process may be killed when memory is short");
    }
}
