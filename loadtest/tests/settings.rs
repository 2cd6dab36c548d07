//! Settings: where they come from, that every fault is told at once, and that a port in use is told.

use std::net::TcpListener;
use std::time::Duration;

use loadtest::pods::{Plan, Pod, Run, World, run};
use loadtest::process::{TempDir, eventually};
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

/// A pod without neighbours: enough to see what it was set to.
fn lonely(name: &str) -> Plan {
    Plan::new(name, "127.0.0.1:1", 1)
}

fn node_of(pod: &Pod) -> String {
    let answer = eventually("it answers", Duration::from_secs(10), || pod.try_get("/ready"));
    answer.json()["node"].as_str().unwrap().to_owned()
}

fn assert_tells(run: &Run, words: &[&str]) {
    assert_eq!(run.code, Some(2), "{}", run.output);
    for word in words {
        assert!(run.output.contains(word), "{word} is told:\n{}", run.output);
    }
    assert!(!run.output.contains("panicked"), "{}", run.output);
}

#[test]
fn every_fault_is_told_at_once_with_its_name_and_what_it_got() {
    // In use: were a port bound before the settings are right, it would be another fault.
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
    assert_tells(&run, &["JWT_SECRET"]);
    for (name, got) in faults {
        assert_tells(&run, &[name, got]);
    }
}

#[test]
fn what_one_setting_asks_of_another_is_told_too() {
    let secret = ("JWT_SECRET", SECRET);
    let told = run(&["serve"], &[secret, ("HEARTBEAT_INTERVAL", "1000"), ("CONNECTION_TIMEOUT", "1999")]);
    assert_tells(&told, &["CONNECTION_TIMEOUT", "1999"]);
    assert!(!told.output.contains(SECRET), "the secret is never told");
    assert_tells(&run(&["serve"], &[secret, ("PUBLIC_URL", "http://host/ws?x=1")]), &["PUBLIC_URL"]);
    assert_tells(&run(&["serve"], &[secret, ("REDIS_URL", "nonsense")]), &["REDIS_URL"]);
    assert_tells(&run(&["serve", "--kafka-brokerz", "x"], &[secret]), &["--kafka-brokerz"]);
    assert_tells(&run(&["serve", "--config", "no-such-file.toml"], &[secret]), &["no-such-file.toml"]);
    let told = run(&["serve", "--shards=-1"], &[secret]);
    assert_tells(&Run { code: told.code, output: told.output.to_lowercase() }, &["shards", "-1"]);
}

#[test]
fn an_address_of_another_machine_is_told_with_the_other_faults_before_anything_starts() {
    let told = run(&["serve"], &[("JWT_SECRET", SECRET), ("HOST", "192.0.2.1"), ("SHARDS", "0"), ("LOG", "debug")]);
    assert_tells(&told, &["HOST (environment)", "192.0.2.1", "SHARDS"]);
    assert!(!told.output.contains("shardgate starts"), "{}", told.output);
}

#[test]
fn what_kubernetes_sets_for_services_is_told_where_it_harms_and_left_alone_elsewhere() {
    let told = run(&["serve"], &[("JWT_SECRET", SECRET), ("REDIS_PORT", "tcp://10.0.0.1:6379")]);
    assert_tells(&told, &["REDIS_PORT (environment)", "tcp://10.0.0.1:6379", "enableServiceLinks"]);
    let links =
        [("REDIS_SERVICE_HOST", "10.0.0.1"), ("KAFKA_PORT", "tcp://10.0.0.1:9092"), ("KAFKA_PORT_9092_TCP", "x")];
    let pod = lonely("pod").set_all(&links).set("REDIS_HSOT", "redis").set("LOG_LEVEL", "debug").spawn();
    eventually("it answers", Duration::from_secs(10), || pod.try_get("/health"));
    let log = pod.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("is not a setting")).collect();
    assert_eq!(warnings.len(), 2, "{log}");
    assert!(warnings[0].contains("LOG_LEVEL") && warnings[0].contains("LOG_FORMAT"), "{log}");
    assert!(warnings[1].contains("REDIS_HSOT") && warnings[1].contains("REDIS_HOST?"), "{log}");
}

