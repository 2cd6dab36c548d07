//! Chooses what the shards run on: io_uring or epoll. It owns the system calls that ask whether io_uring is allowed.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::machine;
use crate::config::Engine;

/// Locked memory that glommio asks of the limit before it makes a ring, in bytes.
const MEMLOCK_MIN: u64 = 512 * 1024;

/// `struct io_uring_params` is this long, in bytes, and has been since the first version.
const IO_URING_PARAMS_BYTES: usize = 120;

/// The operation of io_uring_register(2) that fails with `ENXIO` on a ring without buffers.
const IORING_UNREGISTER_BUFFERS: u32 = 1;

/// The kernel from which on a thread that waits in io_uring_enter(2) with a request in flight counts as waiting for I/O.
const WAITS_COUNT_AS_IO_FROM: (u32, u32) = (6, 5);

/// An engine, and why it was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    /// What the shards run on.
    pub(crate) engine: Engine,
    /// The reason for that choice.
    pub(crate) why: Why,
}

/// Why an engine was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// `ENGINE` names it.
    Set,
    /// io_uring is allowed, and its waits count as idle.
    Allowed,
    /// io_uring is not.
    Forbidden(IoUringForbidden),
    /// On this kernel an idle thread of io_uring counts as waiting for I/O.
    WaitsCountAsIo,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set => f.write_str("ENGINE is set"),
            Self::Allowed => f.write_str("io_uring is allowed"),
            Self::Forbidden(why) => why.fmt(f),
            Self::WaitsCountAsIo => f.write_str(
                "since Linux 6.5 a thread that waits in io_uring counts as waiting for I/O: an idle pod would look like a \
                 busy disk (iowait, /proc/pressure/io)",
            ),
        }
    }
}

/// Chooses an engine; `None` is `auto`.
///
/// # Errors
/// What forbids io_uring, if it was asked for.
pub(crate) fn choose(wanted: Option<Engine>) -> Result<Choice, IoUringForbidden> {
    let Some(engine) = wanted else { return Ok(choose_by(&kernel_release(), check_io_uring)) };
    if engine == Engine::IoUring {
        check_io_uring()?;
    }
    Ok(Choice { engine, why: Why::Set })
}

fn choose_by(release: &str, check: impl FnOnce() -> Result<(), IoUringForbidden>) -> Choice {
    // A kernel whose number can't be read is taken to be new.
    let (engine, why) = match kernel_version(release).filter(|version| *version < WAITS_COUNT_AS_IO_FROM) {
        None => (Engine::Epoll, Why::WaitsCountAsIo),
        Some(_) => match check() {
            Ok(()) => (Engine::IoUring, Why::Allowed),
            Err(why) => (Engine::Epoll, Why::Forbidden(why)),
        },
    };
    Choice { engine, why }
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}

/// The first two numbers of a release such as `6.1.0-18-amd64`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// What forbids io_uring, and how to allow it, in one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoUringForbidden {
    /// The sysctl, for all.
    #[error(
        "io_uring is forbidden by the sysctl kernel.io_uring_disabled = 2: allow it by `sysctl -w kernel.io_uring_disabled=0`"
    )]
    SysctlForAll,
    /// The sysctl, for those outside of a group.
    #[error(
        "io_uring is forbidden by the sysctl kernel.io_uring_disabled = 1 to processes outside of kernel.io_uring_group: \
         run as a member of that group, or `sysctl -w kernel.io_uring_disabled=0`"
    )]
    SysctlForOthers,
    /// A seccomp profile, most likely a container runtime's default.
    #[error(
        "io_uring is forbidden by a seccomp profile, as container runtimes' default ones do: allow io_uring_setup, \
         io_uring_enter and io_uring_register in it (deploy/ has one), or run with seccomp=unconfined"
    )]
    Seccomp,
    /// There is none, or a seccomp profile pretends so.
    #[error(
        "io_uring is not there: shardgate needs Linux 5.8 or newer and, in a container, a seccomp profile that allows \
         io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Absent,
    /// RLIMIT_MEMLOCK.
    #[error(
        "io_uring is forbidden by RLIMIT_MEMLOCK = {0} bytes, and takes 524288: `ulimit -l 512`, LimitMEMLOCK=512K in a \
         systemd unit, or --ulimit memlock=524288 of a container runtime"
    )]
    LockedMemory(u64),
    /// Something else, by its number.
    #[error("io_uring cannot be used: io_uring_setup fails with errno {0}")]
    Other(i32),
}

