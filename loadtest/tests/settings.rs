//! Settings: their sources, the report of all faults at once, and ports in use.

use std::net::TcpListener;
use std::time::Duration;

use loadtest::pods::{Plan, Pod, Run, World, run};
use loadtest::process::{Signal, TempDir, eventually};
use loadtest::token::SECRET;
use socket2::{Domain, Socket, Type};

/// All settings (PROTOCOL 6).
const NAMES: &[&str] = &[
    "HOST",
    "PORT",
    "ADMIN_PORT",
    "POD_NAME",
    "NODE_ID",
    "PUBLIC_URL",
    "KAFKA_BROKERS",
    "KAFKA_CLIENT_ID",
    "KAFKA_GROUP_ID",
    "KAFKA_PROPERTIES_FILE",
    "KAFKA_STALL_MS",
    "KAFKA_START_WAIT_MS",
    "TOPIC_REFRESH_MS",
    "ROUTES_FILE",
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_PASSWORD",
    "REDIS_URL",
    "REDIS_CA_FILE",
    "REDIS_SENTINEL_PASSWORD",
    "REDIS_KEY_PREFIX",
    "LEASE_TTL_MS",
    "JWT_SECRET",
    "JWT_REQUIRE_ASSESSMENTS",
    "ALLOWED_ORIGINS",
    "HEARTBEAT_INTERVAL",
    "CONNECTION_TIMEOUT",
    "SHARDS",
    "HISTORY_SECONDS",
    "HISTORY_BYTES",
    "MARKET_FLUSH_MS",
    "MAX_CONNECTIONS",
    "ACCEPTS_PER_SECOND",
    "MAX_CONNECTIONS_PER_ADDRESS",
    "MAX_CONNECTIONS_PER_USER",
    "MAX_CONNECTION_AGE_MS",
    "TRUSTED_PROXIES",
    "PROXY_PROTOCOL",
    "INBOUND_PER_SECOND",
    "MAX_MESSAGE_BYTES",
    "MAX_EVENT_BYTES",
    "MAX_HEAD_BYTES",
    "HANDSHAKE_TIMEOUT_MS",
    "STALL_TIMEOUT_MS",
    "DRAIN_DELAY_MS",
    "DRAIN_MS",
    "HANDOVER_PER_SECOND",
    "PLACEMENT",
    "LOG",
    "LOG_FORMAT",
];

/// A pod without Kafka and Redis, to see its settings.
fn lonely(name: &str) -> Plan {
    Plan::new(name, "127.0.0.1:1", 1)
}

fn node_of(pod: &Pod) -> String {
    let answer = eventually("the pod answers", Duration::from_secs(10), || pod.try_get("/ready"));
    answer.json()["node"].as_str().unwrap().to_owned()
}

fn assert_reports(run: &Run, words: &[&str]) {
    assert_eq!(run.code, Some(2), "{}", run.output);
    for word in words {
        assert!(run.output.contains(word), "{word} is reported:\n{}", run.output);
    }
    assert!(!run.output.contains("panicked"), "{}", run.output);
}

#[test]
fn all_faults_are_reported_at_once_with_their_names_and_values() {
    // In use: if a port were bound before the settings are valid, that would be another fault.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let faults = [
        ("HISTORY_BYTES", "1MiB"),
        ("HISTORY_SECONDS", "0"),
        ("HEARTBEAT_INTERVAL", "99"),
        ("LEASE_TTL_MS", "999"),
        ("KAFKA_STALL_MS", "999"),
        ("TOPIC_REFRESH_MS", "soon"),
        ("MARKET_FLUSH_MS", "0"),
        ("MAX_EVENT_BYTES", "12XiB"),
        ("SHARDS", "0"),
        ("PLACEMENT", "everywhere"),
        ("LOG", "loud"),
        ("LOG_FORMAT", "xml"),
        ("ADMIN_PORT", "65536"),
        ("JWT_REQUIRE_ASSESSMENTS", "perhaps"),
        ("ROUTES_FILE", "no-such-routes.toml"),
        ("KAFKA_PROPERTIES_FILE", "no-such.properties"),
    ];
    let mut environment = faults.to_vec();
    environment.extend([("HOST", "127.0.0.1"), ("PORT", &port)]);
    let run = run(&["serve"], &environment);
    assert_reports(&run, &["JWT_SECRET"]);
    for (name, got) in faults {
        assert_reports(&run, &[name, got]);
    }
}