#[test]
fn a_files_faults_are_told_with_the_others() {
    let dir = TempDir::new("settings");
    let file = dir.file("shardgate.toml", "kafka_brokerz = 'x'\nhistory_bytes = '1KiB'\nport = 'http'\n");
    let told = run(&["serve", "--config", file.to_str().unwrap()], &[("SHARDS", "none")]);
    let lower = Run { code: told.code, output: told.output.to_lowercase() };
    assert_tells(&lower, &["kafka_brokerz", "history_bytes", "port", "shards", "jwt_secret"]);
    let broken = dir.file("broken.toml", "port = \n");
    let told = run(&["serve", "--config", broken.to_str().unwrap()], &[("JWT_SECRET", SECRET)]);
    assert_tells(&told, &["broken.toml", "line 1"]);
}

#[test]
fn flags_beat_environment_beats_file_and_what_is_empty_counts_as_unset() {
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
fn a_port_in_use_is_told_also_where_it_could_be_shared() {
    let plan = lonely("pod");
    let plain = TcpListener::bind(plan.address()).unwrap();
    in_use(&plan, plan.address().port());
    drop(plain);

    let shared = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    shared.set_reuse_port(true).unwrap();
    shared.bind(&plan.address().into()).unwrap();
    shared.listen(8).unwrap();
    in_use(&plan, plan.address().port());
    drop(shared);

    let first = plan.spawn();
    eventually("it answers", Duration::from_secs(10), || first.try_get("/health"));
    in_use(&plan, plan.address().port());
    assert_eq!(first.get("/health").status, 200, "the first is not disturbed");

    let other = lonely("other").set("HOST", &plan.address().ip().to_string());
    in_use(&other.set("ADMIN_PORT", &plan.address().port().to_string()), plan.address().port());
}

/// A pod that finds its port, or that for operators, in use ends with 1 and tells the number.
fn in_use(plan: &Plan, port: u16) {
    let mut pod = plan.spawn();
    assert_eq!(pod.wait_exit(Duration::from_secs(10)).code(), Some(1), "{}", pod.log());
    assert!(pod.log().contains(&port.to_string()), "{}", pod.log());
}

#[test]
fn a_short_secret_is_warned_of_and_never_told() {
    let pod = lonely("pod").set("JWT_SECRET", "hush-hush").spawn();
    eventually("it warns", Duration::from_secs(10), || pod.log().contains("JWT_SECRET").then_some(()));
    assert!(pod.log().contains("WARN"));
    assert!(!pod.log().contains("hush"));
}

#[test]
fn a_log_is_text_or_json_lines() {
    let pod = lonely("pod").set("LOG_FORMAT", "json").spawn();
    eventually("it answers", Duration::from_secs(10), || pod.try_get("/health"));
    for line in pod.log().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string(), "{line}");
    }
    assert!(!pod.log().is_empty());
}

#[test]
fn a_library_that_says_what_nobody_asked_for_takes_no_line_of_ours_with_it() {
    let pod = lonely("pod").set("LOG", "info").spawn();
    // The first line after the clients of librdkafka were made, which have much to say at lower levels.
    eventually("ingest says what it does", Duration::from_secs(10), || {
        pod.log().contains("ingest started").then_some(())
    });
}

#[test]
fn a_wrong_routes_file_is_refused_with_its_line_and_what_would_be_right() {
    let dir = TempDir::new("routes");
    let good = "[[route]]\ntopic = \"a.b\"\nscope = \"assessment\"\nassessment = \"payload\"\n\
                partitioner = \"murmur2\"\ntype = \"x\"\nfields = [\"assessmentId\"]\n";
    let wrong = [
        ("no TOML", good.replace("\"a.b\"", "a.b"), "line 2", ""),
        ("a scope that isn't", good.replace("\"assessment\"\na", "\"everyone\"\na"), "line 3", "market"),
        ("no source of the id", good.replace("\"payload\"", "\"header\""), "line 4", "key"),
        ("a partitioner that isn't", good.replace("murmur2", "random"), "line 5", "murmur2"),
        ("a key that isn't", good.replace("type =", "typ ="), "line 6", "type"),
        ("a field that isn't", good.replace("[\"assessmentId\"]", "[{ nam = \"x\" }]"), "line 7", "name"),
        (
            "a placeholder that the topic lacks",
            good.replace("[\"assessmentId\"]", "[{ name = \"m\", topic = \"m\" }]"),
            "line 7",
            "m",
        ),
    ];
    for (what, routes, line, right) in wrong {
        let file = dir.file("routes.toml", &routes);
        let told =
            run(&["serve"], &[("JWT_SECRET", SECRET), ("ROUTES_FILE", file.to_str().unwrap()), ("SHARDS", "none")]);
        println!("{what}");
        assert_tells(&told, &["ROUTES_FILE", line, right, "SHARDS"]);
    }
}

#[test]
fn the_built_in_routes_are_printed_and_may_be_given_back() {
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
