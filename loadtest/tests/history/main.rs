//! The history at a pod's start, and what Kafka may do to a log before a pod has read it: retention, deleted records,
//! compaction, transactions, a new leader, a leader that lacks records, more partitions, a recreated topic.

mod away;
mod cluster;
mod compaction;
mod holes;
mod topics;
mod truncation;

use std::ops::Range;
use std::time::Duration;

use away::{cursor_at, goes_on, is_reset};
use loadtest::client::{Client, Message, WITHIN, read_for, read_until};
use loadtest::events::{Kind, Producer, number_of, seen};
use loadtest::kafka::Kafka;
use loadtest::metrics::Scrape;
use loadtest::pods::{Plan, Pod, World};
use loadtest::process::{Signal, TempDir, eventually};

/// The kind of all events here: their number is their offset, where a topic has one partition and nothing else.
const KIND: Kind = Kind::BalanceUpdated;

/// The type of their messages.
const KIND_TOLD: &str = "pnl_update";

/// For what must not come.
const QUIET: Duration = Duration::from_millis(300);

/// The numbers of all events that a client saw.
fn numbers(client: &Client) -> Vec<u64> {
    seen(client).map(number_of).collect()
}

/// Waits until a client has seen this many events.
#[track_caller]
fn await_seen(client: &mut Client, count: usize) {
    read_until(std::slice::from_mut(client), "the events", WITHIN, |clients| seen(&clients[0]).count() >= count);
}

/// Waits until a client has seen events of these numbers, and checks that it saw no other, none twice, and in this
/// order.
#[track_caller]
fn expect_numbers(client: &mut Client, expected: impl IntoIterator<Item = u64>) {
    let expected: Vec<u64> = expected.into_iter().collect();
    await_seen(client, expected.len());
    read_for(std::slice::from_mut(client), QUIET);
    assert_eq!(numbers(client), expected);
}

/// Sends a's events of these numbers.
fn send(producer: &Producer, numbers: impl IntoIterator<Item = u64>) {
    numbers.into_iter().for_each(|number| producer.event(&KIND.event("a", number)));
    producer.flush();
}

/// A pod to be that serves all, whichever others there are.
fn pod(world: &World, name: &str) -> Plan {
    world.pod(name).set("PLACEMENT", "any")
}

/// A world with the one topic, of one partition.
fn world_of_one() -> World {
    let world = World::without_topics();
    world.kafka.create(KIND.topic(), 1);
    world
}

/// A client that watches a's events from now on.
#[track_caller]
fn watching(pod: &Pod) -> Client {
    let mut client = pod.client("a");
    client.expect_type("connected");
    client
}

#[track_caller]
fn no_lag(pod: &Pod) {
    eventually("no lag", WITHIN, || (pod.metrics().sum("websocket_kafka_consumer_lag") == 0.0).then_some(()));
}

/// How many offsets a pod's history is still to be filled from, and how many there were; where it answers.
fn progress(pod: &Pod) -> Option<(u64, u64)> {
    let answer = pod.try_get("/metrics").filter(|answer| answer.status == 200)?;
    let metrics = Scrape::parse(&answer.text()).unwrap();
    let gauge = |name| metrics.sum(name) as u64;
    Some((gauge("shardgate_ingest_filling_left_offsets"), gauge("shardgate_ingest_filling_offsets")))
}

// ---- the filling ----------------------------------------------------------------------------------------------------

#[test]
fn the_progress_of_the_filling_shows_until_the_pod_is_ready() {
    const RECORDS: u64 = 200_000;
    let world = world_of_one();
    let producer = Producer::with(world.kafka.bootstrap(), &[("linger.ms", "20"), ("compression.type", "lz4")]);
    (0..RECORDS).for_each(|number| producer.event(&KIND.event(&format!("a-{}", number % 100), number)));
    producer.flush();

    let pod = pod(&world, "pod-0").spawn();
    let mut seen = Vec::new();
    eventually("the history fills", WITHIN, || {
        let (left, whole) = progress(&pod)?;
        seen.extend((whole > 0).then_some(left));
        (whole == RECORDS && left == 0).then_some(())
    });
    assert!(seen.iter().any(|left| (1..RECORDS).contains(left)), "on its way: {seen:?}");
    assert!(seen.is_sorted_by(|a, b| a >= b), "it only gets less: {seen:?}");
    pod.ready();
    let log = pod.log();
    assert!(log.contains("filling the history") && log.contains("history complete"), "{log}");
    assert_eq!(pod.metrics().sum("websocket_kafka_messages_processed_total"), RECORDS as f64);
}

// ---- deleted records ----------------------------------------------------------------------------------------------

