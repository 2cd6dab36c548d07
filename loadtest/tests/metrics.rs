//! Every metric of the contract changes exactly as much as clients observe.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use loadtest::client::raw::{Raw, RawFrame, Sent, opcode};
use loadtest::client::{WITHIN, read_until};
use loadtest::events::{MARKETS, event, seen, tick};
use loadtest::pods::{Pod, World};
use loadtest::process::eventually;

/// The fixed names with their types (PROTOCOL 5).
const CONTRACT: &[(&str, &str)] = &[
    ("websocket_connections_total", "gauge"),
    ("websocket_messages_sent", "counter"),
    ("websocket_messages_received", "counter"),
    ("websocket_kafka_messages_processed", "counter"),
    ("websocket_kafka_messages_skipped", "counter"),
    ("websocket_kafka_consumer_lag", "gauge"),
    ("websocket_heartbeat_failures", "counter"),
    ("websocket_connection_duration_seconds", "histogram"),
];

/// Checks that they exist from the start with the right types at 0, and that no metric has another prefix.
fn the_contracts_families_are_there(pod: &Pod) {
    let metrics = pod.metrics();
    for (name, kind) in CONTRACT {
        let family = metrics.families().get(*name).unwrap_or_else(|| panic!("{name} exists from the start"));
        assert_eq!(family.kind, *kind, "{name}");
    }
    for name in metrics.families().keys() {
        assert!(name.starts_with("websocket_") || name.starts_with("shardgate_"), "{name}");
    }
    assert_eq!(metrics.sum("websocket_connections_total"), 0.0);
    assert_eq!(metrics.sum("websocket_messages_sent_total"), 0.0);
}

