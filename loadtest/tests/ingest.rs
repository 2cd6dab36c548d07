//! What comes out of Kafka: every codec, bad records, topics and partitions of later, transactions, the board at the
//! start, and routes of an operator's own.

use std::time::{Duration, Instant};

use loadtest::client::{Client, WITHIN, read_for, read_until};
use loadtest::events::{
    Kind, MARKETS, Producer, assert_saw, assert_saw_ticks, event, number_of, seen, tick, ticks_topic,
};
use loadtest::pods::World;
use loadtest::process::{Signal, TempDir, eventually};

/// Waits until a client has seen this many events.
#[track_caller]
fn await_seen(client: &mut Client, count: usize) {
    read_until(std::slice::from_mut(client), "the events", WITHIN, |clients| seen(&clients[0]).count() >= count);
}

#[test]
fn batches_of_every_codec_arrive() {
    let world = World::start();
    let pod = world.pod("pod-0").start();
    let mut client = pod.client("a");
    let mut number = 0;
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let properties = [("compression.type", codec), ("linger.ms", "50")];
        let producer = Producer::with(world.kafka.bootstrap(), &properties);
        for _ in 0..200 {
            producer.event(&event("a", number));
            number += 1;
        }
        producer.flush();
        await_seen(&mut client, usize::try_from(number).unwrap());
        println!("{codec} arrived");
    }
    assert_saw(&client, "a", 0..number);
}

