//! Offsets that no record is handed out for: transactions' markers, and what they aborted.

use loadtest::client::WITHIN;
use loadtest::events::Producer;
use loadtest::process::eventually;

use crate::away::{comes_back, cursor_at, cursor_of, goes_on, is_reset};
use crate::{KIND, expect_numbers, no_lag, pod, send, watching, world_of_one};

#[test]
fn markers_alone_at_the_end_of_a_quiet_topic_hold_nothing_back() {
    let world = world_of_one();
    let first = pod(&world, "pod-0").set("HEARTBEAT_INTERVAL", "500").start();
    let mut client = watching(&first);
    let plain = world.producer();
    send(&plain, 0..5);
    let transactional = Producer::with(world.kafka.bootstrap(), &[("transactional.id", "tester")]);
    // Each leaves a record that no consumer receives, and its marker.
    for turn in 0..110 {
        transactional.begin(turn == 0);
        send(&transactional, [1_000]);
        transactional.abort();
    }
    // A transaction's end is answered before its marker is there for all to see.
    eventually("the last marker is there", WITHIN, || {
        (world.kafka.offsets(KIND.topic(), 0).1 == 5 + 220).then_some(())
    });
    assert_eq!(world.kafka.records(KIND.topic(), 0), [0, 1, 2, 3, 4]);
    expect_numbers(&mut client, 0..5);
    no_lag(&first);

    // One whose window reaches back to the events, and one that starts among the markers.
    let second = pod(&world, "pod-1").start();
    let third = pod(&world, "pod-2").set("HISTORY_SECONDS", "1").start();
    let mut clients = vec![goes_on(&first, &cursor_at(&client, 4), []), goes_on(&second, &cursor_at(&client, 3), [4])];
    is_reset(&third, &cursor_at(&client, 3), "expired");
    clients.push(watching(&third));
    // A client that heard nothing but pings meanwhile has a cursor that is good there.
    clients.push(eventually("a ping's cursor is behind the markers", WITHIN, || {
        let ping = client.expect_type("ping");
        let (is_resumed, client) = comes_back(&third, "a", &cursor_of(&ping));
        is_resumed.then_some(client)
    }));
    clients.push(client);
    send(&plain, 5..10);
    let expected = [5..10, 4..10, 5..10, 5..10, 0..10];
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

/// Opens a transaction, starts a pod, and has the transaction end so: clients see `expected`, each from where it began.
fn open_at_the_start(end: impl Fn(&Producer), expected: impl Iterator<Item = u64> + Clone) {
    let world = world_of_one();
    let first = pod(&world, "pod-0").start();
    let mut client = watching(&first);
    let plain = world.producer();
    let transactional = Producer::with(world.kafka.bootstrap(), &[("transactional.id", "tester")]);
    send(&plain, 0..10);
    transactional.begin(true);
    send(&transactional, 10..15);
    send(&plain, 15..20);
    expect_numbers(&mut client, 0..10);

    let second = pod(&world, "pod-1").start();
    let mut away = [&first, &second].map(|pod| goes_on(pod, &cursor_at(&client, 5), 6..10));
    let mut late = watching(&second);
    send(&plain, 20..25);
    end(&transactional);
    send(&plain, 25..30);
    let from = |first: u64| expected.clone().filter(move |&number| number >= first);
    expect_numbers(&mut client, from(0));
    expect_numbers(&mut late, from(10));
    away.iter_mut().for_each(|client| expect_numbers(client, from(6)));
    let third = pod(&world, "pod-2").start();
    for pod in [&first, &second, &third] {
        goes_on(pod, &cursor_at(&client, 5), from(6));
        goes_on(pod, &cursor_at(&client, 9), from(10));
        goes_on(pod, &cursor_at(&client, 17), from(18));
        no_lag(pod);
    }
}
