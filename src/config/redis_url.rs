//! `REDIS_URL`: where Redis is, by TCP, TLS, a Unix socket or its Sentinels, and who logs in.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

/// The port of a Sentinel whose URL names none.
const SENTINEL_PORT: u16 = 26379;

/// Where Redis is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RedisServers {
    /// At a host.
    Host(HostPort),
    /// At a socket of this machine.
    Unix(PathBuf),
    /// Where these Sentinels say that the primary of this name is.
    Sentinels(Vec<HostPort>, Box<str>),
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// A name or an address, without brackets.
    pub(crate) host: Box<str>,
    /// The port.
    pub(crate) port: u16,
}

/// What the URL says.
#[derive(Debug)]
pub(super) struct RedisUrl {
    pub(super) servers: RedisServers,
    pub(super) login: RedisConnectionInfo,
    pub(super) is_tls: bool,
}

impl Default for RedisUrl {
    /// Redis' own defaults.
    fn default() -> Self {
        let servers = RedisServers::Host(HostPort { host: "localhost".into(), port: 6379 });
        Self { servers, login: RedisConnectionInfo::default(), is_tls: false }
    }
}

/// Parses a URL; `None` if it is not valid.
pub(super) fn parse(url: &str) -> Option<RedisUrl> {
    // The crate ignores fragments. One is a mistake: a `#` in a password, or a wish for TLS without checks.
    let (scheme, rest) = url.split_once(':').filter(|_| !url.contains('#'))?;
    let (base, is_tls) = match scheme.strip_prefix("rediss").or_else(|| scheme.strip_prefix("valkeys")) {
        Some(base) => (base, true),
        None => (scheme.strip_prefix("redis").or_else(|| scheme.strip_prefix("valkey")).unwrap_or(scheme), false),
    };
    match base {
        "+sentinel" => sentinels(rest.strip_prefix("//")?, is_tls),
        "" => of_server(format!("redis:{rest}").into_connection_info().ok()?, is_tls),
        "unix" | "+unix" if !is_tls => of_server(format!("unix:{rest}").into_connection_info().ok()?, false),
        _ => None,
    }
}

fn of_server(info: ConnectionInfo, is_tls: bool) -> Option<RedisUrl> {
    let servers = match info.addr() {
        ConnectionAddr::Unix(path) => RedisServers::Unix(path.clone()),
        address => RedisServers::Host(host_port(address)?),
    };
    Some(RedisUrl { servers, login: info.redis_settings().clone(), is_tls })
}

fn host_port(address: &ConnectionAddr) -> Option<HostPort> {
    match address {
        ConnectionAddr::Tcp(host, port) => Some(HostPort { host: host.as_str().into(), port: *port }),
        _ => None,
    }
}

/// Parses `[user:password@]host[:port],…/primary[/db]`.
fn sentinels(rest: &str, is_tls: bool) -> Option<RedisUrl> {
    let (authority, path) = rest.split_once('/')?;
    let (login, hosts) = authority.rsplit_once('@').map_or(("", authority), |(login, hosts)| (login, hosts));
    let (primary, db) = path.split_once('/').unwrap_or((path, ""));
    let primary = percent_decode_str(primary).decode_utf8().ok().filter(|name| !name.is_empty())?;
    let mut of_all = Vec::new();
    let mut settings = RedisConnectionInfo::default();
    for host in hosts.split(',') {
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let port = if has_port { String::new() } else { format!(":{SENTINEL_PORT}") };
        // One server's URL: the crate checks the host, and decodes the login.
        let info = format!("redis://{login}@{host}{port}/{db}").into_connection_info().ok()?;
        of_all.push(host_port(info.addr())?);
        settings = info.redis_settings().clone();
    }
    Some(RedisUrl { servers: RedisServers::Sentinels(of_all, primary.into()), login: settings, is_tls })
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// For the log: without the login.
impl fmt::Display for RedisServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => host.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
            Self::Sentinels(hosts, primary) => {
                write!(f, "{primary} of the Sentinels ")?;
                for (number, host) in hosts.iter().enumerate() {
                    let separator = if number == 0 { "" } else { "," };
                    write!(f, "{separator}{host}")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> (String, bool, Option<String>, Option<String>, i64) {
        let RedisUrl { servers, login, is_tls } = parse(url).unwrap_or_else(|| panic!("{url}"));
        let text = |text: Option<&str>| text.map(str::to_owned);
        (servers.to_string(), is_tls, text(login.username()), text(login.password()), login.db())
    }

    #[test]
    fn each_scheme_gives_its_servers_and_its_login() {
        let (user, password) = (Some("gate".to_owned()), Some("p@ss/w:rd#".to_owned()));
        let login = "gate:p%40ss%2Fw%3Ard%23@";
        for (scheme, is_tls) in [("redis", false), ("rediss", true), ("valkey", false), ("valkeys", true)] {
            let expected = ("r:6379".to_owned(), is_tls, user.clone(), password.clone(), 3);
            assert_eq!(parsed(&format!("{scheme}://{login}r/3")), expected);
        }
        assert_eq!(parsed("redis://[::1]:7").0, "[::1]:7");
        assert_eq!(parsed("unix:///run/redis.sock").0, "/run/redis.sock");
        let unix = parsed("unix:/run/redis.sock?user=gate&pass=p%40ss%2Fw%3Ard%23&db=3");
        assert_eq!(unix, ("/run/redis.sock".to_owned(), false, user.clone(), password.clone(), 3));
        let sentinels = parsed(&format!("redis+sentinel://{login}a,b:7,[::1]/the%20one/3"));
        let servers = "the one of the Sentinels a:26379,b:7,[::1]:26379".to_owned();
        assert_eq!(sentinels, (servers, false, user, password, 3));
        assert!(parsed("rediss+sentinel://a/one").1);
    }

    #[test]
    fn a_wrong_url_is_refused() {
        let urls = [
            "",
            "r:6379",
            "http://r",
            "redis://",
            "redis://r:x",
            "redis://r/x",
            "redis://:p#w@r",
            "rediss://r#insecure",
            "rediss+unix:///run/redis.sock",
            "redis+sentinel://a",
            "redis+sentinel://a/",
            "redis+sentinel://a,/one",
            "redis+sentinel://a:x/one",
            "redis+sentinel://a/one/x",
            "redisss://r",
        ];
        for url in urls {
            assert!(parse(url).is_none(), "{url}");
        }
    }
}
