//! Clients that read less than there is for them, on real sockets.

use std::path::PathBuf;

use loadtest::client::WITHIN;
use loadtest::client::raw::{Raw, Sent};
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
