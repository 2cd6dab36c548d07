//! Builds the parts of the config from the settings, and checks relations between settings.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use redis::RedisConnectionInfo;

use super::reader::{SettingsReader, plain_text};
use super::redis_url::{self, RedisUrl};
use super::settings::{self as s, Setting};
use super::{
    AdmissionConfig, Config, DrainConfig, Engine, HostPort, KafkaConfig, MachineLimits, RedisConfig, RedisServers,
    ShardConfig, effective, oidc, properties, tokens,
};
use crate::ids::NodeId;
use crate::limits::{
    EVENT_OVERHEAD_BYTES_MAX, GROWTH_NOTICED_MAX, HANDSHAKES_MAX, NODE_BYTES_MAX, PUBLIC_URL_BYTES_MAX,
};
use crate::protocol::admin_tokens::AdminTokens;
use crate::protocol::client_address::TrustedProxies;
use crate::protocol::head::origin::OriginPattern;
use crate::routing::table::RouteTable;

/// Descriptors reserved for brokers, Redis, rings, listeners and operators.
pub(super) const DESCRIPTORS_RESERVED: u64 = 512;

/// At least one in this many of the other descriptors is for handshakes.
const HANDSHAKES_PART: u64 = 8;

pub(super) fn config(reader: &mut SettingsReader<'_>, machine: &MachineLimits) -> Config {
    let port = reader.count(&s::PORT);
    let host = reader.parsed(&s::HOST, |text| text.parse().ok().filter(|host| (machine.can_listen_on)(*host)));
    let host = host.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let log = reader.word(&s::LOG).parse().unwrap_or(tracing::Level::INFO);
    let shard = shard(reader, machine);
    let auth = tokens::auth(reader);
    let mut config = Config {
        host,
        port,
        admin_port: reader.number(&s::ADMIN_PORT).and_then(|port| u16::try_from(port).ok()),
        admin_tokens: reader.parsed(&s::ADMIN_TOKEN, AdminTokens::parse),
        node: node(reader, machine),
        public_url: public_url(reader, machine, port),
        peer_url: reader.parsed(&s::PEER_URL, |text| is_peer_url(text).then(|| text.into())),
        kafka: kafka(reader),
        routes: routes(reader),
        redis: redis(reader),
        key_sets: tokens::key_sets(reader, &auth),
        auth,
        allowed_origins: reader.list(&s::ALLOWED_ORIGINS, OriginPattern::parse_list).unwrap_or_default(),
        head_bytes_max: reader.count(&s::MAX_HEAD_BYTES),
        trusted_proxies: reader.list(&s::TRUSTED_PROXIES, TrustedProxies::parse_list).unwrap_or_default(),
        admission: door(reader, machine, &shard),
        engine: engine(&reader.word(&s::ENGINE)),
        shard,
        drain: DrainConfig { delay: reader.millis(&s::DRAIN_DELAY_MS), over: reader.millis(&s::DRAIN_MS) },
        log,
        log_json: reader.word(&s::LOG_FORMAT) == "json",
        settings: Arc::default(),
        warnings: Vec::new(),
    };
    relations(reader, &config);
    config.settings = effective::settings(reader, &config).into();
    config.warnings = warnings(reader, &config, machine);
    config
}

/// `auto` is none of them.
fn engine(name: &str) -> Option<Engine> {
    Engine::ALL.into_iter().find(|engine| engine.name() == name)
}

pub(super) fn routes(reader: &mut SettingsReader<'_>) -> RouteTable {
    let given = reader.file(&s::ROUTES_FILE, |text| RouteTable::parse(text).map_err(|faults| faults.0));
    given.unwrap_or_else(RouteTable::built_in)
}

fn node(reader: &mut SettingsReader<'_>, machine: &MachineLimits) -> NodeId {
    let name = |text: &str| plain_text(text).filter(|name| is_node_name(name));
    let pod_name = reader.parsed(&s::POD_NAME, name);
    let node_id = reader.parsed(&s::NODE_ID, name);
    let name = pod_name.or(node_id).unwrap_or_else(|| format!("websocket-{}", machine.now.0).into());
    NodeId(name.into())
}

