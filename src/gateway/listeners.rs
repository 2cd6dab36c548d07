//! The ports: one listener a shard on `PORT`, by SO_REUSEPORT, and `ADMIN_PORT`'s.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::UNSENT_BYTES_MAX;

/// Connections that wait for an accept, a listener: a burst of clients that a pod's end sends here. The kernel's own
/// bound (`net.core.somaxconn`, 4096 by default) is in force besides.
const BACKLOG: i32 = 4096;

/// How long a port may be in use before it counts as somebody else's, and how often that is looked at.
const IN_USE_WAIT: Duration = Duration::from_millis(500);
const IN_USE_RETRY: Duration = Duration::from_millis(20);

/// Why a port cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there.
    #[error("port {port} ({setting}) is in use")]
    PortInUse {
        /// Which.
        port: u16,
        /// The setting that asks for it.
        setting: &'static str,
    },
    /// Something else.
    #[error("cannot listen on {address}: {source}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// As the kernel says.
        source: io::Error,
    },
}

/// The pod's listeners, non-blocking.
#[derive(Debug)]
pub struct Listeners {
    /// The port of the clients: another than was asked for only where 0 was.
    pub port: u16,
    /// On `PORT`, one a shard.
    pub shards: Vec<TcpListener>,
    /// On `ADMIN_PORT`.
    pub admin: Option<TcpListener>,
}

impl Listeners {
    /// Binds them all.
    ///
    /// # Errors
    /// Where a port is in use, or the address is not this machine's.
    pub fn bind(host: IpAddr, port: u16, admin_port: Option<u16>, shards: u16) -> Result<Self, ListenError> {
        // With SO_REUSEPORT, another pod's port would be shared without a word: so it is tried without first.
        let probe = listen_soon(SocketAddr::new(host, port), "PORT")?;
        let address =
            probe.local_addr().map_err(|source| ListenError::Refused { address: (host, port).into(), source })?;
        let admin = admin_port.map(|port| listen_soon(SocketAddr::new(host, port), "ADMIN_PORT")).transpose()?;
        drop(probe);
        let shards = (0..shards).map(|_| listen(address, "PORT", true)).collect::<Result<_, _>>()?;
        Ok(Self { port: address.port(), shards, admin })
    }
}

/// Listens on a port that nobody shares. A process that was killed may have its port for a moment still: the kernel
/// takes an io_uring down in the background, and its listener with it. So a port in use is tried again, for as long.
fn listen_soon(address: SocketAddr, setting: &'static str) -> Result<TcpListener, ListenError> {
    let start = Instant::now();
    loop {
        match listen(address, setting, false) {
            Err(ListenError::PortInUse { .. }) if start.elapsed() < IN_USE_WAIT => thread::sleep(IN_USE_RETRY),
            outcome => return outcome,
        }
    }
}

fn listen(address: SocketAddr, setting: &'static str, shared: bool) -> Result<TcpListener, ListenError> {
    let try_listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            // `::` is both families, whatever net.ipv6.bindv6only says.
            socket.set_only_v6(false)?;
        }
        // For connections of an earlier process that are in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        // The sockets that it accepts have both from here: a bound on what waits unsent, and that frames leave when
        // they are due, for to wait for more is not the kernel's to decide.
        socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    try_listen().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::PortInUse { port: address.port(), setting },
        _ => ListenError::Refused { address, source },
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn each_shard_has_a_listener_of_the_same_port() {
        let listeners = Listeners::bind(HERE, 0, Some(0), 3).unwrap();
        assert_ne!(listeners.port, 0);
        let ports = listeners.shards.iter().map(|listener| listener.local_addr().unwrap().port());
        assert_eq!(ports.collect::<Vec<_>>(), [listeners.port; 3]);
        assert!(listeners.admin.is_some());
    }

    #[test]
    fn an_accepted_socket_has_what_its_listener_was_given() {
        let listeners = Listeners::bind(HERE, 0, None, 1).unwrap();
        let _client = TcpStream::connect((HERE, listeners.port)).unwrap();
        let accepted = loop {
            match listeners.shards[0].accept() {
                Ok((accepted, _)) => break Socket::from(accepted),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        };
        assert!(accepted.tcp_nodelay().unwrap());
        assert_eq!(accepted.tcp_notsent_lowat().unwrap(), UNSENT_BYTES_MAX);
    }

    #[test]
    fn a_port_in_use_is_told_also_where_so_reuseport_would_hide_it() {
        let first = Listeners::bind(HERE, 0, None, 2).unwrap();
        let second = Listeners::bind(HERE, first.port, None, 1).unwrap_err();
        assert_eq!(second.to_string(), format!("port {} (PORT) is in use", first.port));
    }

    #[test]
    fn an_admin_port_in_use_is_told_by_its_number() {
        let other = TcpListener::bind((HERE, 0)).unwrap();
        let port = other.local_addr().unwrap().port();
        let refused = Listeners::bind(HERE, 0, Some(port), 1).unwrap_err();
        assert_eq!(refused.to_string(), format!("port {port} (ADMIN_PORT) is in use"));
        assert!(matches!(Listeners::bind(HERE, port, Some(port), 1), Err(ListenError::PortInUse { .. })));
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let elsewhere = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        assert!(matches!(Listeners::bind(elsewhere, 0, None, 1), Err(ListenError::Refused { .. })));
    }
}
