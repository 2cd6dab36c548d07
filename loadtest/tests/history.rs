//! The history at a pod's start, and what Kafka may do to a log before a pod has read it: retention, deleted records,
//! compaction, transactions, a new leader, more partitions, a topic made anew.

use std::time::Duration;

use loadtest::client::{Client, WITHIN, read_for, watch};
use loadtest::events::{Kind, Producer, number_of, seen};
use loadtest::kafka::Kafka;
use loadtest::pods::{Plan, Pod, World};
use loadtest::process::{Signal, eventually};
use loadtest::redis::Redis;

/// The kind of all events here: their number is their offset, where a topic has one partition and nothing else.
const KIND: Kind = Kind::BalanceUpdated;

/// For what must not come.
const QUIET: Duration = Duration::from_millis(300);

/// The numbers of all events that a client saw.
fn numbers(client: &Client) -> Vec<u64> {
    seen(client).map(number_of).collect()
}

/// Waits until a client has seen so many events.
#[track_caller]
fn await_seen(client: &mut Client, count: usize) {
    watch(std::slice::from_mut(client), "the events", WITHIN, |clients| seen(&clients[0]).count() >= count);
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

#[track_caller]
fn no_lag(pod: &Pod) {
    eventually("no lag", WITHIN, || (pod.metrics().sum("websocket_kafka_consumer_lag") == 0.0).then_some(()));
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
    let progress = || {
        let answer = pod.try_get("/metrics").filter(|answer| answer.status == 200)?;
        let metrics = loadtest::metrics::Metrics::parse(&answer.text()).unwrap();
        let gauge = |name| metrics.sum(name) as u64;
        Some((gauge("shardgate_ingest_filling_left_offsets"), gauge("shardgate_ingest_filling_offsets")))
    };
    let mut seen = Vec::new();
    eventually("the history fills", WITHIN, || {
        let (left, whole) = progress()?;
        seen.extend((whole > 0).then_some(left));
        (whole == RECORDS && left == 0).then_some(())
    });
    assert!(seen.iter().any(|left| (1..RECORDS).contains(left)), "on its way: {seen:?}");
    assert!(seen.is_sorted_by(|a, b| a >= b), "it only gets less: {seen:?}");
    pod.ready();
    let log = pod.log();
    assert!(log.contains("filling the history") && log.contains("the history is complete"), "{log}");
    assert_eq!(pod.metrics().sum("websocket_kafka_messages_processed_total"), RECORDS as f64);
}

// ---- deleted records --------------------------------------------------------------------------------------------------

#[test]
fn a_pod_starts_behind_what_was_deleted() {
    let world = world_of_one();
    let producer = world.producer();
    send(&producer, 0..50);
    world.kafka.trim(KIND.topic(), 0, 30);
    let first = pod(&world, "pod-0").start();
    let mut client = first.client("a");
    client.expect_type("connected");
    send(&producer, 50..60);
    expect_numbers(&mut client, 50..60);

    world.kafka.expire(KIND.topic(), 0);
    let second = pod(&world, "pod-1").start();
    let mut late = second.client("a");
    late.expect_type("connected");
    send(&producer, 60..70);
    expect_numbers(&mut late, 60..70);
    expect_numbers(&mut client, 50..70);
    for pod in [&first, &second] {
        assert_eq!(pod.metrics().sum("shardgate_ingest_offset_resets_total"), 0.0, "nothing was deleted unread");
        no_lag(pod);
    }
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
fn deleted_unread(left: std::ops::Range<u64>, delete: impl Fn(&Kafka)) {
    let world = world_of_one();
    world.kafka.create(Kind::Started.topic(), 1);
    let pod = pod(&world, "pod-0").start();
    let producer = world.producer();
    let mut client = pod.client("a");
    client.expect_type("connected");
    send(&producer, 0..10);
    expect_numbers(&mut client, 0..10);

    pod.signal(Signal::Stop);
    // Answers the question for more that the pod has left at the broker; it asks no other.
    producer.event(&Kind::Started.event("a", 1_000));
    producer.flush();
    send(&producer, 10..100);
    delete(&world.kafka);
    pod.signal(Signal::Cont);
    send(&producer, 100..110);
    let mut expected: Vec<u64> = (0..10).chain([1_000]).chain(left).chain(100..110).collect();
    await_seen(&mut client, expected.len());
    read_for(std::slice::from_mut(&mut client), QUIET);
    let mut saw = numbers(&client);
    let of_topic: Vec<_> = saw.iter().copied().filter(|&number| number != 1_000).collect();
    assert!(of_topic.is_sorted(), "in the topic's order: {saw:?}");
    saw.sort_unstable();
    expected.sort_unstable();
    assert_eq!(saw, expected);
    assert_eq!(pod.metrics().sum("shardgate_ingest_offset_resets_total"), 1.0);
    no_lag(&pod);
}

// ---- holes ------------------------------------------------------------------------------------------------------------

#[test]
fn what_compaction_left_fills_the_history() {
    const SENT: u64 = 300;
    // The cleaner looks for work each 100 ms, not each 15 s.
    let kafka = Kafka::start_with(1, &[("log.cleaner.backoff.ms", "100")]);
    let world = World { kafka, redis: Redis::start() };
    let compact = [("cleanup.policy", "compact"), ("segment.ms", "1"), ("min.cleanable.dirty.ratio", "0.01")];
    world.kafka.create_with(KIND.topic(), 1, &compact);
    let first = pod(&world, "pod-0").start();
    let mut client = first.client("a");
    client.expect_type("connected");
    let producer = world.producer();
    let keyed = |number: u64| {
        let event = KIND.event("a", number);
        // Of each of ten keys the last record is kept.
        producer.send(KIND.topic(), Some(&format!("key-{}", number % 10)), Some(event.payload.as_bytes()));
    };
    (0..SENT).for_each(keyed);
    producer.flush();
    expect_numbers(&mut client, 0..SENT);
    // A record of a key that is not used again closes the segment before it.
    producer.send(KIND.topic(), Some("last"), Some(KIND.event("a", SENT).payload.as_bytes()));
    producer.flush();
    let kept: Vec<i64> = (290..=300).collect();
    eventually("the log is compacted", Duration::from_secs(60), || {
        (world.kafka.records(KIND.topic(), 0) == kept).then_some(())
    });

    let second = pod(&world, "pod-1").start();
    no_lag(&second);
    let mut late = second.client("a");
    late.expect_type("connected");
    (SENT + 1..SENT + 20).for_each(keyed);
    producer.flush();
    expect_numbers(&mut late, SENT + 1..SENT + 20);
    expect_numbers(&mut client, 0..SENT + 20);
    drop(pod(&world, "pod-2").start());
}

#[test]
fn markers_alone_at_the_end_of_a_quiet_topic_hold_nothing_back() {
    let world = world_of_one();
    let first = pod(&world, "pod-0").start();
    let mut client = first.client("a");
    client.expect_type("connected");
    let plain = world.producer();
    send(&plain, 0..5);
    let transactional = Producer::with(world.kafka.bootstrap(), &[("transactional.id", "tester")]);
    // Each leaves a record that nobody is handed, and its marker.
    for turn in 0..110 {
        transactional.begin(turn == 0);
        send(&transactional, [1_000]);
        transactional.abort();
    }
    assert_eq!(world.kafka.offsets(KIND.topic(), 0).1, 5 + 220);
    assert_eq!(world.kafka.records(KIND.topic(), 0), [0, 1, 2, 3, 4]);
    expect_numbers(&mut client, 0..5);
    no_lag(&first);

    // One whose window reaches back to the events, and one that starts among the markers.
    let second = pod(&world, "pod-1").start();
    let third = pod(&world, "pod-2").set("HISTORY_SECONDS", "1").start();
    let mut clients = [client, second.client("a"), third.client("a")];
    clients[1].expect_type("connected");
    clients[2].expect_type("connected");
    send(&plain, 5..10);
    let expected = [0..10, 5..10, 5..10];
    for (client, expected) in clients.iter_mut().zip(expected) {
        expect_numbers(client, expected);
    }
    for pod in [&first, &second, &third] {
        no_lag(pod);
    }
}

#[test]
fn a_transaction_that_is_open_at_the_start_and_aborted_leaves_no_trace() {
    open_at_the_start(|producer| producer.abort(), (0..10).chain(15..30));
}

#[test]
fn a_transaction_that_is_open_at_the_start_and_committed_arrives_whole_and_in_its_place() {
    open_at_the_start(|producer| producer.commit(), 0..30);
}

/// Opens a transaction, starts a pod, and has the transaction end so: a client of a pod that was there before sees
/// `expected`, one of the pod that was started those of them from number 10 on.
fn open_at_the_start(end: impl Fn(&Producer), expected: impl Iterator<Item = u64> + Clone) {
    let world = world_of_one();
    let first = pod(&world, "pod-0").start();
    let mut client = first.client("a");
    client.expect_type("connected");
    let plain = world.producer();
    let transactional = Producer::with(world.kafka.bootstrap(), &[("transactional.id", "tester")]);
    send(&plain, 0..10);
    transactional.begin(true);
    send(&transactional, 10..15);
    send(&plain, 15..20);
    expect_numbers(&mut client, 0..10);

    let second = pod(&world, "pod-1").start();
    let mut late = second.client("a");
    late.expect_type("connected");
    send(&plain, 20..25);
    end(&transactional);
    send(&plain, 25..30);
    expect_numbers(&mut client, expected.clone());
    expect_numbers(&mut late, expected.filter(|&number| number >= 10));
    no_lag(&first);
    no_lag(&second);
}

// ---- the cluster changes ------------------------------------------------------------------------------------------------

#[test]
fn events_that_flow_while_leaders_change_arrive_once_and_in_order() {
    let mut world = World { kafka: Kafka::start_with(3, &[]), redis: Redis::start() };
    world.kafka.create(KIND.topic(), 1);
    let first = pod(&world, "pod-0").start();
    let mut client = first.client("a");
    client.expect_type("connected");
    let producer = world.producer();
    let mut sent = 0;
    let mut flow = |count: u64| {
        send(&producer, sent..sent + count);
        sent += count;
        sent
    };
    flow(100);

    // One leader dies, the next one leaves in good order; events flow while nobody leads, and after.
    for dies in [true, false] {
        let leader = world.kafka.leader(KIND.topic(), 0).expect("a leader");
        if dies {
            world.kafka.broker(leader).kill();
        } else {
            world.kafka.broker(leader).stop();
        }
        let sent = flow(100);
        eventually("another leads", WITHIN, || world.kafka.leader(KIND.topic(), 0).filter(|&now| now != leader));
        expect_numbers(&mut client, 0..sent);
        world.kafka.broker(leader).start();
        let sent = flow(100);
        expect_numbers(&mut client, 0..sent);
    }
    let sent = flow(100);
    expect_numbers(&mut client, 0..sent);
    let second = pod(&world, "pod-1").start();
    no_lag(&first);
    no_lag(&second);
}

#[test]
fn events_that_flow_while_a_topic_gets_more_partitions_arrive_once() {
    const IDS: usize = 20;
    let world = world_of_one();
    let first = pod(&world, "pod-0").start();
    let ids: Vec<_> = (0..IDS).map(|number| format!("a-{number}")).collect();
    let mut clients: Vec<_> = ids.iter().map(|id| first.client(id)).collect();
    clients.iter_mut().for_each(|client| drop(client.expect_type("connected")));
    // One that learns of new partitions while it runs.
    let producer = Producer::with(world.kafka.bootstrap(), &[("topic.metadata.refresh.interval.ms", "100")]);
    let mut number = 0;
    let mut flow = || {
        ids.iter().for_each(|id| producer.event(&KIND.event(id, number)));
        producer.flush();
        number += 1;
        number
    };
    (0..20).for_each(|_| _ = flow());
    world.kafka.grow(KIND.topic(), 5);
    eventually("events lie on each new partition", WITHIN, || {
        flow();
        (1..5).all(|partition| world.kafka.offsets(KIND.topic(), partition).1 > 0).then_some(())
    });
    let sent = flow();
    for client in &mut clients {
        expect_numbers(client, 0..sent);
    }
    no_lag(&first);
    assert_eq!(first.metrics().sum("shardgate_ingest_offset_resets_total"), 0.0);
}

#[test]
fn a_topic_that_was_deleted_and_made_anew_is_another_log() {
    let world = world_of_one();
    world.kafka.create(Kind::Started.topic(), 1);
    let first = pod(&world, "pod-0").start();
    let mut client = first.client("a");
    client.expect_type("connected");
    send(&world.producer(), 0..20);
    expect_numbers(&mut client, 0..20);

    world.kafka.delete(KIND.topic());
    // While it is gone, events of other topics go on.
    world.producer().event(&Kind::Started.event("a", 20));
    expect_numbers(&mut client, 0..21);
    world.kafka.create(KIND.topic(), 1);
    // A producer of its own: one that knew the topic takes its time to learn of the new one.
    send(&world.producer(), 21..30);
    expect_numbers(&mut client, 0..30);
    let second = pod(&world, "pod-1").start();
    let mut late = second.client("a");
    late.expect_type("connected");
    send(&world.producer(), 30..35);
    expect_numbers(&mut client, 0..35);
    expect_numbers(&mut late, 30..35);
    assert_eq!(first.metrics().sum("shardgate_ingest_offset_resets_total"), 0.0, "nothing was deleted unread");
}

#[test]
fn a_topic_made_anew_and_longer_while_the_pod_was_paused_comes_once() {
    let world = world_of_one();
    // It does not look at the topics by chance before it reads.
    let first = pod(&world, "pod-0").set("TOPIC_REFRESH_MS", "10000").start();
    let mut client = first.client("a");
    client.expect_type("connected");
    send(&world.producer(), 0..20);
    expect_numbers(&mut client, 0..20);

    first.signal(Signal::Stop);
    world.kafka.delete(KIND.topic());
    eventually("it is gone", WITHIN, || (world.kafka.partitions(KIND.topic()) == 0).then_some(()));
    world.kafka.create(KIND.topic(), 1);
    send(&world.producer(), 20..100);
    first.signal(Signal::Cont);
    await_seen(&mut client, 100);
    read_for(std::slice::from_mut(&mut client), Duration::from_millis(1_500));
    assert_eq!(numbers(&client), (0..100).collect::<Vec<_>>());
}
