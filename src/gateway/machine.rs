//! Limits of the machine: descriptors, cores. Owns the system calls that query them.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::thread::available_parallelism;

use tracing::{debug, warn};

use crate::clock::Now;
use crate::config::MachineLimits;

/// Linux' default limit of descriptors.
const DESCRIPTORS_USUAL: u64 = 1024;

/// Reads the limits that the settings' defaults depend on.
#[must_use]
pub fn read() -> MachineLimits {
    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    MachineLimits {
        cores: usable_cores(),
        descriptors: limit_of(libc::RLIMIT_NOFILE).map_or(DESCRIPTORS_USUAL, |limit| limit.rlim_max),
        host_name: Some(host_name.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or("localhost".into()),
        can_listen_on,
        now: Now::read().unix,
    }
}

/// Whether an address belongs to this machine. Any other failure shows when the ports are bound.
fn can_listen_on(host: IpAddr) -> bool {
    match TcpListener::bind((host, 0)) {
        Ok(_) => true,
        Err(error) => !matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)),
    }
}

/// Raises the soft limit of open descriptors to the hard limit.
pub fn raise_descriptor_limit() {
    match raise(libc::RLIMIT_NOFILE, u64::MAX) {
        Ok(limit) => debug!(limit, "descriptor limit"),
        Err(error) => warn!(%error, "descriptor limit not raised"),
    }
}

/// Raises a soft limit to `wanted`, or to the hard limit if that is lower; returns the soft limit now in force.
pub(super) fn raise(resource: libc::__rlimit_resource_t, wanted: u64) -> io::Result<u64> {
    let mut limit = limit_of(resource)?;
    let wanted = wanted.min(limit.rlim_max);
    if limit.rlim_cur < wanted {
        limit.rlim_cur = wanted;
        // SAFETY: the kernel reads one rlimit.
        if unsafe { libc::setrlimit(resource, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

fn limit_of(resource: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit.
    match unsafe { libc::getrlimit(resource, &raw mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The core that each thread is pinned to; `None` leaves it to the scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores {
    /// Core of the ingest thread.
    pub ingest: Option<usize>,
    /// Cores of the shards, by index.
    pub shards: Vec<Option<usize>>,
}

impl Cores {
    /// Assigns the cores that the process may use.
    #[must_use]
    pub fn share(shards: u16) -> Self {
        let allowed = allowed_cores();
        Self::share_of(&allowed, usable_cores(), usize::from(shards))
    }

    /// Ingest gets the first core and the shards the others, round-robin if there are too few. Nothing is pinned if the
    /// process has a share of more cores than threads (a cgroup quota, few shards on a large machine): all pods of the
    /// machine would share the same few cores.
    fn share_of(allowed: &[usize], usable: usize, shards: usize) -> Self {
        if allowed.is_empty() || usable < allowed.len() || shards + 1 < allowed.len() {
            return Self { ingest: None, shards: vec![None; shards] };
        }
        let in_turns = allowed.iter().copied().cycle().skip(1);
        Self { ingest: allowed.first().copied(), shards: in_turns.take(shards).map(Some).collect() }
    }
}

/// Number of cores that the process may use, by its affinity and its cgroup's quota.
fn usable_cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Cores in the process' affinity, in order.
fn allowed_cores() -> Vec<usize> {
    // SAFETY: a cpu_set_t is plain bits, for which zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the given size.
    let got = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if got != 0 {
        return Vec::new();
    }
    let count = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    // SAFETY: every number below CPU_SETSIZE lies in the set.
    (0..count).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(allowed: &[usize], usable: usize, shards: usize) -> (Option<usize>, Vec<Option<usize>>) {
        let Cores { ingest, shards } = Cores::share_of(allowed, usable, shards);
        (ingest, shards)
    }

    #[test]
    fn ingest_has_the_first_core_and_the_shards_have_the_others() {
        assert_eq!(share(&[2, 3, 6, 7], 4, 3), (Some(2), vec![Some(3), Some(6), Some(7)]));
        assert_eq!(share(&[0, 1], 2, 1), (Some(0), vec![Some(1)]));
    }

    #[test]
    fn too_few_cores_are_shared_round_robin() {
        assert_eq!(share(&[0], 1, 1), (Some(0), vec![Some(0)]));
        assert_eq!(share(&[0, 1], 2, 3), (Some(0), vec![Some(1), Some(0), Some(1)]));
    }

    #[test]
    fn a_pod_with_a_part_of_the_machine_is_not_pinned() {
        assert_eq!(share(&[0, 1, 2, 3], 2, 1), (None, vec![None]), "a quota of two cores");
        assert_eq!(share(&[0, 1, 2, 3], 4, 1), (None, vec![None]), "one shard where three would fit");
        assert_eq!(share(&[], 1, 2), (None, vec![None, None]), "an unknown affinity");
    }

    #[test]
    fn an_address_of_another_machine_cannot_be_listened_on() {
        for (host, can) in [("127.0.0.1", true), ("0.0.0.0", true), ("192.0.2.1", false), ("2001:db8::1", false)] {
            assert_eq!(can_listen_on(host.parse().unwrap()), can, "{host}");
        }
    }

    #[test]
    fn this_process_may_use_at_least_one_core() {
        assert!(!allowed_cores().is_empty());
    }
}
