//! The edge below [`super::redis`]: opens connections by TCP, TLS or a Unix socket, and finds the server that has the
//! slots: the primary that a Sentinel names, or the node of a Redis Cluster.

use std::io;
use std::time::Duration;

use openssl::ssl::SslConnector;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisError, RedisResult};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::{HostPort, RedisConfig, RedisServers};
use crate::tls;

/// How Redis is reached.
pub(super) struct RedisLink {
    servers: RedisServers,
    login: RedisConnectionInfo,
    sentinel_login: RedisConnectionInfo,
    tls: Option<SslConnector>,
    has_hash_tag: bool,
    /// The Sentinel that is asked first. Another one gets its turn after each failure, since one that is cut off names
    /// a primary of the past.
    first: usize,
    /// The node of a Redis Cluster that has the slots.
    moved: Option<HostPort>,
    /// Reads and writes the connection for calls. It must end with it, also if Redis hangs.
    driver: JoinSet<()>,
    limit: Duration,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl RedisLink {
    /// A link whose attempts to connect take up to `limit`.
    ///
    /// # Errors
    /// If OpenSSL rejects the certificates.
    pub(super) fn new(config: &RedisConfig, limit: Duration) -> io::Result<Self> {
        Ok(Self {
            servers: config.servers.clone(),
            login: config.login.clone(),
            sentinel_login: config.sentinel_login.clone(),
            tls: config.trust.as_ref().map(tls::Trust::connector).transpose()?,
            has_hash_tag: has_hash_tag(&config.key_prefix),
            first: 0,
            moved: None,
            driver: JoinSet::new(),
            limit,
        })
    }

    /// Opens the connection for calls, and ends the one before.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn calls(&mut self) -> RedisResult<MultiplexedConnection> {
        let (connection, driver) = self.log_in(&self.login, self.open().await?).await?;
        self.driver = driver;
        Ok(connection)
    }

    /// Opens a connection for announcements.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn announcements(&self) -> RedisResult<PubSub> {
        PubSub::new(&self.login, self.open().await?).await
    }

    /// A call has failed: the next connection is made without what was known.
    pub(super) fn close(&mut self) {
        self.driver = JoinSet::new();
        self.moved = None;
        self.first = self.first.wrapping_add(1);
    }

    /// Follows an answer that names another node of a Redis Cluster. Returns false for any other error, and where the
    /// node is known already.
    ///
    /// # Errors
    /// If the prefix has no hash tag, so that each key may be on another node.
    pub(super) fn follow(&mut self, error: &RedisError) -> Result<bool, NoHashTag> {
        let Some((address, _)) = error.redirect_node() else { return Ok(false) };
        if !self.has_hash_tag {
            return Err(NoHashTag);
        }
        let Some(node) = self.node_at(address) else { return Ok(false) };
        let is_news = self.moved.as_ref() != Some(&node);
        self.moved = Some(node);
        Ok(is_news)
    }

    /// The node of an answer: `host:port`, also for IPv6, or `:port` for the host that answered.
    fn node_at(&self, address: &str) -> Option<HostPort> {
        let (host, port) = address.rsplit_once(':')?;
        let here = match &self.servers {
            RedisServers::Host(here) => Some(self.moved.as_ref().unwrap_or(here)),
            RedisServers::Unix(_) | RedisServers::Sentinels(..) => None,
        };
        let host = if host.is_empty() { here?.host.clone() } else { host.into() };
        Some(HostPort { host, port: port.parse().ok()? })
    }

    /// A connection, and the task that reads and writes it until it is dropped.
    async fn log_in(
        &self,
        login: &RedisConnectionInfo,
        stream: Box<dyn Stream>,
    ) -> RedisResult<(MultiplexedConnection, JoinSet<()>)> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(self.limit));
        let (connection, driver) = MultiplexedConnection::new_with_config(login, stream, config).await?;
        let mut task = JoinSet::new();
        task.spawn(driver);
        Ok((connection, task))
    }

    async fn open(&self) -> io::Result<Box<dyn Stream>> {
        if let Some(node) = &self.moved {
            return self.open_at(node).await;
        }
        match &self.servers {
            RedisServers::Host(host) => self.open_at(host).await,
            RedisServers::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            RedisServers::Sentinels(sentinels, primary) => self.open_at(&self.primary(sentinels, primary).await?).await,
        }
    }

    async fn open_at(&self, at: &HostPort) -> io::Result<Box<dyn Stream>> {
        let socket = connect(at).await?;
        socket.set_nodelay(true)?;
        match &self.tls {
            Some(tls) => Ok(Box::new(tls::connect(tls, &at.host, socket).await?)),
            None => Ok(Box::new(socket)),
        }
    }

    /// Asks the Sentinels one after another. Each has a part of the time, so that one that hangs does not use it up.
    async fn primary(&self, sentinels: &[HostPort], name: &str) -> io::Result<HostPort> {
        let parts = u32::try_from(sentinels.len() + 1).unwrap_or(u32::MAX);
        let mut faults = Vec::new();
        for turn in 0..sentinels.len() {
            let sentinel = &sentinels[self.first.wrapping_add(turn) % sentinels.len()];
            let fault = match timeout(self.limit / parts, self.ask(sentinel, name)).await {
                Ok(Ok(Some((host, port)))) => return Ok(HostPort { host: host.into(), port }),
                Ok(Ok(None)) => format!("it knows no primary named {name}"),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            faults.push(format!("Sentinel {sentinel}: {fault}"));
        }
        Err(io::Error::other(faults.join("; ")))
    }

    async fn ask(&self, sentinel: &HostPort, primary: &str) -> RedisResult<Option<(String, u16)>> {
        let stream = self.open_at(sentinel).await?;
        let (mut connection, _driver) = self.log_in(&self.sentinel_login, stream).await?;
        redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(primary).query_async(&mut connection).await
    }
}

