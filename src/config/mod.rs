//! The settings (PROTOCOL 6), parsed completely before a port is bound: flags beat environment beats file, and all
//! faults are reported at once. Owns how a setting is read; each module owns the meaning of its part.
//!
//! - `settings`: the table: names, values, defaults, help.
//! - `sources`: flags, environment and file, and which of them wins.
//! - `reader`: converts a text to a type, and words a fault.
//! - `parts`: builds the parts of the config, and checks relations between settings.
//! - `effective`: the settings in force, for operators.
//! - `typos`: environment variables that are most likely misspelt settings.
//! - `tokens`: secrets and key sets, and what a token's claims must hold.
//! - `redis_url`: where Redis is.
//! - `oidc`: from whom a pod gets tokens for brokers.
//! - `properties`: the file of librdkafka's properties; `certificates`: the certificates trusted for brokers.

mod certificates;
mod effective;
mod oidc;
mod parts;
mod properties;
mod reader;
mod redis_url;
mod settings;
mod sources;
mod tokens;
mod typos;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use effective::EffectiveSetting;
pub(crate) use oidc::OidcConfig;
pub(crate) use parts::{is_node_name, is_peer_url, is_public_url};
pub(crate) use properties::client_properties;
use reader::SettingsReader;
pub(crate) use redis_url::{HostPort, RedisServers};
pub use settings::help;
pub use sources::Sources;
pub(crate) use tokens::{KeySetSource, KeySetsConfig};

use crate::clock::UnixMs;
use crate::ids::NodeId;
use crate::protocol::admin_tokens::AdminTokens;
use crate::protocol::auth;
use crate::protocol::client_address::TrustedProxies;
use crate::protocol::head::origin::OriginPattern;
use crate::routing::table::RouteTable;
use crate::tls::Trust;

/// All settings, validated.
#[derive(Debug, Clone)]
pub struct Config {
    /// `HOST`.
    pub(crate) host: IpAddr,
    /// `PORT`.
    pub(crate) port: u16,
    /// `ADMIN_PORT`.
    pub(crate) admin_port: Option<u16>,
    /// `ADMIN_TOKEN`.
    pub(crate) admin_tokens: Option<AdminTokens>,
    /// `POD_NAME`, else `NODE_ID`, else generated.
    pub(crate) node: NodeId,
    /// `PUBLIC_URL`.
    pub(crate) public_url: Arc<str>,
    /// `PEER_URL`.
    pub(crate) peer_url: Option<Arc<str>>,
    /// Kafka connection and topics.
    pub(crate) kafka: KafkaConfig,
    /// `ROUTES_FILE`, read and parsed; else the built-in table.
    pub(crate) routes: RouteTable,
    /// Redis connection and lease.
    pub(crate) redis: RedisConfig,
    /// Token verification.
    pub(crate) auth: auth::AuthConfig,
    /// Where key sets come from.
    pub(crate) key_sets: KeySetsConfig,
    /// `ALLOWED_ORIGINS`; `None` stands for `*`.
    pub(crate) allowed_origins: Option<Vec<OriginPattern>>,
    /// `MAX_HEAD_BYTES`.
    pub(crate) head_bytes_max: usize,
    /// `TRUSTED_PROXIES`.
    pub(crate) trusted_proxies: TrustedProxies,
    /// `ENGINE`; none for `auto`.
    pub(crate) engine: Option<Engine>,
    /// Settings of the shards.
    pub shard: ShardConfig,
    /// Settings of admission.
    pub(crate) admission: AdmissionConfig,
    /// Times of the drain.
    pub(crate) drain: DrainConfig,
    /// `LOG`.
    pub log: tracing::Level,
    /// `LOG_FORMAT` is `json`.
    pub log_json: bool,
    /// The settings in force.
    pub(crate) settings: Arc<[EffectiveSetting]>,
    /// Warnings to log once the log is running.
    pub warnings: Vec<String>,
}

