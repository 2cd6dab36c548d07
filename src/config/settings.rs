//! The table of settings (PROTOCOL 6): each one's name, accepted values, default and help. Flags, environment, file,
//! defaults and `--help` are derived from it, so that a setting is one row here and one line where it is read.

use std::fmt::Write;

use crate::limits::REQUEST_HEAD_BYTES_MAX;

/// A setting, by the name of its environment variable.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) takes: ValueKind,
    pub(super) default: Fallback,
    pub(super) help: &'static str,
}

/// The values that a setting accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueKind {
    /// A text; the words describe its form.
    Text(&'static str),
    /// A text that must never be shown.
    Secret(&'static str),
    /// The path of a file to read.
    File(&'static str),
    /// A number of `what`.
    Integer { what: &'static str, min: u64, max: u64 },
    /// A size.
    Bytes { min: u64, max: u64 },
    /// A switch: true or false.
    Switch,
    /// One of the listed words.
    Word(&'static [&'static str]),
}

/// The value of a setting that is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fallback {
    /// A text, parsed like a set value.
    Value(&'static str),
    /// A computed value; the words describe it.
    Computed(&'static str),
    /// No value.
    Unset,
}

use Fallback::{Computed, Unset, Value};
use ValueKind::{Bytes, File, Integer, Secret, Switch, Text, Word};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// The longest time that a setting accepts, in ms: 24 days. Sums of a few stay far within the range of clocks.
const MILLIS_MAX: u64 = i32::MAX as u64;

const fn ms(min: u64) -> ValueKind {
    Integer { what: "ms", min, max: MILLIS_MAX }
}

const fn count(what: &'static str) -> ValueKind {
    Integer { what, min: 1, max: 1_000_000_000 }
}

const PORT_NUMBER: ValueKind = Integer { what: "port", min: 1, max: u16::MAX as u64 };

macro_rules! settings {
    ($($name:ident: $takes:expr, $default:expr, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub(super) static $name: Setting =
                Setting { name: stringify!($name), takes: $takes, default: $default, help: $help };
        )*

        /// All settings, in the order of `--help`.
        pub(super) static ALL: &[&Setting] = &[$(&$name),*];
    };
}

settings! {
    HOST: Text("an IP address of this machine; 0.0.0.0 and :: stand for all"), Value("0.0.0.0"), "the address to listen on";
    PORT: PORT_NUMBER, Value("3003"), "the port for clients, and for operators if ADMIN_PORT is unset";
    ADMIN_PORT: PORT_NUMBER, Unset, "the port for operators' endpoints only";
    ADMIN_TOKEN: Secret("tokens of 16 bytes or more, each as name:token, with commas between; one without a name is `admin`"), Unset,
        "operators' tokens, by the names that the log gives their owners; unset: only the pages without one";
    POD_NAME: Text("a name of up to 253 bytes without control characters"), Computed("NODE_ID"),
        "this pod's name in the cluster";
    NODE_ID: Text("a name of up to 253 bytes without control characters"), Computed("websocket-<unix ms>"),
        "the same, if POD_NAME is unset";
    PUBLIC_URL: Text("ws://host[:port][/path] or wss://…, without query, up to 2048 bytes"), Computed("ws://<host name>:<PORT>/ws"),
        "where clients reach this pod";
    PEER_URL: Text("http://host[:port], up to 2048 bytes"), Unset,
        "where other pods reach this pod's operators' port: they look at it twice a second, and take over from a pod that \
         is gone before its lease has run out";
    KAFKA_BROKERS: Text("host[:port], several with commas"), Value("localhost:9092"), "the brokers to start from";
    KAFKA_CLIENT_ID: Text("a name"), Value("websocket-service"), "this pod's name in brokers' logs and quotas";
    KAFKA_GROUP_ID: Text("a name"), Value("websocket-service-group"),
        "for ACLs and quotas only: the pod joins no group";
    KAFKA_PROPERTIES_FILE: File("a file of librdkafka's properties, one key=value per line"), Unset,
        "TLS, SASL and the like";
    KAFKA_STALL_MS: ms(1000), Value("3000"),
        "a Kafka client without progress for this long, although records are available, is replaced; longer than \
         connecting takes";
    KAFKA_START_WAIT_MS: ms(0), Value("30000"),
        "while Kafka answers, a pod waits this long at start for partitions that it can't read, then starts without \
         them; when it can read them, their clients get a reset";
    TOPIC_REFRESH_MS: ms(500), Value("10000"), "new topics and partitions are found within this time";
    ROUTES_FILE: File("a file as `shardgate routes` prints it"), Computed("built in"), "which topics become what";
    REDIS_URL: Secret("redis://[[user]:password@]host[:port][/db], the same with rediss:// for TLS, unix:/path, or \
         redis+sentinel://[[user]:password@]host[:port],…/primary[/db]; user and password percent-encoded"), Unset,
        "Redis; if set, the next three are ignored";
    REDIS_HOST: Text("a host name or address"), Value("localhost"), "Redis' host";
    REDIS_PORT: PORT_NUMBER, Value("6379"), "Redis' port";
    REDIS_PASSWORD: Secret("a password"), Unset, "Redis' password";
    REDIS_CA_FILE: File("a file of certificates in PEM"), Unset,
        "trusted for Redis in place of the system's certificates";
    REDIS_SENTINEL_PASSWORD: Secret("a password"), Unset, "the Sentinels' own password";
    REDIS_KEY_PREFIX: Text("a name"), Value("websocket"), "prefix of the keys and the channels; in a Redis Cluster with a hash tag, such as {websocket}";
    LEASE_TTL_MS: ms(1000), Value("10000"), "a crashed pod loses its slot after this time";
    JWT_SECRET: Secret("the key of HS256, preferably 32 bytes or more"), Unset,
        "the key that clients' tokens are signed with (HS256, HS384, HS512); this or JWT_JWKS is required";
    JWT_SECRET_PREVIOUS: Secret("a key as JWT_SECRET"), Unset, "the key before that one, while its tokens are still in use";
    JWT_JWKS: Text("a file, or a URL that begins with https://; several with commas, one for each JWT_ISSUER"), Unset,
        "an identity provider's key set (RS256, PS256, ES256, EdDSA and the longer ones)";
    JWT_JWKS_REFRESH_MS: ms(1000), Value("300000"),
        "a key set of a URL is fetched this often, and for a kid that it lacks at most every 30 s";
    JWT_JWKS_CA_FILE: File("a file of certificates in PEM"), Unset,
        "trusted for JWT_JWKS in place of the system's certificates";
    JWT_ISSUER: Text("names, with commas"), Unset, "a token's iss must be one of these";
    JWT_AUDIENCE: Text("names, with commas"), Unset, "a token's aud must have one of these";
    JWT_USER_CLAIM: Text("claims or JSON pointers such as /user/id, with commas"), Value("userId,sub"),
        "the claim that names the user: the first of these that does";
    JWT_ASSESSMENTS_CLAIM: Text("a claim, or a JSON pointer such as /realm_access/assessments"), Value("assessments"),
        "the claim that lists the assessments which a token allows";
    JWT_REQUIRE_ASSESSMENTS: Switch, Value("false"), "a token without the claim `assessments` allows none";
    ALLOWED_ORIGINS: Text("*, or scheme://host[:port], scheme://*.host[:port], null, file://, several with commas"),
        Value("*"), "allowed origins of browsers; *. matches every host below a domain, not the domain itself";
    HEARTBEAT_INTERVAL: ms(100), Value("30000"), "time between two pings to a client";
    CONNECTION_TIMEOUT: ms(200), Value("60000"),
        "a client without any frame for this long is closed; at least twice HEARTBEAT_INTERVAL";
    SHARDS: Integer { what: "threads", min: 1, max: 256 }, Computed("cores less one, at least 1"),
        "threads that serve clients, each on its own core";
    ENGINE: Word(&["auto", "io_uring", "epoll"]), Value("auto"),
        "what the shards run on; auto: io_uring if the system allows it and Linux is older than 6.5, else epoll";
    HISTORY_SECONDS: Integer { what: "s", min: 1, max: MILLIS_MAX / 1000 }, Value("300"),
        "how far back the window of events reaches";
    HISTORY_BYTES: Bytes { min: 4 * MIB, max: 1024 * GIB }, Value("256MiB"), "memory of the window, per pod";
    MARKET_FLUSH_MS: ms(1), Value("100"), "shortest time between two writes of market data to a client";
    MAX_CONNECTIONS: count("connections"), Computed("what the descriptor limit leaves"), "per pod; over it: 503";
    ACCEPTS_PER_SECOND: count("connections"), Value("5000"),
        "clients with a good token, with a burst of as many; over it: 503; clients without one have a separate limit";
    MAX_CONNECTIONS_PER_ADDRESS: count("connections"), Unset,
        "per client address (IPv6: per /64) on this pod; over it: 503";
    MAX_CONNECTIONS_PER_USER: count("connections"), Unset, "per user on this pod; over it: 503";
    MAX_CONNECTION_AGE_MS: ms(1000), Unset,
        "a connection lives for three quarters of this time to all of it; then its client gets 1012 and reconnects";
    TRUSTED_PROXIES: Text("IP addresses and networks such as 10.0.0.0/8, several with commas"), Unset,
        "proxies in front of the pod, whose X-Forwarded-For or Forwarded names the client";
    PROXY_PROTOCOL: Switch, Value("false"),
        "connections of trusted proxies begin with the PROXY protocol's header, version 1 or 2";
    INBOUND_PER_SECOND: count("messages"), Value("20"),
        "messages per connection, with a burst of twice that; over it: 1008";
    MAX_MESSAGE_BYTES: Bytes { min: 128, max: 16 * MIB }, Value("4KiB"), "the largest message from a client";
    MAX_EVENT_BYTES: Bytes { min: 128, max: 64 * MIB }, Value("1MiB"), "the largest record from Kafka";
    MAX_HEAD_BYTES: Bytes { min: KIB, max: REQUEST_HEAD_BYTES_MAX as u64 }, Value("8KiB"),
        "the largest head of a client's request, cookies included; over it: 431";
    HANDSHAKE_TIMEOUT_MS: ms(100), Value("10000"), "a request head must arrive within this time";
    STALL_TIMEOUT_MS: ms(100), Value("60000"), "a client whose socket accepts nothing for this long is closed";
    DRAIN_DELAY_MS: ms(0), Value("5000"), "a stopping pod keeps serving its clients for this time";
    DRAIN_MS: ms(0), Value("20000"), "then closes them evenly over this time";
    HANDOVER_PER_SECOND: count("connections"), Value("1000"),
        "redirected per second to their new owner when assessments move";
    PLACEMENT: Word(&["owner", "any"]), Value("owner"),
        "any: every pod serves every assessment, for load balancers that can't address pods";
    LOG: Word(&["error", "warn", "info", "debug", "trace"]), Value("info"), "log level";
    LOG_FORMAT: Word(&["text", "json"]), Value("text"), "log format, on standard error";
}

impl Setting {
    /// Its flag, such as `--kafka-brokers`.
    pub(super) fn flag(&self) -> String {
        format!("--{}", self.name.to_ascii_lowercase().replace('_', "-"))
    }

    /// Its key in the settings file, such as `kafka_brokers`.
    pub(super) fn key(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    pub(super) fn of_flag(flag: &str) -> Option<&'static Self> {
        ALL.iter().copied().find(|setting| setting.flag() == flag)
    }

    pub(super) fn of_key(key: &str) -> Option<&'static Self> {
        ALL.iter().copied().find(|setting| setting.key() == key)
    }

    pub(super) fn is_secret(&self) -> bool {
        matches!(self.takes, Secret(_))
    }
}

impl ValueKind {
    /// Describes the values in words, for a fault and for `--help`.
    pub(super) fn words(self) -> String {
        match self {
            Text(words) | Secret(words) | File(words) => words.to_owned(),
            Integer { what: "port", min, max } => format!("a port, {min} to {max}"),
            Integer { what, min, max } => format!("an integer of {what}, {min} to {max}"),
            Bytes { min, max } => format!("bytes, or such as 64KiB, 256MiB, 1GiB; {} to {}", Size(min), Size(max)),
            Switch => "true or false".to_owned(),
            Word(words) => words.join(", "),
        }
    }
}

/// A number of bytes, printed with its unit.
struct Size(u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            bytes if bytes >= GIB && bytes.is_multiple_of(GIB) => write!(f, "{}GiB", bytes / GIB),
            bytes if bytes >= MIB && bytes.is_multiple_of(MIB) => write!(f, "{}MiB", bytes / MIB),
            bytes if bytes >= KIB && bytes.is_multiple_of(KIB) => write!(f, "{}KiB", bytes / KIB),
            bytes => write!(f, "{bytes}"),
        }
    }
}

/// Parses a size.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let units = [("KiB", KIB), ("MiB", MIB), ("GiB", GIB)];
    let (digits, unit) =
        units.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit))).unwrap_or((text, 1));
    parse_integer(digits)?.checked_mul(unit)
}

/// Parses decimal digits: no sign, no white space.
pub(super) fn parse_integer(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// All settings, with the values they accept and their defaults.
#[must_use]
pub fn help() -> String {
    let mut help = String::from(
        "Settings: flags beat environment variables, which beat the file of --config FILE (TOML, keys as in \
         `kafka_brokers`).\nAn empty variable counts as unset.\n",
    );
    for setting in ALL {
        let default = match setting.default {
            Value(text) => format!("default {text}"),
            Computed(words) => format!("default: {words}"),
            Unset => "unset by default".to_owned(),
        };
        let _ = write!(
            help,
            "\n  {}, {}\n      {}\n      takes {}; {default}\n",
            setting.flag(),
            setting.name,
            setting.help,
            setting.takes.words(),
        );
    }
    help
}