fn public_url(reader: &mut SettingsReader<'_>, machine: &MachineLimits, port: u16) -> Arc<str> {
    let given = reader.parsed(&s::PUBLIC_URL, |text| is_public_url(text).then(|| text.into()));
    given.unwrap_or_else(|| format!("ws://{}:{port}/ws", machine.host_name).into())
}

/// Whether a text can be a pod's name, which appears in logs, pages and redirects.
pub(crate) fn is_node_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= NODE_BYTES_MAX && !text.chars().any(char::is_control)
}

/// Whether a text can be a public URL. Clients add their query to it (PROTOCOL 1), so it has neither query nor
/// fragment.
pub(crate) fn is_public_url(text: &str) -> bool {
    if text.len() > PUBLIC_URL_BYTES_MAX {
        return false;
    }
    let rest = text.strip_prefix("ws://").or_else(|| text.strip_prefix("wss://"));
    rest.is_some_and(|rest| {
        let address = rest.split_once('/').map_or(rest, |(address, _)| address);
        is_address(address) && rest.bytes().all(|b| b.is_ascii_graphic() && !b"?#@\"\\".contains(&b))
    })
}

/// Whether a text can be a pod's `PEER_URL`: a scheme and an address alone.
pub(crate) fn is_peer_url(text: &str) -> bool {
    let address = text.strip_prefix("http://").filter(|_| text.len() <= PUBLIC_URL_BYTES_MAX);
    address.is_some_and(|address| is_address(address) && !address.contains(['/', '?', '#', '@']))
}

/// Whether a text is a host with an optional port. An IPv6 address needs brackets, so that its last group is not taken
/// for the port.
fn is_address(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let graphic = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic());
    graphic && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn kafka(reader: &mut SettingsReader<'_>) -> KafkaConfig {
    let properties = reader.file(&s::KAFKA_PROPERTIES_FILE, properties::parse).unwrap_or_default();
    KafkaConfig {
        brokers: or_property(reader, &s::KAFKA_BROKERS, &properties, brokers),
        client_id: or_property(reader, &s::KAFKA_CLIENT_ID, &properties, plain_text),
        group_id: or_property(reader, &s::KAFKA_GROUP_ID, &properties, plain_text),
        oidc: oidc::oidc(reader, &properties),
        properties,
        topic_refresh: reader.millis(&s::TOPIC_REFRESH_MS),
        stall: reader.millis(&s::KAFKA_STALL_MS),
        start_wait: reader.millis(&s::KAFKA_START_WAIT_MS),
        event_bytes_max: reader.count(&s::MAX_EVENT_BYTES),
        history: Duration::from_secs(reader.count(&s::HISTORY_SECONDS)),
        has_topic_settings: true,
    }
}

/// A setting, or the property that stands for it where it is not set.
fn or_property(
    reader: &mut SettingsReader<'_>,
    setting: &'static Setting,
    properties: &[(String, String)],
    parse: fn(&str) -> Option<Box<str>>,
) -> Box<str> {
    let names = || properties::SET_OTHERWISE.iter().filter(|(_, other)| other.name == setting.name);
    let stands_for = |(name, _): &&(String, String)| names().any(|(other, _)| other == name);
    let Some((name, value)) = properties.iter().find(stands_for).filter(|_| reader.source(setting).is_none()) else {
        return reader.parsed(setting, parse).unwrap_or_default();
    };
    parse(value).unwrap_or_else(|| {
        let text = format!("{name} is {value:?}; takes {}", setting.takes.words());
        reader.relation(&s::KAFKA_PROPERTIES_FILE, &text);
        Box::default()
    })
}

fn brokers(text: &str) -> Option<Box<str>> {
    let brokers: Vec<&str> = text.split(',').map(str::trim).collect();
    let good = |broker: &&str| is_address(broker.split_once("://").map_or(*broker, |(_, address)| address));
    brokers.iter().all(good).then(|| brokers.join(",").into())
}

