//! Resource limits: the cost to other clients of one that never reads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use loadtest::client::raw::{Raw, Sent};
use loadtest::client::{Client, WITHIN, read_until};
use loadtest::events::{Kind, Producer, number_of, seen};
use loadtest::pods::{Pod, World};
use loadtest::process::eventually;

const SUBSCRIBERS: usize = 50;
const RUN: Duration = Duration::from_secs(4);
const HISTORY_BYTES: u64 = 16 << 20;
/// Below this, p99 depends more on the machine than on the pod.
const NOISE: Duration = Duration::from_millis(50);

/// Sends each subscriber an event every 25 ms, and `stuck` as much as it can take. Returns the subscribers' p99
/// latency, from before a record is passed to its producer until its message is read.
fn p99_under_load(producer: &Producer, clients: &mut [Client], ids: &[String]) -> Duration {
    const EVERY: Duration = Duration::from_millis(25);
    let stop = AtomicBool::new(false);
    let fill = "x".repeat(64 * 1024);
    let first = seen(&clients[0]).count() as u64;
    let mut sent = Vec::new();
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = Vec::new();
            let start = Instant::now();
            while start.elapsed() < RUN {
                let number = first + sent.len() as u64;
                sent.push(Instant::now());
                for id in ids {
                    producer.event(&Kind::BalanceUpdated.event(id, number));
                }
                let stuck = format!(r#"{{"assessmentId":"stuck","currentBalance":"{fill}","timestamp":{number}}}"#);
                producer.send(Kind::BalanceUpdated.topic(), Some("stuck"), Some(stuck.as_bytes()));
                // This sets the rate. It does not wait for an event.
                thread::sleep((start + EVERY * sent.len() as u32).saturating_duration_since(Instant::now()));
            }
            producer.flush();
            stop.store(true, Ordering::Relaxed);
            sent
        });
        read_until(clients, "the run is over", RUN + WITHIN, |_| stop.load(Ordering::Relaxed));
        sent = sender.join().unwrap();
        let all = usize::try_from(first).unwrap() + sent.len();
        read_until(clients, "all arrive", WITHIN, |clients| clients.iter().all(|client| seen(client).count() == all));
    });
    let latency = |message| {
        let number = usize::try_from(number_of(message) - first).unwrap();
        message.at.duration_since(sent[number])
    };
    let skip = usize::try_from(first).unwrap();
    let mut latencies: Vec<_> = clients.iter().flat_map(|client| seen(client).skip(skip).map(latency)).collect();
    latencies.sort_unstable();
    latencies[latencies.len() * 99 / 100]
}

#[test]
fn a_client_that_never_reads_does_not_delay_the_others() {
    let world = World::start();
    let settings = [("HISTORY_BYTES", "16MiB"), ("STALL_TIMEOUT_MS", "6000"), ("SHARDS", "1")];
    let pod = world.pod("pod-0").set_all(&settings).start();
    let ids: Vec<_> = (0..SUBSCRIBERS).map(|number| format!("subscriber-{number}")).collect();
    let mut clients: Vec<_> = ids.iter().map(|id| pod.client(id)).collect();
    let producer = world.producer();
    // A first run warms everything up, the producer's connections too.
    p99_under_load(&producer, &mut clients, &ids);
    let without = p99_under_load(&producer, &mut clients, &ids);
    let before = pod.memory();

    let stuck = pod.ask().assessment("stuck").receive_buffer(4096);
    let never_reads = Raw::upgraded(&stuck);
    pod.await_metric("websocket_connections_total", SUBSCRIBERS as f64 + 1.0);
    let with = p99_under_load(&producer, &mut clients, &ids);
    println!("p99 {without:?} without, {with:?} with a client that never reads");
    assert!(with <= (without * 3 / 2).max(NOISE), "p99 {without:?} without, {with:?} with");
    let grown = pod.memory().saturating_sub(before);
    assert!(grown <= HISTORY_BYTES, "{grown} bytes more");

    // It accepted nothing for STALL_TIMEOUT_MS, so it is closed, and no other client is.
    eventually("the stuck client is closed", Duration::from_secs(20), || {
        (pod.metrics().sum("websocket_connections_total") == SUBSCRIBERS as f64).then_some(())
    });
    clients.iter_mut().for_each(Client::turn);
    assert!(clients.iter().all(|client| client.ended().is_none()));
    drop(never_reads);
}

