//! Giving up what the process does not need once it is set up.
//!
//! It stays root, but without root's capabilities: [`KEPT`] is what device-mapper and the ublk driver ask for. A system
//! call outside [`allowed`] ends the process. What it meets from then on is devices, whose content nobody vouches for, and
//! lines on a socket that only root can reach.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use caps::{CapSet, Capability, CapsHashSet};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Capabilities that are kept: the second because a disk's node may belong to somebody else than root.
const KEPT: [Capability; 2] = [Capability::CAP_SYS_ADMIN, Capability::CAP_DAC_OVERRIDE];

/// Kinds of `ioctl` requests, the second byte of their numbers: block devices, device-mapper, NBD.
const IOCTLS: [u64; 3] = [0x12, 0xfd, 0xab];

/// Gives up everything else, for all threads and for good.
///
/// # Errors
/// The kernel refuses. The process must not go on then.
pub(super) fn confine() -> Result<()> {
    let kept: CapsHashSet = KEPT.into_iter().collect();
    for capability in caps::all().into_iter().filter(|capability| !kept.contains(capability)) {
        // Kernels do not know all that are known here.
        if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, capability).context("bounding set of capabilities")?;
        }
    }
    let held = caps::read(None, CapSet::Permitted).context("capabilities")?;
    let kept: CapsHashSet = kept.intersection(&held).copied().collect();
    caps::clear(None, CapSet::Inheritable).context("inheritable capabilities")?;
    caps::set(None, CapSet::Effective, &kept).context("effective capabilities")?;
    caps::set(None, CapSet::Permitted, &kept).context("permitted capabilities")?;
    nix::sys::prctl::set_no_new_privs().context("no_new_privs")?;
    let program = program().context("the filter of system calls")?;
    seccompiler::apply_filter_all_threads(&program).context("the filter of system calls")
}

fn program() -> Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        allowed().into_iter().map(|call| (call, Vec::new())).collect();
    let ioctl = |compare, value| {
        SeccompCondition::new(1, SeccompCmpArgLen::Dword, compare, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let kinds = IOCTLS.into_iter().map(|kind| ioctl(SeccompCmpOp::MaskedEq(0xff00), kind << 8));
    // The standard library makes sockets block, or not, by this one.
    let all = kinds.chain([ioctl(SeccompCmpOp::Eq, libc::FIONBIO)]);
    rules.insert(libc::SYS_ioctl, all.collect::<Result<Vec<_>, _>>()?);
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    Ok(filter.try_into()?)
}

/// System calls that the process makes once it is set up, those of the C library and of panics included.
fn allowed() -> Vec<i64> {
    let mut calls = vec![
        // Devices and files.
        libc::SYS_openat,
        libc::SYS_close,
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_preadv,
        libc::SYS_pwritev,
        libc::SYS_preadv2,
        libc::SYS_pwritev2,
        libc::SYS_lseek,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_fallocate,
        libc::SYS_ftruncate,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_readlinkat,
        libc::SYS_getdents64,
        libc::SYS_unlinkat,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_symlinkat,
        libc::SYS_mknodat,
        libc::SYS_fcntl,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_flock,
        libc::SYS_getcwd,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        // The control socket, systemd's socket, netlink.
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_accept4,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_shutdown,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_getsockname,
        // udev cookies.
        libc::SYS_semget,
        libc::SYS_semctl,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        // Threads, memory, time, signals.
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_prctl,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_geteuid,
        libc::SYS_getuid,
        libc::SYS_tgkill,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_getrandom,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        libc::SYS_eventfd2,
        libc::SYS_signalfd4,
        libc::SYS_ppoll,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
    ];
    // Calls that newer machines only have in their more general form.
    #[cfg(target_arch = "x86_64")]
    calls.extend([
        libc::SYS_open,
        libc::SYS_stat,
        libc::SYS_lstat,
        libc::SYS_poll,
        libc::SYS_epoll_create,
        libc::SYS_epoll_wait,
        libc::SYS_eventfd,
        libc::SYS_readlink,
        libc::SYS_unlink,
        libc::SYS_rename,
        libc::SYS_symlink,
        libc::SYS_mknod,
        libc::SYS_access,
        libc::SYS_arch_prctl,
        libc::SYS_time,
        libc::SYS_gettimeofday,
    ]);
    calls
}

/// Confines the process, then makes a call that is not allowed: shows whether that ends the process. It returns only if
/// it does not.
///
/// # Errors
/// The process could not be confined.
pub fn try_forbidden() -> Result<()> {
    confine()?;
    // What is not allowed here does no harm where it is.
    nix::unistd::chroot("/").context("chroot was not allowed, but did not end the process")?;
    anyhow::bail!("chroot worked")
}