/// Settings of ingest.
#[derive(Clone)]
pub(crate) struct KafkaConfig {
    /// `KAFKA_BROKERS`.
    pub(crate) brokers: Box<str>,
    /// `KAFKA_CLIENT_ID`.
    pub(crate) client_id: Box<str>,
    /// `KAFKA_GROUP_ID`.
    pub(crate) group_id: Box<str>,
    /// `KAFKA_PROPERTIES_FILE`, parsed: librdkafka's properties, which override the other settings. They hold secrets
    /// and must not be logged.
    pub(crate) properties: Vec<(String, String)>,
    /// From whom to get tokens for brokers, if the properties ask for it.
    pub(crate) oidc: Option<OidcConfig>,
    /// `TOPIC_REFRESH_MS`.
    pub(crate) topic_refresh: Duration,
    /// `KAFKA_STALL_MS`.
    pub(crate) stall: Duration,
    /// `KAFKA_START_WAIT_MS`.
    pub(crate) start_wait: Duration,
    /// `MAX_EVENT_BYTES`.
    pub(crate) event_bytes_max: usize,
    /// `HISTORY_SECONDS`.
    pub(crate) history: Duration,
    /// Whether the brokers answer queries of a topic's settings. The demo's do not.
    pub(crate) has_topic_settings: bool,
}

/// The properties hold secrets: only their names print.
impl std::fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.properties.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("client_id", &self.client_id)
            .field("group_id", &self.group_id)
            .field("properties", &names)
            .finish_non_exhaustive()
    }
}

/// Settings of Redis.
#[derive(Clone)]
pub(crate) struct RedisConfig {
    /// Where Redis is: by `REDIS_URL`, or by `REDIS_HOST` and `REDIS_PORT`.
    pub(crate) servers: RedisServers,
    /// User, password and database. Holds a secret and must not be logged.
    pub(crate) login: redis::RedisConnectionInfo,
    /// The same for Sentinels.
    pub(crate) sentinel_login: redis::RedisConnectionInfo,
    /// Whom to trust, where Redis is reached by TLS.
    pub(crate) trust: Option<Trust>,
    /// `REDIS_KEY_PREFIX`.
    pub(crate) key_prefix: Box<str>,
    /// `LEASE_TTL_MS`.
    pub(crate) lease: Duration,
}

impl std::fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisConfig")
            .field("servers", &self.servers)
            .field("key_prefix", &self.key_prefix)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// What runs a shard's tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// glommio. The system must allow io_uring.
    IoUring,
    /// smol's executor, over tokio's epoll.
    Epoll,
}

impl Engine {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::IoUring, Self::Epoll];

    /// As `ENGINE` names it.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

/// Settings of a shard.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// `SHARDS`.
    pub shards: u16,
    /// `HISTORY_SECONDS`.
    pub history: Duration,
    /// `HISTORY_BYTES` of the pod; each shard has a share.
    pub history_bytes: usize,
    /// `MARKET_FLUSH_MS`.
    pub(crate) market_flush: Duration,
    /// `HEARTBEAT_INTERVAL`.
    pub heartbeat: Duration,
    /// `CONNECTION_TIMEOUT`.
    pub silence: Duration,
    /// `MAX_CONNECTIONS` of the pod.
    pub(crate) connections_max: u64,
    /// `ACCEPTS_PER_SECOND` of the pod.
    pub(crate) accepts_per_second: u32,
    /// `INBOUND_PER_SECOND` of a connection.
    pub(crate) inbound_per_second: u32,
    /// `MAX_MESSAGE_BYTES`.
    pub(crate) message_bytes_max: usize,
    /// `HANDSHAKE_TIMEOUT_MS`.
    pub(crate) handshake_timeout: Duration,
    /// `STALL_TIMEOUT_MS`.
    pub(crate) stall_timeout: Duration,
    /// `HANDOVER_PER_SECOND` of the pod.
    pub(crate) handover_per_second: u32,
    /// `PLACEMENT` is `any`.
    pub(crate) place_anywhere: bool,
}