fn redis(reader: &mut SettingsReader<'_>) -> RedisConfig {
    let url = reader.parsed(&s::REDIS_URL, redis_url::parse);
    // A wrong URL is reported; the other settings are ignored as for a valid one.
    let RedisUrl { servers, login, is_tls } = match url {
        None if reader.source(&s::REDIS_URL).is_none() => redis_by_parts(reader),
        url => url.unwrap_or_default(),
    };
    let trust = reader.certificates(&s::REDIS_CA_FILE);
    RedisConfig {
        servers,
        login,
        sentinel_login: login_by(password(reader, &s::REDIS_SENTINEL_PASSWORD)),
        trust: is_tls.then_some(trust),
        key_prefix: reader.text(&s::REDIS_KEY_PREFIX),
        lease: reader.millis(&s::LEASE_TTL_MS),
    }
}

fn redis_by_parts(reader: &mut SettingsReader<'_>) -> RedisUrl {
    let servers =
        RedisServers::Host(HostPort { host: reader.text(&s::REDIS_HOST), port: reader.count(&s::REDIS_PORT) });
    let login = login_by(password(reader, &s::REDIS_PASSWORD));
    RedisUrl { servers, login, is_tls: false }
}

fn password(reader: &mut SettingsReader<'_>, setting: &'static Setting) -> Option<String> {
    reader.parsed(setting, |text| (!text.is_empty()).then(|| text.to_owned()))
}

fn login_by(password: Option<String>) -> RedisConnectionInfo {
    password.map_or_else(RedisConnectionInfo::default, |password| RedisConnectionInfo::default().set_password(password))
}

fn shard(reader: &mut SettingsReader<'_>, machine: &MachineLimits) -> ShardConfig {
    let shards = reader.number(&s::SHARDS).and_then(|shards| u16::try_from(shards).ok());
    let history_bytes: usize = reader.count(&s::HISTORY_BYTES);
    let windows = history_bytes / window_bytes_min(reader.count(&s::MAX_EVENT_BYTES));
    let shards = shards.unwrap_or_else(|| default_shards(machine, windows));
    ShardConfig {
        shards,
        history: Duration::from_secs(reader.count(&s::HISTORY_SECONDS)),
        history_bytes,
        market_flush: reader.millis(&s::MARKET_FLUSH_MS),
        heartbeat: reader.millis(&s::HEARTBEAT_INTERVAL),
        silence: reader.millis(&s::CONNECTION_TIMEOUT),
        connections_max: reader.number(&s::MAX_CONNECTIONS).unwrap_or_else(|| connections_left(machine, shards)),
        accepts_per_second: reader.count(&s::ACCEPTS_PER_SECOND),
        inbound_per_second: reader.count(&s::INBOUND_PER_SECOND),
        message_bytes_max: reader.count(&s::MAX_MESSAGE_BYTES),
        handshake_timeout: reader.millis(&s::HANDSHAKE_TIMEOUT_MS),
        stall_timeout: reader.millis(&s::STALL_TIMEOUT_MS),
        handover_per_second: reader.count(&s::HANDOVER_PER_SECOND),
        place_anywhere: reader.word(&s::PLACEMENT) == "any",
    }
}

fn door(reader: &mut SettingsReader<'_>, machine: &MachineLimits, shard: &ShardConfig) -> AdmissionConfig {
    AdmissionConfig {
        handshakes_max: handshakes_max(machine, shard),
        per_address_max: reader.number(&s::MAX_CONNECTIONS_PER_ADDRESS),
        per_user_max: reader.number(&s::MAX_CONNECTIONS_PER_USER),
        proxy_protocol: reader.switch(&s::PROXY_PROTOCOL),
        connection_age_max: reader.number(&s::MAX_CONNECTION_AGE_MS).map(Duration::from_millis),
    }
}

/// The smallest share of the window for a shard: an event of the largest size, and its message.
fn window_bytes_min(event_bytes_max: usize) -> usize {
    2 * (event_bytes_max + EVENT_OVERHEAD_BYTES_MAX)
}

/// One core for ingest and the others for shards, but no more shards than the window has room for.
fn default_shards(machine: &MachineLimits, windows: usize) -> u16 {
    let shards = machine.cores.saturating_sub(1).min(windows).clamp(1, usize::from(u8::MAX));
    u16::try_from(shards).expect("the value was clamped to far less")
}

/// Descriptors for connections and handshakes: what the limit leaves, or half of it if it is tiny.
fn sockets_max(machine: &MachineLimits) -> u64 {
    machine.descriptors.saturating_sub(DESCRIPTORS_RESERVED).max(machine.descriptors / 2).max(2)
}

