//! A log that loses its end: a leader is elected that lacks records, and writes others at their offsets.

use std::time::Duration;

use loadtest::client::Client;
use loadtest::events::number_of;
use loadtest::kafka::Kafka;
use loadtest::pods::{Pod, World};
use loadtest::process::{Signal, eventually};
use loadtest::redis::Redis;

use crate::away::{comes_back, cursor_at, goes_on, is_reset};
use crate::{KIND, await_seen, expect_numbers, no_lag, numbers, pod, send, watching};

/// A partition on two brokers, of which one is paused and lacks the last records.
struct Divided {
    world: World,
    leader: usize,
    follower: usize,
}

impl Divided {
    fn new() -> Self {
        let settings = [("replica.lag.time.max.ms", "1500")];
        let world = World { kafka: Kafka::start_with(3, &settings), redis: Redis::start() };
        world.kafka.create_on(KIND.topic(), &[0, 1]);
        let leader = world.kafka.leader(KIND.topic(), 0).expect("a leader");
        Self { world, leader, follower: 1 - leader }
    }

    /// Sends events that both brokers get, and then events that only the leader gets.
    fn send(&mut self, both: u64, in_all: u64) {
        send(&self.world.producer(), 0..both);
        let Self { world, leader, follower } = self;
        world.kafka.broker(*follower).pause();
        eventually("the follower is out of sync", Duration::from_secs(60), || {
            (world.kafka.in_sync(KIND.topic(), 0)? == [*leader]).then_some(())
        });
        // All in-sync replicas are the leader alone.
        send(&world.producer(), both..in_all);
    }

    /// The leader dies, and the one that lacks records is elected.
    fn elect(&mut self) {
        let Self { world, leader, follower } = self;
        world.kafka.broker(*leader).kill();
        world.kafka.broker(*follower).resume();
        eventually("the follower leads", Duration::from_secs(60), || {
            (world.kafka.leader(KIND.topic(), 0)? == *follower).then_some(())
        });
    }
}

/// Checks that a client saw these events, was told once that its cursor expired, and then saw those.
#[track_caller]
fn expect_reset_between(client: &mut Client, before: std::ops::Range<u64>, after: std::ops::Range<u64>) {
    expect_numbers(client, before.clone().chain(after));
    let messages = client.messages();
    let reset = messages.iter().position(|message| message.kind == "reset").expect("a reset");
    let seen = messages[..reset].iter().filter(|message| message.kind == crate::KIND_TOLD).map(number_of);
    assert_eq!(seen.collect::<Vec<_>>(), before.collect::<Vec<_>>(), "what came before the reset");
    let resets: Vec<_> = client.of_type("reset").map(|reset| reset.json()["reason"].clone()).collect();
    assert_eq!(resets, ["expired"]);
}

fn paused(pod: &Pod, work: impl FnOnce()) {
    pod.signal(Signal::Stop);
    work();
    pod.signal(Signal::Cont);
}

#[test]
fn a_truncated_and_regrown_log_is_a_reset_on_the_pod_that_read_it() {
    let mut divided = Divided::new();
    let first = pod(&divided.world, "pod-0").start();
    let mut client = watching(&first);
    divided.send(50, 100);
    expect_numbers(&mut client, 0..100);
    let cursor = cursor_at(&client, 99);
    paused(&first, || {
        divided.elect();
        send(&divided.world.producer(), 200..300);
    });
    await_seen(&mut client, 200);
    assert_eq!(numbers(&client).len(), 200);
    expect_reset_between(&mut client, 0..100, 200..300);
    is_reset(&first, &cursor, "expired");
    goes_on(&first, &cursor_at(&client, 40), (41..50).chain(200..300));
    goes_on(&first, &cursor_at(&client, 220), 221..300);
    no_lag(&first);
}

#[test]
fn a_cursor_of_truncated_records_is_expired_on_every_pod() {
    let mut divided = Divided::new();
    let first = pod(&divided.world, "pod-0").start();
    let mut client = watching(&first);
    divided.send(50, 100);
    expect_numbers(&mut client, 0..100);
    let (both, lost) = (cursor_at(&client, 40), cursor_at(&client, 99));
    drop(client);
    drop(first);
    divided.elect();
    let second = pod(&divided.world, "pod-1").start();
    let mut late = watching(&second);
    send(&divided.world.producer(), 200..260);
    expect_numbers(&mut late, 200..260);
    // The new log has not come as far as the cursor yet, and then it has.
    is_reset(&second, &lost, "expired");
    send(&divided.world.producer(), 260..300);
    expect_numbers(&mut late, 200..300);
    let third = pod(&divided.world, "pod-2").start();
    for pod in [&second, &third] {
        is_reset(pod, &lost, "expired");
        goes_on(pod, &both, (41..50).chain(200..300));
        goes_on(pod, &cursor_at(&late, 250), 251..300);
        no_lag(pod);
    }
}

#[test]
fn a_cursor_of_what_a_log_lost_is_expired_on_a_pod_that_started_before_anything_was_written_anew() {
    let mut divided = Divided::new();
    let first = pod(&divided.world, "pod-0").start();
    let mut client = watching(&first);
    divided.send(50, 100);
    expect_numbers(&mut client, 0..100);
    let (both, lost) = (cursor_at(&client, 40), cursor_at(&client, 99));
    drop(client);
    drop(first);
    divided.elect();
    let second = pod(&divided.world, "pod-1").start();
    // All that it has read is what both brokers had, and the log's end alone speaks against the cursor.
    let (_, mut told) = comes_back(&second, "a", &lost);
    let reset = told.expect_type("reset").json();
    assert_eq!(reset["reason"], "expired");
    send(&divided.world.producer(), 200..220);
    expect_numbers(&mut told, 200..220);
    goes_on(&second, &both, (41..50).chain(200..220));
    is_reset(&second, &lost, "expired");
}

#[test]
fn a_client_of_the_log_that_goes_on_loses_nothing_on_a_pod_that_slept_through_the_election() {
    let mut divided = Divided::new();
    let (sleeper, awake) = (pod(&divided.world, "pod-0").start(), pod(&divided.world, "pod-1").start());
    let (mut asleep, mut client) = (watching(&sleeper), watching(&awake));
    divided.send(50, 100);
    expect_numbers(&mut asleep, 0..100);
    expect_numbers(&mut client, 0..100);
    paused(&sleeper, || {
        divided.elect();
        send(&divided.world.producer(), 200..230);
        await_seen(&mut client, 130);
        expect_reset_between(&mut client, 0..100, 200..230);
    });
    // Whatever it has heard of by now.
    let mut back = [210, 229].map(|number| (number, comes_back(&sleeper, "a", &cursor_at(&client, number))));
    send(&divided.world.producer(), 230..240);
    for (number, (is_resumed, client)) in &mut back {
        assert!(*is_resumed, "{:?}", client.messages());
        expect_numbers(client, *number + 1..240);
        assert_eq!(client.of_type("reset").count(), 0);
    }
    await_seen(&mut asleep, 140);
    expect_reset_between(&mut asleep, 0..100, 200..240);
}
