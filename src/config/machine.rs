//! What some defaults go by, as the machine says it. An edge: it asks the system.

use std::thread::available_parallelism;

use crate::clock::{Now, UnixMs};

/// What the machine and the process's limits allow.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Cores that the process may use: affinity and cgroup quota count.
    pub cores: usize,
    /// Open files that the process may have, once it has raised its limit.
    pub descriptors: u64,
    /// The host's name.
    pub host_name: String,
    /// When the process was started, about.
    pub now: UnixMs,
}

impl Machine {
    /// Asks the system.
    #[must_use]
    pub fn read() -> Self {
        let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            cores: available_parallelism().map_or(1, usize::from),
            descriptors: descriptors_max(),
            host_name: Some(host_name.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or("localhost".into()),
            now: Now::read().unix,
        }
    }
}

/// What Linux gives a process where nobody set a limit.
const DESCRIPTORS_USUAL: u64 = 1024;

/// The hard limit of open files: the gateway raises the soft one to it.
fn descriptors_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the call to fill.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    if known { limit.rlim_max } else { DESCRIPTORS_USUAL }
}