#[test]
fn properties_that_are_wrong_only_together_are_reported_with_the_other_faults_before_a_port_is_bound() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = TempDir::new("properties");
    for (properties, word) in [
        ("security.protocol=SSL\nssl.ca.location=/no/such/ca.pem\n", "ssl.ca.location"),
        ("security.protocol=SASL_SSL\nsasl.username=u\nsasl.password=hunter2\n", "GSSAPI"),
        ("receive.message.max.bytes=1000\n", "receive.message.max.bytes"),
    ] {
        let file = dir.file("kafka.properties", properties).display().to_string();
        let environment = [("HOST", "127.0.0.1"), ("PORT", &*port), ("KAFKA_PROPERTIES_FILE", &*file), ("SHARDS", "0")];
        let run = run(&["serve"], &environment);
        assert_reports(&run, &["KAFKA_PROPERTIES_FILE", word, "SHARDS", "JWT_SECRET"]);
        let faults = run.output.lines().filter(|line| line.starts_with("  "));
        assert_eq!(faults.count(), 3, "each fault once:\n{}", run.output);
        assert!(!run.output.contains("hunter2") && !run.output.contains("starts"), "{}", run.output);
    }
    for brokers in ["kafka://host:9092", "SASL_SSL://host:9092"] {
        let run = run(&["serve"], &[("KAFKA_BROKERS", brokers), ("PORT", &*port), ("HOST", "127.0.0.1")]);
        assert_reports(&run, &["KAFKA_BROKERS", brokers, "JWT_SECRET"]);
    }
}

#[test]
fn violated_relations_between_settings_are_reported() {
    let secret = ("JWT_SECRET", SECRET);
    let output = run(&["serve"], &[secret, ("HEARTBEAT_INTERVAL", "1000"), ("CONNECTION_TIMEOUT", "1999")]);
    assert_reports(&output, &["CONNECTION_TIMEOUT", "1999"]);
    assert!(!output.output.contains(SECRET), "the secret is never printed");
    assert_reports(&run(&["serve"], &[secret, ("PUBLIC_URL", "http://host/ws?x=1")]), &["PUBLIC_URL"]);
    assert_reports(&run(&["serve"], &[secret, ("REDIS_URL", "nonsense")]), &["REDIS_URL"]);
    assert_reports(&run(&["serve", "--kafka-brokerz", "x"], &[secret]), &["--kafka-brokerz"]);
    assert_reports(&run(&["serve", "--config", "no-such-file.toml"], &[secret]), &["no-such-file.toml"]);
    let output = run(&["serve", "--shards=-1"], &[secret]);
    assert_reports(&Run { code: output.code, output: output.output.to_lowercase() }, &["shards", "-1"]);
}

#[test]
fn a_foreign_address_is_reported_with_the_other_faults_before_anything_starts() {
    let output = run(&["serve"], &[("JWT_SECRET", SECRET), ("HOST", "192.0.2.1"), ("SHARDS", "0"), ("LOG", "debug")]);
    assert_reports(&output, &["HOST (environment)", "192.0.2.1", "SHARDS"]);
    assert!(!output.output.contains("shardgate starts"), "{}", output.output);
}

#[test]
fn kubernetes_service_variables_are_reported_only_if_they_collide_with_a_setting() {
    let output = run(&["serve"], &[("JWT_SECRET", SECRET), ("REDIS_PORT", "tcp://10.0.0.1:6379")]);
    assert_reports(&output, &["REDIS_PORT (environment)", "tcp://10.0.0.1:6379", "enableServiceLinks"]);
    let links =
        [("REDIS_SERVICE_HOST", "10.0.0.1"), ("KAFKA_PORT", "tcp://10.0.0.1:9092"), ("KAFKA_PORT_9092_TCP", "x")];
    let pod = lonely("pod").set_all(&links).set("REDIS_HSOT", "redis").set("LOG_LEVEL", "debug").spawn();
    eventually("the pod answers", Duration::from_secs(10), || pod.try_get("/health"));
    let log = pod.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("is not a setting")).collect();
    assert_eq!(warnings.len(), 2, "{log}");
    assert!(warnings[0].contains("LOG_LEVEL") && warnings[0].contains("LOG_FORMAT"), "{log}");
    assert!(warnings[1].contains("REDIS_HSOT") && warnings[1].contains("REDIS_HOST?"), "{log}");
}

#[test]
fn the_faults_of_a_file_are_reported_with_the_others() {
    let dir = TempDir::new("settings");
    let file = dir.file("shardgate.toml", "kafka_brokerz = 'x'\nhistory_bytes = '1KiB'\nport = 'http'\n");
    let output = run(&["serve", "--config", file.to_str().unwrap()], &[("SHARDS", "none")]);
    let lower = Run { code: output.code, output: output.output.to_lowercase() };
    assert_reports(&lower, &["kafka_brokerz", "history_bytes", "port", "shards", "jwt_secret"]);
    let broken = dir.file("broken.toml", "port = \n");
    let output = run(&["serve", "--config", broken.to_str().unwrap()], &[("JWT_SECRET", SECRET)]);
    assert_reports(&output, &["broken.toml", "line 1"]);
}

