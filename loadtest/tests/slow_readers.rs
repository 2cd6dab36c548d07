//! Clients that read less than there is for them, on real sockets.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use loadtest::client::WITHIN;
use loadtest::client::raw::{Raw, Sent};
use loadtest::events::Producer;
use loadtest::pods::{Pod, World};
use loadtest::process::{TempDir, eventually};

/// A topic whose records' keys are their assessments, and whose payloads pass whole.
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

/// A payload with its number, of about so many bytes.
fn payload(number: u64, bytes: usize) -> String {
    format!(r#"{{"number":{number},"fill":"{}"}}"#, "f".repeat(bytes))
}

/// The number of an event that came whole.
#[track_caller]
fn number_of(sent: &Sent) -> u64 {
    let Sent::Text(text) = sent else { panic!("an event, not {sent:?}") };
    let message: serde_json::Value = serde_json::from_str(text).expect("a message is JSON");
    message["data"]["number"].as_u64().expect("an event has its number")
}

/// A client of this assessment that has read nothing yet, and whose kernel takes little.
fn slow_client(pod: &Pod, assessment: &str) -> Raw {
    Raw::upgraded(&pod.ask().assessment(assessment).receive_buffer(4096))
}

#[test]
fn a_malformed_record_harms_no_client_whose_socket_is_full() {
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
    // Behind b's there is one more that is larger than what a client is sent in a turn.
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
        assert_eq!(numbers, expected, "what {assessment} was sent");
    }
}

// ---- slower than events come
// ------------------------------------------------------------------------------------------

const EVENT_BYTES: usize = 4_000;

/// Bytes a second: what comes, and what a client reads.
const SENT_RATE: usize = 3_000_000;
const READ_RATE: usize = 500_000;

/// How a client that reads without a pause was served.
#[derive(Debug, Default, PartialEq, Eq)]
struct Life {
    /// The reasons of its resets.
    resets: Vec<String>,
    /// The numbers of its events since the last of them.
    numbers: Vec<u64>,
    /// Its end: a close code; `None` where it was cut.
    closed: Option<u16>,
}

/// Reads without a pause, and no faster than [`READ_RATE`], until the connection ends.
fn read_slowly(mut client: Raw) -> Life {
    let (began, mut read, mut life) = (Instant::now(), 0, Life::default());
    loop {
        match client.receive() {
            Sent::Text(text) => {
                read += text.len();
                let message: serde_json::Value = serde_json::from_str(&text).expect("a message is JSON");
                if let Some(number) = message["data"]["number"].as_u64() {
                    life.numbers.push(number);
                } else if message["type"] == "reset" {
                    life.resets.push(message["reason"].as_str().expect("a reason").to_owned());
                    life.numbers.clear();
                }
            }
            Sent::Close(code) => life.closed = Some(code),
            Sent::End | Sent::Truncated => return life,
            Sent::Ping(_) | Sent::Pong(_) => {}
        }
        let due = Duration::from_secs_f64(read as f64 / READ_RATE as f64);
        thread::sleep(due.saturating_sub(began.elapsed()));
    }
}

/// Sends events of `a` at [`SENT_RATE`], `first` at once, until it is told to stop.
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
fn who_reads_more_slowly_than_events_come_is_told_and_never_cut_within_a_frame() {
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
        let lives: Vec<_> = live.into_iter().chain(back).map(|client| scope.spawn(|| read_slowly(client))).collect();
        let lives: Vec<_> = lives.into_iter().map(|life| life.join().expect("it reads good frames")).collect();
        stop.store(true, Ordering::Relaxed);
        for (index, life) in lives.iter().enumerate() {
            let resets: &[&str] = if index < EACH { &[] } else { &["lagged"] };
            assert_eq!(
                (&life.resets[..], life.closed),
                (&resets.iter().map(|&reset| reset.to_owned()).collect::<Vec<_>>()[..], Some(1013)),
                "client {index}"
            );
            assert!(life.numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "client {index} misses some");
            assert!(!life.numbers.is_empty(), "client {index} goes on live");
        }
    });
}
