//! The market board: which ticks it shows, by which clock, and for how long.

use std::time::{SystemTime, UNIX_EPOCH};

use loadtest::client::{Client, WITHIN, read_until};
use loadtest::events::{Producer, ticks_topic};
use loadtest::pods::{Pod, World};
use loadtest::process::eventually;

const HOUR_MS: i64 = 3_600_000;

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    i64::try_from(now.as_millis()).expect("Unix milliseconds fit i64")
}

/// A world with one market on two partitions, whose broker accepts every timestamp.
fn world_of(market: &str) -> (World, String) {
    let world = World::without_topics();
    let topic = ticks_topic(market);
    world.kafka.create(&topic, 2);
    world.kafka.set(&topic, &[("message.timestamp.after.max.ms", &i64::MAX.to_string())]);
    (world, topic)
}

fn send(producer: &Producer, (topic, partition): (&str, i32), timestamp_ms: i64, price: &str) {
    producer.send_at(topic, partition, timestamp_ms, format!(r#"{{"price":{price}}}"#).as_bytes());
    producer.flush();
}

/// The prices that a client received, in order.
fn prices(client: &Client) -> Vec<String> {
    client.of_type("market_price").map(|message| message.json()["price"].to_string()).collect()
}

#[track_caller]
fn await_price(client: &mut Client, price: &str) {
    read_until(std::slice::from_mut(client), &format!("the price {price}"), WITHIN, |clients| {
        prices(&clients[0]).iter().any(|seen| seen == price)
    });
}

/// The prices that a new client is sent from the board.
fn board(pod: &Pod) -> Vec<String> {
    let mut client = pod.market_client();
    client.expect_type("connected");
    client.catch_up();
    prices(&client)
}

fn faults(pod: &Pod, fault: &str) -> f64 {
    pod.metrics().of("shardgate_ingest_tick_timestamp_faults_total", &[("fault", fault)])
}

#[test]
fn a_future_tick_on_another_partition_does_not_pin_a_market_even_after_a_restart() {
    let (world, topic) = world_of("pin");
    let producer = world.producer();
    let first = world.pod("pod-0").set("HISTORY_SECONDS", "10").start();
    let mut client = first.market_client();
    send(&producer, (&topic, 0), now_ms() + HOUR_MS, "-1");
    await_price(&mut client, "-1");
    for price in ["0", "1"] {
        send(&producer, (&topic, 1), now_ms(), price);
        await_price(&mut client, price);
    }
    send(&producer, (&topic, 0), now_ms() + HOUR_MS, "-2");
    eventually("the fault is counted", WITHIN, || (faults(&first, "ahead") == 2.0).then_some(()));
    send(&producer, (&topic, 1), now_ms(), "2");
    await_price(&mut client, "2");
    assert_eq!(prices(&client), ["-1", "0", "1", "2"]);
    let log = first.log();
    assert!(log.contains("invalid tick timestamp") && log.contains(&topic), "{log}");

    drop(first);
    let second = world.pod("pod-0").set("HISTORY_SECONDS", "10").start();
    let mut client = second.market_client();
    client.expect_type("connected");
    send(&producer, (&topic, 1), now_ms(), "3");
    await_price(&mut client, "3");
    let seen = prices(&client);
    assert!(seen.iter().all(|price| price == "2" || price == "3"), "{seen:?}");
}

#[test]
fn timestamps_in_wrong_units_are_not_compared_across_partitions() {
    let (world, topic) = world_of("units");
    let producer = world.producer();
    let pod = world.pod("pod-0").start();
    let mut client = pod.market_client();
    send(&producer, (&topic, 1), now_ms(), "0");
    await_price(&mut client, "0");
    let no_time = [now_ms() / 1_000, 1, -1];
    for timestamp_ms in [now_ms() * 1_000, now_ms() * 1_000_000].into_iter().chain(no_time) {
        send(&producer, (&topic, 0), timestamp_ms, "-1");
    }
    eventually("the faults are counted", WITHIN, || {
        ((faults(&pod, "ahead"), faults(&pod, "no_time")) == (2.0, no_time.len() as f64)).then_some(())
    });
    assert_eq!(board(&pod), ["0"]);
    // Ticks of one partition are shown in their order, whatever their unit.
    send(&producer, (&topic, 1), now_ms() * 1_000, "1");
    await_price(&mut client, "1");
    send(&producer, (&topic, 1), now_ms() / 1_000, "2");
    await_price(&mut client, "2");
    assert_eq!(prices(&client), ["0", "1", "2"]);
    assert_eq!(board(&pod), ["2"]);
}

#[test]
fn a_price_older_than_the_window_is_not_on_the_board_at_startup_or_later() {
    let (world, topic) = world_of("quiet");
    let producer = world.producer();
    send(&producer, (&topic, 0), now_ms() - 60_000, "-1");
    let pod = world.pod("pod-0").set("HISTORY_SECONDS", "5").start();
    assert_eq!(board(&pod), [""; 0], "the price is a minute old");
    assert_eq!(faults(&pod, "expired"), 0.0, "not a fault of the producer");

    send(&producer, (&topic, 1), now_ms() - 60_000, "-2");
    eventually("a live tick that is too old is counted", WITHIN, || (faults(&pod, "expired") == 1.0).then_some(()));
    assert_eq!(board(&pod), [""; 0]);

    let mut client = pod.market_client();
    send(&producer, (&topic, 0), now_ms(), "1");
    await_price(&mut client, "1");
    eventually("the tick leaves the board without a newer one", WITHIN, || board(&pod).is_empty().then_some(()));
    send(&producer, (&topic, 0), now_ms(), "2");
    await_price(&mut client, "2");
    assert_eq!(prices(&client), ["1", "2"]);
}