#[test]
fn malformed_records_are_counted_and_harm_nothing() {
    let world = World::start();
    let pod = world.pod("pod-0").set("MAX_EVENT_BYTES", "64KiB").start();
    let mut client = pod.client("a");
    let mut surrogate = pod.client("\u{fffd}");
    let producer = world.producer();
    let topic = Kind::BalanceUpdated.topic();
    let too_large = format!(r#"{{"assessmentId":"a","currentBalance":"{}"}}"#, "x".repeat(64 * 1024));
    let long_id = format!(r#"{{"assessmentId":"{}"}}"#, "x".repeat(129));
    let bad: &[Option<&[u8]>] = &[
        None,
        Some(b""),
        Some(b"no JSON"),
        Some(b"null"),
        Some(b"[{\"assessmentId\":\"a\"}]"),
        Some(b"{}"),
        Some(b"{\"assessmentId\":17}"),
        Some(b"{\"assessmentId\":null}"),
        Some(b"{\"assessmentId\":\"\"}"),
        Some(b"{\"assessmentId\":\"a\\u0000\"}"),
        Some(b"{\"assessmentId\":\"\\ud800\"}"),
        Some(b"{\"assessmentId\":\"a\",\"timestamp\":1,\"assessmentId\":\"a\"}"),
        Some(b"{\"assessmentId\":\"a\",\"timestamp\":1790000000000"),
        Some(b"{\"assessmentId\":\"a\",\"timestamp\":01}"),
        Some(b"{\"assessmentId\":\"a\",\"currentBalance\":\"\xff\"}"),
        Some(b"{\"assessmentId\":\"a\"} and more"),
        Some(b"\xef\xbb\xbf{\"assessmentId\":\"a\"}"),
        Some(long_id.as_bytes()),
        Some(too_large.as_bytes()),
    ];
    for (number, payload) in (0..).zip(bad) {
        producer.event(&event("a", number));
        producer.send(topic, Some("a"), *payload);
    }
    producer.flush();
    await_seen(&mut client, bad.len());
    pod.await_metric("websocket_kafka_messages_skipped_total", bad.len() as f64);
    assert!(pod.metrics().of("websocket_kafka_messages_skipped_total", &[("reason", "malformed")]) >= 1.0);
    read_for(std::slice::from_mut(&mut client), Duration::from_millis(300));
    assert_saw(&client, "a", 0..u64::try_from(bad.len()).unwrap());
    surrogate.turn();
    assert_eq!(seen(&surrogate).count(), 0);
    assert_eq!(pod.get("/health").status, 200);

    // A flood of them is a few lines of log: one a second and topic at most.
    let before = pod.log().len();
    for _ in 0..5000 {
        producer.send(topic, Some("a"), Some(b"rubbish"));
    }
    producer.flush();
    pod.await_metric("websocket_kafka_messages_skipped_total", (bad.len() + 5000) as f64);
    let log = pod.log();
    let told = log[before..].lines().filter(|line| line.contains(topic)).count();
    assert!(told <= 15, "{told} lines about {topic}");
    assert!(!log.contains("rubbish"), "records are not logged");
}

#[test]
fn bad_ticks_and_markets_harm_nothing() {
    let world = World::start();
    let pod = world.pod("pod-0").start();
    let mut client = pod.market_client();
    let producer = world.producer();
    let gold = ticks_topic("gold");
    producer.event(&tick("gold", 0));
    client.expect_type("market_price");
    for bad in [None, Some(&b"no JSON"[..]), Some(b"[]"), Some(b"{\"price\":1"), Some(b"{\"price\":\"\xff\"}")] {
        producer.send(&gold, Some("gold"), bad);
    }
    producer.flush();
    eventually("they are counted", WITHIN, || {
        (pod.metrics().of("websocket_kafka_messages_skipped_total", &[("reason", "malformed")]) >= 1.0).then_some(())
    });
    let board = pod.market_client().expect_type("market_price");
    assert_eq!(number_of(&board), 0, "the board keeps the last good one");
    for market in MARKETS {
        producer.event(&tick(market, 1));
    }
    let all = |client: &Client| client.messages().iter().filter(|message| message.text.contains("1.250")).count() == 5;
    read_until(std::slice::from_mut(&mut client), "the ticks", WITHIN, |clients| all(&clients[0]));
    assert_saw_ticks(&client, 1);
}

#[test]
fn a_storm_of_ticks_costs_freshness_and_a_quiet_market_loses_none() {
    const FLUSH: Duration = Duration::from_millis(100);
    let world = World::start();
    let pod = world.pod("pod-0").set("MARKET_FLUSH_MS", "100").start();
    let mut client = pod.market_client();
    let producer = world.producer();
    let mut took = Vec::new();
    for number in 0..10 {
        let sent = Instant::now();
        producer.event(&tick("gold", number));
        assert_eq!(number_of(&client.expect_type("market_price")), number, "each tick of a quiet market");
        took.push(sent.elapsed());
    }
    // A machine that does much else may hold one of them up.
    took.sort();
    assert!(took[took.len() / 2] < FLUSH + Duration::from_secs(1), "after {took:?}");

    let started = Instant::now();
    for number in 10..20_000 {
        producer.event(&tick("gold", number));
    }
    client.expect("the last tick", |message| message.text.contains("19999.250"));
    let told = client.of_type("market_price").count() - 10;
    let flushes = started.elapsed().as_millis() / FLUSH.as_millis() + 2;
    assert!(told as u128 <= flushes, "{told} messages in {flushes} flushes");
    let numbers: Vec<_> = client.of_type("market_price").map(number_of).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "never an older one: {numbers:?}");
}

#[test]
fn the_first_tick_leaves_at_once_and_what_follows_within_the_interval_is_conflated() {
    const FLUSH: Duration = Duration::from_secs(8);
    let world = World::start();
    let pod = world.pod("pod-0").set("MARKET_FLUSH_MS", "8000").start();
    let mut client = pod.market_client();
    let producer = world.producer();
    let sent = Instant::now();
    producer.event(&tick("gold", 0));
    assert_eq!(number_of(&client.expect_type("market_price")), 0);
    assert!(sent.elapsed() < FLUSH / 2, "after {:?}", sent.elapsed());
    for number in 1..4 {
        producer.event(&tick("gold", number));
    }
    assert_eq!(number_of(&client.expect_type("market_price")), 3, "the latest");
    assert!(sent.elapsed() >= FLUSH, "after {:?}", sent.elapsed());
}

#[test]
fn topics_and_partitions_that_come_later_are_picked_up() {
    let world = World::without_topics();
    let pod = world.pod("pod-0").start();
    let ids: Vec<_> = (0..40).map(|number| format!("a-{number}")).collect();
    let mut clients: Vec<_> = ids.iter().map(|id| pod.client(id)).collect();
    let kind = Kind::BalanceUpdated;
    let topic = kind.topic();
    world.kafka.create(topic, 1);
    world.kafka.create(&ticks_topic("silver"), 1);
    send_and_await(&world, &ids, &mut clients, kind, 0);
    world.producer().event(&tick("silver", 5));
    for client in &mut clients {
        let price = client.expect_type("market_price");
        assert_eq!(price.json()["market"], "silver");
    }

    world.kafka.grow(topic, 6);
    // A producer that sees the new partitions sends to them at once, before the pod may have seen them.
    send_and_await(&world, &ids, &mut clients, kind, 1);
    let used = (1..6).filter(|partition| world.kafka.offsets(topic, *partition).1 > 0).count();
    assert!(used >= 4, "the events lie on the new partitions: {used}");
    eventually("no lag", WITHIN, || {
        (pod.metrics().of("websocket_kafka_consumer_lag", &[("topic", topic)]) == 0.0).then_some(())
    });
}

/// Sends an event to each, and waits for it: each has seen the numbers up to this one.
fn send_and_await(world: &World, ids: &[String], clients: &mut [Client], kind: Kind, number: u64) {
    let producer = world.producer();
    for id in ids {
        producer.event(&kind.event(id, number));
    }
    producer.flush();
    let count = usize::try_from(number).unwrap() + 1;
    read_until(clients, "each has its event", WITHIN, |clients| {
        clients.iter().all(|client| seen(client).count() >= count)
    });
    for client in clients.iter() {
        let numbers: Vec<_> = seen(client).map(number_of).collect();
        assert_eq!(numbers, (0..=number).collect::<Vec<_>>());
    }
}

#[test]
fn a_recreated_topic_is_read_from_its_beginning() {
    let world = World::start();
    let pod = world.pod("pod-0").set("TOPIC_REFRESH_MS", "1000").start();
    let mut client = pod.client("a");
    let kind = Kind::BalanceUpdated;
    let (topic, ticks) = (kind.topic(), ticks_topic("gold"));
    let send = |numbers: std::ops::Range<u64>| {
        // A producer of its own: one that knew the topic takes its time to learn of the new one.
        let producer = world.producer();
        numbers.for_each(|number| producer.event(&kind.event("a", number)));
        producer.flush();
    };
    send(0..10);
    let producer = world.producer();
    (0..10).for_each(|number| producer.event(&tick("gold", number)));
    producer.flush();
    await_seen(&mut client, 10);

    // Shorter than it was, with fewer partitions.
    for topic in [topic, &ticks] {
        world.kafka.delete(topic);
        world.kafka.create(topic, 1);
    }
    send(10..13);
    await_seen(&mut client, 13);
    world.producer().event(&tick("gold", 10));
    let has_tick = |client: &Client| client.of_type("market_price").any(|message| number_of(message) == 10);
    read_until(std::slice::from_mut(&mut client), "the new topic's tick", WITHIN, |clients| has_tick(&clients[0]));

    // Longer, once the pod knows that the old one is gone.
    world.kafka.delete(topic);
    eventually("its lag is gone", WITHIN, || {
        let metrics = pod.get("/metrics");
        (!String::from_utf8_lossy(&metrics.body).contains(topic)).then_some(())
    });
    world.kafka.create(topic, 2);
    send(13..40);
    await_seen(&mut client, 40);
    read_for(std::slice::from_mut(&mut client), Duration::from_millis(1_500));
    assert_eq!(seen(&client).map(number_of).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>(), "none twice");
    eventually("no lag", WITHIN, || (pod.metrics().sum("websocket_kafka_consumer_lag") == 0.0).then_some(()));
    assert_eq!(pod.metrics().sum("shardgate_ingest_offset_resets_total"), 0.0, "nothing was deleted unread");
}

#[test]
fn records_that_were_deleted_before_they_were_read_are_passed_over() {
    let world = World::start();
    let pod = world.pod("pod-0").start();
    let mut client = pod.client("a");
    let kind = Kind::BalanceUpdated;
    let producer = world.producer();
    producer.event(&kind.event("a", 0));
    await_seen(&mut client, 1);
    let read = (0..3).find(|&partition| world.kafka.offsets(kind.topic(), partition).1 == 1);
    let partition = read.expect("a's partition");

    pod.signal(Signal::Stop);
    // Answers the question for more that the pod has left at the broker; it asks no other.
    producer.event(&Kind::Started.event("a", 1));
    producer.flush();
    (2..100).for_each(|number| producer.event(&kind.event("a", number)));
    producer.flush();
    world.kafka.trim(kind.topic(), partition, 50);
    pod.signal(Signal::Cont);
    await_seen(&mut client, 2 + 49);
    read_for(std::slice::from_mut(&mut client), Duration::from_millis(300));
    let numbers: Vec<_> = seen(&client).map(number_of).collect();
    assert_eq!(numbers, [0, 1].into_iter().chain(51..100).collect::<Vec<_>>());
    assert_eq!(pod.metrics().sum("shardgate_ingest_offset_resets_total"), 1.0);
    eventually("no lag", WITHIN, || (pod.metrics().sum("websocket_kafka_consumer_lag") == 0.0).then_some(()));
}

#[test]
fn what_a_transaction_aborts_never_arrives() {
    let world = World::start();
    let pod = world.pod("pod-0").start();
    let mut client = pod.client("a");
    let producer = Producer::with(world.kafka.bootstrap(), &[("transactional.id", "tester")]);
    let kind = Kind::BalanceUpdated;
    let send = |numbers: std::ops::Range<u64>| numbers.for_each(|number| producer.event(&kind.event("a", number)));
    producer.begin(true);
    send(0..5);
    producer.abort();
    producer.begin(false);
    send(5..10);
    producer.commit();
    producer.begin(false);
    send(10..15);
    producer.abort();
    world.producer().event(&kind.event("a", 15));
    await_seen(&mut client, 6);
    read_for(std::slice::from_mut(&mut client), Duration::from_millis(300));
    assert_eq!(seen(&client).map(number_of).collect::<Vec<_>>(), [5, 6, 7, 8, 9, 15]);

    // Control records at a topic's end are no lag, nor hold they back a pod that starts.
    producer.begin(false);
    send(16..20);
    producer.abort();
    eventually("no lag", WITHIN, || (pod.metrics().sum("websocket_kafka_consumer_lag") == 0.0).then_some(()));
    drop(world.pod("pod-1").start());
}

#[test]
fn what_lies_behind_an_open_transaction_is_lag_and_the_partition_is_named() {
    let world = World::start();
    let pod = world.pod("pod-0").start();
    let mut client = pod.client("a");
    let settings = [("transactional.id", "tester"), ("transaction.timeout.ms", "600000")];
    let transactional = Producer::with(world.kafka.bootstrap(), &settings);
    let kind = Kind::BalanceUpdated;
    transactional.begin(true);
    transactional.event(&kind.event("a", 0));
    transactional.flush();
    let producer = world.producer();
    (1..=100).for_each(|number| producer.event(&kind.event("a", number)));
    producer.flush();
    let lag = || pod.metrics().of("websocket_kafka_consumer_lag", &[("topic", kind.topic())]);
    eventually("the lag counts it", WITHIN, || (lag() == 101.0).then_some(()));
    let held = || pod.metrics().sum("shardgate_ingest_open_transaction_offsets");
    eventually("it shows why", WITHIN, || (held() == 101.0).then_some(()));
    let end = |end| {
        pod.metrics().of("shardgate_ingest_open_transaction_end_offset", &[("end", end), ("topic", kind.topic())])
    };
    assert_eq!([end("last_stable_offset"), end("high_watermark")], [0.0, 101.0]);
    let log = pod.log();
    let line = log.lines().find(|line| line.contains("open transaction holds back")).expect("it is logged");
    for part in [kind.topic(), "partition=1", "last_stable_offset=0", "high_watermark=101"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(pod.get("/ready").status, 200, "Kafka is well, and so is the pod");
    assert_eq!(seen(&client).count(), 0);

    transactional.commit();
    await_seen(&mut client, 101);
    assert_eq!(seen(&client).map(number_of).collect::<Vec<_>>(), (0..=100).collect::<Vec<_>>());
    eventually("no lag", WITHIN, || (lag() == 0.0 && held() == 0.0).then_some(()));
}

#[test]
fn a_message_over_a_mebibyte_arrives_and_the_log_says_which_clients_can_not_take_it() {
    const LINE: &str = "messages over 1048576 bytes";
    let world = World::start();
    let pod = world.pod("pod-0").start();
    let mut client = pod.client("a");
    let producer = Producer::with(world.kafka.bootstrap(), &[("message.max.bytes", "4000000")]);
    let topic = Kind::BalanceUpdated.topic();
    let send = |bytes: usize| {
        let payload = |fill: usize| format!(r#"{{"assessmentId":"a","currentBalance":"{}"}}"#, "x".repeat(fill));
        let fill = bytes - payload(0).len();
        producer.send(topic, Some("a"), Some(payload(fill).as_bytes()));
        producer.flush();
    };
    let seen = |client: &Client| client.of_type("pnl_update").map(|message| message.text.len()).collect::<Vec<_>>();
    let arrives = |client: &mut Client, count| {
        read_until(std::slice::from_mut(client), "the message", WITHIN, |clients| seen(&clients[0]).len() == count);
    };
    // As large as a message may be that every client takes, and as an event may be by default.
    send(1000 * 1024);
    arrives(&mut client, 1);
    assert!(!pod.log().contains(LINE), "{}", pod.log());
    send(1024 * 1024);
    arrives(&mut client, 2);
    let largest = seen(&client)[1];
    assert!((1024 * 1024..=1024 * 1024 + 1024).contains(&largest), "README 2 says how large: {largest}");
    let line =
        eventually("it is logged", WITHIN, || pod.log().lines().find(|line| line.contains(LINE)).map(str::to_owned));
    assert!(line.contains("WARN") && line.contains(topic) && line.contains("MAX_EVENT_BYTES"), "{line}");
    // One more is no event.
    send(1024 * 1024 + 1);
    pod.await_metric("shardgate_ingest_malformed_records_total", 1.0);
    arrives(&mut client, 2);
}

#[test]
fn a_new_client_gets_the_board_first_and_events_from_now_on() {
    let world = World::start();
    let producer = world.producer();
    for number in 0..50 {
        MARKETS.iter().for_each(|market| producer.event(&tick(market, number)));
        producer.event(&event("a", number));
    }
    producer.flush();
    let pod = world.pod("pod-0").start();
    let mut client = pod.client("a");
    client.expect_type("connected");
    producer.event(&Kind::Started.event("a", 56));
    await_seen(&mut client, 1);
    let kinds: Vec<_> = client.messages().iter().map(|message| message.kind.as_str()).collect();
    let board = ["market_price"; MARKETS.len()];
    assert_eq!(kinds, [&["connected"], &board[..], &["assessment_update"]].concat(), "the board, and the event since");
    assert_saw_ticks(&client, 49);
    assert_saw(&client, "a", 56..57);
}

#[test]
fn fields_that_lack_are_left_out_and_nulls_stay() {
    let world = World::start();
    let pod = world.pod("pod-0").start();
    let mut client = pod.client("a");
    let producer = world.producer();
    let topic = Kind::OrderFilled.topic();
    producer.send(topic, Some("a"), Some(br#"{"currentBalance":null,"assessmentId":"a","more":{"assessmentId":"b"}}"#));
    let message = client.expect_type("pnl_update");
    assert_eq!(message.fields(), [("assessmentId".into(), "\"a\"".into()), ("currentBalance".into(), "null".into())]);
    // An id is its characters, however they are escaped.
    producer.send(topic, Some("a"), Some(br#"{"assessmentId":"\u0061","realizedPnl":1E400}"#));
    let message = client.expect_type("pnl_update");
    assert_eq!(message.fields()[1], ("realizedPnl".into(), "1E400".into()));
}

#[test]
fn routes_of_an_operators_own_replace_the_built_in_ones() {
    let world = World::without_topics();
    let dir = TempDir::new("routes");
    let routes = dir.file(
        "routes.toml",
        r#"
[[route]]
topic = "orders.{region}"
scope = "assessment"
assessment = "key"
partitioner = "murmur2"
type = "order"
fields = [{ name = "where", topic = "region" }, { name = "amount", from = "value" }, { name = "v", const = 2 }]

[[route]]
topic = "notes"
scope = "assessment"
assessment = "payload"
partitioner = "none"
type = "note"
fields = "*"

[[route]]
topic = "fx.{market}"
scope = "market"
type = "rate"
fields = [{ name = "pair", topic = "market" }, "rate"]
"#,
    );
    world.kafka.create_all(&[("orders.eu", 2), ("notes", 2), ("fx.eurusd", 1), ("trading.order-filled", 1)]);
    let pod = world.pod("pod-0").set("ROUTES_FILE", routes.to_str().unwrap()).start();
    let mut client = pod.client("a");
    let producer = world.producer();
    producer.event(&event("a", 0));
    producer.send("orders.eu", Some("a"), Some(br#"{"value": 1.50, "assessmentId": "b"}"#));
    let order = client.expect_type("order");
    let fields = [("where", "\"eu\""), ("amount", "1.50"), ("v", "2")];
    assert_eq!(order.fields(), fields.map(|(name, value)| (name.to_owned(), value.to_owned())));

    let note = br#"{ "assessmentId": "a", "type": "x", "text": "\u00e9" }"#;
    producer.send_to("notes", 1, None, Some(note));
    let message = client.expect_type("note");
    let data = [("data".to_owned(), String::from_utf8(note.to_vec()).unwrap())];
    assert_eq!(message.fields(), data, "the payload, whole");

    producer.send("fx.eurusd", None, Some(br#"{"rate":1.0800}"#));
    assert_eq!(client.expect_type("rate").fields()[1], ("rate".into(), "1.0800".into()));
    assert_eq!(client.of_type("pnl_update").count(), 0, "the built-in routes are not there");
}