/// A Redis Cluster may keep each key on another node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is a Redis Cluster: give REDIS_KEY_PREFIX a hash tag, such as {{websocket}}, so that one node has all keys"
)]
pub(super) struct NoHashTag;

/// Whether a Redis Cluster keeps all keys with this prefix on one node: it hashes what is in the first braces.
fn has_hash_tag(prefix: &str) -> bool {
    let tag = prefix.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    tag.is_some_and(|(tag, _)| !tag.is_empty())
}

/// Connects to the first of a host's addresses that accepts.
async fn connect(at: &HostPort) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    for address in lookup_host((&*at.host, at.port)).await? {
        attempts.spawn(TcpStream::connect(address));
    }
    let mut outcome = Err(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
    while let Some(attempt) = attempts.join_next().await {
        match attempt.map_err(io::Error::other)? {
            Ok(socket) => return Ok(socket),
            Err(error) => outcome = Err(error),
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_a_hash_tag_if_its_first_braces_hold_something() {
        let tagged = ["{websocket}", "a{b}c", "{{a}"];
        let untagged = ["websocket", "{}", "{}{a}", "a}b{", "{a"];
        assert!(tagged.into_iter().all(has_hash_tag) && !untagged.into_iter().any(has_hash_tag));
    }
    #[test]
    fn the_node_of_a_cluster_is_the_one_that_an_answer_names() {
        let servers = RedisServers::Host(HostPort { host: "r".into(), port: 1 });
        let login = RedisConnectionInfo::default();
        let config = RedisConfig {
            servers,
            login: login.clone(),
            sentinel_login: login,
            trust: None,
            key_prefix: "{a}".into(),
            lease: Duration::from_secs(10),
        };
        let link = RedisLink::new(&config, Duration::from_secs(1)).unwrap();
        let node = |address: &str| link.node_at(address).map(|node| node.to_string());
        let named = ["n:7", ":7", "::1:7", "n", "n:x"].map(node);
        assert_eq!(named, [Some("n:7".into()), Some("r:7".into()), Some("[::1]:7".into()), None, None]);
    }
}
