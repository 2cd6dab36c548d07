//! Batches that are small as they lie in the log and large when they are unpacked: they cost little memory, hold up
//! nothing, and clients are told that they may lack events.

use std::fs;
use std::time::Duration;

use loadtest::client::Client;
use loadtest::events::{Kind, Producer, number_of, seen};
use loadtest::pods::{Pod, World};

const KIND: Kind = Kind::BalanceUpdated;
const MIB: usize = 1 << 20;

/// What a bomb may cost a pod at most: three times the bound of a batch, and less than each bomb takes when it is
/// unpacked whole.
const COST_MIB_MAX: usize = 96;

/// A batch that is small in the log.
struct Bomb {
    codec: &'static str,
    /// How many records it has, and of how many spaces each.
    records: usize,
    bytes: usize,
    /// How many events are in the batch before and after these.
    around: u64,
}

/// 128 MiB when it is unpacked.
fn large(codec: &'static str) -> Bomb {
    Bomb { codec, records: 1, bytes: 128 * MIB, around: 0 }
}

/// 5 MB when they are unpacked; librdkafka's messages of them take 160 MiB.
fn many(codec: &'static str) -> Bomb {
    Bomb { codec, records: 500_000, bytes: 0, around: 0 }
}

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

/// Sends a bomb, as one batch.
fn send(world: &World, bomb: &Bomb) {
    let settings = [
        ("compression.type", bomb.codec),
        ("message.max.bytes", "300000000"),
        ("batch.size", "300000000"),
        ("batch.num.messages", "1000000"),
        // Longer than it takes to make it; to flush does not wait for it.
        ("linger.ms", "60000"),
    ];
    let bomber = Producer::with(world.kafka.bootstrap(), &settings);
    (0..bomb.around).for_each(|number| bomber.event(&KIND.event("a", 1_000 + number)));
    let spaces = vec![b' '; bomb.bytes];
    (0..bomb.records).for_each(|_| bomber.send(KIND.topic(), None, Some(&spaces)));
    (0..bomb.around).for_each(|number| bomber.event(&KIND.event("a", 2_000 + number)));
    bomber.flush();
}

fn is_passed_over(bomb: &Bomb) {
    let world = World::without_topics();
    world.kafka.create(KIND.topic(), 1);
    let pod = world.pod("pod-0").set("PLACEMENT", "any").start();
    let mut client = pod.client("a");
    let begin = client.expect_type("connected").json()["cursor"].as_str().expect("a cursor").to_owned();
    let producer = world.producer();
    let send_event = |number| {
        producer.event(&KIND.event("a", number));
        producer.flush();
    };
    send_event(0);
    expect_event(&mut client, 0);
    let before = peak(&pod);
    send(&world, bomb);
    let reset = client.expect_within("a reset", Duration::from_secs(120), |message| message.kind == "reset").json();
    assert_eq!(reset["reason"], "expired");
    let cost = peak(&pod) - before;
    println!("{}: {cost} MiB", bomb.codec);
    assert!(cost <= COST_MIB_MAX, "{cost} MiB");
    // Until it is behind all of it.
    let mut number = 3_000;
    while seen(&client).all(|message| number_of(message) < 3_000) {
        number += 1;
        send_event(number);
        client.turn();
    }
    let numbers: Vec<u64> = seen(&client).map(number_of).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "in order, and none twice: {numbers:?}");
    assert!(pod.metrics().sum("shardgate_ingest_batches_passed_over_total") >= 1.0);

    // A client that resumes from before it gets a reset, also on a pod that starts with it in its log.
    let other = world.pod("pod-1").set("PLACEMENT", "any").start();
    for pod in [&pod, &other] {
        let mut late = pod.ask().assessment("a").parameter(&format!("cursor={begin}")).open();
        assert_eq!(late.expect_type("reset").json()["reason"], "expired", "{}", pod.name());
    }
    let mut live = other.client("a");
    live.expect_type("connected");
    send_event(number + 1);
    expect_event(&mut live, number + 1);
    assert!(peak(&other) <= before + COST_MIB_MAX, "{} MiB", peak(&other));
}

#[test]
fn gzip() {
    is_passed_over(&large("gzip"));
}

#[test]
fn gzip_among_events() {
    is_passed_over(&Bomb { around: 20, ..large("gzip") });
}

#[test]
fn lz4() {
    is_passed_over(&large("lz4"));
}

#[test]
fn zstd() {
    // Of 3 KiB.
    is_passed_over(&large("zstd"));
}

#[test]
fn snappy() {
    // The bound of its ratio is 21.
    is_passed_over(&large("snappy"));
}

#[test]
fn many_small_records() {
    is_passed_over(&many("zstd"));
}