#[test]
fn the_metrics_agree_with_what_clients_observed() {
    let world = World::start();
    // No heartbeat comes between the counts.
    let pod = world.pod("pod-0").set("HEARTBEAT_INTERVAL", "600000").set("CONNECTION_TIMEOUT", "1200000").start();
    the_contracts_families_are_there(&pod);

    // Ten subscribe to assessments, two get market data only.
    let mut clients: Vec<_> = (0..10).map(|number| pod.client(&format!("a-{number}"))).collect();
    clients.extend([pod.market_client(), pod.market_client()]);
    pod.await_metric("websocket_connections_total", 12.0);
    let opened = Instant::now();

    let producer = world.producer();
    for number in 0..10 {
        for client in 0..10 {
            producer.event(&event(&format!("a-{client}"), number));
        }
        // Owned by this pod, without a subscriber: processed, not sent.
        producer.event(&event("unsubscribed", number));
    }
    for market in MARKETS {
        producer.event(&tick(market, 0));
    }
    producer.send("assessment.created", Some("a-0"), None);
    producer.send("assessment.created", Some("a-0"), Some(b"no JSON"));
    producer.flush();
    read_until(&mut clients, "events and ticks", WITHIN, |clients| {
        clients.iter().enumerate().all(|(index, client)| {
            seen(client).count() == if index < 10 { 10 } else { 0 } && client.of_type("market_price").count() == 5
        })
    });
    pod.await_metric("websocket_kafka_messages_processed_total", 110.0 + 5.0);
    pod.await_metric("websocket_kafka_messages_skipped_total", 2.0);
    assert_eq!(pod.metrics().of("websocket_kafka_messages_skipped_total", &[("reason", "malformed")]), 2.0);
    eventually("no lag", WITHIN, || (pod.metrics().sum("websocket_kafka_consumer_lag") == 0.0).then_some(()));

    // Three kinds of texts count as received messages; a control frame does not.
    for client in &mut clients[..4] {
        client.send(r#"{"type":"ping"}"#);
        client.send(r#"{"type":"pong"}"#);
        client.send(r#"{"type":"something of tomorrow","more":[1]}"#);
        client.send_frame(tungstenite::Message::Ping("beat".into()));
        client.expect_type("pong");
    }
    pod.await_metric("websocket_messages_received_total", 12.0);

    let texts: usize = clients.iter().map(|client| client.messages().len()).sum();
    pod.await_metric("websocket_messages_sent_total", texts as f64);
    assert_eq!(texts, 12 + 100 + 12 * 5 + 4, "connected, events, ticks, pongs");

    // Five leave: two with a close frame, three without.
    let open_s = opened.elapsed().as_secs_f64();
    clients.drain(..2).for_each(loadtest::client::Client::close);
    drop(clients.drain(..3));
    pod.await_metric("websocket_connections_total", 7.0);
    pod.await_metric("websocket_connection_duration_seconds_count", 5.0);
    let metrics = pod.metrics();
    let sum = metrics.sum("websocket_connection_duration_seconds_sum");
    assert!(
        (open_s * 5.0..(opened.elapsed().as_secs_f64() + 1.0) * 5.0).contains(&sum),
        "{sum} s, open for {open_s} s"
    );
    assert_eq!(metrics.sum("websocket_heartbeat_failures_total"), 0.0);

    // A refusal is a text message too.
    let before = metrics.sum("websocket_messages_sent_total");
    pod.ask().without_token().open().expect_refusal();
    pod.await_metric("websocket_messages_sent_total", before + 1.0);
    pod.await_metric("websocket_connections_total", 7.0);
}

#[test]
fn a_silent_client_is_closed_and_counted_and_any_complete_frame_counts_as_activity() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").set("HEARTBEAT_INTERVAL", "200").set("CONNECTION_TIMEOUT", "1500").start();
    // It answers the ping frames.
    let mut answers = pod.client("answers");
    // It sends texts, and no pong.
    let mut texts = Raw::upgraded(&pod.ask().assessment("texts"));
    // It sends nothing.
    let mut silent = Raw::upgraded(&pod.ask().assessment("silent"));
    // It sends an incomplete frame, a byte at a time.
    let mut trickles = Raw::upgraded(&pod.ask().assessment("trickles"));
    let long = RawFrame::new(opcode::TEXT, "x".repeat(100)).bytes();

    let opened = Instant::now();
    for byte in long.chunks(1).take(40) {
        trickles.send(byte);
        texts.send_frames(&[RawFrame::new(opcode::TEXT, r#"{"type":"pong"}"#)]);
        loadtest::client::read_for(std::slice::from_mut(&mut answers), Duration::from_millis(75));
    }
    for raw in [&mut silent, &mut trickles] {
        let mut kinds = (0, 0);
        let code = loop {
            match raw.receive() {
                Sent::Text(text) if text.contains(r#""type":"ping""#) => kinds.0 += 1,
                Sent::Text(text) => assert!(text.contains(r#""type":"connected""#), "{text}"),
                Sent::Ping(_) => kinds.1 += 1,
                Sent::Close(code) => break code,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(code, 4408);
        assert!(kinds.0 >= 4 && kinds.0 == kinds.1, "a text and a frame each 200 ms: {kinds:?}");
    }
    assert!(opened.elapsed() > Duration::from_millis(1500));
    pod.await_metric("websocket_heartbeat_failures_total", 2.0);
    pod.await_metric("websocket_connections_total", 2.0);
    let connected = answers.of_type("connected").next().unwrap().json();
    assert_eq!(connected["heartbeatIntervalMs"], 200);
    assert!(answers.pings() >= 10, "{} pings in 3 s", answers.pings());
    assert!(answers.ended().is_none());
    answers.close();
}

/// Counts of work instead of times: they don't depend on the load of the machine.
#[test]
fn an_event_costs_a_batch_a_turn_and_a_write_per_subscriber() {
    const EVENTS: u64 = 50;
    const SUBSCRIBERS: usize = 10;
    let world = World::start();
    let settings = [("HEARTBEAT_INTERVAL", "600000"), ("CONNECTION_TIMEOUT", "1200000"), ("SHARDS", "1")];
    let pod = world.pod("pod-0").set_all(&settings).start();
    let mut clients: Vec<_> = (0..SUBSCRIBERS).map(|_| pod.client("a")).collect();
    // Their greetings.
    pod.await_metric("shardgate_socket_writes_total", SUBSCRIBERS as f64);
    let producer = world.producer();
    let mut spent = |numbers: std::ops::Range<u64>, at_a_time: u64| {
        let names = ["shardgate_ingest_batches_total", "shardgate_shard_turns_total", "shardgate_socket_writes_total"];
        let count = || names.map(|name| pod.metrics().sum(name));
        let (before, began) = (count(), Instant::now());
        for number in numbers.clone() {
            producer.event(&event("a", number));
            if (number + 1) % at_a_time == 0 {
                producer.flush();
                let count = usize::try_from(number + 1).unwrap();
                read_until(&mut clients, "each has it", WITHIN, |clients| {
                    clients.iter().all(|c| seen(c).count() == count)
                });
            }
        }
        let after = count();
        // Each second a shard makes a turn and gets ingest's offsets. A scrape costs a turn or two.
        let overhead = 3.0 * began.elapsed().as_secs_f64() + 10.0;
        let [batches, turns, writes] = [0, 1, 2].map(|index| after[index] - before[index]);
        (batches, turns, writes, overhead)
    };
    let (batches, turns, writes, overhead) = spent(0..EVENTS, 1);
    assert_eq!(writes, (EVENTS as usize * SUBSCRIBERS) as f64, "one per delivery");
    assert!(batches <= EVENTS as f64 + overhead, "{batches} batches");
    assert!(turns <= batches + overhead, "{turns} turns for {batches} batches");

    // Events that arrive together are sent together.
    let (batches, turns, writes, overhead) = spent(EVENTS..2 * EVENTS, 25);
    assert!(writes <= (EVENTS as usize * SUBSCRIBERS) as f64 / 2.0, "{writes} writes");
    assert!(turns <= batches + overhead, "{turns} turns for {batches} batches");
    let texts: usize = clients.iter().flat_map(|client| client.messages()).map(|message| message.text.len()).sum();
    let written = pod.metrics().sum("shardgate_socket_written_bytes_total");
    assert!((texts as f64..2.0 * texts as f64).contains(&written), "{written} bytes written, {texts} of texts read");
}

// ---- the older text format ------------------------------------------------------------------------------------------

/// Parses Prometheus' text format 0.0.4: each family's HELP, TYPE and samples together and in this order, a known type,
/// and samples with the family's name and the suffixes of a histogram.
fn read_0_0_4(text: &str) -> BTreeMap<String, (String, Vec<(String, f64)>)> {
    const TYPES: [&str; 5] = ["counter", "gauge", "histogram", "summary", "untyped"];
    assert!(text.ends_with('\n'), "the last line ends with a newline");
    let mut families: BTreeMap<String, (String, Vec<(String, f64)>)> = BTreeMap::new();
    let (mut helped, mut current) = (None, None);
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = Some(help.split_once(' ').unwrap_or_else(|| panic!("{line}")).0.to_owned());
        } else if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert_eq!(helped.take().as_deref(), Some(name), "{line}");
            assert!(TYPES.contains(&kind), "{line}");
            let duplicate = families.insert(name.to_owned(), (kind.to_owned(), Vec::new()));
            assert!(duplicate.is_none(), "{line}");
            current = Some(name.to_owned());
        } else {
            assert!(!line.starts_with('#'), "{line}");
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let value = value.parse().unwrap_or_else(|error| panic!("{error}: {line}"));
            let family = current.as_ref().unwrap_or_else(|| panic!("no TYPE before {line}"));
            let (kind, samples) = families.get_mut(family).unwrap();
            let name = series.split('{').next().unwrap();
            let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line} is not of {family}"));
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.contains(&suffix), "{line}");
            assert!(series.len() == name.len() || series.ends_with('}'), "{line}");
            samples.push((series.to_owned(), value));
        }
    }
    families
}

#[test]
fn a_scraper_of_the_older_text_format_can_read_every_metric() {
    let world = World::start();
    let pod = world.pod("pod-0").start();
    let _client = pod.client("a");
    pod.await_metric("websocket_connections_total", 1.0);
    let ask = |method: &str, accept: &str| {
        let mut stream = TcpStream::connect(pod.address()).unwrap();
        write!(stream, "{method} /metrics HTTP/1.1\r\nHost: a\r\n{accept}Connection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    };
    const OLDER: &str = "content-type: text/plain; version=0.0.4; charset=utf-8";
    let (head, text) = ask("GET", "Accept: text/plain;version=0.0.4\r\n");
    assert!(head.contains(OLDER), "{head}");
    let families = read_0_0_4(&text);
    for (name, kind) in CONTRACT {
        let name = if *kind == "counter" { format!("{name}_total") } else { (*name).to_owned() };
        let (found, _) = families.get(&name).unwrap_or_else(|| panic!("{name} in\n{text}"));
        assert_eq!(found, kind, "{name}");
    }
    assert_eq!(families["websocket_connections_total"].1, [("websocket_connections_total".to_owned(), 1.0)]);
    let newer = pod.metrics();
    let in_newer = newer.families().keys().map(|name| match newer.families()[name].kind.as_str() {
        "counter" => format!("{name}_total"),
        "info" => format!("{name}_info"),
        _ => name.clone(),
    });
    assert_eq!(
        families.into_keys().collect::<BTreeSet<_>>(),
        in_newer.collect(),
        "both formats have the same families"
    );

    let (head, body) = ask("HEAD", "Accept: text/plain\r\n");
    assert!(head.contains(OLDER) && body.is_empty(), "{head}");
    for accept in ["", "Accept: */*\r\n", "Accept: application/openmetrics-text,text/plain\r\n"] {
        assert!(ask("GET", accept).0.contains("content-type: application/openmetrics-text"), "{accept}");
    }
}
