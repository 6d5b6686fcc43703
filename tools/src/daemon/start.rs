//! What the process needs of the system before anything else runs.

use std::path::Path;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use crate::{module, raw};

/// Loads modules, and sees to it that the process is neither killed nor stuck when memory is short: what it does is what
/// others wait for to write their memory out. What is not allowed is told and done without.
pub(super) fn prepare() {
    module::load("dm_mod", "/dev/mapper/control");
    module::load("ublk_drv", "/dev/ublk-control");
    if !Path::new("/dev/ublk-control").exists() {
        module::load("nbd", "/sys/module/nbd");
    }
    let told = |what: &str, result: std::io::Result<()>| {
        if let Err(error) = result {
            tracing::warn!(%error, "{what} is not allowed; trouble when memory is short");
        }
    };
    // Its own allocations must not wait for writing that waits for it. Threads that start later inherit this.
    told("being exempt from waiting for memory", raw::set_io_flusher());
    told("not being killed for memory", std::fs::write("/proc/self/oom_score_adj", "-1000"));
    told("locking memory", lock_memory());
}

fn lock_memory() -> std::io::Result<()> {
    // Counted against the limit by whoever has not the capability, which is given up later.
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
    Ok(mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)?)
}
