//! The ports: on `PORT` one listener per shard (SO_REUSEPORT), and the listener of `ADMIN_PORT`.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::UNSENT_BYTES_MAX;

/// Connections per listener that wait for an accept: a burst of clients when another pod ends. The kernel's own bound
/// (`net.core.somaxconn`, 4096 by default) also applies.
const BACKLOG: i32 = 4096;

/// How long a port may stay in use before it counts as taken, and how often it is tried again.
const IN_USE_WAIT: Duration = Duration::from_millis(500);
const IN_USE_RETRY: Duration = Duration::from_millis(20);

/// Why a port cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens there.
    #[error("port {port} ({setting}) is in use")]
    PortInUse {
        /// Port number.
        port: u16,
        /// The setting that names the port.
        setting: &'static str,
    },
    /// Another error of the kernel.
    #[error("cannot listen on {address}: {source}")]
    Refused {
        /// Requested address.
        address: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The pod's listeners, non-blocking.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// The clients' port; differs from the setting only if that is 0.
    pub(crate) port: u16,
    /// Listeners of `PORT`, one per shard.
    pub(crate) shards: Vec<TcpListener>,
    /// Listener of `ADMIN_PORT`.
    pub(crate) admin: Option<TcpListener>,
}

impl Listeners {
    /// Binds all listeners.
    ///
    /// # Errors
    /// If a port is in use, or the address is not this machine's.
    pub(crate) fn bind(host: IpAddr, port: u16, admin_port: Option<u16>, shards: u16) -> Result<Self, ListenError> {
        // With SO_REUSEPORT, the kernel would silently share another pod's port, so the port is tried without it first.
        let probe = listen_soon(SocketAddr::new(host, port), "PORT")?;
        let address =
            probe.local_addr().map_err(|source| ListenError::Refused { address: (host, port).into(), source })?;
        let admin = admin_port.map(|port| listen_soon(SocketAddr::new(host, port), "ADMIN_PORT")).transpose()?;
        drop(probe);
        let shards = (0..shards).map(|_| listen(address, "PORT", true)).collect::<Result<_, _>>()?;
        Ok(Self { port: address.port(), shards, admin })
    }
}

/// Listens on a port without sharing it. A killed process may still hold its port for a moment, because the kernel
/// closes an io_uring, and its listener, in the background. So a port in use is tried again for a while.
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
            // `::` accepts both families, whatever `net.ipv6.bindv6only` says.
            socket.set_only_v6(false)?;
        }
        // Needed if connections of an earlier process are in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        // Accepted sockets inherit both: a bound on unsent bytes, and TCP_NODELAY, since the gateway decides when a
        // frame is sent.
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
    fn an_accepted_socket_inherits_the_options_of_its_listener() {
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
    fn a_port_in_use_is_an_error_even_if_so_reuseport_would_hide_it() {
        let first = Listeners::bind(HERE, 0, None, 2).unwrap();
        let second = Listeners::bind(HERE, first.port, None, 1).unwrap_err();
        assert_eq!(second.to_string(), format!("port {} (PORT) is in use", first.port));
    }

    #[test]
    fn the_error_of_an_admin_port_in_use_has_its_number() {
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