#[test]
fn a_pod_starts_behind_what_was_deleted() {
    let world = world_of_one();
    let producer = world.producer();
    let first = pod(&world, "pod-0").start();
    let mut client = watching(&first);
    send(&producer, 0..50);
    expect_numbers(&mut client, 0..50);
    world.kafka.trim(KIND.topic(), 0, 30);
    let second = pod(&world, "pod-1").start();
    let mut late = watching(&second);
    goes_on(&first, &cursor_at(&client, 20), 21..50);
    goes_on(&second, &cursor_at(&client, 29), 30..50);
    is_reset(&second, &cursor_at(&client, 28), "expired");
    send(&producer, 50..60);
    expect_numbers(&mut client, 0..60);
    expect_numbers(&mut late, 50..60);

    world.kafka.expire(KIND.topic(), 0);
    let third = pod(&world, "pod-2").start();
    let mut later = goes_on(&third, &cursor_at(&late, 59), []);
    is_reset(&third, &cursor_at(&late, 58), "expired");
    send(&producer, 60..70);
    expect_numbers(&mut later, 60..70);
    expect_numbers(&mut client, 0..70);
    for pod in [&first, &second, &third] {
        goes_on(pod, &cursor_at(&later, 64), 65..70);
        assert_eq!(pod.metrics().sum("shardgate_ingest_offset_resets_total"), 0.0, "nothing was deleted unread");
        no_lag(pod);
    }
}

#[test]
fn records_that_are_deleted_while_the_history_fills_are_passed_over_and_their_cursors_are_too_old() {
    const OTHERS: i64 = 100_000;
    let world = world_of_one();
    let producer = Producer::with(world.kafka.bootstrap(), &[("linger.ms", "20")]);
    let first = pod(&world, "pod-0").start();
    let mut client = watching(&first);
    send(&producer, 0..10);
    (0..OTHERS).for_each(|_| producer.event(&KIND.event("b", 0)));
    producer.flush();
    send(&producer, 10..20);
    expect_numbers(&mut client, 0..20);

    // One that takes little at a time is stopped on its way.
    let dir = TempDir::new("slow");
    let slow = dir.file("kafka.properties", "max.partition.fetch.bytes=20000\nqueued.min.messages=1\n");
    let second = pod(&world, "pod-1").set("KAFKA_PROPERTIES_FILE", slow.to_str().unwrap()).spawn();
    eventually("it has read something", WITHIN, || {
        let (left, whole) = progress(&second)?;
        (left < whole).then_some(())
    });
    second.signal(Signal::Stop);
    world.kafka.trim(KIND.topic(), 0, OTHERS);
    second.signal(Signal::Cont);
    second.ready();
    assert_eq!(second.metrics().sum("shardgate_ingest_offset_resets_total"), 1.0);
    assert_eq!(progress(&second).unwrap().0, 0);
    is_reset(&second, &cursor_at(&client, 5), "expired");
    let mut late = goes_on(&second, &cursor_at(&client, 12), 13..20);
    goes_on(&first, &cursor_at(&client, 5), 6..20);
    send(&producer, 20..25);
    expect_numbers(&mut late, 13..25);
}

#[test]
fn a_pod_that_is_behind_passes_over_what_was_deleted() {
    deleted_unread(50..100, |kafka| kafka.trim(KIND.topic(), 0, 50));
}

#[test]
fn a_pod_that_is_behind_passes_over_what_grew_too_old() {
    deleted_unread(100..100, |kafka| kafka.expire(KIND.topic(), 0));
}

/// Stops the pod, sends events up to number 99, deletes all but those that are `left`, and lets the pod go on.
fn deleted_unread(left: Range<u64>, delete: impl Fn(&Kafka)) {
    /// Of another topic.
    const OTHER: u64 = 1_000;
    let world = world_of_one();
    world.kafka.create(Kind::Started.topic(), 1);
    let first = pod(&world, "pod-0").start();
    let producer = world.producer();
    let mut client = watching(&first);
    send(&producer, 0..10);
    expect_numbers(&mut client, 0..10);

    first.signal(Signal::Stop);
    // Answers the question for more that the pod has left at the broker; it asks no other.
    producer.event(&Kind::Started.event("a", OTHER));
    producer.flush();
    send(&producer, 10..100);
    delete(&world.kafka);
    first.signal(Signal::Cont);
    send(&producer, 100..110);
    let expected: Vec<u64> = (0..10).chain(left.clone()).chain(100..110).collect();
    await_seen(&mut client, expected.len() + 1);
    read_for(std::slice::from_mut(&mut client), QUIET);
    let saw = numbers(&client);
    let (others, of_topic): (Vec<u64>, Vec<u64>) = saw.into_iter().partition(|&number| number == OTHER);
    assert_eq!((of_topic, others), (expected, vec![OTHER]));
    assert_eq!(first.metrics().sum("shardgate_ingest_offset_resets_total"), 1.0);
    no_lag(&first);

    // Those who watch are told where it happened.
    let place = |is: &dyn Fn(&Message) -> bool| client.messages().iter().position(is);
    let reset = place(&|message| message.kind == "reset").expect("a reset");
    let resets: Vec<_> = client.of_type("reset").map(|reset| reset.json()["reason"].clone()).collect();
    assert_eq!(resets, ["expired"]);
    let is_number = |message: &Message, number| message.kind == KIND_TOLD && number_of(message) == number;
    assert!(place(&|message| is_number(message, 9)) < Some(reset));
    assert!(Some(reset) < place(&|message| is_number(message, left.clone().chain(100..).next().unwrap())));
    let second = pod(&world, "pod-1").start();
    for pod in [&first, &second] {
        is_reset(pod, &cursor_at(&client, 5), "expired");
        goes_on(pod, &cursor_at(&client, 105), 106..110);
    }
}
