//! What some defaults go by, as the machine says it. An edge: it asks the system, and raises the descriptor limit.

use std::thread::available_parallelism;

use crate::clock::{Now, UnixMs};

/// What the machine and the process's limits allow.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Cores that the process may use: affinity and cgroup quota count.
    pub cores: usize,
    /// Open files that the process may have.
    pub descriptors: u64,
    /// The host's name.
    pub host_name: String,
    /// When the process was started, about.
    pub now: UnixMs,
}

impl Machine {
    /// Asks the system. Raises the process's limit of open files to what it is allowed, since a gateway wants as many
    /// sockets as it can have.
    #[must_use]
    pub fn read() -> Self {
        let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            cores: available_parallelism().map_or(1, usize::from),
            descriptors: raise_descriptor_limit(),
            host_name: Some(host_name.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or("localhost".into()),
            now: Now::read().unix,
        }
    }
}

/// What Linux gives a process where nobody set a limit.
const DESCRIPTORS_USUAL: u64 = 1024;

/// Raises the soft limit of open files to the hard one and gives the limit that then holds.
fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the call to fill.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return DESCRIPTORS_USUAL;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: `raised` is a valid rlimit, which the call only reads.
    let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0;
    if done { raised.rlim_cur } else { limit.rlim_cur }
}