/// Asks for a ring, and uses it, as glommio will, which panics if there is none.
fn check_io_uring() -> Result<(), IoUringForbidden> {
    let memlock = machine::raise(libc::RLIMIT_MEMLOCK, MEMLOCK_MIN).map_or(u64::MAX, |limit| limit);
    if memlock < MEMLOCK_MIN {
        return Err(IoUringForbidden::LockedMemory(memlock));
    }
    let errno = match try_ring() {
        Ok(()) => return Ok(()),
        Err(error) => error.raw_os_error().unwrap_or(0),
    };
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    Err(why_forbidden(errno, sysctl.trim(), memlock))
}

/// Makes the three system calls of io_uring.
fn try_ring() -> io::Result<()> {
    let mut params = [0u64; IO_URING_PARAMS_BYTES / 8];
    // SAFETY: the kernel reads and writes one io_uring_params, whose size and alignment the array has.
    let ring = answer(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1u32, params.as_mut_ptr()) })?;
    let ring = libc::c_int::try_from(ring).expect("a descriptor is an int");
    // SAFETY: the descriptor was just made, and has no other owner.
    let ring = unsafe { OwnedFd::from_raw_fd(ring) };
    let no_memory = std::ptr::null::<libc::c_void>();
    // SAFETY: it submits nothing, waits for nothing, and reads no signal mask.
    answer(unsafe { libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), 0u32, 0u32, 0u32, no_memory, 0usize) })?;
    // SAFETY: the call takes no memory.
    let unregistered = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), IORING_UNREGISTER_BUFFERS, no_memory, 0u32)
    };
    match answer(unregistered) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        answer => answer.map(drop),
    }
}

fn answer(returned: libc::c_long) -> io::Result<libc::c_long> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

fn why_forbidden(errno: i32, sysctl: &str, memlock: u64) -> IoUringForbidden {
    match (errno, sysctl) {
        (libc::EPERM, "2") => IoUringForbidden::SysctlForAll,
        (libc::EPERM, "1") => IoUringForbidden::SysctlForOthers,
        (libc::EPERM | libc::EACCES, _) => IoUringForbidden::Seccomp,
        (libc::ENOSYS, _) => IoUringForbidden::Absent,
        (libc::ENOMEM, _) => IoUringForbidden::LockedMemory(memlock),
        (other, _) => IoUringForbidden::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_io_uring_where_it_is_allowed_and_its_waits_count_as_idle() {
        let choose = |release, allowed| choose_by(release, || allowed);
        let io_uring = Choice { engine: Engine::IoUring, why: Why::Allowed };
        let epoll = |why| Choice { engine: Engine::Epoll, why };
        for release in ["5.15.0-91-generic", "6.1.0-18-amd64", "6.4", "6.4-rc1"] {
            assert_eq!(choose(release, Ok(())), io_uring, "{release}");
            let forbidden = IoUringForbidden::Seccomp;
            assert_eq!(choose(release, Err(forbidden)), epoll(Why::Forbidden(forbidden)), "{release}");
        }
        for release in ["6.5.0", "6.18.44-fc-v657", "7.0", "10.1", "", "next"] {
            assert_eq!(choose(release, Ok(())), epoll(Why::WaitsCountAsIo), "{release}");
        }
    }

    #[test]
    fn an_engine_that_is_asked_for_is_taken_if_the_system_allows_it() {
        assert_eq!(choose(Some(Engine::Epoll)), Ok(Choice { engine: Engine::Epoll, why: Why::Set }));
        assert_eq!(
            choose(Some(Engine::IoUring)),
            check_io_uring().map(|()| Choice { engine: Engine::IoUring, why: Why::Set })
        );
    }

    #[test]
    fn what_forbids_io_uring_is_said_with_how_to_allow_it() {
        let why = |errno, sysctl| why_forbidden(errno, sysctl, 65_536);
        assert_eq!(why(libc::EPERM, "2"), IoUringForbidden::SysctlForAll);
        assert_eq!(why(libc::EPERM, "1"), IoUringForbidden::SysctlForOthers);
        assert_eq!(why(libc::EPERM, "0"), IoUringForbidden::Seccomp);
        assert_eq!(why(libc::EPERM, ""), IoUringForbidden::Seccomp, "a kernel without the sysctl");
        assert_eq!(why(libc::ENOSYS, "0"), IoUringForbidden::Absent);
        assert_eq!(why(libc::ENOMEM, "0"), IoUringForbidden::LockedMemory(65_536));
        assert_eq!(why(libc::EMFILE, "0"), IoUringForbidden::Other(libc::EMFILE));
        for errno in [libc::EPERM, libc::ENOSYS, libc::ENOMEM] {
            assert_eq!(why(errno, "0").to_string().lines().count(), 1);
        }
    }
}
