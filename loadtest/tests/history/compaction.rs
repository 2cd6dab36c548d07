//! Compacted topics: of the events with one key Kafka keeps the last for sure, and a pod that has not read the others
//! can no longer send them.

use std::time::Duration;

use loadtest::client::{Client, WITHIN, read_for};
use loadtest::events::{Kind, Producer};
use loadtest::kafka::Kafka;
use loadtest::pods::{Pod, World};
use loadtest::process::{Signal, eventually};
use loadtest::redis::Redis;

use crate::away::{cursor_at, goes_on, is_reset};
use crate::{KIND, QUIET, await_seen, expect_numbers, no_lag, numbers, pod, send, watching};

/// The cleaner removes what it may within a second.
const QUICK: &[(&str, &str)] = &[
    ("cleanup.policy", "compact"),
    ("segment.ms", "200"),
    ("min.cleanable.dirty.ratio", "0.001"),
    ("min.compaction.lag.ms", "0"),
];

/// What the log says of such a topic.
const COMPACTED: &str = "compacted topic";

/// A world whose cleaner looks for work each 100 ms, not each 15 s.
fn compacting() -> World {
    let kafka = Kafka::start_with(1, &[("log.cleaner.backoff.ms", "100")]);
    World { kafka, redis: Redis::start() }
}

/// How often a pod has said that a topic is compacted.
fn warnings(pod: &Pod) -> usize {
    pod.log().matches(COMPACTED).count()
}

/// Returns when a partition's record is gone. Other keys' records roll the segments meanwhile.
fn compact(world: &World, producer: &Producer, partition: i32, offset: i64) {
    let mut number = 0;
    eventually("the log is compacted", Duration::from_secs(90), || {
        number += 1;
        let id = format!("filler-{number}");
        producer.send_to(KIND.topic(), partition, Some(&id), Some(KIND.event(&id, number).payload.as_bytes()));
        producer.flush();
        (!world.kafka.records(KIND.topic(), partition).contains(&offset)).then_some(())
    });
}

/// How often a client was told that its cursor expired.
fn resets(client: &Client) -> usize {
    client.of_type("reset").filter(|reset| reset.json()["reason"] == "expired").count()
}

#[test]
fn a_gap_from_compaction_is_a_reset_and_is_warned_of_at_start() {
    let world = compacting();
    world.kafka.create(KIND.topic(), 1);
    world.kafka.set(KIND.topic(), QUICK);
    let first = pod(&world, "pod-0").start();
    assert_eq!(warnings(&first), 1, "{}", first.log());
    let mut client = watching(&first);
    let producer = world.producer();
    send(&producer, 0..6);
    expect_numbers(&mut client, 0..6);
    let cursor = cursor_at(&client, 0);
    goes_on(&first, &cursor, 1..6);

    compact(&world, &producer, 0, 4);
    let second = pod(&world, "pod-1").start();
    is_reset(&second, &cursor, "expired");
    goes_on(&second, &cursor_at(&client, 5), []);
    // It has them all.
    goes_on(&first, &cursor, 1..6);
}

/// The partitions, of two, of a's events and of another's, and that other.
fn two_partitions(world: &World) -> (i32, String) {
    world.kafka.create("tried", 2);
    let partition_of = |id: &str| {
        let before = world.kafka.offsets("tried", 0).1;
        world.producer().send("tried", Some(id), Some(b"{}"));
        i32::from(world.kafka.offsets("tried", 0).1 == before)
    };
    let of_a = partition_of("a");
    let other = (0..).map(|number| format!("b-{number}")).find(|id| partition_of(id) != of_a);
    (of_a, other.expect("one of them lies there"))
}

#[test]
fn a_pod_that_is_behind_tells_those_whom_it_concerns_once_of_what_compaction_took() {
    let world = compacting();
    world.kafka.create(KIND.topic(), 2);
    world.kafka.create(Kind::Started.topic(), 1);
    world.kafka.set(KIND.topic(), QUICK);
    let (partition, other) = two_partitions(&world);
    let first = pod(&world, "pod-0").start();
    let (mut concerned, mut other) = (watching(&first), first.client(&other));
    let producer = world.producer();
    send(&producer, 0..3);
    expect_numbers(&mut concerned, 0..3);

    first.signal(Signal::Stop);
    // Answers the question for more that the pod has left at the broker; it asks no other.
    producer.event(&Kind::Started.event("unwatched", 0));
    producer.flush();
    send(&producer, 3..9);
    compact(&world, &producer, partition, 7);
    first.signal(Signal::Cont);
    await_seen(&mut concerned, 4);
    send(&producer, 9..12);
    expect_numbers(&mut concerned, [0, 1, 2, 8, 9, 10, 11]);
    read_for(std::slice::from_mut(&mut other), QUIET);
    assert_eq!((resets(&concerned), resets(&other)), (1, 0));
    let place = |is: &str| concerned.messages().iter().position(|message| message.text.contains(is));
    assert!(place("reset") < place(&cursor_at(&concerned, 8)), "before what came behind it");
    let second = pod(&world, "pod-1").start();
    for pod in [&first, &second] {
        is_reset(pod, &cursor_at(&concerned, 2), "expired");
        goes_on(pod, &cursor_at(&concerned, 9), [10, 11]);
        no_lag(pod);
    }
}