/// Connections that the descriptor limit leaves beside the handshakes.
fn connections_left(machine: &MachineLimits, shards: u16) -> u64 {
    let handshakes = (sockets_max(machine) / HANDSHAKES_PART).min(u64::from(shards) * HANDSHAKES_MAX as u64);
    (sockets_max(machine) - handshakes).max(1)
}

/// Concurrent handshakes of one shard: what the descriptor limit leaves beside the connections, and at most
/// [`HANDSHAKES_MAX`].
fn handshakes_max(machine: &MachineLimits, shard: &ShardConfig) -> usize {
    let left = sockets_max(machine).saturating_sub(shard.connections_max);
    let handshakes = left.max(sockets_max(machine) / HANDSHAKES_PART) / u64::from(shard.shards.max(1));
    usize::try_from(handshakes).unwrap_or(HANDSHAKES_MAX).clamp(1, HANDSHAKES_MAX)
}

fn window_holds_an_event(reader: &mut SettingsReader<'_>, config: &Config) {
    let (shard, event) = (&config.shard, config.kafka.event_bytes_max);
    let needed = usize::from(shard.shards).saturating_mul(window_bytes_min(event));
    let is_good = are_good(reader, &[&s::HISTORY_BYTES, &s::SHARDS, &s::MAX_EVENT_BYTES]);
    if is_good && shard.history_bytes < needed {
        let text = format!(
            "got {}, and each of {} SHARDS has its part; takes at least {needed}, since an event of MAX_EVENT_BYTES, which \
             is {event}, and its message need {} in a part",
            shard.history_bytes,
            shard.shards,
            window_bytes_min(event)
        );
        reader.relation(&s::HISTORY_BYTES, &text);
    }
}

fn relations(reader: &mut SettingsReader<'_>, config: &Config) {
    if reader.is_good(&s::KAFKA_PROPERTIES_FILE) {
        if !config.kafka.properties.is_empty() {
            for fault in properties::faults_together(&config.kafka) {
                reader.relation(&s::KAFKA_PROPERTIES_FILE, &fault);
            }
        }
        if reader.is_good(&s::KAFKA_BROKERS) {
            for fault in properties::scheme_faults(&config.kafka) {
                reader.relation(&s::KAFKA_BROKERS, &fault);
            }
        }
    }
    let shard = &config.shard;
    let in_ms = Duration::as_millis;
    if are_good(reader, &[&s::HEARTBEAT_INTERVAL, &s::CONNECTION_TIMEOUT]) && shard.silence < shard.heartbeat * 2 {
        let (got, least) = (in_ms(&shard.silence), in_ms(&shard.heartbeat));
        let text = format!("got {got}; takes at least twice HEARTBEAT_INTERVAL, which is {least}");
        reader.relation(&s::CONNECTION_TIMEOUT, &text);
    }
    if are_good(reader, &[&s::HEARTBEAT_INTERVAL, &s::INBOUND_PER_SECOND])
        && u128::from(shard.inbound_per_second) * in_ms(&shard.heartbeat) < 1_000
    {
        let (got, heartbeat) = (shard.inbound_per_second, in_ms(&shard.heartbeat));
        let text = format!(
            "got {got}; a client that answers each ping sends one message each HEARTBEAT_INTERVAL, which is {heartbeat} ms"
        );
        reader.relation(&s::INBOUND_PER_SECOND, &text);
    }
    let fetch_wait = config.kafka.properties.iter().find(|(name, _)| name == "fetch.wait.max.ms");
    let fetch_wait = fetch_wait.and_then(|(_, value)| value.parse().ok()).map(Duration::from_millis);
    if are_good(reader, &[&s::KAFKA_STALL_MS])
        && let Some(fetch_wait) = fetch_wait.filter(|wait| *wait >= config.kafka.stall)
    {
        let (got, wait) = (in_ms(&config.kafka.stall), in_ms(&fetch_wait));
        let text =
            format!("got {got}; takes more than fetch.wait.max.ms, which is {wait}: an idle client would be replaced");
        reader.relation(&s::KAFKA_STALL_MS, &text);
    }
    if config.admission.proxy_protocol && reader.source(&s::TRUSTED_PROXIES).is_none() {
        reader.relation(&s::PROXY_PROTOCOL, "got true; also needs TRUSTED_PROXIES, whose connections begin with it");
    }
    tokens::check_files(reader, &config.key_sets);
    window_holds_an_event(reader, config);
    if are_good(reader, &[&s::ADMIN_PORT]) && config.admin_port == Some(config.port) {
        let text = format!("got {}; takes another port than PORT, or none", config.port);
        reader.relation(&s::ADMIN_PORT, &text);
    }
    if config.admin_tokens.is_some() && config.admin_port.is_none() && reader.is_good(&s::ADMIN_PORT) {
        reader.relation(&s::ADMIN_TOKEN, "is set; also needs ADMIN_PORT, where the pages are that it is for");
    }
    // A price that leaves the board before it is flushed would never be sent.
    if are_good(reader, &[&s::MARKET_FLUSH_MS, &s::HISTORY_SECONDS]) && shard.market_flush > shard.history {
        let (got, most) = (in_ms(&shard.market_flush), shard.history.as_secs());
        let text = format!("got {got}; takes at most the time of HISTORY_SECONDS, which is {most} s");
        reader.relation(&s::MARKET_FLUSH_MS, &text);
    }
}