/// Fills the history several times while a client does not read.
fn overrun(world: &World, pod: &Pod, id: &str) -> u64 {
    let producer = world.producer();
    let fill = "x".repeat(50 * 1024);
    // Three times the history, and more than kernels buffer.
    let count = 500;
    for number in 0..count {
        let timestamp = 1_790_000_000_000_u64 + number;
        let payload = format!(r#"{{"assessmentId":"{id}","currentBalance":"{fill}","timestamp":{timestamp}}}"#);
        producer.send(Kind::BalanceUpdated.topic(), Some(id), Some(payload.as_bytes()));
    }
    producer.flush();
    pod.await_metric("websocket_kafka_messages_processed_total", count as f64);
    count
}

#[test]
fn a_client_that_falls_out_of_the_history_is_closed_and_was_sent_no_gap() {
    let world = World::start();
    let pod = world.pod("pod-0").set_all(&[("HISTORY_BYTES", "4MiB"), ("SHARDS", "1")]).start();
    let mut slow = Raw::upgraded(&pod.ask().assessment("slow").receive_buffer(4096));
    let count = overrun(&world, &pod, "slow");
    let mut next = 0;
    let end = loop {
        match slow.receive() {
            Sent::Text(text) if text.contains("pnl_update") => {
                let message: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(message["timestamp"], 1_790_000_000_000_u64 + next, "in order, without a gap");
                next += 1;
            }
            Sent::Text(_) | Sent::Ping(_) => {}
            other => break other,
        }
    };
    assert!(next < count, "the history overran it");
    // A close frame is never written inside a partial frame: then the socket is aborted instead.
    assert!(matches!(end, Sent::Close(1013) | Sent::End | Sent::Truncated), "{end:?}");
    pod.await_metric("websocket_connections_total", 0.0);
}

/// Sends events of about 300 bytes to the assessments in turn, and waits until the pod has processed them.
///
/// It waits often, because records that wait in librdkafka's queue (up to 8 MiB) or in the channel would make memory
/// depend on timing.
fn stream_events(producer: &Producer, pod: &Pod, from: u64, count: u64) {
    let note = "x".repeat(180);
    for number in from..from + count {
        let id = number % ASSESSMENTS;
        let payload = format!(
            r#"{{"assessmentId":"flat-{id}","currentBalance":{number},"timestamp":{},"note":"{note}"}}"#,
            1_790_000_000_000 + number
        );
        producer.send(Kind::BalanceUpdated.topic(), Some(&format!("flat-{id}")), Some(payload.as_bytes()));
        let sent = number + 1;
        if sent % 4_000 == 0 || sent == from + count {
            producer.flush();
            pod.await_metric("websocket_kafka_messages_processed_total", sent as f64);
        }
    }
}

const ASSESSMENTS: u64 = 500;

#[test]
fn with_the_history_full_memory_stays_flat() {
    /// Fills the history twice, with its entries and frames.
    const ROUND: u64 = 40_000;
    let world = World::start();
    let pod = world.pod("pod-0").set_all(&[("HISTORY_BYTES", "8MiB"), ("SHARDS", "1")]).start();
    // Frames are made for the events of every fifth assessment.
    let mut clients: Vec<_> = (0..ASSESSMENTS).step_by(5).map(|id| pod.client(&format!("flat-{id}"))).collect();
    let producer = world.producer();
    let stop = AtomicBool::new(false);
    let (mut full, mut later) = (0, Vec::new());
    thread::scope(|scope| {
        scope.spawn(|| read_until(&mut clients, "the run is over", 20 * WITHIN, |_| stop.load(Ordering::Relaxed)));
        for round in 0..6 {
            stream_events(&producer, &pod, round * ROUND, ROUND);
            let history = pod.metrics().sum("shardgate_history_bytes");
            assert!(history <= f64::from(8 << 20), "the history holds {history} bytes");
            // The first rounds fill the history, librdkafka's queues and the allocator's free lists.
            if round == 2 {
                full = pod.memory();
            } else if round > 2 {
                later.push(pod.memory());
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{full} bytes when full, then {later:?}");
    let max = later.into_iter().max().unwrap();
    // Up to two fetch responses of librdkafka may be in memory at one time and not at the other.
    assert!(max <= full + full / 20 + (4 << 20), "{full} bytes when full, {max} later");
}
