//! Limits of the machine: descriptors, memory, the addresses that it has. Owns the system calls that query them.

use std::io;
use std::net::{IpAddr, TcpListener};

use tracing::{debug, warn};

use crate::clock::Now;
use crate::config::MachineLimits;
use crate::cores;

/// Linux' default limit of descriptors.
const DESCRIPTORS_USUAL: u64 = 1024;

/// Reads the limits that the settings' defaults depend on.
#[must_use]
pub fn read() -> MachineLimits {
    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    MachineLimits {
        cores: cores::usable_cores(),
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
pub(crate) fn raise_descriptor_limit() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_another_machine_cannot_be_listened_on() {
        for (host, can) in [("127.0.0.1", true), ("0.0.0.0", true), ("192.0.2.1", false), ("2001:db8::1", false)] {
            assert_eq!(can_listen_on(host.parse().unwrap()), can, "{host}");
        }
    }
}