#[test]
fn flags_override_environment_overrides_file_and_empty_values_count_as_unset() {
    let dir = TempDir::new("settings");
    let file = dir.file("shardgate.toml", "pod_name = 'of-the-file'\nhistory_bytes = '8MiB'\ndrain_ms = 100\n");
    let config = format!("--config={}", file.display());
    assert_eq!(node_of(&lonely("").argument(&config).spawn()), "of-the-file");
    assert_eq!(node_of(&lonely("of-the-environment").argument(&config).spawn()), "of-the-environment");
    let flag = lonely("of-the-environment").argument(&config).argument("--pod-name=of-the-flag");
    assert_eq!(node_of(&flag.spawn()), "of-the-flag");
    assert_eq!(node_of(&lonely("").set("NODE_ID", "of-node-id").spawn()), "of-node-id");
    assert_eq!(node_of(&lonely("first").set("NODE_ID", "second").spawn()), "first");
    let made_up = node_of(&lonely("").spawn());
    let number = made_up.strip_prefix("websocket-").expect("websocket-<unix ms>");
    assert!(number.len() == 13 && number.bytes().all(|byte| byte.is_ascii_digit()), "{made_up}");
}

#[test]
fn help_lists_every_setting() {
    let help = run(&["serve", "--help"], &[]);
    assert_eq!(help.code, Some(0));
    for name in NAMES {
        assert!(help.output.contains(name), "{name} in\n{}", help.output);
        let flag = format!("--{}", name.to_lowercase().replace('_', "-"));
        assert!(help.output.contains(&flag), "{flag} in\n{}", help.output);
    }
    for default in ["3003", "localhost:9092", "256MiB", "10000", "30000", "60000", "5000", "20000", "4KiB", "1MiB"] {
        assert!(help.output.contains(default), "the default {default} in\n{}", help.output);
    }
    let all = run(&["--help"], &[]);
    for subcommand in ["serve", "demo", "token", "routes"] {
        assert!(all.output.contains(subcommand), "{}", all.output);
    }
}

#[test]
fn a_port_in_use_is_reported_even_if_it_could_be_shared() {
    let plan = lonely("pod");
    let plain = TcpListener::bind(plan.address()).unwrap();
    in_use(&plan, plan.address().port());
    drop(plain);

    let shared = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    shared.set_reuse_port(true).unwrap();
    // A process that another test is just starting may hold the dropped socket for a moment.
    eventually("the port is free", Duration::from_secs(10), || shared.bind(&plan.address().into()).ok());
    shared.listen(8).unwrap();
    in_use(&plan, plan.address().port());
    drop(shared);

    let first = plan.spawn();
    eventually("the pod answers", Duration::from_secs(10), || first.try_get("/health"));
    in_use(&plan, plan.address().port());
    assert_eq!(first.get("/health").status, 200, "the first pod still answers");

    let other = lonely("other").set("HOST", &plan.address().ip().to_string());
    in_use(&other.set("ADMIN_PORT", &plan.address().port().to_string()), plan.address().port());
}

/// Checks that a pod whose port or admin port is in use exits with 1 and logs the port.
fn in_use(plan: &Plan, port: u16) {
    let mut pod = plan.spawn();
    assert_eq!(pod.wait_exit(Duration::from_secs(10)).code(), Some(1), "{}", pod.log());
    assert!(pod.log().contains(&port.to_string()), "{}", pod.log());
}

#[test]
fn a_short_secret_causes_a_warning_and_is_never_printed() {
    let pod = lonely("pod").set("JWT_SECRET", "hush-hush").spawn();
    eventually("the warning is logged", Duration::from_secs(10), || pod.log().contains("JWT_SECRET").then_some(()));
    assert!(pod.log().contains("WARN"));
    assert!(!pod.log().contains("hush"));
}