#[test]
fn a_topic_that_is_compacted_later_is_noticed_and_warned_of_once() {
    let world = compacting();
    world.kafka.create(KIND.topic(), 1);
    let first = pod(&world, "pod-0").set("TOPIC_REFRESH_MS", "500").start();
    assert_eq!(warnings(&first), 0);
    world.kafka.set(KIND.topic(), QUICK);
    eventually("it is noticed", WITHIN, || (warnings(&first) > 0).then_some(()));
    // Two more topics, one after the other: so often has it looked since.
    for kind in [Kind::Started, Kind::Completed] {
        world.kafka.create(kind.topic(), 1);
        eventually("it has looked again", WITHIN, || first.log().contains(kind.topic()).then_some(()));
    }
    assert_eq!(warnings(&first), 1, "{}", first.log());
}

#[test]
fn where_compaction_leaves_the_window_alone_transactions_markers_reset_nobody() {
    let told = transactions("3600000");
    assert_eq!(told, [0, 0]);
}

#[test]
fn where_compaction_may_be_at_once_a_transactions_marker_looks_like_what_it_took() {
    let [live, back] = transactions("0");
    assert!(live > 0 && back > 0, "{live}, {back}");
}

/// How often a client that is there while transactions are committed is sent a reset, and one that comes back, where
/// compaction leaves records alone for so long.
fn transactions(min_compaction_lag_ms: &str) -> [usize; 2] {
    let world = compacting();
    world.kafka.create(KIND.topic(), 1);
    world.kafka.set(KIND.topic(), &[("cleanup.policy", "compact"), ("min.compaction.lag.ms", min_compaction_lag_ms)]);
    let first = pod(&world, "pod-0").start();
    let mut client = watching(&first);
    let producer = Producer::with(world.kafka.bootstrap(), &[("transactional.id", "tester")]);
    for turn in 0..4 {
        producer.begin(turn == 0);
        send(&producer, turn * 2..turn * 2 + 2);
        producer.commit();
        await_seen(&mut client, usize::try_from(turn * 2 + 2).unwrap());
    }
    send(&world.producer(), [8]);
    expect_numbers(&mut client, 0..9);
    let second = pod(&world, "pod-1").start();
    let back = [&first, &second].map(|pod| {
        let (_, mut client) = crate::away::comes_back(pod, "a", &cursor_at(&client, 2));
        read_for(std::slice::from_mut(&mut client), QUIET);
        if resets(&client) == 0 {
            assert_eq!(numbers(&client), (3..9).collect::<Vec<_>>());
        }
        resets(&client)
    });
    [resets(&client), back.iter().sum()]
}

#[test]
fn compacted_topics_fill_the_history() {
    const SENT: u64 = 300;
    let world = compacting();
    let topic = KIND.topic();
    world.kafka.create(topic, 1);
    let rolls_at_once = ("segment.ms", "1");
    world.kafka.set(topic, &[rolls_at_once]);
    let first = pod(&world, "pod-0").set("TOPIC_REFRESH_MS", "500").start();
    let mut client = watching(&first);
    let producer = world.producer();
    let send_with = |key: &str, number| {
        producer.send(topic, Some(key), Some(KIND.event("a", number).payload.as_bytes()));
        producer.flush();
    };
    // Of each of ten keys the last record will be kept. The very last one closes the segment before it.
    (0..SENT).for_each(|number| send_with(&format!("key-{}", number % 10), number));
    send_with("last", SENT);
    expect_numbers(&mut client, 0..=SENT);
    world.kafka.set(topic, &[rolls_at_once, ("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.01")]);
    let kept: Vec<i64> = (290..=300).collect();
    eventually("the log is compacted", Duration::from_secs(60), || {
        (world.kafka.records(topic, 0) == kept).then_some(())
    });
    eventually("it is noticed", WITHIN, || first.log().contains(COMPACTED).then_some(()));
    world.kafka.set(topic, &[("cleanup.policy", "delete")]);

    // The pod's window begins a hundred offsets before the end, within the gap. What compaction removed behind that is no
    // loss, since no client receives it any more; what was removed before it, this pod can't know.
    let second = pod(&world, "pod-1").start();
    no_lag(&second);
    let mut late = watching(&second);
    goes_on(&first, &cursor_at(&client, 150), 151..=SENT);
    goes_on(&second, &cursor_at(&client, 250), 290..=SENT);
    goes_on(&second, &cursor_at(&client, 200), 290..=SENT);
    is_reset(&second, &cursor_at(&client, 199), "expired");
    (SENT + 1..SENT + 20).for_each(|number| send_with("more", number));
    expect_numbers(&mut late, SENT + 1..SENT + 20);
    expect_numbers(&mut client, 0..SENT + 20);
}