/// Whether all these settings are valid, so that their relation can be checked.
fn are_good(reader: &SettingsReader<'_>, settings: &[&Setting]) -> bool {
    settings.iter().all(|setting| reader.is_good(setting))
}

fn warnings(reader: &SettingsReader<'_>, config: &Config, machine: &MachineLimits) -> Vec<String> {
    let mut warnings = tokens::warnings(&config.auth);
    let (heartbeat, history) = (config.shard.heartbeat, config.shard.history);
    if heartbeat > history {
        warnings.push(format!(
            "HEARTBEAT_INTERVAL is {} ms and HISTORY_SECONDS {}: the cursor of a client without events is renewed by pings, and \
             has expired before the next",
            heartbeat.as_millis(),
            history.as_secs()
        ));
    }
    if config.kafka.topic_refresh > GROWTH_NOTICED_MAX {
        warnings.push(format!(
            "TOPIC_REFRESH_MS is {}; if a topic gets more partitions, cursors are judged as if every pod knew of it within {} ms",
            config.kafka.topic_refresh.as_millis(),
            GROWTH_NOTICED_MAX.as_millis()
        ));
    }
    let left = connections_left(machine, config.shard.shards);
    if config.shard.connections_max > left {
        warnings.push(format!(
            "MAX_CONNECTIONS is {}; the limit of open files leaves about {left}",
            config.shard.connections_max
        ));
    }
    for (name, setting) in properties::SET_OTHERWISE {
        let is_given = config.kafka.properties.iter().any(|(other, _)| other == name);
        if let Some(source) = reader.source(setting).filter(|_| is_given) {
            warnings
                .push(format!("{name} in KAFKA_PROPERTIES_FILE is ignored because {} ({source}) is set", setting.name));
        }
    }
    redis_warnings(reader, config, &mut warnings);
    warnings
}

fn redis_warnings(reader: &SettingsReader<'_>, config: &Config, warnings: &mut Vec<String>) {
    if let Some(url) = reader.source(&s::REDIS_URL) {
        for setting in [&s::REDIS_HOST, &s::REDIS_PORT, &s::REDIS_PASSWORD] {
            if let Some(source) = reader.source(setting) {
                warnings.push(format!("{} ({source}) is ignored because REDIS_URL ({url}) is set", setting.name));
            }
        }
    }
    let has_sentinels = matches!(config.redis.servers, RedisServers::Sentinels(..));
    let unused = [
        (&s::REDIS_CA_FILE, config.redis.trust.is_some(), "REDIS_URL does not ask for TLS (rediss://)"),
        (&s::REDIS_SENTINEL_PASSWORD, has_sentinels, "REDIS_URL names no Sentinels"),
    ];
    for (setting, is_used, why) in unused {
        if let Some(source) = reader.source(setting).filter(|_| !is_used) {
            warnings.push(format!("{} ({source}) is ignored because {why}", setting.name));
        }
    }
}
