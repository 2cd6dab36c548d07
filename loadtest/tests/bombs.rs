//! Batches that are small as they lie in the log and large when they are unpacked: they cost little memory, hold up
//! nothing, and clients are told that they may lack events.

use std::fs;
use std::time::Duration;

use loadtest::client::Client;
use loadtest::events::{Kind, Producer, number_of, seen};
use loadtest::pods::{Pod, World};

const KIND: Kind = Kind::BalanceUpdated;
const MIB: usize = 1 << 20;

/// What a bomb of 128 MiB may cost a pod at most: it is counted, and not kept. zstd is tried up to librdkafka's bound.
const COST_MIB_MAX: usize = 48;
const COST_OF_ZSTD_MIB_MAX: usize = 112;

/// The most memory that a pod has had, in MiB.
fn peak(pod: &Pod) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", pod.pid())).expect("the pod runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it has a peak");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") / 1024
}

#[track_caller]
fn expect_event(client: &mut Client, number: u64) {
    client.expect("the event", |message| message.kind == "pnl_update" && number_of(message) == number);
}

/// Sends a bomb in a batch with `around` events before and after it.
fn bomb(world: &World, codec: &str, mib: usize, around: u64) {
    let settings = [
        ("compression.type", codec),
        ("message.max.bytes", "300000000"),
        ("batch.size", "300000000"),
        ("linger.ms", "300"),
    ];
    let bomber = Producer::with(world.kafka.bootstrap(), &settings);
    (0..around).for_each(|number| bomber.event(&KIND.event("a", 1_000 + number)));
    bomber.send(KIND.topic(), Some("a"), Some(&vec![b' '; mib * MIB]));
    (0..around).for_each(|number| bomber.event(&KIND.event("a", 2_000 + number)));
    bomber.flush();
}

fn is_passed_over(codec: &str, mib: usize, around: u64, cost_mib_max: usize) {
    let world = World::without_topics();
    world.kafka.create(KIND.topic(), 1);
    let pod = world.pod("pod-0").set("PLACEMENT", "any").start();
    let mut client = pod.client("a");
    let begin = client.expect_type("connected").json()["cursor"].as_str().expect("a cursor").to_owned();
    let producer = world.producer();
    let send = |number| {
        producer.event(&KIND.event("a", number));
        producer.flush();
    };
    send(0);
    expect_event(&mut client, 0);
    let before = peak(&pod);
    bomb(&world, codec, mib, around);
    let reset = client.expect_within("a reset", Duration::from_secs(120), |message| message.kind == "reset").json();
    assert_eq!(reset["reason"], "expired");
    let cost = peak(&pod) - before;
    println!("{codec}, {mib} MiB: {cost} MiB");
    assert!(cost <= cost_mib_max, "{cost} MiB");
    // Until it is behind all of it.
    let mut number = 3_000;
    while seen(&client).all(|message| number_of(message) < 3_000) {
        number += 1;
        send(number);
        client.turn();
    }
    let numbers: Vec<u64> = seen(&client).map(number_of).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "in order, and none twice: {numbers:?}");
    assert!(pod.metrics().sum("shardgate_ingest_batches_passed_over_total") >= 1.0);

    // Whoever comes back from before it is told, and so it is on a pod that starts with it in its log.
    let other = world.pod("pod-1").set("PLACEMENT", "any").start();
    for pod in [&pod, &other] {
        let mut late = pod.ask().assessment("a").parameter(&format!("cursor={begin}")).open();
        assert_eq!(late.expect_type("reset").json()["reason"], "expired", "{}", pod.name());
    }
    let mut live = other.client("a");
    live.expect_type("connected");
    send(number + 1);
    expect_event(&mut live, number + 1);
    assert!(peak(&other) <= before + cost_mib_max, "{} MiB", peak(&other));
}

#[test]
fn gzip() {
    is_passed_over("gzip", 128, 0, COST_MIB_MAX);
}

#[test]
fn gzip_among_events() {
    is_passed_over("gzip", 128, 20, COST_MIB_MAX);
}

#[test]
fn lz4() {
    is_passed_over("lz4", 128, 0, COST_MIB_MAX);
}

#[test]
fn zstd() {
    // Of 3 KiB.
    is_passed_over("zstd", 128, 0, COST_OF_ZSTD_MIB_MAX);
}
