//! Settings from all sources.

mod oidc;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::parts::DESCRIPTORS_RESERVED;
use super::*;
use crate::clock::UnixMs;
use crate::limits::HANDSHAKES_MAX;

/// Given settings, on a machine with this limit of open files.
#[derive(Clone)]
struct World {
    descriptors: u64,
    flags: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    files: BTreeMap<&'static str, &'static str>,
    presets: Vec<Preset>,
    unused: &'static [&'static str],
}

/// Long enough for no warning.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

impl Default for World {
    fn default() -> Self {
        Self {
            descriptors: 20_512,
            flags: Vec::new(),
            environment: BTreeMap::new(),
            files: BTreeMap::new(),
            presets: Vec::new(),
            unused: &[],
        }
    }
}

impl World {
    /// A secret, and nothing else.
    fn new() -> Self {
        Self::default().env("JWT_SECRET", SECRET)
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    fn with_descriptors(mut self, descriptors: u64) -> Self {
        self.descriptors = descriptors;
        self
    }

    fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(OsString::from));
        self
    }

    fn file(mut self, path: &'static str, text: &'static str) -> Self {
        self.files.insert(path, text);
        self
    }

    fn read(&self) -> Result<Config, InvalidConfig> {
        let (descriptors, now) = (self.descriptors, UnixMs(1_790_000_000_007));
        let can_listen_on = |host: IpAddr| host.is_unspecified() || host.is_loopback();
        let machine = MachineLimits { cores: 4, descriptors, host_name: "gateway-0".into(), can_listen_on, now };
        Config::from_sources(&Sources {
            flags: &self.flags,
            environment: &self.environment,
            presets: &self.presets,
            unused: self.unused,
            read_file: &|path: &Path| {
                let text = self.files.get(path.to_str().unwrap_or_default());
                text.map(|text| (*text).to_owned()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            },
            machine: &machine,
        })
    }

    fn config(&self) -> Config {
        self.read().unwrap_or_else(|faults| panic!("the settings are valid: {faults}"))
    }

    fn faults(&self) -> Vec<String> {
        self.read().expect_err("the settings have a fault").0
    }
}

