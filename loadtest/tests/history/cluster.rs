//! What changes in the cluster: a partition's leader, a topic's partitions, the topic itself.

use std::ops::Range;
use std::time::Duration;

use loadtest::client::{Client, WITHIN, read_for};
use loadtest::events::{Kind, Producer};
use loadtest::kafka::Kafka;
use loadtest::pods::World;
use loadtest::process::{Signal, eventually};
use loadtest::redis::Redis;

use crate::away::{comes_back, cursor_at, goes_on, is_reset, is_told};
use crate::{KIND, await_seen, expect_numbers, no_lag, numbers, pod, send, watching, world_of_one};

#[test]
fn events_that_flow_while_leaders_change_arrive_once_and_in_order() {
    let mut world = World { kafka: Kafka::start_with(3, &[]), redis: Redis::start() };
    world.kafka.create(KIND.topic(), 1);
    let first = pod(&world, "pod-0").start();
    let mut client = watching(&first);
    let producer = world.producer();
    let mut sent = 0;
    let mut flow = |count: u64| {
        send(&producer, sent..sent + count);
        sent += count;
        sent
    };
    flow(100);

    // One leader dies, the next one leaves in good order; events are produced while there is no leader, and after.
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
        goes_on(&first, &cursor_at(&client, 50), 51..sent);
        world.kafka.broker(leader).start();
        let sent = flow(100);
        expect_numbers(&mut client, 0..sent);
    }
    let sent = flow(100);
    expect_numbers(&mut client, 0..sent);
    let second = pod(&world, "pod-1").start();
    for pod in [&first, &second] {
        for number in [50, 150, 250, sent - 1] {
            goes_on(pod, &cursor_at(&client, number), number + 1..sent);
        }
        no_lag(pod);
    }
}

#[test]
fn reading_continues_at_the_end_of_a_truncated_log() {
    let mut world = World { kafka: Kafka::start_with(3, &[]), redis: Redis::start() };
    let topic = KIND.topic();
    world.kafka.create_on(topic, &[0, 1]);
    let first = pod(&world, "pod-0").start();
    let mut client = watching(&first);
    send(&world.producer(), 0..30);
    let leads = |kafka: &Kafka, leader| {
        eventually("it leads", WITHIN, || (kafka.leader(topic, 0) == Some(leader)).then_some(()));
    };
    // One follower is away while records come, and is all that is left then.
    let leader = world.kafka.leader(topic, 0).expect("a leader");
    let follower = 1 - leader;
    world.kafka.broker(follower).stop();
    send(&world.producer(), 30..50);
    expect_numbers(&mut client, 0..50);
    world.kafka.broker(leader).kill();
    world.kafka.broker(follower).start();
    leads(&world.kafka, follower);
    eventually("the pod is out of range", WITHIN, || {
        (first.metrics().sum("shardgate_ingest_offset_resets_total") == 1.0).then_some(())
    });
    send(&world.producer(), 100..110);
    expect_numbers(&mut client, (0..50).chain(100..110));
    let resets: Vec<_> = client.of_type("reset").map(|reset| reset.json()["reason"].clone()).collect();
    assert_eq!(resets, ["expired"]);
    no_lag(&first);

    let second = pod(&world, "pod-1").start();
    // What it counts was written under another leader than what lies there now.
    for pod in [&first, &second] {
        is_told(pod, &cursor_at(&client, 45), "expired");
        goes_on(pod, &cursor_at(&client, 104), 105..110);
        goes_on(pod, &cursor_at(&client, 20), (21..30).chain(100..110));
    }
    send(&world.producer(), 110..130);
    expect_numbers(&mut client, (0..50).chain(100..130));
    for pod in [&first, &second] {
        goes_on(pod, &cursor_at(&client, 125), 126..130);
    }
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
    let second = pod(&world, "pod-1").start();
    for pod in [&first, &second] {
        for (id, client) in ids.iter().zip(&clients) {
            for number in [10, sent - 2] {
                let (is_resumed, mut back) = comes_back(pod, id, &cursor_at(client, number));
                assert!(is_resumed, "{}: {id} after {number}: {:?}", pod.name(), back.messages());
                await_seen(&mut back, usize::try_from(sent - number - 1).unwrap());
                assert_of_two_partitions(&back, number + 1..sent);
            }
        }
        no_lag(pod);
        assert_eq!(pod.metrics().sum("shardgate_ingest_offset_resets_total"), 0.0);
    }
}

#[test]
fn more_partitions_are_noticed_at_the_first_record_that_lies_elsewhere_however_rare_the_looks() {
    let world = World::without_topics();
    world.kafka.create(KIND.topic(), 3);
    // So rare that none is seen here.
    let pod = pod(&world, "pod-0").set("TOPIC_REFRESH_MS", "600000").start();
    let ids: Vec<_> = (0..30).map(|number| format!("a-{number}")).collect();
    let mut clients: Vec<_> = ids.iter().map(|id| pod.client(id)).collect();
    world.kafka.grow(KIND.topic(), 4);
    let producer = world.producer();
    ids.iter().for_each(|id| producer.event(&KIND.event(id, 0)));
    producer.flush();
    // Most belong elsewhere by the new number: on an old partition, or on the new one, of which the pod has to learn
    // first.
    clients.iter_mut().for_each(|client| await_seen(client, 1));
    for (client, id) in clients.iter().zip(&ids) {
        let (is_resumed, _) = comes_back(&pod, id, &cursor_at(client, 0));
        assert!(is_resumed, "{id}");
    }
}

/// Checks that a client saw these numbers, none twice, those up to some number in their order and those from there on
/// in theirs: the first lie on one partition, and the others on another.
#[track_caller]
fn assert_of_two_partitions(client: &Client, expected: Range<u64>) {
    let saw = numbers(client);
    let mut sorted = saw.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected.clone().collect::<Vec<_>>());
    let is_parted_at = |first: u64| {
        let (old, new): (Vec<u64>, Vec<u64>) = saw.iter().partition(|&&number| number < first);
        old.is_sorted() && new.is_sorted()
    };
    assert!(expected.into_iter().any(is_parted_at), "not in order: {saw:?}");
}

#[test]
fn a_topic_that_was_deleted_and_made_anew_is_another_log() {
    let world = world_of_one();
    world.kafka.create(Kind::Started.topic(), 1);
    let first = pod(&world, "pod-0").start();
    let mut client = watching(&first);
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
    let mut late = watching(&second);
    send(&world.producer(), 30..35);
    expect_numbers(&mut client, 0..35);
    expect_numbers(&mut late, 30..35);
    for pod in [&first, &second] {
        is_reset(pod, &cursor_at(&client, 10), "invalid");
        goes_on(pod, &cursor_at(&client, 25), 26..35);
        assert_eq!(pod.metrics().sum("shardgate_ingest_offset_resets_total"), 0.0, "nothing was deleted unread");
    }
}

#[test]
fn a_topic_recreated_during_a_pause_is_delivered_once() {
    let world = world_of_one();
    // It does not look at the topics by chance before it reads.
    let first = pod(&world, "pod-0").set("TOPIC_REFRESH_MS", "10000").start();
    let mut client = watching(&first);
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
    is_reset(&first, &cursor_at(&client, 10), "invalid");
    goes_on(&first, &cursor_at(&client, 50), 51..100);
}
