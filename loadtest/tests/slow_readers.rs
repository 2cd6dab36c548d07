//! Clients that read more slowly than they are sent to, on real sockets.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use loadtest::client::WITHIN;
use loadtest::client::raw::{Raw, Sent};
use loadtest::events::Producer;
use loadtest::pods::{Pod, World};
use loadtest::process::{TempDir, eventually};

/// A topic whose record keys are assessments and whose payloads are sent unchanged.
const TOPIC: &str = "orders";

fn routes(dir: &TempDir) -> PathBuf {
    dir.file(
        "routes.toml",
        r#"
[[route]]
topic = "orders"
scope = "assessment"
assessment = "key"
partitioner = "murmur2"
type = "order"
fields = "*"
"#,
    )
}

/// A payload with a number and about this many bytes of padding.
fn payload(number: u64, bytes: usize) -> String {
    format!(r#"{{"number":{number},"fill":"{}"}}"#, "f".repeat(bytes))
}

/// The number of a complete event.
#[track_caller]
fn number_of(sent: &Sent) -> u64 {
    let Sent::Text(text) = sent else { panic!("an event, not {sent:?}") };
    let message: serde_json::Value = serde_json::from_str(text).expect("a message is JSON");
    message["data"]["number"].as_u64().expect("an event has its number")
}

/// A client of this assessment with a small receive buffer that has read nothing yet.
fn slow_client(pod: &Pod, assessment: &str) -> Raw {
    Raw::upgraded(&pod.ask().assessment(assessment).receive_buffer(4096))
}

#[test]
fn a_malformed_record_does_not_harm_clients_with_full_sockets() {
    let world = World::without_topics();
    world.kafka.create(TOPIC, 1);
    let dir = TempDir::new("routes");
    let pod = world.pod("pod-0").set("ROUTES_FILE", routes(&dir).to_str().unwrap()).start();
    let producer = world.producer();
    let mut clients = ["a", "b"].map(|assessment| (assessment, slow_client(&pod, assessment)));
    let send = |key: &str, payload: &str| producer.send(TOPIC, Some(key), Some(payload.as_bytes()));
    for (assessment, _) in &clients {
        send(assessment, &payload(1, 400_000));
    }
    producer.flush();
    let blocked = || (pod.metrics().sum("shardgate_socket_blocked_total") >= 2.0).then_some(());
    eventually("both sockets are full", WITHIN, blocked);
    // Client b gets another event larger than the limit per turn.
    for (assessment, _) in &clients {
        send(assessment, "not json");
    }
    send("b", &payload(2, 400_000));
    producer.flush();
    pod.await_metric("websocket_kafka_messages_skipped_total", 2.0);
    for (assessment, client) in &mut clients {
        let expected: &[u64] = if *assessment == "a" { &[1, 3] } else { &[1, 2, 3] };
        send(assessment, &payload(3, 10));
        let numbers: Vec<_> = expected.iter().map(|_| number_of(&client.next_answer())).collect();
        assert_eq!(numbers, expected, "the events of {assessment}");
    }
}

// ---- slower than the event rate -------------------------------------------------------------------------------------

const EVENT_BYTES: usize = 4_000;

/// Bytes per second that are sent, and that a client reads.
const SENT_RATE: usize = 3_000_000;
const READ_RATE: usize = 500_000;

/// Everything that a client received that reads without a pause.
#[derive(Debug, Default, PartialEq, Eq)]
struct ReadResult {
    /// Reasons of its resets.
    resets: Vec<String>,
    /// Numbers of the events since the last reset.
    numbers: Vec<u64>,
    /// Its close code; `None` if it was aborted.
    closed: Option<u16>,
}

/// Reads without a pause at [`READ_RATE`] until the connection ends.
fn read_slowly(mut client: Raw) -> ReadResult {
    let (began, mut read, mut result) = (Instant::now(), 0, ReadResult::default());
    loop {
        match client.receive() {
            Sent::Text(text) => {
                read += text.len();
                let message: serde_json::Value = serde_json::from_str(&text).expect("a message is JSON");
                if let Some(number) = message["data"]["number"].as_u64() {
                    result.numbers.push(number);
                } else if message["type"] == "reset" {
                    result.resets.push(message["reason"].as_str().expect("a reason").to_owned());
                    result.numbers.clear();
                }
            }
            Sent::Close(code) => result.closed = Some(code),
            Sent::End | Sent::Truncated => return result,
            Sent::Ping(_) | Sent::Pong(_) => {}
        }
        let due = Duration::from_secs_f64(read as f64 / READ_RATE as f64);
        thread::sleep(due.saturating_sub(began.elapsed()));
    }
}

/// Sends events of `a` at [`SENT_RATE`], the first `first` at once, until `stop`.
fn send_events(producer: &Producer, first: u64, stop: &AtomicBool) {
    let began = Instant::now();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        producer.send(TOPIC, Some("a"), Some(payload(number, EVENT_BYTES).as_bytes()));
        let sent = number.saturating_sub(first) as usize * EVENT_BYTES;
        thread::sleep(Duration::from_secs_f64(sent as f64 / SENT_RATE as f64).saturating_sub(began.elapsed()));
    }
}

#[test]
fn a_client_slower_than_the_event_rate_gets_a_close_frame_and_never_a_partial_frame() {
    const EACH: usize = 4;
    let world = World::without_topics();
    world.kafka.create(TOPIC, 1);
    let dir = TempDir::new("routes");
    let settings = [("ROUTES_FILE", routes(&dir).to_str().unwrap().to_owned()), ("HISTORY_BYTES", "16MiB".to_owned())];
    let plan = settings.iter().fold(world.pod("pod-0"), |plan, (name, value)| plan.set(name, value));
    let pod = plan.start();
    let ask = pod.ask().assessment("a").receive_buffer(64 * 1024);
    let connected = ask.open().expect_type("connected").json();
    let cursor = connected["cursor"].as_str().expect("a cursor").to_owned();
    let (producer, stop) = (world.producer(), AtomicBool::new(false));
    thread::scope(|scope| {
        let live: Vec<_> = (0..EACH).map(|_| Raw::upgraded(&ask)).collect();
        scope.spawn(|| send_events(&producer, 100, &stop));
        let processed = || (pod.metrics().sum("websocket_kafka_messages_processed_total") >= 100.0).then_some(());
        eventually("there is something to catch up with", WITHIN, processed);
        let back = ask.clone().parameter(&format!("cursor={cursor}"));
        let back: Vec<_> = (0..EACH).map(|_| Raw::upgraded(&back)).collect();
        let results: Vec<_> = live.into_iter().chain(back).map(|client| scope.spawn(|| read_slowly(client))).collect();
        let results: Vec<_> =
            results.into_iter().map(|result| result.join().expect("the client reads valid frames")).collect();
        stop.store(true, Ordering::Relaxed);
        for (index, result) in results.iter().enumerate() {
            let resets: &[&str] = if index < EACH { &[] } else { &["lagged"] };
            assert_eq!(
                (&result.resets[..], result.closed),
                (&resets.iter().map(|&reset| reset.to_owned()).collect::<Vec<_>>()[..], Some(1013)),
                "client {index}"
            );
            assert!(result.numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "client {index} has a gap");
            assert!(!result.numbers.is_empty(), "client {index} received events");
        }
    });
}