#[test]
fn a_log_is_text_or_json_lines() {
    let mut pod = lonely("pod-\"1\"").set_all(&[("LOG_FORMAT", "json"), ("LOG", "debug")]).spawn();
    eventually("the pod answers", Duration::from_secs(10), || pod.try_get("/health"));
    // Lines with times.
    pod.signal(Signal::Term);
    assert_eq!(pod.wait_exit(Duration::from_secs(10)).code(), Some(0));
    let mut times = 0;
    for line in pod.log().lines() {
        let json: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for name in ["node", "timestamp", "level", "message"] {
            assert!(json[name].is_string(), "{line}");
            assert_eq!(line.matches(&format!("\"{name}\":")).count(), 1, "{line}");
        }
        assert_eq!(json["node"], "pod-\"1\"");
        for (name, value) in json.as_object().unwrap() {
            times += u32::from(name.ends_with("_ms") && value.is_u64());
            // As Rust prints a duration.
            let units = ["ns", "µs", "ms", "s"];
            let numbers = units.iter().filter_map(|unit| value.as_str()?.strip_suffix(unit));
            let durations = numbers.filter(|number| number.parse::<f64>().is_ok());
            assert_eq!(durations.count(), 0, "{name}: {line}");
        }
    }
    assert!(times >= 3, "{}", pod.log());
}

#[test]
fn suppressed_lines_of_a_library_displace_no_line_of_ours() {
    let pod = lonely("pod").set("LOG", "info").spawn();
    // The first line after the start of librdkafka's clients, which log much at lower levels.
    eventually("ingest logs its start", Duration::from_secs(10), || pod.log().contains("ingest started").then_some(()));
}

#[test]
fn an_invalid_routes_file_is_refused_with_the_line_and_the_valid_values() {
    let dir = TempDir::new("routes");
    let good = "[[route]]\ntopic = \"a.b\"\nscope = \"assessment\"\nassessment = \"payload\"\n\
                partitioner = \"murmur2\"\ntype = \"x\"\nfields = [\"assessmentId\"]\n";
    let wrong = [
        ("invalid TOML", good.replace("\"a.b\"", "a.b"), "line 2", ""),
        ("an unknown scope", good.replace("\"assessment\"\na", "\"everyone\"\na"), "line 3", "market"),
        ("an unknown source of the id", good.replace("\"payload\"", "\"header\""), "line 4", "key"),
        ("an unknown partitioner", good.replace("murmur2", "random"), "line 5", "murmur2"),
        ("an unknown key", good.replace("type =", "typ ="), "line 6", "type"),
        ("an invalid field", good.replace("[\"assessmentId\"]", "[{ nam = \"x\" }]"), "line 7", "name"),
        (
            "a placeholder missing in the topic",
            good.replace("[\"assessmentId\"]", "[{ name = \"m\", topic = \"m\" }]"),
            "line 7",
            "m",
        ),
    ];
    for (what, routes, line, right) in wrong {
        let file = dir.file("routes.toml", &routes);
        let output =
            run(&["serve"], &[("JWT_SECRET", SECRET), ("ROUTES_FILE", file.to_str().unwrap()), ("SHARDS", "none")]);
        println!("{what}");
        assert_reports(&output, &["ROUTES_FILE", line, right, "SHARDS"]);
    }
}

#[test]
fn the_printed_built_in_routes_are_a_valid_routes_file() {
    let printed = run(&["routes"], &[]);
    assert_eq!(printed.code, Some(0));
    for topic in ["market-data.{market}-ticks", "trading.order-filled", "rules.drawdown-checked"] {
        assert!(printed.output.contains(topic), "{topic}");
    }
    let world = World::without_topics();
    let dir = TempDir::new("routes");
    let file = dir.file("routes.toml", &printed.output);
    drop(world.pod("pod-0").set("ROUTES_FILE", file.to_str().unwrap()).start());
}

#[test]
fn check_says_whether_a_pod_would_reach_what_it_needs() {
    let world = World::start();
    let port = world.redis.port().to_string();
    let check = |changed: &[(&str, &str)]| {
        let mut environment =
            vec![("JWT_SECRET", SECRET), ("KAFKA_BROKERS", world.kafka.bootstrap()), ("REDIS_PORT", &*port)];
        environment.extend(changed);
        run(&["check"], &environment)
    };
    let good = check(&[]);
    assert_eq!(good.code, Some(0), "{}", good.output);
    let topics = World::topics().len();
    for line in ["settings: good", "routes: good", &format!("good, {topics} topics have a route"), "Redis at localhost"]
    {
        assert!(good.output.contains(line), "{line}: {}", good.output);
    }
    assert!(!good.output.contains("FAILED") && !good.output.contains(SECRET), "{}", good.output);
    assert_reports(&check(&[("REDIS_PORT", "1")]), &["Redis at localhost:1: FAILED", "topics have a route"]);
    assert_reports(&check(&[("KAFKA_BROKERS", "127.0.0.1:1")]), &["Kafka at 127.0.0.1:1: FAILED", "in the slots"]);
    assert_reports(&check(&[("ROUTES_FILE", "no-such-routes.toml"), ("SHARDS", "none")]), &["ROUTES_FILE", "SHARDS"]);
}