impl ShardConfig {
    /// Connections of each shard where all that are allowed are open, at most a million.
    pub(crate) fn connections_expected(&self) -> usize {
        let each = self.connections_max / u64::from(self.shards.max(1));
        usize::try_from(each).unwrap_or(usize::MAX).min(1_000_000)
    }
}

/// Settings of admission.
#[derive(Debug, Clone)]
pub(crate) struct AdmissionConfig {
    /// Concurrent handshakes of a shard: what the limit of open files leaves beside the connections.
    pub(crate) handshakes_max: usize,
    /// `MAX_CONNECTIONS_PER_ADDRESS` of the pod.
    pub(crate) per_address_max: Option<u64>,
    /// `MAX_CONNECTIONS_PER_USER` of the pod.
    pub(crate) per_user_max: Option<u64>,
    /// `PROXY_PROTOCOL`: connections of trusted proxies begin with its header.
    pub(crate) proxy_protocol: bool,
    /// `MAX_CONNECTION_AGE_MS`.
    pub(crate) connection_age_max: Option<Duration>,
}

/// Times of the drain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DrainConfig {
    /// `DRAIN_DELAY_MS`.
    pub(crate) delay: Duration,
    /// `DRAIN_MS`.
    pub(crate) over: Duration,
}

/// Limits of the machine and the process, on which some defaults depend.
#[derive(Debug, Clone)]
pub struct MachineLimits {
    /// Cores that the process may use, by affinity and cgroup quota.
    pub cores: usize,
    /// Open files that the process may have, once it has raised its limit.
    pub descriptors: u64,
    /// The host's name.
    pub host_name: String,
    /// Whether an address belongs to this machine.
    pub can_listen_on: fn(IpAddr) -> bool,
    /// Start of the process, approximately.
    pub now: UnixMs,
}

/// A default that replaces a setting's own: for `demo`.
#[derive(Debug, Clone)]
pub struct Preset {
    /// The setting's name, such as `KAFKA_BROKERS`.
    pub(crate) name: &'static str,
    /// Its value, as for a flag.
    pub(crate) value: String,
}

/// Invalid settings: one fault per line, with the setting, its source, the value and the accepted values. Secrets are
/// not shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the settings can't be used:\n  {}", .0.join("\n  "))]
pub struct InvalidConfig(pub Vec<String>);

impl Config {
    /// This pod's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node.0
    }

    /// Reads all settings.
    ///
    /// # Errors
    /// All faults at once.
    pub fn from_sources(sources: &Sources<'_>) -> Result<Self, InvalidConfig> {
        let mut config = read(sources, |reader| parts::config(reader, sources.machine))?;
        let kafka = &mut config.kafka.properties;
        kafka.extend(certificates::of_the_system(kafka, sources.environment));
        config.warnings.extend(sources::unused(sources));
        config.warnings.extend(typos::warnings(sources.environment));
        Ok(config)
    }
}

/// Reads only `JWT_SECRET`, for `token`.
///
/// # Errors
/// All faults at once.
pub fn jwt_secret(sources: &Sources<'_>) -> Result<Box<[u8]>, InvalidConfig> {
    read(sources, tokens::signing_secret)
}

/// Reads only `ROUTES_FILE`, to reload it.
///
/// # Errors
/// All faults at once.
pub fn routes(sources: &Sources<'_>) -> Result<RouteTable, InvalidConfig> {
    read(sources, parts::routes)
}

fn read<T>(sources: &Sources<'_>, part: impl FnOnce(&mut SettingsReader<'_>) -> T) -> Result<T, InvalidConfig> {
    let mut faults = Vec::new();
    let given = sources::gather(sources, &mut faults);
    let mut reader = SettingsReader::new(given, sources.read_file, faults);
    let part = part(&mut reader);
    let faults = reader.into_faults();
    if faults.is_empty() { Ok(part) } else { Err(InvalidConfig(faults)) }
}

#[cfg(test)]
mod tests;