#[test]
fn with_only_a_secret_all_settings_have_the_contracts_defaults() {
    let config = World::new().config();
    assert_eq!((config.host.to_string().as_str(), config.port, config.admin_port), ("0.0.0.0", 3003, None));
    assert_eq!(&*config.node.0, "websocket-1790000000007");
    assert_eq!(&*config.public_url, "ws://gateway-0:3003/ws");
    assert_eq!(&*config.kafka.brokers, "localhost:9092");
    assert_eq!((&*config.kafka.client_id, &*config.kafka.group_id), ("websocket-service", "websocket-service-group"));
    assert_eq!(config.kafka.topic_refresh, Duration::from_secs(10));
    assert_eq!((config.kafka.event_bytes_max, config.shard.message_bytes_max), (1024 * 1024, 4096));
    assert_eq!(config.routes.routes.len(), RouteTable::built_in().routes.len());
    assert_eq!((&*config.redis.servers.to_string(), &*config.redis.key_prefix), ("localhost:6379", "websocket"));
    assert_eq!(config.redis.lease, Duration::from_secs(10));
    assert!(!config.auth.claims.require_assessments);
    assert_eq!(config.allowed_origins, None);
    assert_eq!(config.shard.shards, 3, "four cores less one");
    assert_eq!((config.shard.history, config.shard.history_bytes), (Duration::from_secs(300), 256 << 20));
    assert_eq!(config.kafka.history, config.shard.history);
    assert_eq!(config.shard.connections_max, 17_500, "what the descriptor limit leaves");
    assert_eq!((config.shard.heartbeat, config.shard.silence), (Duration::from_secs(30), Duration::from_secs(60)));
    assert_eq!((config.drain.delay, config.drain.over), (Duration::from_secs(5), Duration::from_secs(20)));
    assert!(!config.shard.place_anywhere && !config.log_json);
    assert_eq!(config.log, tracing::Level::INFO);
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn flags_beat_the_environment_which_beats_the_file() {
    let world = World::new()
        .file("gateway.toml", "port = 1\nhistory_bytes = \"8MiB\"\nmarket_flush_ms = 7\nplacement = \"any\"")
        .flags(&["--config", "gateway.toml", "--port=3"])
        .env("PORT", "2")
        .env("MARKET_FLUSH_MS", "8")
        .env("PLACEMENT", "");
    let config = world.config();
    assert_eq!(config.port, 3);
    assert_eq!(config.shard.market_flush, Duration::from_millis(8));
    assert_eq!(config.shard.history_bytes, 8 << 20);
    assert!(config.shard.place_anywhere, "an empty variable counts as unset");
}

#[test]
fn every_setting_has_a_flag_a_variable_and_a_key_and_its_default_is_good() {
    for setting in settings::ALL {
        assert_eq!(settings::Setting::of_flag(&setting.flag()).map(|s| s.name), Some(setting.name));
        assert_eq!(settings::Setting::of_key(&setting.key()).map(|s| s.name), Some(setting.name));
        let help = help();
        assert!(help.contains(&setting.flag()) && help.contains(&setting.takes.words()), "{}", setting.name);
        if let settings::Fallback::Value(default) = setting.default {
            World::new().env(setting.name, default).config();
        }
        // An invalid value is reported with the setting's name when the setting is read; so each setting is read.
        let read = World::new().env(setting.name, "\u{1}").read();
        let secret =
            matches!(setting.name, "JWT_SECRET" | "JWT_SECRET_PREVIOUS" | "REDIS_PASSWORD" | "REDIS_SENTINEL_PASSWORD");
        assert!(secret || read.unwrap_err().0[0].starts_with(setting.name), "{}", setting.name);
    }
}

#[test]
fn all_faults_are_reported_at_once_with_setting_source_and_accepted_values() {
    let world = World::default()
        .file("gateway.toml", "prot = 80\nshards = true\nallowed_origins = [\"a.example\"]\ndrain_ms = 1.5")
        .flags(&["--config", "gateway.toml", "--kafka-broker", "b:1", "--port", "x", "stray", "--log", "--port=4"])
        .env("HISTORY_BYTES", "4mb")
        .env("TOPIC_REFRESH_MS", "499")
        .env("HEARTBEAT_INTERVAL", "40000");
    assert_eq!(
        world.faults(),
        [
            "--kafka-broker: unknown flag; see --help",
            "argument 7: a flag begins with --; see --help",
            "--log: has no value, or one that is not UTF-8",
            "--port: is given twice",
            "DRAIN_MS (gateway.toml line 4): got a TOML float; takes an integer of ms, 0 to 2147483647",
            "gateway.toml line 1: unknown key \"prot\"; see --help",
            "SHARDS (gateway.toml line 2): got \"true\"; takes an integer of threads, 1 to 256",
            "HISTORY_BYTES (environment): got \"4mb\"; takes bytes, or such as 64KiB, 256MiB, 1GiB; 4MiB to 1024GiB",
            "TOPIC_REFRESH_MS (environment): got \"499\"; takes an integer of ms, 500 to 2147483647",
            "JWT_SECRET: is not set; needed unless JWT_JWKS is set: takes the key of HS256, preferably 32 bytes or more, as \
             --jwt-secret or in the environment",
            "ALLOWED_ORIGINS (gateway.toml line 3): got \"a.example\", which is no origin: write scheme://host, \
             scheme://host:port, null or file://",
            "CONNECTION_TIMEOUT (default): got 60000; takes at least twice HEARTBEAT_INTERVAL, which is 40000",
        ]
    );
}

#[test]
fn a_secret_is_never_shown() {
    let world = World::default()
        .env("REDIS_URL", "http://hunter2")
        .env("JWT_SECRET", "hunter2")
        .file("properties", "sasl.passwort=hunter2")
        .file("gateway.toml", "redis_password = [\"hunter2\", 1]\njwt_secret = hunter2")
        .flags(&[
            "--kafka-properties-file",
            "properties",
            "--jwt-secrt",
            "hunter2",
            "hunter2",
            "--config=gateway.toml",
        ]);
    let faults = world.faults();
    assert!(faults.iter().all(|fault| !fault.contains("hunter2")), "{faults:?}");
    assert_eq!(faults.len(), 5, "{faults:?}");
    let config = World::new().env("REDIS_PASSWORD", "hunter2").config();
    assert!(!format!("{config:?}").contains("hunter2") && !format!("{config:?}").contains(SECRET));
    let world = World::new().env("KAFKA_PROPERTIES_FILE", "properties");
    let shown = format!("{:?}", world.file("properties", "sasl.password=hunter2").config());
    assert!(shown.contains("sasl.password") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn sizes_and_times_are_read_in_their_units() {
    for (text, bytes) in [("4194304", 4 << 20), ("4096KiB", 4 << 20), ("256MiB", 256 << 20), ("1GiB", 1 << 30)] {
        assert_eq!(World::new().env("HISTORY_BYTES", text).config().shard.history_bytes, bytes);
    }
    for text in ["4MiB ", "4 MiB", "4MB", "4194303", "-1", "+4194304", "18446744073709551615GiB", "MiB"] {
        assert_eq!(World::new().env("HISTORY_BYTES", text).faults().len(), 1, "{text}");
    }
    for text in ["1s", "1.5", "", "99999999999999999999"] {
        assert_eq!(World::new().flags(&[&format!("--drain-ms={text}")]).faults().len(), 1, "{text}");
    }
}

#[test]
fn the_nodes_name_is_pod_name_else_node_id() {
    assert_eq!(&*World::new().env("POD_NAME", "p").env("NODE_ID", "n").config().node.0, "p");
    assert_eq!(&*World::new().env("NODE_ID", "n").config().node.0, "n");
    assert_eq!(World::new().env("NODE_ID", &"n".repeat(254)).faults().len(), 1);
}

#[test]
fn the_public_url_is_a_websocket_url_without_query() {
    let url = |text: &str| World::new().env("PUBLIC_URL", text).read().map(|config| config.public_url.to_string());
    assert_eq!(url("wss://p-0.example:443/ws").unwrap(), "wss://p-0.example:443/ws");
    for wrong in [
        "http://a/ws",
        "ws://",
        "ws:///ws",
        "ws://a/ws?x=1",
        "ws://a/ws#x",
        "ws://a b/ws",
        "ws://a:99999/ws",
        "ws://u@a/ws",
        "a:3003",
    ] {
        assert!(url(wrong).is_err(), "{wrong}");
    }
    assert_eq!(&*World::new().env("PORT", "80").config().public_url, "ws://gateway-0:80/ws");
}

#[test]
fn brokers_and_origins_are_comma_lists() {
    let brokers = |text: &str| World::new().env("KAFKA_BROKERS", text).read().map(|c| c.kafka.brokers.to_string());
    assert_eq!(brokers("a:9092, [::1]:9093 ,[::2],PLAINTEXT://c").unwrap(), "a:9092,[::1]:9093,[::2],PLAINTEXT://c");
    for wrong in ["a:9092,", "a:x", "a b:1", ","] {
        assert!(brokers(wrong).is_err(), "{wrong}");
    }
    let origins = |text: &str| World::new().env("ALLOWED_ORIGINS", text).read().map(|c| c.allowed_origins);
    let expected =
        ["https://a.example", "http://localhost:3000"].map(|one| OriginPattern::Exactly(one.into())).to_vec();
    assert_eq!(origins("https://A.example, http://localhost:3000").unwrap(), Some(expected));
    assert_eq!(origins("*").unwrap(), None);
    for wrong in ["https://a.example/", "a.example", "*,https://a.example", "https://*.example"] {
        assert!(origins(wrong).is_err(), "{wrong}");
    }
    let faults = origins("null, *, https://*.com").unwrap_err().0;
    assert!(
        faults.len() == 2 && faults[0].starts_with("ALLOWED_ORIGINS (environment): got \"*\", which stands for all"),
        "{faults:?}"
    );
}

#[test]
fn redis_is_set_by_its_url_or_by_its_parts() {
    let parts = World::new().env("REDIS_HOST", "r").env("REDIS_PORT", "1").env("REDIS_PASSWORD", "p").config();
    assert_eq!(parts.redis.servers.to_string(), "r:1");
    assert_eq!(parts.redis.login.password(), Some("p"));
    let url = World::new().env("REDIS_URL", "redis://:p@r:2/3");
    assert_eq!(url.config().redis.servers.to_string(), "r:2");
    assert_eq!(url.config().redis.login.db(), 3);
    // Kubernetes sets REDIS_PORT for a Service named redis, in its own form.
    let both = url.env("REDIS_PORT", "tcp://10.0.0.1:6379").config();
    assert_eq!(both.redis.servers.to_string(), "r:2");
    assert_eq!(both.warnings, ["REDIS_PORT (environment) is ignored because REDIS_URL (environment) is set"]);
}

#[test]
fn a_property_stands_for_a_setting_of_kafka_that_is_not_set() {
    let file = "bootstrap.servers=b:9092,c:9092\nclient.id=shop\n";
    let world = World::new().env("KAFKA_PROPERTIES_FILE", "kafka.properties").file("kafka.properties", file);
    let config = world.config();
    assert_eq!((&*config.kafka.brokers, &*config.kafka.client_id), ("b:9092,c:9092", "shop"));
    let used = client_properties(&config.kafka);
    assert_eq!((used.get("bootstrap.servers"), used.get("client.id")), (Some("b:9092,c:9092"), Some("shop")));
    assert_eq!(config.settings.iter().find(|s| s.name == "KAFKA_CLIENT_ID").unwrap().value.as_deref(), Some("shop"));

    let config = world.env("KAFKA_BROKERS", "a:1").config();
    let used = client_properties(&config.kafka);
    assert_eq!((used.get("bootstrap.servers"), used.get("client.id")), (Some("a:1"), Some("shop")));
    let warning = "bootstrap.servers in KAFKA_PROPERTIES_FILE is ignored because KAFKA_BROKERS (environment) is set";
    assert_eq!(config.warnings, [warning]);
    let wrong = World::new().env("KAFKA_PROPERTIES_FILE", "p").file("p", "bootstrap.servers=a:x").faults();
    assert_eq!(
        wrong,
        ["KAFKA_PROPERTIES_FILE (environment): bootstrap.servers is \"a:x\"; takes host[:port], several with commas"]
    );
}

#[test]
fn the_certificates_and_passwords_around_redis_are_checked_with_its_url() {
    let world = World::new().env("REDIS_CA_FILE", "ca.pem").env("REDIS_SENTINEL_PASSWORD", "p").file("ca.pem", "none");
    let faults = world.env("REDIS_URL", "redis://hunter2#@r").faults();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(
        faults[0].starts_with("REDIS_URL (environment): got a value that is not shown; takes redis://"),
        "{faults:?}"
    );
    assert_eq!(faults[1], "REDIS_CA_FILE (environment): ca.pem has no certificate in PEM");
    let unused = World::new().env("REDIS_SENTINEL_PASSWORD", "p").env("REDIS_URL", "rediss://r").config();
    let warning = "REDIS_SENTINEL_PASSWORD (environment) is ignored because REDIS_URL names no Sentinels";
    assert_eq!((unused.warnings, unused.redis.trust.is_some()), (vec![warning.to_owned()], true));
    let used = World::new().env("REDIS_SENTINEL_PASSWORD", "p").env("REDIS_URL", "redis+sentinel://s/gate").config();
    assert_eq!((used.warnings.len(), used.redis.sentinel_login.password()), (0, Some("p")));
}

#[test]
fn risky_values_cause_warnings() {
    let config = World::default().env("JWT_SECRET", "short\n").env("MAX_CONNECTIONS", "20001").config();
    assert_eq!(
        config.warnings,
        [
            "JWT_SECRET has 6 bytes; HS256 is only as strong as its key: use 32 or more",
            "JWT_SECRET ends in white space, which is part of the key: is it a line end from a file?",
            "MAX_CONNECTIONS is 20001; the limit of open files leaves about 17500",
        ]
    );
}

#[test]
fn a_key_set_replaces_the_secret_and_each_issuer_has_its_own() {
    let key = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let world = World::default().file("a.json", key).file("no-keys.json", r#"{"keys":[]}"#);
    let url = "https://id.example/keys?use=sig";
    let config = world.clone().env("JWT_JWKS", "a.json").env("JWT_ISSUER", "a, b").config();
    assert_eq!(config.auth.secrets, [] as [Box<[u8]>; 0]);
    let sources = |config: &Config| {
        config.key_sets.sets.iter().map(|set| (set.issuer.clone(), set.source.clone())).collect::<Vec<_>>()
    };
    let file = KeySetSource::File("a.json".into());
    assert_eq!(sources(&config), [(None, file.clone())], "of both issuers");
    let both = world.clone().env("JWT_JWKS", &format!("a.json, {url}")).env("JWT_ISSUER", "a, b").config();
    let of_url = KeySetSource::Url(url.parse().unwrap());
    assert_eq!(sources(&both), [(Some("a".into()), file), (Some("b".into()), of_url)]);

    for (jwks, issuers, fault) in [
        ("a.json,a.json", "a", "JWT_JWKS (environment): got 2 key sets; several take as many entries of JWT_ISSUER"),
        ("no-keys.json", "", "JWT_JWKS (environment): no-keys.json: has no key that can verify a token"),
        ("missing.json", "", "JWT_JWKS (environment): missing.json: can't be read: "),
        (
            "http://id.example/keys",
            "",
            "JWT_JWKS (environment): got \"http://id.example/keys\"; takes a file, or a URL",
        ),
        ("https://u:p@id.example/keys", "", "JWT_JWKS (environment): got "),
        ("https:///keys", "", "JWT_JWKS (environment): got "),
    ] {
        let faults = world.clone().env("JWT_JWKS", jwks).env("JWT_ISSUER", issuers).faults();
        assert!(faults.len() == 1 && faults[0].starts_with(fault), "{jwks}: {faults:?}");
    }
}

#[test]
fn the_window_holds_an_event_of_the_largest_size_in_each_shard() {
    let world = |shards: &str, history: &str| World::new().env("SHARDS", shards).env("HISTORY_BYTES", history);
    assert_eq!(world("1", "4MiB").config().shard.shards, 1);
    let faults = world("4", "4MiB").faults();
    assert_eq!(
        faults,
        [
            "HISTORY_BYTES (environment): got 4194304, and each of 4 SHARDS has its part; takes at least 8519680, since an \
          event of MAX_EVENT_BYTES, which is 1048576, and its message need 2129920 in a part"
        ]
    );
    assert_eq!(world("4", "8519680").config().shard.shards, 4);
    assert_eq!(world("4", "4MiB").env("MAX_EVENT_BYTES", "64KiB").config().shard.shards, 4);
    assert_eq!(world("1", "4MiB").env("MAX_EVENT_BYTES", "4MiB").faults().len(), 1);
    // Without SHARDS, there are only as many shards as have room for a window.
    assert_eq!(World::new().env("HISTORY_BYTES", "4MiB").config().shard.shards, 1);
    assert_eq!(World::new().env("HISTORY_BYTES", "5MiB").config().shard.shards, 2);
}

#[test]
fn relations_between_settings_are_checked() {
    let world = || World::new().env("HEARTBEAT_INTERVAL", "100");
    assert_eq!(world().env("CONNECTION_TIMEOUT", "200").config().shard.silence, Duration::from_millis(200));
    assert_eq!(World::new().env("CONNECTION_TIMEOUT", "59999").faults().len(), 1);
    assert_eq!(World::new().env("ADMIN_PORT", "3003").faults().len(), 1);
    assert_eq!(World::new().env("MARKET_FLUSH_MS", "300000").config().shard.market_flush, Duration::from_secs(300));
    assert_eq!(
        World::new().env("MARKET_FLUSH_MS", "5001").env("HISTORY_SECONDS", "5").faults(),
        ["MARKET_FLUSH_MS (environment): got 5001; takes at most the time of HISTORY_SECONDS, which is 5 s"]
    );
    let pings = World::new().env("HEARTBEAT_INTERVAL", "100").env("INBOUND_PER_SECOND", "9").faults();
    assert_eq!(
        pings,
        ["INBOUND_PER_SECOND (environment): got 9; a client that answers each ping sends one message each \
          HEARTBEAT_INTERVAL, which is 100 ms"]
    );
    world().env("INBOUND_PER_SECOND", "10").config();
    let waits = |property| {
        let world = World::new().env("KAFKA_PROPERTIES_FILE", "properties").env("KAFKA_STALL_MS", "3000");
        world.file("properties", property)
    };
    waits("fetch.wait.max.ms=2999").config();
    assert_eq!(
        waits("fetch.wait.max.ms=3000").faults(),
        [
            "KAFKA_STALL_MS (environment): got 3000; takes more than fetch.wait.max.ms, which is 3000: an idle client would be \
          replaced"
        ]
    );
    let one = World::new().env("HEARTBEAT_INTERVAL", "99").env("CONNECTION_TIMEOUT", "200").faults();
    assert_eq!(one.len(), 1, "an invalid setting is not compared: {one:?}");
}

#[test]
fn named_files_are_read_and_their_faults_reported_with_lines() {
    let world = World::new()
        .file("routes.toml", "[[route]]\ntopic = \"a\"\nscope = \"assessment\"\ntype = \"ping\"")
        .file("kafka.properties", "security.protocol=SSL\n\nno.such=1")
        .flags(&["--routes-file=routes.toml", "--kafka-properties-file=kafka.properties"]);
    let faults = world.faults();
    assert!(
        faults[0].starts_with("KAFKA_PROPERTIES_FILE (flag): kafka.properties line 3: no.such is not"),
        "{faults:?}"
    );
    assert!(faults[1].starts_with("ROUTES_FILE (flag): routes.toml line 1: the route has no fields"), "{faults:?}");
    assert!(faults[2].starts_with("ROUTES_FILE (flag): routes.toml line 4: type = \"ping\""), "{faults:?}");
    let missing = World::new().env("ROUTES_FILE", "none.toml").flags(&["--config=none.toml"]).faults();
    assert_eq!(missing.len(), 2, "{missing:?}");
}

#[test]
fn a_preset_applies_if_nothing_is_set() {
    let preset = |name, value: &str| Preset { name, value: value.into() };
    let world = World { presets: vec![preset("JWT_SECRET", SECRET), preset("DRAIN_MS", "500")], ..World::default() };
    assert_eq!(world.config().drain.over, Duration::from_millis(500));
    assert_eq!(world.env("DRAIN_MS", "0").config().drain.over, Duration::ZERO);
}

#[test]
fn descriptors_are_split_between_connections_and_handshakes() {
    let shares = |descriptors: u64, environment: &[(&str, &str)]| {
        let world = environment.iter().fold(World::new(), |world, (name, value)| world.env(name, value));
        let config = world.with_descriptors(descriptors).config();
        let handshakes = config.admission.handshakes_max * usize::from(config.shard.shards);
        assert!(
            config.shard.connections_max + handshakes as u64 + DESCRIPTORS_RESERVED.min(descriptors / 2) <= descriptors
        );
        (config.shard.connections_max, handshakes)
    };
    let (connections, handshakes) = shares(1_024, &[]);
    assert!(connections >= 440 && handshakes >= 60, "{connections} {handshakes}");
    assert_eq!(shares(2_000, &[("SHARDS", "1")]), (1_302, 186));
    assert_eq!(shares(1_000_000, &[("SHARDS", "1")]).1, HANDSHAKES_MAX);
    assert_eq!(shares(20_512, &[("SHARDS", "1"), ("MAX_CONNECTIONS", "1000")]), (1_000, HANDSHAKES_MAX));
    assert!(shares(20_512, &[("SHARDS", "64")]).1 >= 2_400);
}

#[test]
fn an_address_of_another_machine_is_a_fault() {
    assert_eq!(World::new().env("HOST", "::1").config().host.to_string(), "::1");
    assert_eq!(
        World::new().env("HOST", "192.0.2.1").env("PORT", "0").faults(),
        [
            "PORT (environment): got \"0\"; takes a port, 1 to 65535",
            "HOST (environment): got \"192.0.2.1\"; takes an IP address of this machine; 0.0.0.0 and :: stand for all",
        ]
    );
}

#[test]
fn a_port_that_kubernetes_set_for_a_service_is_explained() {
    let faults = World::new().env("REDIS_PORT", "tcp://10.0.0.1:6379").faults();
    assert_eq!(
        faults,
        ["REDIS_PORT (environment): got \"tcp://10.0.0.1:6379\"; takes a port, 1 to 65535; Kubernetes sets \
             this for a Service with that prefix as its name: enableServiceLinks: false in the pod's spec prevents it"]
    );
    let flag = World::new().flags(&["--redis-port", "tcp://10.0.0.1:6379"]).faults();
    assert!(!flag[0].contains("Kubernetes"), "{flag:?}");
}

#[test]
fn typos_in_the_environment_cause_warnings() {
    let config = World::new().env("REDIS_HSOT", "r").env("REDIS_SERVICE_HOST", "10.0.0.1").config();
    assert_eq!(config.warnings, ["REDIS_HSOT (environment) is not a setting; did you mean REDIS_HOST?"]);
}

#[test]
fn unused_settings_are_not_checked_but_cause_a_warning() {
    let world = World { unused: &["KAFKA_BROKERS", "REDIS_URL"], ..World::new() };
    let config = world.env("KAFKA_BROKERS", ",").env("REDIS_URL", "nonsense").env("PORT", "1").config();
    assert_eq!(&*config.kafka.brokers, "localhost:9092");
    let unused = ["KAFKA_BROKERS (environment) is not used here", "REDIS_URL (environment) is not used here"];
    assert_eq!(config.warnings, unused);
}

#[test]
fn mismatched_times_cause_a_warning() {
    let config = World::new().env("HISTORY_SECONDS", "29").env("TOPIC_REFRESH_MS", "30001").config();
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert!(config.warnings[0].starts_with("HEARTBEAT_INTERVAL is 30000 ms and HISTORY_SECONDS 29"));
    assert!(config.warnings[1].starts_with("TOPIC_REFRESH_MS is 30001"));
}

#[test]
fn inconsistent_kafka_properties_are_reported_with_the_other_faults() {
    let faults = |text: &'static str| {
        let world = World::new().env("KAFKA_PROPERTIES_FILE", "kafka.properties").env("PORT", "no port");
        let faults = world.file("kafka.properties", text).faults();
        assert!(faults.iter().any(|fault| fault.starts_with("PORT ")), "{faults:?}");
        assert!(faults.iter().all(|fault| !fault.contains("hunter2")), "{faults:?}");
        faults
            .into_iter()
            .filter(|fault| fault.starts_with("KAFKA_PROPERTIES_FILE (environment): "))
            .collect::<Vec<_>>()
    };
    for (text, says) in [
        ("security.protocol=SSL\nssl.ca.location=/nope/ca.pem", "ssl.ca.location"),
        ("security.protocol=SASL_SSL\nsasl.username=u\nsasl.password=hunter2", "GSSAPI"),
        ("security.protocol=SASL_PLAINTEXT\nsasl.mechanisms=PLAIN", "sasl.username"),
        ("receive.message.max.bytes=1000", "receive.message.max.bytes"),
        ("security.protocol=SASL_PLAINTEXT\nsasl.mechanisms=OAUTHBEARER", "OAUTHBEARER, for which nothing"),
        ("security.protocol=sasl_ssl\nsasl.mechanism=OAUTHBEARER", "OAUTHBEARER, for which nothing"),
    ] {
        let faults = faults(text);
        assert!(faults.len() == 1 && faults[0].contains(says), "{text}: {faults:?}");
    }
    for text in [
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanisms=SCRAM-SHA-512\nsasl.username=u\nsasl.password=p",
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanisms=OAUTHBEARER\nenable.sasl.oauthbearer.unsecure.jwt=true",
        "fetch.wait.max.ms=50",
    ] {
        assert_eq!(faults(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn a_brokers_scheme_must_match_the_security_protocol() {
    let brokers = |brokers: &str, text: &'static str| {
        let world = World::new().env("KAFKA_BROKERS", brokers).env("KAFKA_PROPERTIES_FILE", "kafka.properties");
        world.file("kafka.properties", text)
    };
    let sasl = "security.protocol=SASL_PLAINTEXT\nsasl.mechanisms=PLAIN\nsasl.username=u\nsasl.password=p";
    for (list, text, count) in [
        ("kafka://a:9092", "", 1),
        ("SASL_SSL://a:9092,b:9092,ssl://c:9092", "", 2),
        ("plaintext://a:9092,SASL_PLAINTEXT://b:9092", sasl, 1),
    ] {
        let faults = brokers(list, text).faults();
        assert!(
            faults.len() == count && faults.iter().all(|fault| fault.starts_with("KAFKA_BROKERS (env")),
            "{faults:?}"
        );
    }
    assert_eq!(&*brokers("sasl_plaintext://a:9092,b", sasl).config().kafka.brokers, "sasl_plaintext://a:9092,b");
    assert_eq!(&*brokers("PLAINTEXT://a:9092", "").config().kafka.brokers, "PLAINTEXT://a:9092");
}

#[test]
fn tokens_of_operators_need_their_port_and_are_never_shown() {
    let with = |tokens: &str| World::new().env("ADMIN_PORT", "3004").env("ADMIN_TOKEN", tokens);
    assert!(World::new().config().admin_tokens.is_none());
    let config = with("ada:0123456789abcdef,0123456789abcdef0").config();
    let tokens = config.admin_tokens.as_ref().unwrap();
    assert_eq!(tokens.name_of(b"0123456789abcdef"), Some("ada"));
    let shown = config.settings.iter().find(|setting| setting.name == "ADMIN_TOKEN").unwrap();
    assert_eq!((shown.value.as_deref(), shown.source.as_str()), (Some("***"), "environment"));
    assert!(!format!("{config:?}").contains("0123456789"));

    let fault = with("ada:secret").faults().join("");
    assert!(fault.contains("ADMIN_TOKEN") && fault.contains("16 bytes") && !fault.contains("secret"), "{fault}");
    let fault = World::new().env("ADMIN_TOKEN", "0123456789abcdef").faults().join("");
    assert!(fault.contains("also needs ADMIN_PORT") && !fault.contains("0123"), "{fault}");
}
